"""Number formats of training, as plain data.

`arithmetic` names the format whose measured rate on a machine plans and MFU refer to; `weight_bytes` and `copy_bytes`
say what a parameter takes as it is kept and as products read it.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from lmopt.techniques.technique import Technique

Arithmetic = Literal["fp32", "bf16"]
BF16_CAPABILITY = (8, 0)
"""First CUDA compute capability with bfloat16 arithmetic (Ampere)."""


class Fp32(Technique):
    """Single precision throughout."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    arithmetic: ClassVar[Arithmetic] = "fp32"
    weight_bytes: ClassVar[int] = 4
    copy_bytes: ClassVar[int] = 0
    kind: Literal["fp32"] = "fp32"


class Bf16(Technique):
    """bfloat16 matrix products with float32 master weights and optimizer state (Micikevicius et al., 1710.03740)."""

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    weight_bytes: ClassVar[int] = 4
    copy_bytes: ClassVar[int] = 2
    kind: Literal["bf16"] = "bf16"


class Bf16Stochastic(Technique):
    """Matrices in bfloat16, no master weights: each update is rounded up or down at random, right on average.

    A weight between two bfloat16 numbers becomes the upper one with probability (w - lower) / (upper - lower)
    (Gupta et al., 1502.02551; for bfloat16 weights Zamirai et al., 2010.06192). Moments stay float32.
    """

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    weight_bytes: ClassVar[int] = 2
    copy_bytes: ClassVar[int] = 0
    kind: Literal["bf16_sr"] = "bf16_sr"


class Int8(Technique):
    """8-bit products in the linear layers of the blocks, with float32 master weights; the rest as `bf16`.

    Each factor is scaled to absmax / 127 along the dimension that a product sums over. The defaults are SwitchBack
    (Wortsman et al., 2304.13013): the gradient of the weights, which sums over all tokens, stays in bfloat16.
    """

    builder: ClassVar[str] = "lmopt.compute.precision:build"
    arithmetic: ClassVar[Arithmetic] = "bf16"
    weight_bytes: ClassVar[int] = 4
    copy_bytes: ClassVar[int] = 2
    kind: Literal["int8"] = "int8"
    forward: bool = True
    """The product of the forward pass in 8 bits."""
    grad_input: bool = True
    """The product that makes the gradient of a layer's input in 8 bits."""
    grad_weight: bool = False
    """The product that makes the gradient of a layer's weights in 8 bits."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """How gradients are rounded to 8 bits; stochastic rounding has no bias."""
    outliers: Literal["none", "smooth"] = "none"
    """`smooth`: what enters a feed-forward's last matrix is scaled to its largest value channel by channel, and the
    matrix by the inverse (Fishman et al., 2409.12517, section 5), since gated units grow outliers there."""
