"""Weight matrices as decoding wants them: cast once, laid out for the kernel once, or kept in 8 bits.

Decoding one token multiplies a vector by every matrix of the model, so its time is the time to read them. On a CPU a
product of bfloat16 through `nn.Linear` spends a third of its time laying the matrix out anew for the matrix units; a
matrix laid out beforehand takes the same time for one row as for a few, which is what makes drafts cheap to check.
8 bits halve what is read (docs/techniques/int8-decoding.md). Where there is a kernel of our own, products go there
(lmopt.arch.panels_fused), and norms, activations and sums around them; the other classes are for where there is none.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch import fused, matmul, panels_fused, rows_fused
from lmopt.arch.activation import Kind
from lmopt.arch.norm import RmsNorm
from lmopt.arch.numbers import TILES, largest_magnitude
from lmopt.arch.panels_fused import Panels
from lmopt.techniques.decoding import Weights

Format = Weights


class Norm:
    """RMSNorm with its sum in float32; gains stay float32. Of a short row torch's bookkeeping takes longest."""

    def __init__(self, norm: RmsNorm) -> None:
        self.weight_D = norm.weight.detach().float().clone(memory_format=torch.contiguous_format)
        self.eps, self.width = norm.eps, len(norm.weight)
        self.has_kernel = rows_fused.available(norm.weight.device, self.width)

    def __call__(self, x: Tensor) -> Tensor:
        if self.has_kernel and x.dtype in fused.ROW_FORMATS:
            return rows_fused.normed(x, self.weight_D, self.eps)
        high = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        scale = torch.linalg.vector_norm(high, dim=-1, keepdim=True)
        scale = scale.square_().mul_(1 / self.width).add_(self.eps).rsqrt_()
        return high.mul_(scale).mul_(self.weight_D).to(x.dtype)


class Weight(Protocol):
    """A matrix F x D to multiply rows ... x D by: ... x F, or what an activation makes of these."""

    nbytes: int
    """What one product reads of it."""

    def __call__(self, x: Tensor, *, norm: Norm | None = None, others: Tensor | None = None) -> Tensor:
        """The activation of x W^T: of normalised rows where there is a norm, added to others where there are some."""
        ...


INT8_LEVELS = 127
"""Largest magnitude stored; -128 is left out, so that the scale is symmetric."""
INT8_ROWS = 12
"""Up to this many rows the 8-bit kernel is used; it takes time in proportion to rows, while turning a matrix back to
bfloat16 first takes long for any number. At 5 rows of 768 the kernel took 268, 496 and 4,777 us for 2,304, 4,096 and
32,000 outputs, the other way 756, 1,020 and 15,238 us: they meet at 10 to 16 rows."""
INT8_COLUMNS = 16
"""The 8-bit kernel takes so many inputs at a time; where fewer are left, it reads on behind the matrix. Zeros fill up
those that are missing."""


ROW_COST: dict[Format, float] = {"fp32": 0.03, "bf16": 0.03, "int8": 0.35, "int8_dynamic": 0.06}
"""Time of one more row as a share of a whole pass over one: what checking a draft takes. Of torch's operations, between
one row and five, and not below the 3% that attention and the rest take in bfloat16."""
PANEL_ROW_COST: dict[Format, float] = {"bf16": 0.04, "int8": 0.08, "int8_dynamic": 0.06}
"""The same of kernels of our own, between one row and two to nine (`benchmarks/decode.py --rows`)."""
VECTOR_ROW_COST = 0.057
"""The same in bfloat16 by torch's operations on a processor without AMX, where rows of a product take longer: of 77M
parameters with AVX512-BF16."""


def row_cost(format: Format, device: torch.device) -> float:
    """What one more row takes here, as a share of a pass over one."""
    if format in PANEL_ROW_COST and device.type == "cpu" and fused.obstacle() is None:
        return PANEL_ROW_COST[format]
    if format == "bf16" and device.type == "cpu" and not TILES:
        return VECTOR_ROW_COST
    return ROW_COST[format]


def activation_dtype(format: Format) -> torch.dtype:
    """What activations, keys and values are in: bfloat16 beside 8-bit weights."""
    return torch.float32 if format == "fp32" else torch.bfloat16


