"""Feed-forwards of a decoder, over weights that are packed once (letters: lmopt/arch/transformer.py)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch.experts_cpu import ROW_BLOCK
from lmopt.arch.ffn import Relu2Ffn, SwiGluFfn
from lmopt.arch.moe import MoeFfn
from lmopt.infer.weights import Format, LaidOutWeight, Norm, activation_dtype, pack

WANTED_ROWS = 8
"""Up to so many rows an expert's product is asked for as it is: products of these are soon compiled and often met."""


class DenseFfn:
    """SwiGLU or squared ReLU over packed weights."""

    def __init__(self, ffn: SwiGluFfn | Relu2Ffn, format: Format) -> None:
        gated = isinstance(ffn, SwiGluFfn)
        self.up = pack(ffn.gate_up.weight if gated else ffn.up.weight, format, "swiglu" if gated else "relu2")
        self.down = pack(ffn.down.weight, format)
        self.nbytes = self.up.nbytes + self.down.nbytes

    def __call__(self, x: Tensor, *, norm: Norm | None = None, others: Tensor | None = None) -> Tensor:
        return self.down(self.up(x, norm=norm), others=others)


class ExpertsFfn:
    """Experts over packed weights, one after the other, each on the tokens that chose it; routers keep their precision.

    Few tokens choose few experts, and only the weights of these are read (docs/techniques/generation.md).
    """

    def __init__(self, ffn: MoeFfn, format: Format) -> None:
        self.router = copy.deepcopy(ffn.router).eval().requires_grad_(False)
        self.up = [pack(each, format, ffn.config.activation) for each in ffn.up]
        self.down = [pack(each, format) for each in ffn.down]
        self.shared = DenseFfn(ffn.shared, format) if isinstance(ffn.shared, SwiGluFfn | Relu2Ffn) else None
        self.nbytes = sum(weight.nbytes for weight in (*self.up, *self.down))
        self.nbytes += sum(parameter.nbytes for parameter in self.router.parameters())
        self.nbytes += self.shared.nbytes if self.shared else 0

    def __call__(self, x: Tensor) -> Tensor:
        x_ND = x.reshape(-1, x.shape[-1])
        choice = self.router(x_ND)
        y_ND = torch.zeros_like(x_ND) if self.shared is None else self.shared(x_ND)
        for expert in choice.expert_NK.unique().tolist():
            token, slot = torch.where(choice.expert_NK == expert)
            rows = x_ND[self._filled_up(token)]
            own = self.down[expert](self.up[expert](rows))[: len(token)]
            y_ND.index_add_(0, token, own * choice.gate_NK[token, slot, None].to(own.dtype))
        return y_ND.view_as(x)

    def _filled_up(self, token: Tensor) -> Tensor:
        """To a multiple of `ROW_BLOCK`, as in training, where oneDNN compiles a product for each number of rows."""
        compiled = isinstance(self.up[0], LaidOutWeight) and len(token) > WANTED_ROWS
        return functional.pad(token, (0, -len(token) % ROW_BLOCK)) if compiled else token


class ModuleFfn:
    """Any other feed-forward, as its module: all its matrices are cast but a router's, which keep their precision."""

    def __init__(self, ffn: nn.Module, format: Format) -> None:
        self.ffn = copy.deepcopy(ffn).eval().requires_grad_(False)
        dtype = activation_dtype(format)
        for name, parameter in self.ffn.named_parameters():
            if not name.startswith("router."):
                parameter.data = parameter.data.to(dtype)
        self.nbytes = sum(parameter.nbytes for parameter in self.ffn.parameters())

    def __call__(self, x: Tensor) -> Tensor:
        return self.ffn(x)[0]


def ready(ffn: nn.Module, format: Format) -> DenseFfn | ExpertsFfn | ModuleFfn:
    """A feed-forward over weights in this format."""
    if isinstance(ffn, SwiGluFfn | Relu2Ffn):
        return DenseFfn(ffn, format)
    if isinstance(ffn, MoeFfn) and (ffn.up.device.type == "cpu" or format in ("int8", "int8_dynamic")):
        return ExpertsFfn(ffn, format)
    return ModuleFfn(ffn, format)
