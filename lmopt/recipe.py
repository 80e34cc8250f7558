"""One run in full, typed: every choice a training makes, as plain frozen data.

A *technique* is one class here (its knobs, `kind: Literal[...]`) plus one builder in
its own file, named by `builder` and imported only when it is used, so that describing
and checking a run needs no torch. A package outside this one adds a technique by an
entry point in the group `lmbench.techniques` whose name is `SEAM.KIND` (for example
`ffn.mine`) and whose value is its config class; the class joins the union of that seam.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from lmopt.quantities import Count, Share

ENTRY_POINT_GROUP = "lmbench.techniques"
MAX_LAYERS = 1024
MAX_WIDTH = 131_072
MAX_CONTEXT = 16_777_216

Positive = Annotated[Count, Field(gt=0)]


class Plain(BaseModel):
    """Frozen data: unknown keys are refused, docstrings under fields become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Technique(Plain):
    """A choice at one seam. `builder` is `module:function`, imported when the run needs it."""

    builder: ClassVar[str]


def builder(technique: Technique) -> Callable[..., Any]:
    """The function that turns a technique's description into the working part.

    Raises:
        LookupError: the module or function named by the description is not there.
    """
    module, _, function = type(technique).builder.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"technique {technique!r}: cannot load its builder {module}:{function} ({error})") from error


@functools.cache
def plugins(seam: str) -> tuple[type[Technique], ...]:
    """Techniques that other installed packages offer at `seam`. A broken one is skipped; `doctor` names it."""
    found: list[type[Technique]] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name.partition(".")[0] != seam:
            continue
        try:
            config = entry.load()
        except Exception:  # noqa: BLE001 - foreign code: whatever it raises must not break every suite
            continue
        if isinstance(config, type) and issubclass(config, Technique):
            found.append(config)
    return tuple(found)


def _union(seam: str, *own: type[Technique]) -> Any:
    """The discriminated union of all techniques at a seam, those of other packages included."""
    members = own + plugins(seam)
    if len(members) == 1:
        return members[0]
    return Annotated[functools.reduce(operator.or_, members), Field(discriminator="kind")]


# --- model ---------------------------------------------------------------------------------------


class Model(Plain):
    """Shape of the decoder: pre-norm, RMSNorm, rotary positions, no biases."""

    layers: Annotated[Positive, Field(le=MAX_LAYERS)]
    """Number of Transformer blocks."""
    width: Annotated[Positive, Field(le=MAX_WIDTH)]
    """Size of the residual stream (d_model)."""
    heads: Annotated[Positive, Field(le=MAX_WIDTH)]
    """Query heads; must divide `width`, and width / heads must be even (rotary pairs)."""
    kv_heads: Annotated[Positive, Field(le=MAX_WIDTH)] | None = None
    """Key and value heads (grouped-query attention); must divide `heads`. Default: `heads`."""
    vocab: Annotated[Positive, Field(le=16_777_216)] | None = None
    """Vocabulary size. A suite fills it in from its tokenizer."""
    context: Annotated[Positive, Field(le=MAX_CONTEXT)] = 256
    """Longest sequence in tokens."""
    tied_head: bool = True
    """Share the embedding matrix with the output head."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head (beyond the paper)."""
    rope_base: Annotated[float, Field(gt=1, le=1e9)] = 10_000.0
    """Base of the rotary frequencies (Su et al., arXiv 2104.09864)."""
    norm_eps: Annotated[float, Field(gt=0, le=1e-2)] = 1e-5
    """Epsilon of RMSNorm."""
    init_stream: Annotated[Count, Field(le=2**31)] = 0
    """Another number draws another initialisation at the same seed and data order (for A/A controls)."""

    @property
    def key_heads(self) -> int:
        """Key and value heads, with the default filled in."""
        return self.kv_heads or self.heads

    @property
    def head_width(self) -> int:
        """Size of one attention head."""
        return self.width // self.heads

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"heads ({self.heads}) must divide width ({self.width})")
        if self.head_width % 2:
            raise ValueError(f"width / heads = {self.head_width} must be even: rotary positions turn pairs")
        if self.heads % self.key_heads:
            raise ValueError(f"kv_heads ({self.key_heads}) must divide heads ({self.heads})")
        return self


