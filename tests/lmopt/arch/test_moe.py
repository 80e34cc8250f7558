"""The sparse layer: grouped kernel against the plain loop, limiting cases, losses by hand."""

from __future__ import annotations

import math

import pytest
import torch

from lmopt.arch import experts, experts_cpu, fused
from lmopt.arch.experts import ROW_BLOCK, experts_grouped, experts_loop, place_slots, sort_slots
from lmopt.arch.experts_cpu import experts_backward, experts_forward
from lmopt.arch.experts_cuda import grouped_backward, grouped_forward, grouped_linear, grouped_outer
from lmopt.arch.ffn import SwiGluFfn
from lmopt.arch.moe import MoeFfn
from lmopt.arch.routing import balance_loss, choose
from lmopt.arch.transformer import build
from lmopt.recipe import Model, Moe, Recipe

WIDTH = 16


def layer(config: Moe, dtype: torch.dtype = torch.float64) -> MoeFfn:
    torch.manual_seed(0)
    module = MoeFfn(config, WIDTH)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.to(dtype)


def outputs_and_gradients(module: MoeFfn, x: torch.Tensor) -> list[torch.Tensor]:
    y, auxiliary = module(x)
    total = (y * torch.arange(WIDTH, dtype=y.dtype)).sum() + y.sin().sum() + auxiliary
    return [y, auxiliary, *torch.autograd.grad(total, [x, *module.parameters()])]


@pytest.mark.parametrize(
    "config",
    [
        Moe(experts=8, top_k=2, hidden=24),
        Moe(experts=3, top_k=1, hidden=8, activation="relu2"),
        Moe(experts=4, top_k=4, hidden=8),
        Moe(experts=64, top_k=3, hidden=8),  # most experts get no token
        Moe(experts=4, top_k=2, hidden=8, shared=2),
        Moe(experts=4, top_k=2, hidden=8, normalise=False),
    ],
    ids=["usual", "top-1", "all", "empty-experts", "shared", "bare-gates"],
)
def test_grouped_kernel_equals_the_loop_gradients_included(config, monkeypatch):
    for module in (experts, experts_cpu):
        monkeypatch.setattr(module, "ROW_BLOCK", 4)  # whole blocks and a rest
    module = layer(config)
    x = torch.randn(2, 19, WIDTH, dtype=torch.float64, requires_grad=True)
    module.experts = experts_loop
    expected = outputs_and_gradients(module, x)
    module.experts = experts_grouped
    for ours, reference in zip(outputs_and_gradients(module, x), expected, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-11, atol=1e-11)


def test_own_gradients_are_the_derivatives():
    gate, chosen = torch.rand(5, 2, dtype=torch.float64), torch.tensor([[0, 1], [1, 2], [2, 0], [1, 0], [2, 1]])
    up, down = torch.randn(3, 8, 6, dtype=torch.float64), torch.randn(3, 6, 4, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (torch.randn(5, 6, dtype=torch.float64), gate, up, down)]
    assert torch.autograd.gradcheck(lambda x, g, u, d: experts_grouped(x, g, chosen, u, d, "swiglu"), inputs)


def test_bfloat16_is_close_to_float32():
    module = layer(Moe(experts=4, top_k=2, hidden=16), torch.float32)
    x = torch.randn(1, 300, WIDTH)
    exact = module(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = module(x)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.05)


@pytest.mark.parametrize(
    ("hidden", "dtype"),
    [(24, torch.float32), (64, torch.float32), (24, torch.bfloat16), (568, torch.bfloat16)],
    ids=str,
)
def test_one_expert_is_the_dense_layer_exactly(hidden, dtype, monkeypatch):
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")  # its exponentials are not torch's to the last bit
    module, dense = layer(Moe(experts=1, top_k=1, hidden=hidden), torch.float32), SwiGluFfn(WIDTH, hidden)
    with torch.no_grad():
        dense.gate_up.weight.copy_(module.up[0])
        dense.down.weight.copy_(module.down[0])
    x = torch.randn(2, 32, WIDTH, requires_grad=True)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        ours, reference = module(x)[0], dense(x)[0]
    assert torch.equal(ours, reference)
    assert torch.equal(torch.autograd.grad(ours.sum(), x)[0], torch.autograd.grad(reference.sum(), x)[0])


