"""The dead branch: it costs what it says, and changes nothing."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from lmopt import cost
from lmopt.arch.transformer import build
from lmopt.recipe import Model, Recipe, SwiGlu, Wasteful
from lmopt.train import loop

MODEL = Model(layers=2, width=16, heads=2, vocab=50, context=32)


def recipe(ffn) -> Recipe:
    return Recipe(model=MODEL, ffn=ffn, batching={"sequences": 4, "length": 16}, tokens=640)


def batches(count=10):
    generator = torch.Generator().manual_seed(3)
    return (torch.randint(0, 50, (4, 17), generator=generator) for _ in range(count))


def losses(ffn, seed=0) -> list[float]:
    return [step.loss for step in loop.train(loop.start(recipe(ffn), seed=seed), batches())]


def test_it_trains_exactly_like_the_layer_without_the_branch():
    # The gradient norm sums more terms (zeros) in another order; in bfloat16 that reaches the fifth digit in ten steps.
    assert losses(Wasteful(dead=24)) == pytest.approx(losses(SwiGlu()), rel=1e-3)


def test_logits_and_gradients_of_the_living_part_are_those_of_the_layer_alone():
    wasteful, plain = build(recipe(Wasteful(dead=24)), seed=1), build(recipe(SwiGlu()), seed=1)
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(0))
    assert torch.equal(wasteful(tokens), plain(tokens))
    for model in (wasteful, plain):
        model.loss(tokens, tokens.roll(1)).total.backward()
    found = dict(wasteful.named_parameters())
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=0, atol=0)
    dead = [parameter for name, parameter in found.items() if ".dead." in name]
    assert dead
    assert all(not parameter.grad.any() for parameter in dead)


def test_the_share_that_it_wastes_is_known():
    wasteful, plain = recipe(Wasteful(dead=24, hidden=32)), recipe(SwiGlu(hidden=32))
    ours, theirs = (cost.train_flops_per_token(one).executed for one in (wasteful, plain))
    assert ours - theirs == 3 * 2 * 2 * (3 * 16 * 24)  # three passes, two layers, three matrices of 16 x 24


def test_a_seed_changes_the_losses():
    assert losses(Wasteful(dead=24), seed=0) != losses(Wasteful(dead=24), seed=1)


def test_the_branch_has_a_width():
    with pytest.raises(ValidationError):
        Wasteful(dead=0)
