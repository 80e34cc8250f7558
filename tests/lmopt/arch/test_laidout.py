"""Models whose matrices are laid out for reading: the same answers, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lmopt.arch import fused, laidout, transformer
from lmopt.arch.laidout import laid_out
from lmopt.arch.linear import Linear
from lmopt.compute.int8 import freeze_linears
from lmopt.recipe import Model, Moe, Recipe, Relu2, SwiGlu
from tests.lmopt.arch.kernels import needs_kernel

pytestmark = needs_kernel


def build(*, ffn=None, width=64, vocab=96):
    model = Model(layers=2, width=width, heads=2, vocab=vocab, context=48)
    recipe = Recipe(model=model, ffn=ffn or SwiGlu(), batching={"sequences": 2, "length": 48}, tokens=1_000)
    return transformer.build(recipe, seed=0)


def tokens(*shape):
    return torch.randint(0, 96, shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def calls(monkeypatch):
    found, call = [], fused.call
    monkeypatch.setattr(fused, "call", lambda name, *given: found.append(name) or call(name, *given))
    return found


def products(calls):
    return [name for name in calls if name.startswith("multiply")]


@pytest.mark.parametrize("length", [5, 48])
@pytest.mark.parametrize(
    "ffn", [SwiGlu(), Relu2(), Moe(experts=2, top_k=1, shared=1, hidden=32)], ids=lambda it: it.kind
)
@torch.no_grad()
def test_a_model_says_the_same(ffn, length, calls):
    model, text_BT = build(ffn=ffn), tokens(3, length)
    with torch.autocast("cpu", torch.bfloat16):
        plain, _ = model.hidden(text_BT)
        assert not products(calls)
        with laid_out(model) as head:
            found, _ = model.hidden(text_BT)
    assert len(products(calls)) >= 2 * 4
    assert (found - plain).float().norm() < 0.01 * plain.float().norm()
    assert head is not None
    exact = found.flatten(0, 1).double() @ model.head_weight_VD.bfloat16().double().T
    torch.testing.assert_close(head.multiply_to_float(found.flatten(0, 1)).double(), exact, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_counter_sees_as_many_flops():
    model, text_BT = build(), tokens(2, 40)

    def counted():
        with torch.autocast("cpu", torch.bfloat16), FlopCounterMode(display=False) as counter:
            model.hidden(text_BT)
        return counter.get_total_flops()

    plain = counted()
    with laid_out(model):
        assert counted() == plain > 0


def test_training_and_float32_go_on_as_before(calls):
    model, text_BT = build(), tokens(2, 16)
    with laid_out(model):
        with torch.autocast("cpu", torch.bfloat16):
            model.loss(text_BT, text_BT).total.backward()
        with torch.no_grad():
            model(text_BT)
        assert not products(calls)
    assert model.blocks[0].ffn.gate_up.weight.grad is not None


@torch.no_grad()
def test_a_compiler_sees_the_products_themselves(calls):
    model, text_BT = build(), tokens(2, 16)
    torch.compiler.reset()
    compiled = torch.compile(model.hidden, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16), laid_out(model):
        compiled(text_BT)
    assert not products(calls)


@torch.no_grad()
def test_nothing_is_left_behind():
    model = build()
    linear = [module for module in model.modules() if isinstance(module, Linear)]
    keys = set(model.state_dict())
    with laid_out(model):
        assert all(layer.panels is not None for layer in linear)
        assert set(model.state_dict()) == keys
    with pytest.raises(ZeroDivisionError), laid_out(model):
        1 / 0  # noqa: B018
    assert all(layer.panels is None for layer in linear)


@torch.no_grad()
def test_layers_without_a_kernel_are_left_as_they_are(calls):
    model, text_BT = build(ffn=SwiGlu(hidden=200), width=72, vocab=97), tokens(2, 16)
    model.blocks[0].attention.output.weight.mul_(2)
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(text_BT)
        with laid_out(model) as head:
            assert head is None
            assert torch.equal(model(text_BT), plain)
    assert not products(calls)


@torch.no_grad()
def test_8_bit_layers_take_no_part(calls):
    model = build()
    freeze_linears(model)
    assert not any(isinstance(module, Linear) for module in model.modules())
    with torch.autocast("cpu", torch.bfloat16), laid_out(model):
        model.hidden(tokens(2, 16))
    assert not products(calls)


def test_where_nothing_can_be_laid_out(monkeypatch):
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    model = build()
    with laidout.laid_out(model) as head:
        assert head is None
        assert model.blocks[0].attention.qkv.panels is None