@pytest.mark.parametrize("kind", ["swiglu", "relu2"])
@pytest.mark.parametrize("capacity", [None, 11])
def test_the_passes_of_a_gpu_equal_those_of_a_cpu(kind, capacity):
    chosen = torch.randint(4, (23, 2), generator=torch.Generator().manual_seed(1))
    rows = sort_slots(chosen, 5) if capacity is None else place_slots(chosen, 5, capacity)
    x, grad, gate = torch.randn(23, 8), torch.randn(23, 8), torch.rand(len(rows.token_S))
    up, down = torch.randn(5, 24 if kind == "swiglu" else 12, 8), torch.randn(5, 8, 12)
    where = kind, rows.token_S, rows.ends_E, len(rows.token_S) - ROW_BLOCK
    results = []
    for forward, backward in ((experts_forward, experts_backward), (grouped_forward, grouped_backward)):
        made = forward(x, up, down, *where)
        of_rows, of_gates, *of_weights = backward(grad, gate, *made, up, down, *where, torch.float64)
        filled = slice(int(rows.ends_E[-1]))
        results.append([made[0][filled], of_rows[filled], of_gates[filled], *of_weights])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_every_slot_is_kept_and_sorted():
    chosen = torch.randint(5, (40, 3), generator=torch.Generator().manual_seed(2))
    token_S, slot_NK, ends_E, _ = sort_slots(chosen, 6)
    assert ends_E.tolist() == torch.bincount(chosen.flatten(), minlength=6).cumsum(0).tolist()
    assert len(token_S) == 120 + experts.ROW_BLOCK
    assert torch.equal(token_S[slot_NK], torch.arange(40)[:, None].expand(40, 3))
    starts = [0, *ends_E.tolist()]
    for expert in range(6):
        assert (chosen[token_S[starts[expert] : starts[expert + 1]]] == expert).any(dim=1).all()


def test_gates_sum_to_one_and_a_single_gate_is_its_probability():
    logits = torch.randn(10, 4)
    several, expert = choose(logits, 3, sum_to_one=True)
    torch.testing.assert_close(several.sum(-1), torch.ones(10))
    p = logits.softmax(-1).gather(1, expert)
    torch.testing.assert_close(several, p / p.sum(-1, keepdim=True))
    as_they_are, expert = choose(logits, 3, sum_to_one=False)
    torch.testing.assert_close(as_they_are, logits.softmax(-1).gather(1, expert))
    assert not Moe(top_k=1).gates_sum_to_one
    assert Moe(top_k=2).gates_sum_to_one
    assert not Moe(top_k=2, normalise=False).gates_sum_to_one


def test_balance_loss_by_hand():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1]])
    # n = (2, 1, 1) of 2 tokens x 2: (3/2) (1.0 x 0.65 + 0.5 x 0.25 + 0.5 x 0.10) = 1.2375
    assert balance_loss(p, torch.tensor([[0, 1], [0, 2]])).item() == pytest.approx(1.2375)
    uniform = torch.full((6, 3), 1 / 3)
    assert balance_loss(uniform, torch.tensor([[0, 1]] * 6)).item() == pytest.approx(1)
    one_hot = torch.eye(4)[[0, 0]]
    assert balance_loss(one_hot, torch.zeros(2, 1, dtype=torch.int64)).item() == pytest.approx(4)


