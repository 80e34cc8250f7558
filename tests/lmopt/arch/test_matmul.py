"""Float32 products through oneDNN: torch's own to rounding, with its gradients, and only where they pay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bench.instruments.formulas import FORMULAS, known_operators
from lmopt.arch import matmul
from lmopt.arch.linear import Linear
from lmopt.compute import memory

ROWS, INPUTS, OUTPUTS = 96, 48, 160

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN for float32"
)


@pytest.fixture(autouse=True)
def _small_products_on_any_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MIN_WORK", 1)
    monkeypatch.setattr(matmul, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(memory, "_spares", False)


def _used(call) -> int:
    """How many products went through oneDNN."""
    counter = FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS))
    with counter:
        call()
    counted = counter.get_flop_counts()["Global"]
    return counted.get(torch.ops.mkldnn._linear_pointwise, 0) // (2 * ROWS * INPUTS * OUTPUTS)


def _operands() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator) for shape in ((4, ROWS // 4, INPUTS), (OUTPUTS, INPUTS)))
    return x.requires_grad_(), weight.requires_grad_()


@pytest.mark.parametrize("asks", [(True, True), (True, False), (False, True)], ids=["both", "x", "weight"])
def test_products_and_gradients_are_torchs(asks: tuple[bool, bool]) -> None:
    found = []
    for product in (matmul.linear, functional.linear):
        operands = [one.requires_grad_(wanted) for one, wanted in zip(_operands(), asks, strict=True)]
        y = product(*operands)
        (y * torch.linspace(-1, 1, OUTPUTS)).sum().backward()
        assert [one.grad is not None for one in operands] == list(asks)
        found.append([y, *(one.grad for one in operands if one.grad is not None)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wants_grad", [False, True])
def test_a_row_may_stand_alone(wants_grad: bool) -> None:
    x, weight = (one.detach() for one in _operands())
    row = x[0, 0].requires_grad_(wants_grad)
    torch.testing.assert_close(matmul.linear(row, weight), functional.linear(row, weight), rtol=1e-5, atol=1e-5)


def test_each_of_the_three_products_goes_through_onednn() -> None:
    x, weight = _operands()
    assert _used(lambda: matmul.linear(x, weight).sum().backward()) == 3
    assert _used(lambda: matmul.linear(x.detach(), weight).sum().backward()) == 2
    with torch.no_grad():
        assert _used(lambda: matmul.linear(x, weight)) == 1


def test_what_lies_across_its_rows_is_multiplied_alike() -> None:
    x, weight = (one.detach() for one in _operands())
    a, b = x.flatten(0, 1).T.contiguous().T, weight.T
    assert _used(lambda: matmul.mm(a, b)) == 1
    out = torch.empty(ROWS, OUTPUTS)
    assert matmul.mm(a, b, out=out) is out
    torch.testing.assert_close(out, torch.mm(a, b), rtol=1e-5, atol=1e-5)


def test_a_product_is_not_made_again_where_activations_are() -> None:
    """The last product of a block is behind all that its backward needs."""
    layer = Linear(INPUTS, OUTPUTS, copies=False)
    x, _ = _operands()
    assert _used(lambda: checkpoint(layer, x, use_reentrant=False).sum().backward()) == 3


@pytest.mark.parametrize(
    "case",
    [
        "little work",
        "bfloat16",
        "float64",
        "autocast",
        "switched off",
        "MKL is fast",
        "meta",
        "memory ran out",
    ],
)
def test_everything_else_is_torchs(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = (one.detach() for one in _operands())
    x = x.flatten(0, 1)
    match case:
        case "little work":
            monkeypatch.setattr(matmul, "MIN_WORK", x.numel() * OUTPUTS + 1)
        case "bfloat16" | "float64":
            x, weight = (one.to(getattr(torch, case)) for one in (x, weight))
        case "meta":
            x, weight = x.to("meta"), weight.to("meta")
        case "memory ran out":
            monkeypatch.setattr(memory, "_spares", True)
        case "MKL is fast":
            monkeypatch.setattr(matmul, "mkl_is_slow", lambda: False)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"),
        torch.backends.mkldnn.flags(enabled=case != "switched off", deterministic=None, allow_tf32=None),
    ):
        assert _used(lambda: matmul.linear(x, weight)) == 0
        y = matmul.linear(x, weight)
        assert y.dtype == (torch.bfloat16 if case == "autocast" else x.dtype)
        if case != "meta":
            assert torch.equal(y, functional.linear(x, weight))


def test_no_rows_are_no_rows() -> None:
    assert matmul.linear(torch.empty(0, INPUTS), torch.empty(OUTPUTS, INPUTS)).shape == (0, OUTPUTS)


def test_a_second_derivative_is_refused_not_wrong() -> None:
    x, weight = _operands()
    (grad,) = torch.autograd.grad(matmul.linear(x, weight).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_compiled_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x, weight = _operands()
    assert _used(lambda: matmul.linear(x, weight)) == 0
