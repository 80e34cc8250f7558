"""Every kind of routing: against a slow version, its limits, its losses by hand, its state through a checkpoint."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from pydantic import ValidationError

from lmopt.arch import routing
from lmopt.arch.experts import experts_grouped, experts_loop, place_slots
from lmopt.arch.ffn import SwiGluFfn
from lmopt.arch.moe import MoeFfn
from lmopt.recipe import Model, Moe, Recipe
from lmopt.train import checkpoint, loop

WIDTH = 16
KINDS = {
    "dropless": {"kind": "dropless"},
    "noisy": {"kind": "noisy"},
    "switch": {"kind": "switch"},
    "loss_free": {"kind": "loss_free"},
    "loss_free-sigmoid": {"kind": "loss_free", "score": "sigmoid"},
}


def layer(config: Moe, dtype: torch.dtype = torch.float64) -> MoeFfn:
    torch.manual_seed(0)
    module = MoeFfn(config, WIDTH)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


def config_of(kind: str, **other) -> Moe:
    usual = {"experts": 4, "top_k": 1 if kind == "switch" else 2, "hidden": 8, "routing": KINDS[kind]}
    return Moe(**usual | other)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_loop_gradients_included(kind):
    module = layer(config_of(kind, experts=5))
    x = torch.randn(2, 23, WIDTH, dtype=torch.float64, requires_grad=True)
    found = []
    for experts in (experts_loop, experts_grouped):
        module.experts = experts
        torch.manual_seed(1)  # of the noise
        y, auxiliary = module(x)
        total = y.sin().sum() + auxiliary
        found.append([y, auxiliary, *torch.autograd.grad(total, [x, *module.parameters()])])
    for reference, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", ["dropless", "noisy", "switch", "loss_free"])
def test_one_expert_is_the_dense_layer_exactly(kind):
    module, dense = layer(config_of(kind, experts=1, top_k=1), torch.float32), SwiGluFfn(WIDTH, 8)
    with torch.no_grad():
        dense.gate_up.weight.copy_(module.up[0])
        dense.down.weight.copy_(module.down[0])
    x = torch.randn(2, 32, WIDTH, requires_grad=True)
    ours, reference = module(x)[0], dense(x)[0]
    assert torch.equal(ours, reference)
    assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(reference.sum(), x)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_scored_in_float32_where_weights_are_kept_in_bfloat16(kind):
    module = layer(config_of(kind), torch.bfloat16)
    x_ND = torch.randn(40, WIDTH, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.router(x_ND).logits_NE
    expected = x_ND.float() @ module.router.weight.float().T
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_expert_is_added(kind):
    module = layer(config_of(kind, shared=2)).eval()
    x = torch.randn(3, 5, WIDTH, dtype=torch.float64)
    both = module(x)[0]
    shared, module.shared = module.shared, None
    torch.testing.assert_close(both, module(x)[0] + shared(x)[0])
    assert shared.down.weight.shape == (WIDTH, 2 * 8)


def test_active_parameters_match_the_dense_layer_with_shared_and_many_small_experts():
    fine = Moe(experts=64, top_k=6, shared=2)
    assert fine.hidden_for(768) == 2048 // 8
    assert Moe(experts=64, top_k=8).hidden_for(768) == 2048 // 8
    assert Moe(experts=8, split=8).hidden_for(768) == 2048 // 8  # the total matches
    assert Moe(split=1).hidden_for(768) == 2048  # each expert does
    with pytest.raises(ValidationError, match=r"split \(2\) and hidden \(8\)"):
        Moe(split=2, hidden=8)


@pytest.mark.parametrize("sum_to_one", [True, False])
@pytest.mark.parametrize("top_k", [1, 3])
def test_own_gradients_of_gates_are_the_derivatives(top_k, sum_to_one):
    logits = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: routing.choose(x, top_k, sum_to_one)[0], [logits])


def test_own_gradients_of_losses_are_those_of_the_formula():
    logits = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    chosen = logits.topk(2).indices
    router = routing.DroplessRouter(Moe(experts=5, top_k=2, balance_loss=0.3, z_loss=0.7), WIDTH)
    p, z = logits.softmax(-1), logits.logsumexp(-1).square().mean()
    formula = 0.3 * routing.balance_loss(p, chosen) + 0.7 * z
    ours = router.auxiliary(logits, chosen)
    torch.testing.assert_close(ours, formula)
    for found, expected in zip(*(torch.autograd.grad(3 * one, logits) for one in (ours, formula)), strict=True):
        torch.testing.assert_close(found, expected)


# --- switch --------------------------------------------------------------------------------------


def test_switch_by_hand_drops_what_comes_last():
    # 6 tokens, 2 experts, capacity 1.0 x 6 / 2 = 3; five tokens want expert 0: the last two of them are dropped
    chosen = torch.tensor([[0], [0], [1], [0], [0], [0]])
    rows = place_slots(chosen, 2, 3)
    assert rows.kept_NK.flatten().tolist() == [True, True, True, True, False, False]
    assert rows.ends_E.tolist() == [3, 6]
    assert rows.token_S[:4].tolist() == [0, 1, 3, 2]
    assert rows.slot_NK.flatten()[:4].tolist() == [0, 1, 3, 2]


def test_dropped_tokens_pass_through_the_residual_and_are_reported():
    module = layer(config_of("switch", experts=2, routing={"kind": "switch", "capacity_factor": 1}))
    with torch.no_grad():
        module.router.weight.copy_(torch.tensor([[1.0], [-1.0]]).expand(2, WIDTH))
    x = torch.ones(1, 8, WIDTH, dtype=torch.float64, requires_grad=True)  # all want expert 0, which takes 4
    y = module(x)[0]
    assert (y[0, :4] != 0).all()
    assert (y[0, 4:] == 0).all()
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert (grad[0, 4:] == 0).all()
    assert module.report()["drop_rate"] == 0.5
    assert module.report()["load/0"] == 1
    module.eval()
    assert (module(x)[0] != 0).all()  # evaluation drops nothing, whatever else is in the batch


def test_capacity_is_a_share_of_an_even_load_and_never_more_than_all_tokens():
    capacity = config_of("switch").routing.capacity
    assert capacity(1024, 8) == 160
    assert capacity(100, 8) == 16  # 15.625 rounded up
    assert capacity(100, 1) == 100


def test_switch_refuses_what_it_cannot_do():
    with pytest.raises(ValidationError, match=r"top_k \(2\) must be 1"):
        Moe(routing={"kind": "switch"})
    with pytest.raises(ValidationError, match="needs grouped or auto"):
        Moe(top_k=1, routing={"kind": "switch"}, kernel="loop")


# --- noisy ---------------------------------------------------------------------------------------


def test_noise_is_drawn_in_training_alone_and_by_the_seed():
    module = layer(config_of("noisy"))
    x = torch.randn(2, 40, WIDTH, dtype=torch.float64)

    def logits(seed: int):
        torch.manual_seed(seed)
        return module(x)[0]

    assert torch.equal(logits(0), logits(0))
    assert not torch.equal(logits(0), logits(1))
    module.eval()
    assert torch.equal(logits(0), logits(1))


def test_expected_load_is_what_drawing_again_gives():
    torch.manual_seed(0)
    clean, spread = torch.randn(1, 5, dtype=torch.float64), torch.rand(1, 5, dtype=torch.float64) + 0.5
    noisy = clean + torch.randn_like(clean) * spread
    expected = routing.expected_load(clean, noisy, spread, 2)
    draws = 200_000
    for expert in range(5):
        others = torch.cat([noisy[0, :expert], noisy[0, expert + 1 :]])
        again = clean[0, expert] + torch.randn(draws, dtype=torch.float64) * spread[0, expert]
        share = (again > others.sort(descending=True).values[1]).double().mean().item()
        assert expected[expert].item() == pytest.approx(share, abs=4 * math.sqrt(0.25 / draws))


def test_noise_that_would_vanish_leaves_finite_gradients():
    module = layer(config_of("noisy"), torch.float32)
    module.router.noise.data.zero_()[0] = -100.0  # softplus of it is 0
    x_ND = torch.ones(6, WIDTH, requires_grad=True)
    choice = module.router(x_ND)
    (choice.auxiliary + choice.gate_NK[:, 0].sum()).backward()
    assert x_ND.grad.isfinite().all()
    assert module.router.noise.grad.isfinite().all()


def test_squared_variation_by_hand():
    assert routing.squared_variation(torch.tensor([1.0, 3.0])).item() == pytest.approx(0.25)
    assert routing.squared_variation(torch.tensor([2.0, 2.0, 2.0])).item() == 0


def test_losses_of_noisy_routing_are_weighted():
    x = torch.randn(1, 50, WIDTH, dtype=torch.float64)

    def auxiliary(importance: float, load: float) -> float:
        module = layer(config_of("noisy", routing={"kind": "noisy", "importance_loss": importance, "load_loss": load}))
        torch.manual_seed(3)
        return module(x)[1].item()

    assert auxiliary(0, 0) == 0
    assert auxiliary(2, 0) == pytest.approx(2 * auxiliary(1, 0))
    assert auxiliary(0, 3) == pytest.approx(3 * auxiliary(0, 1))
    assert auxiliary(1, 1) == pytest.approx(auxiliary(1, 0) + auxiliary(0, 1))
    assert min(auxiliary(1, 0), auxiliary(0, 1)) > 0


# --- loss-free -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["loss_free", "loss_free-sigmoid"])
def test_the_bias_moves_the_choice_and_not_the_gates(kind):
    module = layer(config_of(kind, normalise=False))
    x = torch.randn(1, 30, WIDTH, dtype=torch.float64)
    module.router.bias_E[2] = 10
    choice = module.router(x[0])
    assert (choice.expert_NK == 2).any(1).all()
    logits = choice.logits_NE
    score = logits.sigmoid() if kind.endswith("sigmoid") else logits.softmax(-1)
    torch.testing.assert_close(choice.gate_NK, score.gather(1, choice.expert_NK))


def test_biases_follow_the_load_of_all_passes_of_a_step():
    router = layer(config_of("loss_free")).router
    with torch.no_grad():
        router.weight.zero_()
        router.weight[:, 0] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    x = torch.zeros(10, WIDTH, dtype=torch.float64)
    x[:, 0] = 1
    router(x)
    router(-x[:4])
    assert router.load_E.tolist() == [10, 10, 4, 4]
    router.settle()
    torch.testing.assert_close(router.bias_E, torch.tensor([-1e-3, -1e-3, 1e-3, 1e-3], dtype=torch.float64))
    router.eval()(x)
    router.settle()  # nothing was trained on since: evaluation moves no bias
    torch.testing.assert_close(router.bias_E, torch.tensor([-1e-3, -1e-3, 1e-3, 1e-3], dtype=torch.float64))


def test_biases_even_out_the_load():
    router = layer(config_of("loss_free", routing={"kind": "loss_free", "rate": 0.003}), torch.float32).router
    x = torch.randn(512, WIDTH) + 0.5

    def largest_share() -> float:
        return (routing.slots_per_expert(router(x).expert_NK, 4) / 256).max().item()

    before = largest_share()
    for _ in range(400):
        router(x)
        router.settle()
    assert before > 1.2
    assert largest_share() < 1.1


# --- training ------------------------------------------------------------------------------------


def recipe(kind: str) -> Recipe:
    return Recipe(
        model=Model(layers=2, width=WIDTH, heads=2, vocab=31, context=32),
        ffn=config_of(kind, shared=1),
        batching={"length": 32, "sequences": 4, "micro_sequences": 2},
        tokens=6 * 128,
    )


def batches(start: int = 0):
    for step in range(start, 6):
        yield torch.randint(31, (4, 33), generator=torch.Generator().manual_seed(step))


@pytest.mark.parametrize("kind", KINDS)
def test_interrupted_training_gives_the_same_bits(kind, tmp_path):
    whole = loop.start(recipe(kind), seed=0)
    losses = [step.loss for step in loop.train(whole, batches())]
    assert {"layer0/drop_rate", "layer1/load_max", "layer1/router_entropy"} <= whole.model.report().keys()

    first = loop.start(recipe(kind), seed=0)
    begun = [step.loss for step in islice(loop.train(first, batches()), 3)]
    checkpoint.save(first, tmp_path)
    torch.manual_seed(99)
    resumed = checkpoint.load(tmp_path)
    assert begun + [step.loss for step in loop.train(resumed, batches(3))] == losses
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    if "loss_free" in kind:
        assert whole.model.blocks[0].ffn.router.bias_E.abs().max() > 0

    other = loop.start(recipe(kind), seed=1)
    assert [step.loss for step in loop.train(other, batches())] != losses


def test_a_saved_model_keeps_its_biases(tmp_path):
    state = loop.start(recipe("loss_free"), seed=0)
    list(loop.train(state, batches()))
    checkpoint.save_model(state.model, state.recipe, tmp_path / "model")
    loaded = checkpoint.load_model(tmp_path / "model")
    assert torch.equal(loaded.blocks[1].ffn.router.bias_E, state.model.blocks[1].ffn.router.bias_E)
    assert loaded.blocks[1].ffn.router.load_E.abs().sum() == 0