def test_auxiliary_is_the_weighted_sum_and_reaches_the_router():
    module = layer(Moe(experts=4, top_k=2, hidden=8, balance_loss=0.5, z_loss=0.25))
    x = torch.randn(3, 7, WIDTH, dtype=torch.float64)
    _, auxiliary = module(x)
    logits = x.flatten(0, 1) @ module.router.weight.T
    balance = balance_loss(logits.softmax(-1), logits.topk(2).indices)
    torch.testing.assert_close(auxiliary, 0.5 * balance + 0.25 * logits.logsumexp(-1).square().mean())
    (gradient,) = torch.autograd.grad(auxiliary, module.router.weight)
    assert gradient.abs().max() > 0


def test_report_of_a_batch():
    module = layer(Moe(experts=4, top_k=2, hidden=8))
    assert module.report() == {}
    with torch.no_grad():
        module.router.weight.zero_()
        module.router.weight[3] -= 100
        module(torch.ones(1, 6, WIDTH, dtype=torch.float64))
    report = module.report()
    assert report["load/3"] == 0
    assert sum(report[f"load/{expert}"] for expert in range(4)) == pytest.approx(1)
    assert report["load_max"] == pytest.approx(2)  # two experts got everything: twice the uniform share
    assert report["router_entropy"] == pytest.approx(math.log(3))


@pytest.mark.parametrize("routing", ["dropless", "switch", "noisy", "loss_free"])
@pytest.mark.parametrize("kernel", ["auto", "grouped"])
def test_no_token_has_no_loss_and_nothing_to_report(routing, kernel):
    module = layer(Moe(experts=4, top_k=1, hidden=16, routing={"kind": routing}, kernel=kernel)).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, auxiliary = module(torch.zeros(1, 0, WIDTH))
    (y.sum() + auxiliary).backward()
    assert auxiliary == 0
    assert module.report() == {}
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in module.parameters())


def test_shapes_without_data():
    def shapes(device: str) -> list[tuple[torch.Size, torch.dtype]]:
        x, gate, up = (torch.ones(*shape, device=device) for shape in ((10, 4), (10 + ROW_BLOCK,), (3, 12, 4)))
        down, ends = torch.ones(3, 4, 6, device=device), torch.full((3,), 8, dtype=torch.int32, device=device)
        where = "swiglu", torch.zeros(10 + ROW_BLOCK, dtype=torch.int64, device=device), ends, 10
        made = experts_forward(x, up, down, *where)
        gradients = experts_backward(x, gate, *made, up, down, *where, torch.float64)
        return [(tensor.shape, tensor.dtype) for tensor in (*made, *gradients)]

    assert shapes("meta") == shapes("cpu")
    with torch._subclasses.FakeTensorMode():
        x, weight, ends = torch.empty(10, 4), torch.empty(3, 6, 4), torch.empty(3, dtype=torch.int32)
        assert grouped_linear(x, weight, ends, 8).shape == (10, 6)
        assert grouped_outer(torch.empty(10, 6), x, ends, 8).shape == (3, 6, 4)


def test_a_model_of_experts_trains_the_same_bits_from_the_same_seed():
    recipe = Recipe(
        model=Model(layers=2, width=WIDTH, heads=2, vocab=31, context=32),
        ffn=Moe(experts=4, top_k=2),
        batching={"length": 32, "sequences": 2},
        tokens=1_000,
    )
    batch_BT = torch.randint(31, (2, 33), generator=torch.Generator().manual_seed(0))

    def after_three_steps(seed: int):
        model = build(recipe, seed=seed)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(3):
            with torch.autocast("cpu", torch.bfloat16):
                found = model.loss(batch_BT[:, :-1], batch_BT[:, 1:])
            optimizer.zero_grad()
            found.total.backward()
            optimizer.step()
            losses.append(found.cross_entropy.item())
        assert set(model.report()) >= {"layer0/load/0", "layer1/router_entropy"}
        return losses, model.blocks[1].ffn.up

    (losses, weights), (again, same), (_, other) = (after_three_steps(seed) for seed in (0, 0, 1))
    assert losses == again
    assert torch.equal(weights, same)
    assert not torch.equal(weights, other)
    assert losses[2] < losses[0]
