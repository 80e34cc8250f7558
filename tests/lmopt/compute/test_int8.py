"""8-bit products: exact on whole numbers, near float32 elsewhere, each switchable, FLOPs and names unchanged."""

import copy

import pytest
import torch
from torch import nn

from lmopt.arch.transformer import build
from lmopt.compute import int8
from lmopt.compute.int8 import Int8Linear, _Int8Product, exchange_linears, freeze_linears, quantize
from lmopt.recipe import Int8, Recipe

ROWS, INPUTS, OUTPUTS = 40, 24, 16
ALL = Int8(forward=True, grad_input=True, grad_weight=True)
NONE = Int8(forward=False, grad_input=False, grad_weight=False)


def whole_numbers(*shape: int) -> torch.Tensor:
    """Whole numbers with 127 as the largest of every row and column: quantising loses nothing."""
    x = torch.randint(-126, 127, shape).float()
    return x.fill_diagonal_(127.0) if shape[0] == shape[1] else _with_peaks(x)


def _with_peaks(x: torch.Tensor) -> torch.Tensor:
    for i in range(max(x.shape)):
        x[i % x.shape[0], i % x.shape[1]] = 127.0
    return x


def gradients(x, weight, grad, plan, smooth=False):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = _Int8Product.apply(x, weight, plan, smooth)
    return y, *torch.autograd.grad(y, (x, weight), grad)


def plain(x, weight, grad):
    return x @ weight.T, grad @ weight, grad.T @ x


def error(ours, exact):
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_exact_where_numbers_are_whole(rounding):
    torch.manual_seed(0)
    data = whole_numbers(ROWS, INPUTS), whole_numbers(OUTPUTS, INPUTS), whole_numbers(ROWS, OUTPUTS)
    plan = ALL.model_copy(update={"rounding": rounding})
    for ours, exact in zip(gradients(*data, plan), plain(*data), strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1.0)  # sums up to 10^6, scales a rounding away from 1


def test_equal_to_the_slow_version_that_multiplies_what_was_kept():
    torch.manual_seed(0)
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS)
    (x_q, x_s), (w_q, w_s) = quantize(x, 1), quantize(weight, 1)
    slow = (x_q.float() * x_s) @ (w_q.float() * w_s).T
    torch.testing.assert_close(_Int8Product.apply(x, weight, ALL, False), slow, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [0, 1])
def test_scales_are_the_norm_of_infinite_order_without_its_slow_kernel(dim, dtype):
    torch.manual_seed(0)
    x = (torch.randn(OUTPUTS, INPUTS) * 10.0 ** torch.randint(-30, 30, (OUTPUTS, 1))).to(dtype)
    x[3], x[5, 2], x[7, 4] = 0.0, float("nan"), float("-inf")
    expected = torch.linalg.vector_norm(x, torch.inf, dim, keepdim=True)
    with torch.profiler.profile(acc_events=True) as seen:
        q, scale = quantize(x, dim)
    assert "aten::linalg_vector_norm" not in {event.key for event in seen.key_averages()}
    torch.testing.assert_close(scale, expected.float().clamp(min=int8.LEAST) / 127, rtol=0, atol=0, equal_nan=True)
    finite = torch.isfinite(scale).expand_as(x)
    assert (q[finite] * scale.expand_as(x)[finite] - x[finite]).abs().le(0.501 * scale.expand_as(x)[finite]).all()


def test_all_three_products_are_near_float32():
    torch.manual_seed(0)
    data = torch.randn(512, 64), torch.randn(48, 64), torch.randn(512, 48)
    for ours, exact in zip(gradients(*data, ALL), plain(*data), strict=True):
        assert 1e-4 < error(ours, exact) < 0.02  # 8 bits: about 1%


@pytest.mark.parametrize("product", ["forward", "grad_input", "grad_weight"])
def test_each_product_has_its_switch(product):
    torch.manual_seed(0)
    data = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS), torch.randn(ROWS, OUTPUTS)
    found = gradients(*data, NONE.model_copy(update={product: True}))
    for name, ours, exact in zip(("forward", "grad_input", "grad_weight"), found, plain(*data), strict=True):
        assert (error(ours, exact) > 1e-4) == (name == product)


def test_smoothing_tames_a_channel_of_outliers():
    torch.manual_seed(0)
    x, weight, grad = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS), torch.randn(ROWS, OUTPUTS)
    x[:, 3] *= 300
    weight[:, 3] /= 300
    exact = plain(x, weight, grad)
    rough, smooth = (gradients(x, weight, grad, ALL, smooth=on) for on in (False, True))
    assert error(smooth[0], exact[0]) < 0.1 * error(rough[0], exact[0])


def test_stochastic_rounding_has_no_bias():
    torch.manual_seed(0)
    x = torch.full((1, 20_000), 0.3)
    x[0, 0] = 127.0  # the scale: 1
    q, scale = quantize(x, 1, stochastic=True)
    assert scale.item() == 1
    assert q[0, 1:].float().mean().item() == pytest.approx(0.3, abs=0.012)


def recipe(**changes) -> Recipe:
    plain = {"model": {"layers": 2, "width": 32, "heads": 2, "vocab": 64, "context": 32}, "tokens": 10_000}
    return Recipe.model_validate({**plain, "batching": {"sequences": 4, "length": 32}, **changes})


@pytest.mark.parametrize("ffn", [{"kind": "swiglu"}, {"kind": "relu2"}, {"kind": "moe", "experts": 4}])
def test_a_model_keeps_its_parameters_and_nearly_its_loss(ffn):
    model = build(recipe(ffn=ffn), seed=0)
    tokens = torch.randint(64, (4, 33))
    before, names = model.loss(tokens[:, :-1], tokens[:, 1:]).total, [n for n, _ in model.named_parameters()]
    changed = copy.deepcopy(model)
    exchange_linears(changed, Int8())
    assert [n for n, _ in changed.named_parameters()] == names
    layers = [m for m in changed.modules() if type(m) in (nn.Linear, Int8Linear)]
    assert sum(type(m) is Int8Linear for m in layers) == (4 if ffn["kind"] == "moe" else 8)
    assert not [m for m in layers if type(m) is nn.Linear]
    assert not [name for name, m in changed.named_modules() if "router" in name and isinstance(m, Int8Linear)]
    after = changed.loss(tokens[:, :-1], tokens[:, 1:]).total
    assert after.item() == pytest.approx(before.item(), rel=0.01)
    assert after.item() != before.item()
    freeze_linears(model)
    with torch.no_grad():
        assert model.loss(tokens[:, :-1], tokens[:, 1:]).total.item() == pytest.approx(before.item(), rel=0.01)


def test_frozen_layers_read_few_and_many_rows_alike():
    torch.manual_seed(0)
    layer = nn.Linear(INPUTS, OUTPUTS, bias=False)
    frozen = int8.FrozenInt8Linear(layer)
    x = torch.randn(ROWS, INPUTS)
    with torch.no_grad():
        assert error(frozen(x), layer(x)) < 0.02
        assert error(frozen(x[:3]), layer(x[:3])) < 0.02
        assert frozen(x.view(2, 20, INPUTS)).shape == (2, 20, OUTPUTS)
    assert frozen.weight_FD.dtype == torch.int8
