"""Linear layers that only read: in bfloat16 on a CPU, with matrices that were laid out once for all their products.

Under autocast a matrix is cast anew for every batch, and oneDNN lays it out anew for every product.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

from torch import nn

from lmopt.arch.activation import Kind
from lmopt.arch.ffn import Relu2Ffn, SwiGluFfn
from lmopt.arch.linear import Linear
from lmopt.arch.panels_fused import Panels, suits
from lmopt.arch.transformer import Transformer


@contextmanager
def laid_out(model: Transformer) -> Generator[Panels | None]:
    """Within it, products of bfloat16 rows without gradients go through `lmopt.arch.panels_fused`, where that is made
    for a layer. Weights must not change meanwhile.

    Yields:
        The output matrix; None where there is no kernel for it.
    """
    layers = list(_suited(model))
    try:
        for layer, activation in layers:
            layer.panels = Panels(layer.weight.detach().bfloat16(), activation=activation)
        head_VD = model.head_weight_VD.detach()
        yield Panels(head_VD.bfloat16()) if suits(head_VD.device, *head_VD.shape) else None
    finally:
        for layer, _ in layers:
            layer.panels = None


def _suited(model: nn.Module) -> Iterator[tuple[Linear, Kind | None]]:
    """Layers with a kernel, and the activation that follows each of them in its block."""
    followed: dict[nn.Module, Kind] = {}
    for module in model.modules():
        if isinstance(module, SwiGluFfn):
            followed[module.gate_up] = "swiglu"
        if isinstance(module, Relu2Ffn):
            followed[module.up] = "relu2"
    for module in model.modules():
        if type(module) is Linear and suits(module.weight.device, *module.weight.shape, followed.get(module)):
            yield module, followed.get(module)
