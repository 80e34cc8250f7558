"""A sparse model made of a dense one: the same loss at first, then experts that part."""

from __future__ import annotations

import itertools

import pytest
import torch
from pydantic import ValidationError

from lmopt.arch.transformer import build
from lmopt.arch.upcycling import upcycle
from lmopt.recipe import Model, Moe, Recipe, Relu2, SwiGlu, Upcycled
from lmopt.techniques.start import misfit
from lmopt.train import loop

SHAPE = {"layers": 2, "width": 32, "heads": 2, "vocab": 31, "context": 16}


def recipe(ffn, **other) -> Recipe:
    shape = SHAPE | other.pop("shape", {})
    batching = {"length": 16, "sequences": 4}
    return Recipe(**{"model": Model(**shape), "ffn": ffn, "batching": batching, "tokens": 640} | other)


def batches(steps: int):
    """The same batch again and again: something that can be learnt."""
    batch = torch.randint(31, (4, 17), generator=torch.Generator().manual_seed(0))
    return itertools.repeat(batch, steps)


def trained(described: Recipe):
    state = loop.start(described, seed=0)
    list(loop.train(state, batches(state.total_steps)))
    return state.model.eval()


@pytest.mark.parametrize(
    ("dense", "sparse"),
    [
        (SwiGlu(), Moe(split=1)),
        (SwiGlu(), Moe(split=1, top_k=1, normalise=True)),
        (Relu2(hidden=40), Moe(experts=5, top_k=3, hidden=40, activation="relu2")),
        (SwiGlu(), Moe(split=1, routing={"kind": "loss_free"})),
        (SwiGlu(), Moe(split=1, routing={"kind": "noisy"})),
    ],
    ids=["usual", "top-1", "relu2", "loss-free", "noisy"],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_first_loss_is_the_dense_models(dense, sparse, tied):
    shape = {"tied_head": tied, "qk_norm": True}
    source = trained(recipe(dense, shape=shape))
    model = build(recipe(sparse, shape=shape), seed=5)
    router = model.blocks[0].ffn.router.weight.clone()
    upcycle(Upcycled(), model, source)
    tokens, targets = torch.randint(31, (2, 4, 16), generator=torch.Generator().manual_seed(9))
    for mode in (True, False):
        model.train(mode)
        found, expected = (one.loss(tokens, targets).cross_entropy for one in (model, source))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.blocks[0].ffn.router.weight, router)


def test_experts_part_in_training():
    source = trained(recipe(SwiGlu()))
    state = loop.start(recipe(Moe(experts=4, split=1), start={"kind": "upcycled"}), seed=0)
    upcycle(state.recipe.start, state.model, source)
    up = state.model.blocks[1].ffn.up
    assert torch.equal(up[0], up[3])
    losses = [step.loss for step in loop.train(state, batches(state.total_steps))]
    assert not torch.equal(up[0], up[3])
    assert losses[-1] < losses[0]
    assert torch.equal(source.blocks[1].ffn.gate_up.weight, trained(recipe(SwiGlu())).blocks[1].ffn.gate_up.weight)


def test_what_does_not_fit_is_named():
    source = build(recipe(SwiGlu()), seed=0)
    with pytest.raises(
        ValueError, match=r"blocks.0.ffn.up: shape \(8, 96, 32\), the dense model's is \(192, 32\)\nhint"
    ):
        upcycle(Upcycled(), build(recipe(Moe()), seed=0), source)
    with pytest.raises(ValueError, match=r"blocks.2.attention_norm.weight: the dense model has none of"):
        upcycle(Upcycled(), build(recipe(Moe(split=1), shape={"layers": 3}), seed=0), source)
    with pytest.raises(ValueError, match=r"ffn.shared.gate_up.weight: the dense model has none"):
        upcycle(Upcycled(), build(recipe(Moe(hidden=96, shared=1)), seed=0), source)
    with pytest.raises(ValidationError, match=r"start \(upcycled\) makes experts of a dense layer"):
        recipe(SwiGlu(), start={"kind": "upcycled"})


def test_misfits_before_anything_is_built():
    dense = recipe(SwiGlu())
    assert misfit(recipe(Moe(split=1)), dense) is None
    assert misfit(recipe(Moe(split=1), shape={"init_stream": 3}), dense) is None
    assert "ffn.hidden is 48, the source's is 96" in misfit(recipe(Moe()), dense)
    assert "ffn.activation is relu2" in misfit(recipe(Moe(split=1, activation="relu2")), dense)
    assert "the source's feed-forward is moe" in misfit(recipe(Moe(split=1)), recipe(Moe()))
    assert "ffn.shared is 1" in misfit(recipe(Moe(split=1, shared=1)), dense)
    assert "model.layers is 3" in misfit(recipe(Moe(split=1), shape={"layers": 3}), dense)
    assert "only experts" in misfit(dense, dense)