def pack(weight_FD: Tensor, format: Format, activation: Kind | None = None) -> Weight:
    """A product with `weight_FD` transposed, ready to be used many times; the tensor given is not kept.

    Args:
        activation: what is done to the outputs; of SwiGLU's the first half are the gate's.

    Raises:
        ValueError: no such format.
    """
    if format not in get_args(Format):
        raise ValueError(f"no weights are kept as {format!r}: {', '.join(get_args(Format))}")
    weight_FD = weight_FD.detach()
    if format != "fp32" and panels_fused.suits(weight_FD.device, *weight_FD.shape, activation):
        return PanelWeight(weight_FD, format, activation)
    if format == "int8":
        return Int8Weight(weight_FD, activation)
    if format == "int8_dynamic":
        return Int8DynamicWeight(weight_FD, activation)
    dtype = activation_dtype(format)
    if dtype == torch.bfloat16 and weight_FD.device.type == "cpu" and _can_lay_out():
        return LaidOutWeight(weight_FD, activation)
    return PlainWeight(weight_FD.to(dtype, copy=True), activation)


class PanelWeight:
    """A matrix for a kernel of our own, in any format but float32.

    In 8 bits activations of a few rows are whole numbers of 16 bits, or of 8 where they are `int8_dynamic`; of many
    they are bfloat16, or multiplied by oneDNN in 8 bits.
    """

    def __init__(self, weight_FD: Tensor, format: Format, activation: Kind | None = None) -> None:
        self.many = Int8DynamicWeight(weight_FD, activation) if format == "int8_dynamic" else None
        matrix = (weight_FD.bfloat16(),) if format == "bf16" else quantize(weight_FD)
        self.panels = Panels(*matrix, activation=activation, two_bytes=format == "int8")
        self.nbytes = self.panels.nbytes

    def __call__(self, x: Tensor, *, norm: Norm | None = None, others: Tensor | None = None) -> Tensor:
        x, others = x.bfloat16(), None if others is None else others.bfloat16()
        if self.many is not None and x.numel() > panels_fused.FEW_ROWS * self.panels.inputs:
            self.panels.tell(x)  # no counter knows oneDNN's product of bytes
            return self.many(x, norm=norm, others=others)
        x_ND = x.reshape(-1, self.panels.inputs).contiguous()
        others_NF = None if others is None else others.reshape(-1, self.panels.outputs).contiguous()
        gains_D, eps = (None, 0.0) if norm is None else (norm.weight_D, norm.eps)
        return self.panels.multiply(x_ND, gains_D, eps, others_NF).view(*x.shape[:-1], self.panels.outputs)


class _Composed(ABC):
    """What stands around a product by torch's operations."""

    def __init__(self, activation: Kind | None = None) -> None:
        self.activation = activation

    def __call__(self, x: Tensor, *, norm: Norm | None = None, others: Tensor | None = None) -> Tensor:
        y = self._multiply(x if norm is None else norm(x))
        if self.activation == "relu2":
            y = functional.relu(y).square_()
        elif self.activation == "swiglu":
            gate, up = y.chunk(2, -1)
            y = functional.silu(gate).mul_(up)
        return y if others is None else others + y

    @abstractmethod
    def _multiply(self, x: Tensor) -> Tensor: ...


def _can_lay_out() -> bool:
    """Whether this torch offers oneDNN's blocked layout for linear weights and this processor computes bfloat16."""
    offered = hasattr(torch.ops.mkldnn, "_reorder_linear_weight") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return offered and torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class PlainWeight(_Composed):
    """A matrix in its usual layout."""

    def __init__(self, weight_FD: Tensor, activation: Kind | None = None) -> None:
        super().__init__(activation)
        self.weight_FD = weight_FD
        self.nbytes = weight_FD.nbytes

    def _multiply(self, x: Tensor) -> Tensor:
        return matmul.linear(x, self.weight_FD)


class LaidOutWeight(_Composed):
    """A bfloat16 matrix in the layout of oneDNN's kernel."""

    def __init__(self, weight_FD: Tensor, activation: Kind | None = None) -> None:
        super().__init__(activation)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_FD.bfloat16(), 1)
        self.nbytes = 2 * weight_FD.numel()

    def _multiply(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, None, "none", [], "")


