"""What training descends instead of plain next-token cross-entropy, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Share
from lmopt.techniques.technique import MAX_LAYERS, Positive, Technique


class NextToken(Technique):
    """Cross-entropy of each next token."""

    builder: ClassVar[str] = "lmopt.arch.transformer:next_token"
    kind: Literal["next_token"] = "next_token"

    def layer_dropout(self, layers: int) -> tuple[float, ...]:
        """Share of sequences for which each of so many layers is left out: none."""
        return (0.0,) * layers

    def executed_share(self, layers: int) -> float:  # noqa: ARG002
        """Share of the layers' work that a step does on average."""
        return 1.0

    @property
    def early_exits(self) -> int:
        """Passes through the head a step, beside the last layer's."""
        return 0


class LayerSkip(Technique):
    """Layer dropout that grows with depth, and losses at early exits through the shared head (arXiv 2404.16710)."""

    builder: ClassVar[str] = "lmopt.train.layerskip:build"
    kind: Literal["layer_skip"] = "layer_skip"
    dropout: Annotated[Share, Field(lt=1)] = 0.1
    """p_max: the last layer is left out for this share of sequences, layer l of L for p_max (2^(l/(L-1)) - 1)."""
    exits: tuple[Annotated[Positive, Field(le=MAX_LAYERS)], ...] = ()
    """Layers behind which an exit is trained, ascending; none: layer dropout alone."""
    exits_a_step: Annotated[Positive, Field(le=MAX_LAYERS)] = 1
    """Of these, so many are drawn for a step: each costs a pass through the head."""
    exit_scale: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Weight of early exits against the last (e_scale)."""

    def misfits(self) -> Iterator[str]:
        if list(self.exits) != sorted(set(self.exits)):
            yield f"exits {list(self.exits)} must ascend"
        if self.exits_a_step > max(1, len(self.exits)):
            yield f"exits_a_step ({self.exits_a_step}) exceeds the exits that there are: {list(self.exits)}"

    def layer_dropout(self, layers: int) -> tuple[float, ...]:
        """Share of sequences for which each of so many layers is left out (0 for a single layer)."""
        if layers == 1:
            return (0.0,)
        return tuple(self.dropout * (2 ** (layer / (layers - 1)) - 1) for layer in range(layers))

    def executed_share(self, layers: int) -> float:
        """Share of the layers' work that a step does on average."""
        return 1 - sum(self.layer_dropout(layers)) / layers

    @property
    def early_exits(self) -> int:
        """Passes through the head a step, beside the last layer's."""
        return min(self.exits_a_step, len(self.exits))

    def exit_weight(self, exit_layer: int, layers: int) -> float:
        """e(l) before normalisation, where layer `exit_layer` counts from 1; 0 behind the first layer."""
        index = exit_layer - 1
        if exit_layer < layers:
            return self.exit_scale * index * (index + 1) / 2
        return layers - 1 + self.exit_scale * (layers - 2) * (layers - 1) / 2


class Distillation(Technique):
    """A teacher's probabilities beside the targets (Hinton et al. 1503.02531; DistilBERT, arXiv 1910.01108)."""

    builder: ClassVar[str] = "lmopt.train.distillation:build"
    untold: ClassVar[tuple[str, ...]] = ("shape",)
    kind: Literal["distillation"] = "distillation"
    teacher: Annotated[str, Field(min_length=1, max_length=64)]
    """The arm whose model is learnt from, as it is trained to horizon 1.0 with the same seed; it stands before this one
    and is charged to it."""
    temperature: Annotated[float, Field(gt=0, le=100)] = 2.0
    """T: both models' logits are divided by it; the divergence is multiplied by its square, so that the gradients keep
    their size."""
    targets: Annotated[float, Field(ge=0, le=100)] = 0.25
    """Weight of the cross-entropy (DistilBERT's 2 of 8)."""
    probabilities: Annotated[float, Field(ge=0, le=100)] = 0.625
    """Weight of the divergence from the teacher (5 of 8)."""
    hidden: Annotated[float, Field(ge=0, le=100)] = 0.125
    """Weight of 1 - cosine between the last states (1 of 8); needs equal widths, 0 for others."""
    shape: dict[str, Any] | None = None
    """`model` and `ffn` of the teacher: what its passes cost. A suite fills it in from the arm."""

    def misfits(self) -> Iterator[str]:
        if self.targets + self.probabilities + self.hidden == 0:
            yield "targets, probabilities and hidden are all 0: nothing would be learnt"

    def layer_dropout(self, layers: int) -> tuple[float, ...]:
        """Share of sequences for which each of so many layers is left out: none."""
        return (0.0,) * layers

    def executed_share(self, layers: int) -> float:  # noqa: ARG002
        """Share of the layers' work that a step does on average."""
        return 1.0

    @property
    def asks_teacher(self) -> bool:
        """Whether the teacher is run at all: one that weighs nothing is not."""
        return self.probabilities > 0 or self.hidden > 0

    @property
    def early_exits(self) -> int:
        """Passes through the head a step, beside the last layer's: both losses are read off the same logits."""
        return 0
