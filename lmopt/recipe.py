"""One run in full, typed: every choice a training makes, as plain frozen data.

A *technique* is one class in `lmopt/techniques/` (its knobs, `kind: Literal[...]`) that joins the union of its seam
here, plus one builder in its own file, named by `builder` and imported only when it is used, so that describing and
checking a run needs no torch.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lmopt.quantities import Count, possible
from lmopt.techniques.activations import KeepActivations, Recompute
from lmopt.techniques.augmentation import BackTranslation
from lmopt.techniques.batching import (
    AdaptiveMicro,
    BatchRamp,
    FixedBatch,
    LengthWarmup,
    NoiseRamp,
    Packed,
    Phase,
)
from lmopt.techniques.datastep import ExactDedup, NearDedup, NgramOverlap, SubstringDedup
from lmopt.techniques.decoding import EarlyExit, OneByOne, Speculative
from lmopt.techniques.difficulty import Difficulty
from lmopt.techniques.feedforward import Moe, Relu2, SwiGlu, Wasteful
from lmopt.techniques.filters import C4, Classifier, FineWeb, GopherQuality, GopherRepetition, Language
from lmopt.techniques.infilling import Infilling
from lmopt.techniques.objective import Distillation, LayerSkip, NextToken
from lmopt.techniques.optimizer import AdamW, AdamW8bit, Cosine
from lmopt.techniques.order import Curriculum, Shuffled
from lmopt.techniques.placement import Anywhere, Bound, FirstTouch, Interleaved
from lmopt.techniques.precision import Bf16, Bf16Stochastic, Fp32, Int8
from lmopt.techniques.start import Scratch, TeacherLayers, Upcycled, unlike_teacher
from lmopt.techniques.technique import (
    ENTRY_POINT_GROUP,
    MAX_CONTEXT,
    MAX_LAYERS,
    MAX_WIDTH,
    Plain,
    Positive,
    Technique,
    builder,
    plugins,
)

__all__ = [
    "C4", "ENTRY_POINT_GROUP", "MAX_CONTEXT", "MAX_LAYERS", "MAX_WIDTH", "SEAMS", "Activations", "AdamW",
    "AdamW8bit", "AdaptiveMicro", "Anywhere", "BackTranslation", "BatchRamp", "Batching", "Bf16", "Bf16Stochastic",
    "Bound", "Classifier", "Cosine", "Curriculum", "DataStep", "Decoding", "Difficulty", "Distillation", "EarlyExit",
    "ExactDedup",
    "Ffn", "FineWeb", "FirstTouch", "FixedBatch", "Fp32", "GopherQuality", "GopherRepetition", "Infilling", "Int8",
    "Interleaved", "KeepActivations", "Language", "LayerSkip", "LengthWarmup", "Model", "Moe", "NearDedup",
    "NextToken", "NgramOverlap", "NoiseRamp", "Objective", "OneByOne", "Optimizer", "Order", "Packed", "Phase",
    "Placement", "Plain", "Positive", "Precision", "Recipe", "Recompute", "Relu2", "Schedule", "Scratch",
    "Shuffled", "Speculative", "Start", "SubstringDedup", "SwiGlu", "TeacherLayers", "Technique", "Upcycled",
    "Wasteful", "builder", "plugins", "techniques",
]  # fmt: skip


def _union(seam: str, *own: type[Technique]) -> Any:
    """The discriminated union of all techniques at a seam, those of other packages included."""
    members = own + plugins(seam)
    if len(members) == 1:
        return members[0]
    return Annotated[functools.reduce(operator.or_, members), Field(discriminator="kind")]


Ffn = _union("ffn", SwiGlu, Relu2, Moe, Wasteful)
Precision = _union("precision", Fp32, Bf16, Bf16Stochastic, Int8)
Optimizer = _union("optimizer", AdamW, AdamW8bit)
Schedule = _union("schedule", Cosine)
Objective = _union("objective", NextToken, LayerSkip, Distillation)
Activations = _union("activations", KeepActivations, Recompute)
Batching = _union("batching", FixedBatch, LengthWarmup, BatchRamp, NoiseRamp, AdaptiveMicro, Packed)
Placement = _union("placement", Anywhere, Bound, FirstTouch, Interleaved)
Start = _union("start", Scratch, Upcycled, TeacherLayers)
Order = _union("order", Shuffled, Curriculum)
Decoding = _union("decoding", OneByOne, EarlyExit, Speculative)
DataStep = _union(
    "data", ExactDedup, NearDedup, SubstringDedup, NgramOverlap,
    GopherQuality, GopherRepetition, C4, FineWeb, Language, Classifier,
    BackTranslation, Infilling, Difficulty,
)  # fmt: skip


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
    """RMS-normalise queries and keys (beyond the paper)."""
    qk_norm_over: Literal["head", "all"] = "head"
    """What `qk_norm` normalises: each head by itself, or all heads together as in OLMoE (arXiv 2409.02060)."""
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

    def misfits(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"heads ({self.heads}) must divide width ({self.width})"
        elif self.head_width % 2:
            yield f"width / heads = {self.head_width} must be even: rotary positions turn pairs"
        if self.heads % self.key_heads:
            yield f"kv_heads ({self.key_heads}) must divide heads ({self.heads})"


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
    objective: Objective = NextToken()
    """What training descends."""
    activations: Activations = KeepActivations()
    """What a forward pass keeps for the backward pass."""
    batching: Batching = FixedBatch()
    """How steps are filled with tokens."""
    placement: Placement = Anywhere()
    """Where threads run and memory lies on a machine of several NUMA nodes."""
    start: Start = Scratch()
    """Weights that training starts from."""
    order: Order = Shuffled()
    """In which order the windows of text are seen."""
    data: tuple[DataStep, ...] = ()
    """Steps that the training text goes through, in order, before it is tokenised."""
    compile: bool | Literal["auto"] = False
    """Compile the training step (torch.compile); compilation time is booked apart. `auto`: on a GPU only, where the
    objective allows it and its compiler works; records say what came of it."""
    tokens: Positive
    """Training tokens at horizon 1.0."""

    @model_validator(mode="before")
    @classmethod
    def _default_kinds(cls, data: Any) -> Any:
        """A technique described without its `kind` is the one that its seam has by default."""
        if not isinstance(data, Mapping):
            return data
        filled = dict(data)
        for name, field in cls.model_fields.items():
            kind = getattr(field.default, "kind", None)
            if kind is not None and isinstance(filled.get(name), Mapping):
                filled[name] = {"kind": kind, **filled[name]}
        return filled

    def misfits(self) -> Iterator[str]:
        length = getattr(self.batching, "length", None)
        if length is not None and length > self.model.context:
            yield f"batching.length ({length}) must not exceed model.context ({self.model.context})"
        per_step = getattr(self.batching, "tokens", None)
        if per_step is not None and per_step > self.tokens:
            yield f"tokens ({self.tokens}) is less than one step of {per_step} tokens"
        if isinstance(self.start, Upcycled) and not isinstance(self.ffn, Moe):
            yield f"start (upcycled) makes experts of a dense layer, but ffn is {self.ffn.kind}"
        if isinstance(self.start, TeacherLayers) and not isinstance(self.objective, Distillation):
            yield f"start (teacher_layers) takes a teacher's layers, but objective is {self.objective.kind}"
        if isinstance(self.objective, Distillation):
            yield from self._teacher_misfits(self.objective)
        if isinstance(self.objective, LayerSkip):
            yield from self._exit_misfits(self.objective)
        yield from self._order_misfits()

    def _teacher_misfits(self, objective: Distillation) -> Iterator[str]:
        if self.compile is True:
            yield "objective distillation runs a second model: it cannot be compiled"
        if not objective.asks_teacher and isinstance(self.start, Scratch):
            yield (
                "objective.probabilities and objective.hidden are 0, and start is scratch: nothing comes of the "
                "teacher that is charged; hint: start: {kind: teacher_layers}"
            )
        if objective.shape is None:
            return
        theirs, name = Model.model_validate(objective.shape["model"]), f"objective.teacher ({objective.teacher})"
        if theirs.vocab != self.model.vocab:
            yield f"{name} knows {theirs.vocab} tokens, the student {self.model.vocab}"
        if theirs.context < self.model.context:
            yield f"{name} has a context of {theirs.context}, the student one of {self.model.context}"
        if objective.hidden and theirs.width != self.model.width:
            yield (
                f"objective.hidden ({objective.hidden:g}) aligns states, and those of {objective.teacher} have width "
                f"{theirs.width}, the student's {self.model.width}; hint: set `hidden: 0`"
            )
        reason = unlike_teacher(self, self.teacher) if isinstance(self.start, TeacherLayers) and self.teacher else None
        if reason:
            yield f"start (teacher_layers) cannot take layers of {objective.teacher}: {reason}"

    def _exit_misfits(self, objective: LayerSkip) -> Iterator[str]:
        beyond = [layer for layer in objective.exits if layer >= self.model.layers]
        if beyond:
            yield (
                f"objective.exits {beyond} of a model of {self.model.layers} layers: "
                f"{possible(1, self.model.layers - 1)}"
            )
        if self.compile is True:
            yield "objective layer_skip leaves out other layers each step: it cannot be compiled"

    def _order_misfits(self) -> Iterator[str]:
        if self.order.kind == "curriculum" and all(step.kind != "difficulty" for step in self.data):
            yield "order curriculum needs the step {kind: difficulty} in `data`, behind the others"
        measured = next((place for place, step in enumerate(self.data) if step.kind == "difficulty"), len(self.data))
        if later := [step.kind for step in self.data[measured:] if step.makes_text]:
            yield f"data: {later[0]} makes text that the step difficulty before it has not measured; swap them"
        if self.order.kind == "curriculum" and self.batching.kind == "packed":
            yield "order curriculum orders windows of text, and batching packed has none; allowed: the others"

    def compiles_on(self, device: str) -> bool:
        """Whether its step is compiled on a type of device, `cpu` or `cuda`."""
        if self.compile == "auto":
            return device == "cuda" and isinstance(self.objective, NextToken)
        return self.compile

    @property
    def teacher(self) -> Recipe | None:
        """The model that its objective learns from, as far as a forward pass of it goes; None where there is none."""
        shape = getattr(self.objective, "shape", None)
        if shape is None:
            return None
        batching = FixedBatch(sequences=1, length=self.batching.length)
        return Recipe.model_validate(
            {**shape, "precision": self.precision, "batching": batching, "tokens": self.batching.length}
        )

    def phases(self, horizon: float) -> tuple[Phase, ...]:
        """What the steps at a horizon are like, as far as it is known before the training."""
        return self.batching.phases(horizon * self.tokens)

    def steps(self, horizon: float) -> int:
        """Optimizer steps at a horizon: horizon x tokens, rounded to whole steps (at least one).

        Where batches grow as the training finds fit, the most that there can be.
        """
        return sum(phase.steps for phase in self.phases(horizon))

    def trained_tokens(self, horizon: float) -> int:
        """Tokens of all steps at a horizon."""
        portions = sum(phase.steps * phase.portions for phase in self.phases(horizon))
        return portions * self.batching.portion * self.batching.length


SEAMS: dict[str, Any] = {
    "ffn": Ffn,
    "precision": Precision,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "objective": Objective,
    "activations": Activations,
    "batching": Batching,
    "placement": Placement,
    "start": Start,
    "order": Order,
    "data": DataStep,
    "decoding": Decoding,
}
"""Every seam with its union of techniques; `decoding` is chosen beside the recipe, for a model that is trained."""


def techniques() -> Iterator[tuple[str, type[Technique]]]:
    """(seam, config class) for every technique known here, built in or from another package."""
    for seam, union in SEAMS.items():
        if isinstance(union, type):
            yield seam, union
        else:
            yield from ((seam, member) for member in union.__origin__.__args__)
