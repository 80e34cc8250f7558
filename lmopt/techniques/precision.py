"""Number formats of training, as plain data."""

from __future__ import annotations

from typing import ClassVar, Literal

from lmopt.techniques.technique import Technique


class Fp32(Technique):
    """Single precision throughout."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    kind: Literal["fp32"] = "fp32"


class Bf16(Technique):
    """bfloat16 matrix products with float32 master weights and optimizer state (Micikevicius et al., 1710.03740)."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    kind: Literal["bf16"] = "bf16"
