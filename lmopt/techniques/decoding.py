"""How text is generated, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Bytes, Share
from lmopt.techniques.technique import MAX_LAYERS, Plain, Positive, Sha256, Technique

Temperature = Annotated[float, Field(ge=0, le=100)]
Weights = Literal["fp32", "bf16", "int8", "int8_dynamic"]
Layer = Annotated[Positive, Field(le=MAX_LAYERS)]
MAX_CORPUS_BYTES = 10**9
MAX_CORPUS_NGRAM = 8
"""Every size of n-gram has a table of its own."""


class Sampling(Plain):
    """How a token is drawn from logits: temperature first, then `top_k`, then `top_p` (Hugging Face's order)."""

    temperature: Temperature = 0.0
    """Logits are divided by it; 0 takes the likeliest token (the lowest id among equals)."""
    top_k: Annotated[Positive, Field(le=16_777_216)] | None = None
    """Only this many likeliest tokens stay, and those that tie with the last of them; null keeps all."""
    top_p: Annotated[Share, Field(gt=0)] | None = None
    """Only the fewest likeliest tokens whose probabilities reach this sum stay (Holtzman et al., 1904.09751)."""

    def misfits(self) -> Iterator[str]:
        for name in ("top_k", "top_p"):
            if self.greedy and getattr(self, name) is not None:
                yield f"{name} changes nothing at temperature 0, which takes the likeliest token; hint: temperature: 1"

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0


class OneByOne(Technique):
    """A token a pass through the whole model, over a cache of keys and values."""

    builder: ClassVar[str] = "lmopt.infer.decoding:one_by_one"
    kind: Literal["one_by_one"] = "one_by_one"
    weights: Weights = "bf16"
    """Format of the weight matrices: `fp32`, `bf16`, `int8` (a byte a weight, a scale an output), or `int8_dynamic`
    (activations in 8 bits too, scaled row by row)."""


class EarlyExit(Technique):
    """A token leaves the model behind the first exit that is sure enough of it (CALM, arXiv 2207.07061)."""

    builder: ClassVar[str] = "lmopt.infer.decoding:early_exit"
    kind: Literal["early_exit"] = "early_exit"
    exits: Annotated[tuple[Layer, ...], Field(min_length=1)]
    """Layers behind which a token may leave, ascending."""
    measure: Literal["gap", "confidence", "similarity"] = "gap"
    """`gap`: p1 - p2 of the two likeliest tokens; `confidence`: p1; `similarity`: cosine of the states before and
    behind the layer."""
    threshold: Share | None = None
    """Confidence at and above which a token leaves; 1 is full depth. null: calibrated to `risk` on texts of its own."""
    risk: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Of a calibrated threshold: the expected share of tokens that differ from the full model's is at most this."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Probability that the calibrated threshold exceeds the risk all the same."""
    weights: Weights = "bf16"
    """Format of the weight matrices."""

    def misfits(self) -> Iterator[str]:
        if list(self.exits) != sorted(set(self.exits)):
            yield f"exits {list(self.exits)} must ascend"
        if self.threshold is not None:
            for name in ("risk", "level"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    yield f"{name} is that of a calibrated threshold, and `threshold` is given: leave out one of them"


class ModelDraft(Plain):
    """A smaller model with the same vocabulary."""

    kind: Literal["model"] = "model"
    arm: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    """The trained arm whose model drafts; its training is part of what the draft costs."""
    hf: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """In place of an arm, where the model that is drafted for is a checkpoint: the folder of a smaller one."""
    sha256: Sha256 | None = None
    """Of the checkpoint's content; a suite fills it in, or is held to it."""

    def misfits(self) -> Iterator[str]:
        if (self.arm is None) == (self.hf is None):
            yield "a model that drafts is one `arm`, or one checkpoint (`hf`)"
        elif self.sha256 is not None and self.hf is None:
            yield "sha256 is that of a checkpoint (`hf`), and the draft is an arm"


class ExitDraft(Plain):
    """The model's own first layers and its head (LayerSkip, arXiv 2404.16710)."""

    kind: Literal["exit"] = "exit"
    layer: Layer
    """The layer that drafts leave behind."""


class LookupDraft(Plain):
    """What followed the same last tokens earlier in the text (prompt lookup; Saxena 2023), or in the corpus."""

    kind: Literal["lookup"] = "lookup"
    longest: Annotated[Positive, Field(le=64)] = 3
    """Most tokens that must agree; the longest match is taken."""
    shortest: Annotated[Positive, Field(le=64)] = 1
    """Fewest tokens that must agree."""
    corpus: Annotated[Bytes, Field(ge=1_000, le=MAX_CORPUS_BYTES)] | None = None
    """Look in the training text of the suite's corpus, too (REST, arXiv 2311.08252): in so much of it (`8MB`), in
    documents spread evenly. null: in the text itself only."""

    def misfits(self) -> Iterator[str]:
        if self.shortest > self.longest:
            yield f"shortest ({self.shortest}) must not exceed longest ({self.longest})"
        if self.corpus is not None and self.longest > MAX_CORPUS_NGRAM:
            yield f"n-grams of a corpus have at most {MAX_CORPUS_NGRAM} tokens: longest is {self.longest}"


Draft = Annotated[ModelDraft | ExitDraft | LookupDraft, Field(discriminator="kind")]


class Speculative(Technique):
    """A draft proposes tokens, the model checks them in one pass (arXiv 2211.17192, 2302.01318): lossless."""

    builder: ClassVar[str] = "lmopt.infer.decoding:speculative"
    kind: Literal["speculative"] = "speculative"
    draft: Draft
    """Where proposed tokens come from."""
    draft_tokens: Annotated[Positive, Field(le=64)] = 4
    """Tokens drafted before a check, at most."""
    adaptive: bool = True
    """Draft fewer where that is faster, from how often drafts were kept so far."""
    weights: Weights = "bf16"
    """Format of the weight matrices, of the draft's too."""
