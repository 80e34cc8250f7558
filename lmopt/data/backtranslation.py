"""Back-translation: a text says the same in other words after a way through another language."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lmopt.data import translators
from lmopt.data.augmentation import augment
from lmopt.data.documents import Document, Dropped, Spent
from lmopt.data.sentences import join, split
from lmopt.data.translators import Translator
from lmopt.techniques.augmentation import BackTranslation


def build(config: BackTranslation, documents: Iterable[Document]) -> Iterator[Document | Dropped | Spent]:
    """The documents, then those of under-represented domains translated there and back.

    Raises:
        DataError: the translator is not here; said before the first document is read.
    """
    return augment(config, documents, BackTranslator(translators.build(config)))


class BackTranslator:
    """Translates texts sentence by sentence; what stands between sentences stays."""

    learns = False

    def __init__(self, translator: Translator) -> None:
        self._translator = translator
        self.name, self.settings = translator.name, translator.settings

    def prepare(self, documents: Iterator[Document]) -> float:  # noqa: ARG002 - nothing is trained
        """Nothing to do."""
        return 0.0

    def make(self, texts: list[str]) -> list[tuple[str, float]]:
        """(text translated there and back, FLOPs) of each."""
        parts = [split(text) for text in texts]
        flat = [sentence for sentences, _ in parts for sentence in sentences]
        back = iter(self._translator.round_trip(flat))
        found: list[tuple[str, float]] = []
        for sentences, gaps in parts:
            new = [next(back) for _ in sentences]
            flops = sum(self._translator.flops(*pair) for pair in zip(sentences, new, strict=True))
            found.append((join(new, gaps), flops))
        return found
