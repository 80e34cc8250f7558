"""Blocks computed again in backward: the same bits, fewer kept numbers, FLOPs counted for what is really executed."""

from __future__ import annotations

import pytest
import torch

from bench.instruments import flops
from lmopt import cost
from lmopt.arch.transformer import build
from lmopt.recipe import LayerSkip, Recipe, builder
from lmopt.train import loop

TABLE = 16 * 16
"""Numbers in a table of rotary positions, which is cast once and kept; every weight is larger."""
FFNS = [{"kind": "swiglu"}, {"kind": "relu2"}, {"kind": "moe", "experts": 4}]


def recipe(activations, ffn=None, precision="bf16", layers=3) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"layers": layers, "width": 32, "heads": 2, "vocab": 64, "context": 32},
            "ffn": ffn or {"kind": "swiglu"},
            "precision": {"kind": precision},
            "activations": activations,
            "batching": {"sequences": 4, "length": 16},
            "tokens": 4 * 16 * 5,
        }
    )


def gradients(described):
    model = build(described, seed=0)
    tokens = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=described.precision.kind == "bf16"):
        model.loss(tokens[:, :-1], tokens[:, 1:]).total.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["kind"])
def test_gradients_are_those_of_kept_activations_to_the_bit(ffn, precision):
    kept = gradients(recipe({"kind": "keep"}, ffn, precision))
    again = gradients(recipe({"kind": "recompute"}, ffn, precision))
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_a_training_goes_the_same_way():
    def losses(kind):
        described = recipe({"kind": kind})
        batch = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(1))
        return [step.loss for step in loop.train(loop.start(described, seed=0), [batch] * 5)]

    assert losses("recompute") == losses("keep")


@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["kind"])
@pytest.mark.parametrize("every", [1, 2])
def test_executed_flops_hold_what_is_done_again_and_the_counts_agree(ffn, every):
    described = recipe({"kind": "recompute", "every": every}, ffn)
    counts = flops.count(build(described, seed=0), described)
    assert counts.disagreement is None
    forward = cost.forward_flops(described, 16)
    again = counts.train.closed - cost.train_flops(recipe({"kind": "keep"}, ffn), 16).executed
    assert 0 < again < forward.total - forward.head + 1
    assert counts.train_model == 3 * forward.total


@pytest.mark.parametrize("ffn", FFNS, ids=lambda ffn: ffn["kind"])
def test_counts_agree_on_8_bit_products_that_are_done_again(ffn):
    described = recipe({"kind": "recompute"}, ffn, "int8")
    model = build(described, seed=0)
    builder(described.precision)(described.precision).prepare(model)
    assert flops.count(model, described, 32).disagreement is None, "more rows than an 8-bit product needs at least"


def test_a_layer_left_out_by_chance_is_not_computed_again():
    def described(kind, dropout):
        skip = LayerSkip(dropout=dropout, exits=(1, 2))
        return recipe({"kind": kind, **({"every": 2} if kind == "recompute" else {})}).model_copy(
            update={"objective": skip}
        )

    def losses(kind):
        batch = torch.randint(0, 64, (4, 17), generator=torch.Generator().manual_seed(1))
        return [step.loss for step in loop.train(loop.start(described(kind, 0.5), seed=0), [batch] * 5)]

    def again(dropout):
        both = (cost.train_flops(described(kind, dropout), 16).executed for kind in ("recompute", "keep"))
        return next(both) - next(both)

    assert losses("recompute") == losses("keep"), "the same layers are left out"
    assert flops.count(build(described("recompute", 0.5), seed=0), described("recompute", 0.5)).disagreement is None
    assert again(0.5) == pytest.approx(again(0.0) * (1 + 0.5) / 2), "layers 1 and 3 of 3: never and half of the time"


def test_fewer_numbers_wait_for_backward():
    def waiting(kind):
        held = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        described = recipe({"kind": kind}, precision="fp32", layers=6)
        model = build(described, seed=0)
        parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        tokens = torch.zeros(4, 16, dtype=torch.int64)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.loss(tokens, tokens)
        return sum(size for pointer, size in held.items() if pointer not in parameters)

    assert waiting("recompute") < waiting("keep") / 2


def test_every_says_how_many_blocks_are_computed_again():
    assert recipe({"kind": "recompute", "every": 2}).activations.layers_of(5) == 3
    assert recipe({"kind": "recompute"}).activations.layers_of(5) == 5


def test_no_second_copy_of_the_weights_stays_in_autocasts_cache():
    described = recipe({"kind": "recompute"})
    model = build(described, seed=0)
    tokens = torch.zeros(1, 16, dtype=torch.int64)
    casts = []

    class Casts(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if (
                function is torch.ops.aten._to_copy.default
                and out.dtype == torch.bfloat16
                and out.dim() == 2
                and out.numel() > TABLE
            ):
                casts.append(torch.multiprocessing.reductions.StorageWeakRef(out.untyped_storage()))
            return out

    with torch.autocast("cpu", torch.bfloat16), Casts():
        loss = model.loss(tokens, tokens).total
        alive = [cast for cast in casts if not cast.expired()]
    assert loss.requires_grad
    assert casts
    assert not alive
