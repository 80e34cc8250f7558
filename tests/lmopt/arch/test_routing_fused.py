"""A router in one kernel: against torch's operations in float64, bit for bit with itself, and where it is used."""

from __future__ import annotations

import pytest
import torch

from lmopt.arch import routing, routing_fused
from lmopt.arch.moe import MoeFfn
from lmopt.recipe import Moe
from tests.lmopt.arch.kernels import assert_no_bit_depends_on_threads, needs_kernel

SHAPES = {  # tokens, width, experts, top-k
    "usual": (700, 192, 8, 2),
    "one-token": (1, 16, 1, 1),
    "one-register": (16, 16, 4, 1),
    "odd": (33, 80, 5, 3),
    "all-chosen": (129, 48, 4, 4),
    "many-experts": (2_049, 64, 61, 8),
    "long-sums": (5_000, 32, 8, 1),
}


def router_of(shape, **other):
    _, width, experts, top_k = shape
    usual = {"experts": experts, "top_k": top_k, "hidden": 32, "balance_loss": 0.3, "z_loss": 0.7}
    torch.manual_seed(0)
    router = routing.DroplessRouter(Moe(**usual | other), width)
    torch.nn.init.normal_(router.weight, std=width**-0.5)
    return router


def tokens_of(shape, dtype):
    """Numbers that bfloat16 holds."""
    return torch.randn(shape[:2], generator=torch.Generator().manual_seed(1)).bfloat16().to(dtype)


def passes(router, x, *, autocast=True):
    """What a router says, and the gradients of a sum of its gates and its losses."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        choice = router(x)
    weights = torch.linspace(-1, 2, choice.gate_NK.numel(), dtype=choice.gate_NK.dtype).view_as(choice.gate_NK)
    gradients = torch.autograd.grad((choice.gate_NK * weights).sum() + 100 * choice.auxiliary, [x, router.weight])
    return choice, [choice.logits_NE.detach(), choice.gate_NK.detach(), choice.auxiliary.detach(), *gradients]


@pytest.fixture
def calls(monkeypatch):
    found = []
    call = routing_fused.fused.call
    monkeypatch.setattr(routing_fused.fused, "call", lambda name, *given: found.append(name) or call(name, *given))
    return found


@needs_kernel
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_it_is_the_router_of_torchs_operations(shape, dtype, normalise, calls):
    router, x = router_of(shape, normalise=normalise), tokens_of(shape, dtype)
    choice, ours = passes(router, x)
    assert calls == ["route_forward", "route_backward"]
    reference, exact = passes(router_of(shape, normalise=normalise, kernel="grouped").double(), x.double())
    assert torch.equal(choice.expert_NK, reference.expert_NK)
    for name, found, expected in zip(("scores", "gates", "loss", "x", "weight"), ours, exact, strict=True):
        assert found.dtype == (dtype if name == "x" else torch.float32)
        allowed = 0.004 if found.dtype == torch.bfloat16 else 2e-6
        assert (found.double() - expected).norm() <= allowed * expected.norm() + 1e-12, name


@needs_kernel
@pytest.mark.parametrize("losses", [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5)], ids=str)
def test_each_loss_by_itself(losses):
    shape = SHAPES["odd"]
    weights = dict(zip(("balance_loss", "z_loss"), losses, strict=True))
    x = tokens_of(shape, torch.float32)
    _, ours = passes(router_of(shape, **weights), x)
    _, exact = passes(router_of(shape, kernel="grouped", **weights).double(), x.double())
    for found, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    assert losses != (0.0, 0.0) or ours[2] == 0


@needs_kernel
@pytest.mark.parametrize("shape", ["usual", "many-experts", "long-sums"])
def test_bits_do_not_depend_on_threads(shape):
    router, x = router_of(SHAPES[shape]), tokens_of(SHAPES[shape], torch.bfloat16)
    assert_no_bit_depends_on_threads(lambda: passes(router, x)[1])


@needs_kernel
def test_equal_scores_go_to_the_first_and_what_is_no_number_to_different_experts():
    router = router_of((40, 16, 6, 3))
    with torch.no_grad():
        router.weight[:] = router.weight[:1]
    x = tokens_of((40, 16), torch.bfloat16)
    x[7] = float("nan")
    choice, (_, gates, *_) = passes(router, x)
    others = torch.arange(40) != 7
    assert (choice.expert_NK[others] == torch.arange(3)).all()
    torch.testing.assert_close(gates[others], torch.full((39, 3), 1 / 3))
    assert choice.expert_NK[7].unique().numel() == 3
    assert choice.expert_NK[7].max() < 6
    assert gates[7].isnan().all()
    assert choice.auxiliary.isnan()


@needs_kernel
def test_what_is_no_number_counts_as_the_largest():
    router = router_of((20, 16, 5, 2), normalise=False)
    with torch.no_grad():
        router.weight[1] = float("nan")
    choice, _ = passes(router, tokens_of((20, 16), torch.bfloat16))
    assert (choice.expert_NK[:, 0] == 1).all()
    best = choice.logits_NE[:, [0, 2, 3, 4]].argmax(-1)
    assert torch.equal(choice.expert_NK[:, 1], torch.tensor([0, 2, 3, 4])[best])


@needs_kernel
def test_scores_far_apart_leave_gates_in_range():
    router, x = router_of((50, 16, 4, 2)), tokens_of((50, 16), torch.float32) * 1e4
    _, found = passes(router, x)
    assert all(torch.isfinite(each).all() for each in found)
    torch.testing.assert_close(found[1].sum(-1), torch.ones(50))


@needs_kernel
def test_operands_may_lie_in_memory_as_they_like():
    shape = SHAPES["odd"]
    router, x = router_of(shape), tokens_of(shape, torch.float32)
    strided = x.t().contiguous().t()
    for ours, other in zip(passes(router, x)[1], passes(router, strided)[1], strict=True):
        assert torch.equal(ours, other)


@needs_kernel
def test_it_is_what_trains_in_bfloat16_and_torch_does_the_rest(calls):
    shape = SHAPES["usual"]
    x = tokens_of(shape, torch.float32)
    passes(router_of(shape), x, autocast=False)
    passes(router_of(shape, kernel="grouped"), x)
    passes(router_of(shape, hidden=24), x)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        router_of(shape)(x)
    assert calls == []
    passes(router_of(shape), x)
    assert calls == ["route_forward", "route_backward"]


@needs_kernel
def test_a_switch_router_keeps_its_capacity(calls):
    layer = MoeFfn(Moe(experts=4, top_k=1, hidden=32, routing={"kind": "switch", "capacity_factor": 1.0}), 16)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x = tokens_of((64, 16), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    assert calls == ["route_forward", "place_slots", "experts_forward"]
    assert layer.report()["drop_rate"] > 0
    assert layer.latest[2] == 16


@needs_kernel
def test_shapes_without_data():
    x, weight = torch.ones(10, 32).bfloat16(), torch.ones(3, 32)

    def shapes(device):
        x_, weight_ = x.to(device), weight.to(device)
        logits, gate, expert, loss, log_sum, pull = made = routing_fused.route_forward(x_, weight_, 2, True, 0.1, 0.1)
        scored = x_, weight_, logits, gate, expert, log_sum, pull
        gradients = routing_fused.route_backward(*scored, gate, loss, True, 0.1)
        return [(each.shape, each.dtype) for each in (*made, *gradients)]

    assert shapes("meta") == shapes("cpu")
