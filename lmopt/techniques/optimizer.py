"""Optimizers and schedules, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Share, Whole
from lmopt.techniques.technique import Technique


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

    @property
    def state_bytes(self) -> float:
        """Bytes of state a parameter: two float32 moments."""
        return 8


class AdamW8bit(AdamW):
    """AdamW whose two moments are kept in 8 bits, scaled block by block (Dettmers et al., 2110.02861)."""

    builder: ClassVar[str] = "lmopt.train.compact:build"
    kind: Literal["adamw_8bit"] = "adamw_8bit"  # pyright: ignore[reportIncompatibleVariableOverride]
    block: Annotated[Whole, Field(ge=16, le=65_536)] = 256
    """Numbers that share a scale."""

    @property
    def state_bytes(self) -> float:
        """Bytes of state a parameter: two codes, and two float32 scales a block."""
        return 2 + 2 * 4 / self.block


class Cosine(Technique):
    """Linear warm-up, then half a cosine down to `final` of the peak (Loshchilov & Hutter, 1608.03983)."""

    builder: ClassVar[str] = "lmopt.train.optimizer:schedule"
    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.02
    """Share of the steps spent warming up (at least one step)."""
    final: Share = 0.1
    """Learning rate at the end, as a share of the peak."""
