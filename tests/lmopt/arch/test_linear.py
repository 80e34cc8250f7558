"""The linear layer with a backward pass of its own, against torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lmopt.arch import linear
from lmopt.arch.linear import Linear

SHAPES = [(48, 160), (160, 48), (64, 64)]  # wider, narrower, neither


@pytest.fixture(autouse=True)
def _however_narrow_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "WIDE", 1)
    monkeypatch.setattr(linear, "TILES", True)


def _pair(inputs: int, outputs: int, dtype: torch.dtype = torch.float32) -> tuple[Linear, nn.Linear]:
    torch.manual_seed(1)
    ours, theirs = Linear(inputs, outputs), nn.Linear(inputs, outputs, bias=False)
    theirs.load_state_dict(ours.state_dict())
    return ours.to(dtype), theirs.to(dtype)


def _gradients(layer: nn.Linear, x: Tensor, *, autocast: bool) -> tuple[Tensor, Tensor, Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = layer(x)
    (y.float() * torch.linspace(-1, 1, y.shape[-1])).sum().backward()
    assert x.grad is not None
    assert layer.weight.grad is not None
    return y, x.grad, layer.weight.grad


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("shape", [(96,), (4, 24)], ids=["rows", "batch"])
def test_it_is_torchs_layer_in_bfloat16(inputs: int, outputs: int, shape: tuple[int, ...]) -> None:
    ours, theirs = _pair(inputs, outputs)
    x = torch.randn(*shape, inputs)
    for mine, other in zip(_gradients(ours, x, autocast=True), _gradients(theirs, x, autocast=True), strict=True):
        assert mine.dtype == other.dtype
        torch.testing.assert_close(mine, other, rtol=2**-7, atol=1e-5)  # one unit of bfloat16


def test_it_is_torchs_layer_in_float32_bit_for_bit() -> None:
    ours, theirs = _pair(48, 160)
    x = torch.randn(96, 48)
    for mine, other in zip(_gradients(ours, x, autocast=False), _gradients(theirs, x, autocast=False), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize(("inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["masters", "pure"])
def test_the_gradient_lies_as_the_weight_does(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """An optimizer's fused kernel reads both in one pass."""
    ours, _ = _pair(inputs, outputs, dtype)
    _, _, gradient = _gradients(ours, torch.randn(96, inputs).to(dtype), autocast=True)
    assert gradient.dtype == dtype
    assert gradient.stride() == ours.weight.stride()


def test_an_input_that_asks_for_no_gradient_costs_no_product() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    ours, _ = _pair(48, 160)
    x = torch.randn(96, 48)
    with FlopCounterMode(display=False) as counted, torch.autocast("cpu", torch.bfloat16):
        ours(x).sum().backward()
    assert counted.get_total_flops() == 2 * 2 * 96 * 48 * 160


@pytest.mark.parametrize(("name", "value"), [("WIDE", 64), ("TILES", False)], ids=["narrow", "no AMX"])
def test_layers_that_gain_nothing_are_torchs_bit_for_bit(
    name: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, name, value)
    ours, theirs = _pair(48, 160)
    x = torch.randn(96, 48)
    for mine, other in zip(_gradients(ours, x, autocast=True), _gradients(theirs, x, autocast=True), strict=True):
        assert torch.equal(mine, other)