class Int8Weight(_Composed):
    """A matrix in 8 bits with one bfloat16 scale an output: w = q x scale, scale = absmax / 127, q rounded to even."""

    def __init__(self, weight_FD: Tensor, activation: Kind | None = None) -> None:
        super().__init__(activation)
        self.q_FD, self.scale_F = quantize(weight_FD)
        self.kernel = self.q_FD.device.type == "cpu" and hasattr(torch, "_weight_int8pack_mm")
        self.spare = -weight_FD.shape[1] % INT8_COLUMNS if self.kernel else 0
        if self.spare:
            self.q_FD = functional.pad(self.q_FD, (0, self.spare))
        self.nbytes = self.q_FD.nbytes + self.scale_F.nbytes

    def _multiply(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        if self.spare:
            x_ND = functional.pad(x_ND, (0, self.spare))
        if self.kernel and len(x_ND) <= INT8_ROWS:
            y_NF = torch._weight_int8pack_mm(x_ND, self.q_FD, self.scale_F)
        else:
            y_NF = int8_reference(x_ND, self.q_FD, self.scale_F)
        return y_NF.view(*x.shape[:-1], -1)


class Int8DynamicWeight(_Composed):
    """The same 8-bit matrix for activations in 8 bits: each row of them scaled by its own largest magnitude."""

    def __init__(self, weight_FD: Tensor, activation: Kind | None = None) -> None:
        super().__init__(activation)
        q_FD, scale_F = quantize(weight_FD)
        self.scale_F = scale_F.float()
        self.nbytes = q_FD.nbytes + self.scale_F.nbytes
        self.q_FD = self.packed = self.zeros_F = None  # packed where there is the kernel, else as it is
        self.middle_1 = torch.tensor([ZERO_POINT + 0.5], device=q_FD.device)
        if q_FD.device.type == "cpu" and _multiplies_bytes():
            self.zeros_F = torch.zeros(len(q_FD), dtype=torch.int64)
            self.packed = torch.ops.onednn.qlinear_prepack(q_FD, [1, weight_FD.shape[1]])
        else:
            self.q_FD = q_FD

    def _multiply(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        if self.q_FD is not None:
            y_NF = int8_dynamic_reference(x_ND, self.q_FD, self.scale_F)
        elif len(x_ND) == 1:  # decoding: the scale goes into the kernel
            scale = float(largest_magnitude(x_ND, 1)) / INT8_LEVELS or 1.0
            y_NF = self._product(torch.add(self.middle_1, x_ND, alpha=1 / scale), scale, torch.bfloat16)
        else:
            scale_N1 = row_scales(x_ND)[:, None]
            y_NF = self._product((x_ND / scale_N1).add_(self.middle_1), 1.0, torch.float32).mul_(scale_N1)
        return y_NF.to(x.dtype).view(*x.shape[:-1], -1)

    def _product(self, shifted_ND: Tensor, scale: float, out: torch.dtype) -> Tensor:
        rows_ND = shifted_ND.to(torch.uint8)  # cuts off what stands behind the point: half a step up makes it rounding
        return torch.ops.onednn.qlinear_pointwise(
            rows_ND, scale, ZERO_POINT, self.packed, self.scale_F, self.zeros_F, None, 1.0, 0, out, "none", [], ""
        )


ZERO_POINT = 128
"""What stands for 0 among unsigned bytes, the form in which the kernel takes activations."""


def _multiplies_bytes() -> bool:
    """Whether this torch offers oneDNN's 8-bit linear and this processor sums products of bytes without overflow."""
    offered = hasattr(torch.ops.onednn, "qlinear_prepack") and hasattr(torch.ops.onednn, "qlinear_pointwise")
    sums = getattr(torch.cpu, "_is_vnni_supported", lambda: False)
    return offered and torch.backends.mkldnn.is_available() and sums()


def row_scales(x_ND: Tensor) -> Tensor:
    """Largest magnitude of each row / 127; 1 for a row of zeros; NaN for one that holds a NaN, which no byte says."""
    scale_N = largest_magnitude(x_ND, 1)[:, 0].float() / INT8_LEVELS
    return torch.where(scale_N == 0, 1.0, scale_N)


def int8_dynamic_reference(x_ND: Tensor, q_FD: Tensor, scale_F: Tensor) -> Tensor:
    """The same in plain operations: integers no larger than 127 are exact in float32, sums of them nearly so."""
    scale_N = row_scales(x_ND)
    rows_ND = (x_ND / scale_N[:, None] + 0.5).floor_()
    return functional.linear(rows_ND, q_FD.float()) * scale_N[:, None] * scale_F


def quantize(weight_FD: Tensor) -> tuple[Tensor, Tensor]:
    """8-bit integers F x D and bfloat16 scales F; a row of zeros has scale 1, one with a NaN scale NaN."""
    high_FD = weight_FD.detach().float()
    absmax_F = high_FD.abs().amax(1)
    scale_F = torch.where(absmax_F == 0, 1.0, absmax_F / INT8_LEVELS).bfloat16()
    q_FD = (high_FD / scale_F.float()[:, None]).round_().clamp_(-INT8_LEVELS, INT8_LEVELS)
    return q_FD.to(torch.int8), scale_F


def int8_reference(x_ND: Tensor, q_FD: Tensor, scale_F: Tensor) -> Tensor:
    """x (q x scale)^T with the integers turned back to the activations' type (exactly: 8 bits fit in bfloat16)."""
    return functional.linear(x_ND, q_FD.to(x_ND.dtype)) * scale_F.to(x_ND.dtype)