# --- feed-forward --------------------------------------------------------------------------------


class SwiGlu(Technique):
    """Gated feed-forward, silu(x W_gate) * (x W_up) W_down (Shazeer, arXiv 2002.05202)."""

    builder: ClassVar[str] = "lmopt.arch.ffn:build"
    kind: Literal["swiglu"] = "swiglu"
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width. Default: 8/3 of the model's width, rounded up to a multiple of 32."""

    def hidden_for(self, width: int) -> int:
        """Inner width in a model of this width."""
        return self.hidden or -(-8 * width // (3 * 32)) * 32


class Relu2(Technique):
    """Squared-ReLU feed-forward, relu(x W_up)^2 W_down (So et al., arXiv 2109.08668)."""

    builder: ClassVar[str] = "lmopt.arch.ffn:build"
    kind: Literal["relu2"] = "relu2"
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width. Default: 4 x the model's width."""

    def hidden_for(self, width: int) -> int:
        """Inner width in a model of this width."""
        return self.hidden or 4 * width


class Moe(Technique):
    """Sparsely-gated Mixture-of-Experts: each token goes to its `top_k` experts, none is dropped.

    Shazeer et al. (arXiv 1701.06538), dropless as in MegaBlocks (2211.15841); balance loss
    (E/k) sum_e (n_e/T) mean_t p_te, which is 1 when the load is uniform; router z-loss as in ST-MoE (2202.08906).
    """

    builder: ClassVar[str] = "lmopt.arch.moe:build"
    kind: Literal["moe"] = "moe"
    experts: Annotated[Positive, Field(le=4096)] = 8
    """Number of experts."""
    top_k: Annotated[Positive, Field(le=4096)] = 2
    """Experts each token is sent to."""
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of one expert. Default: the dense default / `top_k`, so that active parameters match."""
    activation: Literal["swiglu", "relu2"] = "swiglu"
    """Shape of an expert."""
    balance_loss: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Weight of the load-balance loss."""
    z_loss: Annotated[float, Field(ge=0, le=10)] = 0.001
    """Weight of the router z-loss, mean(logsumexp(router logits)^2)."""
    kernel: Literal["auto", "grouped", "loop"] = "auto"
    """`grouped`: one grouped matrix product; `loop`: one product an expert (the reference); `auto`: the faster here."""

    def hidden_for(self, width: int) -> int:
        """Inner width of one expert in a model of this width, rounded up to a multiple of 8 (grouped products)."""
        dense = (SwiGlu() if self.activation == "swiglu" else Relu2()).hidden_for(width)
        return self.hidden or -(-dense // (8 * self.top_k)) * 8

    @model_validator(mode="after")
    def _top_k_fits(self) -> Self:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self


Ffn = _union("ffn", SwiGlu, Relu2, Moe)


# --- precision -----------------------------------------------------------------------------------


class Fp32(Technique):
    """Single precision throughout."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    kind: Literal["fp32"] = "fp32"


class Bf16(Technique):
    """bfloat16 matrix products with float32 master weights and optimizer state (Micikevicius et al., 1710.03740)."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    kind: Literal["bf16"] = "bf16"


Precision = _union("precision", Fp32, Bf16)


# --- optimizer, schedule, batches ----------------------------------------------------------------


class AdamW(Technique):
    """Adam with decoupled weight decay (Loshchilov & Hutter, 1711.05101); no decay on norms and embeddings."""

    builder: ClassVar[str] = "lmopt.train.optimizer:build"
    kind: Literal["adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0, le=10)] = 3e-3
    """Peak learning rate."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """Decay of the first and second moments."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.1
    """Decoupled weight decay of matrices."""
    clip: Annotated[float, Field(gt=0, le=1e6)] | None = 1.0
    """Largest global gradient norm; null switches clipping off."""


Optimizer = _union("optimizer", AdamW)


class Cosine(Technique):
    """Linear warm-up, then half a cosine down to `final` of the peak (Loshchilov & Hutter, 1608.03983)."""

    builder: ClassVar[str] = "lmopt.train.optimizer:schedule"
    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.02
    """Share of the steps spent warming up (at least one step)."""
    final: Share = 0.1
    """Learning rate at the end, as a share of the peak."""


Schedule = _union("schedule", Cosine)


class FixedBatch(Technique):
    """The same number of sequences of the same length at every step."""

    builder: ClassVar[str] = "lmopt.data.batches:build"
    kind: Literal["fixed"] = "fixed"
    sequences: Annotated[Positive, Field(le=2**24)] = 16
    """Sequences a step (the global batch)."""
    length: Annotated[Positive, Field(le=MAX_CONTEXT)] = 256
    """Tokens a sequence."""
    micro_sequences: Annotated[Positive, Field(le=2**24)] | None = None
    """Sequences a forward pass; gradients accumulate over sequences / micro_sequences passes. Default: all at once."""

    @model_validator(mode="after")
    def _micro_divides(self) -> Self:
        if self.micro_sequences and self.sequences % self.micro_sequences:
            raise ValueError(f"micro_sequences ({self.micro_sequences}) must divide sequences ({self.sequences})")
        return self

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.sequences * self.length


Batching = _union("batching", FixedBatch)


# --- data steps ----------------------------------------------------------------------------------


class ExactDedup(Technique):
    """Drop every document whose normalised text was seen before, across sources."""

    builder: ClassVar[str] = "lmopt.data.dedup:exact"
    kind: Literal["exact_dedup"] = "exact_dedup"


class NearDedup(Technique):
    """Drop near-duplicates: MinHash over word n-grams, banded (Broder 1997; FineWeb's 14 x 8, arXiv 2406.17557)."""

    builder: ClassVar[str] = "lmopt.data.dedup:near"
    kind: Literal["near_dedup"] = "near_dedup"
    ngram: Annotated[Positive, Field(le=100)] = 5
    """Words a shingle."""
    bands: Annotated[Positive, Field(le=1000)] = 14
    """Bands of the locality-sensitive hash."""
    rows: Annotated[Positive, Field(le=100)] = 8
    """Hashes a band."""
    verify: Share | None = None
    """Also require this estimated Jaccard similarity before a document is dropped; null trusts the bands."""


DataStep = _union("data", ExactDedup, NearDedup)


# --- the recipe ----------------------------------------------------------------------------------


class Recipe(Plain):
    """One training run in full, apart from its text, its seed and its horizon."""

    model: Model
    """Shape of the decoder."""
    ffn: Ffn = SwiGlu()
    """Feed-forward of each block."""
    precision: Precision = Bf16()
    """Number formats of training."""
    optimizer: Optimizer = AdamW()
    """Optimizer and gradient clipping."""
    schedule: Schedule = Cosine()
    """Learning rate over the run; every horizon anneals fully."""
    batching: Batching = FixedBatch()
    """How steps are filled with tokens."""
    data: tuple[DataStep, ...] = ()
    """Steps that the training text goes through, in order, before it is tokenised."""
    compile: bool = False
    """Compile the training step (torch.compile); compilation time is booked apart."""
    tokens: Positive
    """Training tokens at horizon 1.0."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        length = getattr(self.batching, "length", None)
        if length is not None and length > self.model.context:
            raise ValueError(f"batching.length ({length}) must not exceed model.context ({self.model.context})")
        per_step = getattr(self.batching, "tokens", None)
        if per_step is not None and per_step > self.tokens:
            raise ValueError(f"tokens ({self.tokens}) is less than one step of {per_step} tokens")
        return self

    def steps(self, horizon: float) -> int:
        """Optimizer steps at a horizon: horizon x tokens, rounded to whole steps (at least one)."""
        return max(1, round(horizon * self.tokens / self.batching.tokens))


SEAMS: dict[str, Any] = {
    "ffn": Ffn,
    "precision": Precision,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "batching": Batching,
    "data": DataStep,
}
"""Every seam with its union of techniques."""


def techniques() -> Iterator[tuple[str, type[Technique]]]:
    """(seam, config class) for every technique known here, built in or from another package."""
    for seam, union in SEAMS.items():
        if isinstance(union, type):
            yield seam, union
        else:
            yield from ((seam, member) for member in union.__origin__.__args__)
