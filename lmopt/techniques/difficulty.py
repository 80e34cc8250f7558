"""How hard a text is, as plain data; and the small language models that data steps may train for themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Count, Whole
from lmopt.techniques.technique import MAX_LAYERS, MAX_WIDTH, Plain, Positive, Technique


class SmallModel(Plain):
    """A small decoder that a data step trains on the documents it is given. Its whole cost is the step's."""

    layers: Annotated[Positive, Field(le=MAX_LAYERS)] = 2
    """Number of Transformer blocks."""
    width: Annotated[Positive, Field(le=MAX_WIDTH)] = 64
    """Size of the residual stream."""
    heads: Annotated[Positive, Field(le=MAX_WIDTH)] = 2
    """Attention heads."""
    vocab: Annotated[Whole, Field(ge=257, le=1_000_000)] = 1024
    """Vocabulary of its own tokenizer."""
    tokens: Annotated[Positive, Field(le=10**12)] = 200_000
    """Tokens it is trained on, from a sample of the documents."""


class Difficulty(Technique):
    """Measures every document, for the curriculum that orders training by it; drops and changes nothing.

    Higher is harder. compression: zlib bytes / bytes. diversity: MTLD (McCarthy & Jarvis 2010), mean words a stretch
    until its type-token ratio falls to 0.72. readability: 1.015 words / sentences + 84.6 syllables / words, which is
    206.835 less Flesch's reading ease (1948). loss: bits a byte under a small model trained on the same documents.
    """

    builder: ClassVar[str] = "lmopt.data.difficulty:build"
    kind: Literal["difficulty"] = "difficulty"
    by: Literal["compression", "diversity", "readability", "loss"] = "compression"
    """What is measured."""
    reference: SmallModel | None = None
    """The small model of `by: loss`; null there: its defaults."""
    seed: Annotated[Count, Field(le=2**31)] = 0
    """Of the reference model: its initialisation and the order of its text."""

    def misfits(self) -> Iterator[str]:
        if self.reference is not None and self.by != "loss":
            yield f"`reference` is a part of `by: loss`, not of `by: {self.by}`"
