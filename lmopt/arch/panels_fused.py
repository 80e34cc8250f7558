"""Products with a matrix that is laid out for them once, on a CPU, by a kernel of our own in C++ (panels_fused.cpp).

Decoding one token multiplies a vector by every matrix of a model, which takes the time of reading them. Here they are
read in the order in which they lie; a norm before the product, an activation or a sum behind it are done on the way
(docs/techniques/generation.md). Many rows are multiplied by oneDNN, with the same matrix.

Letters: N rows, D inputs, F outputs (of each part where there is a gate beside them), P panels of `PANEL` outputs, W
words of an output.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import _get_current_dispatch_mode

from lmopt import native
from lmopt.arch import formulas, fused
from lmopt.arch.activation import Kind
from lmopt.arch.numbers import TILES

PANEL = 64
"""Outputs that lie side by side."""
FEW_ROWS = 8 if TILES else 32
"""More rows are multiplied as matrices: where there are no tiles for that, 32 take 0.9 of the time of oneDNN's product
in bfloat16, and as long as it in 8 bits (`benchmarks/decode.py --products`)."""
MOST_INPUTS = 2**16
"""So many products of bytes have a sum within 32 bits."""
BEHIND: dict[Kind | None, int] = {None: 0, "swiglu": 1, "relu2": 2}
"""What is done to the outputs, as the kernel numbers it."""
SHIFT = 128
"""What bytes of activations, which have no sign, are more than the numbers they stand for."""


def suits(device: torch.device, outputs: int, inputs: int, activation: Kind | None = None) -> bool:
    """Whether the kernel is there and made for a matrix of this shape. The first call compiles it."""
    parts = 2 if activation == "swiglu" else 1
    unit = 1 if activation is None else parts * native.MULTIPLE
    whole = inputs % native.MULTIPLE == 0 and outputs % unit == 0 and outputs > 0
    return device.type == "cpu" and whole and 0 < inputs <= MOST_INPUTS and fused.obstacle() is None


def is_watched() -> bool:
    """Whether a counter, or anything else that torch hands its operators to, shall see every product."""
    return _get_current_dispatch_mode() is not None


def _seen(x: Tensor, outputs: int) -> Tensor:
    del outputs
    return x.new_empty(0)


def _flops(x: formulas.Shape, outputs: int, **_: Any) -> int:
    return 2 * math.prod(x) * outputs


_library = torch.library.Library("lmopt", "FRAGMENT")
_library.define("panels_multiplied(Tensor x, int outputs) -> Tensor")
_library.impl("panels_multiplied", _seen, "CPU")
formulas.counted_by(_flops, "lmopt::panels_multiplied")


def announce(x: Tensor, outputs: int) -> None:
    """Say that rows ... x D are multiplied by a matrix of so many outputs."""
    torch.ops.lmopt.panels_multiplied(x, outputs)


class Panels:
    """A matrix F x D in panels, of bfloat16 or of 8-bit numbers with a scale an output.

    Args:
        weight_FD: bfloat16, or whole numbers w = q x scale (int8).
        scale_F: of 8-bit numbers.
        activation: what is done to the outputs; of SwiGLU's the first half are the gate's.
        two_bytes: of 8-bit numbers, whether activations are whole numbers of 16 bits (65,025 levels a row, finer than
            bfloat16's 8 bits) or of 8. Products of whole numbers and their sums are exact.
    """

    def __init__(
        self,
        weight_FD: Tensor,
        scale_F: Tensor | None = None,
        activation: Kind | None = None,
        *,
        two_bytes: bool = True,
    ) -> None:
        outputs, self.inputs = weight_FD.shape
        self.outputs = outputs // 2 if activation == "swiglu" else outputs
        self.computed = -(-self.outputs // native.MULTIPLE) * native.MULTIPLE  # with those that fill up a register
        self.activation, self.two_bytes = activation, two_bytes
        filled_FD = _filled(weight_FD.detach(), self.outputs)
        words = filled_FD.view(-1, PANEL, self.inputs * weight_FD.itemsize // 4, 4 // weight_FD.itemsize)
        self.panels_PWE = words.transpose(1, 2).contiguous()
        self.scale_F = self.shift_F = None
        if scale_F is not None:
            self.scale_F = _filled(scale_F.float(), self.outputs)
            self.shift_F = _filled(weight_FD.sum(1, dtype=torch.int32) * SHIFT, self.outputs)
        self.nbytes = weight_FD.nbytes + (0 if scale_F is None else 4 * len(scale_F))

    def multiply(
        self, x_ND: Tensor, gains_D: Tensor | None = None, eps: float = 0.0, others_NF: Tensor | None = None
    ) -> Tensor:
        """The activation of x W^T, N x F. What it is given is trusted: contiguous bfloat16 rows, float32 gains.

        Args:
            gains_D: of an RMSNorm that the rows go through first.
            others_NF: added to the result.
        """
        self.tell(x_ND)
        if others_NF is not None and self.computed > self.outputs:
            others_NF = functional.pad(others_NF, (0, self.computed - self.outputs))
        y_NF = x_ND.new_empty(len(x_ND), self.computed)
        many, how = _many(x_ND), (torch.get_num_threads(), BEHIND[self.activation])
        if many and gains_D is not None:
            x_ND, gains_D = _normed(x_ND, gains_D, eps), None
        if many:
            operands = x_ND, self.panels_PWE, self.scale_F, others_NF, y_NF
            fused.run("multiply_many", many, self.inputs, self.computed, *how, *operands)
        if many < len(x_ND):
            rest_NF = None if others_NF is None else others_NF[many:]
            self._multiply_few(x_ND[many:], gains_D, eps, rest_NF, y_NF[many:])
        return y_NF[:, : self.outputs]

    def tell(self, x: Tensor) -> None:
        """Those who watch operators do not see a kernel's call on rows ... x D: they get one that computes nothing."""
        if is_watched():
            announce(x, self.outputs * (2 if self.activation == "swiglu" else 1))

    def _multiply_few(
        self, x_ND: Tensor, gains_D: Tensor | None, eps: float, others_NF: Tensor | None, y_NF: Tensor
    ) -> None:
        sizes = len(x_ND), self.inputs, self.computed, torch.get_num_threads(), eps, BEHIND[self.activation]
        if self.scale_F is None:
            fused.run("multiply_panels", *sizes, x_ND, self.panels_PWE, gains_D, others_NF, y_NF)
            return
        matrix = self.panels_PWE, self.scale_F, self.shift_F
        fused.run("multiply_byte_panels", self.two_bytes, *sizes, x_ND, *matrix, gains_D, others_NF, y_NF)

    def multiply_to_float(self, x_ND: Tensor) -> Tensor:
        """x W^T of a bfloat16 matrix without activation, in the float32 that sums have: N x F."""
        self.tell(x_ND)
        y_NF = x_ND.new_empty(len(x_ND), self.computed, dtype=torch.float32)
        many, sizes = _many(x_ND), (self.inputs, self.computed, torch.get_num_threads())
        if many:
            fused.run("multiply_many_to_float", many, *sizes, x_ND, self.panels_PWE, y_NF)
        if many < len(x_ND):
            rest = x_ND[many:], self.panels_PWE, y_NF[many:]
            fused.run("multiply_panels_to_float", len(x_ND) - many, *sizes, *rest)
        return y_NF[:, : self.outputs]


def _many(x_ND: Tensor) -> int:
    """How many rows are multiplied as matrices; the rest are a few."""
    return len(x_ND) // native.MULTIPLE * native.MULTIPLE if len(x_ND) > FEW_ROWS else 0


def _normed(x_ND: Tensor, gains_D: Tensor, eps: float) -> Tensor:
    y_ND, scale_N = torch.empty_like(x_ND), x_ND.new_empty(len(x_ND), dtype=torch.float32)
    fused.run("norm_forward", *x_ND.shape, eps, torch.get_num_threads(), x_ND, gains_D, y_ND, scale_N)
    return y_ND


def _filled(x: Tensor, outputs: int) -> Tensor:
    """With zeros behind every `outputs` of its first dimension, up to whole panels."""
    parts = [functional.pad(part, (0, 0) * (x.dim() - 1) + (0, -outputs % PANEL)) for part in x.split(outputs)]
    return torch.cat(parts).contiguous()
