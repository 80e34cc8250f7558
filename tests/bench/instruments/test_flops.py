"""Every way of counting against numbers worked out by hand, and every formula missed when it is gone."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from bench.instruments import flops, formulas
from lmopt import cost
from lmopt.arch import attention
from lmopt.arch.extension_fused import extend
from lmopt.arch.panels_fused import announce
from lmopt.arch.transformer import build
from lmopt.compute.int8 import filled_up_product
from lmopt.recipe import (
    Bf16Stochastic,
    Distillation,
    Fp32,
    Int8,
    LayerSkip,
    Model,
    Moe,
    Recipe,
    Recompute,
    Relu2,
    SwiGlu,
    Wasteful,
    builder,
)


def recipe(ffn, length=16, **shape) -> Recipe:
    shape = {"layers": 2, "width": 16, "heads": 4, "vocab": 24, "context": 2048} | shape
    return Recipe(model=Model(**shape), ffn=ffn, batching={"length": length, "sequences": 1}, tokens=100_000)


KINDS = {
    "swiglu": recipe(SwiGlu()),
    "relu2": recipe(Relu2()),
    "wasteful": recipe(Wasteful(dead=40)),
    "moe": recipe(Moe(experts=4, top_k=2, hidden=8)),
    "moe-loop": recipe(Moe(experts=4, top_k=2, hidden=8, kernel="loop")),
    "moe-top1": recipe(Moe(experts=4, top_k=1, hidden=8, activation="relu2")),
    "moe-shared": recipe(Moe(experts=8, top_k=3, shared=1, hidden=8)),
    "moe-noisy": recipe(Moe(experts=4, top_k=2, hidden=8, routing={"kind": "noisy"})),
    "moe-switch": recipe(Moe(experts=4, top_k=1, hidden=8, routing={"kind": "switch"})),
    "moe-switch-wide": recipe(Moe(experts=5, top_k=1, hidden=8, routing={"kind": "switch", "capacity_factor": 1.5})),
    "moe-loss-free": recipe(Moe(experts=4, top_k=2, hidden=8, routing={"kind": "loss_free"})),
    "gqa": recipe(SwiGlu(), kv_heads=2, qk_norm=True),
    "untied": recipe(SwiGlu(), tied_head=False),
    "fp32": recipe(SwiGlu()).model_copy(update={"precision": Fp32()}),
    "int8": recipe(SwiGlu(), length=32).model_copy(update={"precision": Int8(grad_weight=True)}),
    "switchback": recipe(SwiGlu(), length=32).model_copy(update={"precision": Int8(outliers="smooth")}),
    "bf16_sr": recipe(SwiGlu()).model_copy(update={"precision": Bf16Stochastic()}),
    "long": recipe(SwiGlu(), length=1025, layers=1),  # beyond what keeps its probabilities: torch's fused kernel
}


@pytest.mark.parametrize("described", KINDS.values(), ids=KINDS)
def test_all_counts_are_equal(described):
    model = build(described, seed=0)
    builder(described.precision)(described.precision).prepare(model)
    found = flops.count(model, described)
    assert found.forward.closed == found.forward.dispatched == found.forward.fvcore
    assert found.train.closed == found.train.dispatched
    assert found.agree
    assert found.disagreement is None
    assert found.params_total == cost.parameters(described).total
    assert found.params_active == cost.parameters(described).active


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_computed_again_is_counted_in_every_kind(kind):
    described = KINDS[kind].model_copy(update={"activations": Recompute()})
    model = build(described, seed=0)
    builder(described.precision)(described.precision).prepare(model)
    found = flops.count(model, described)
    assert found.train.closed == found.train.dispatched


def test_exits_are_counted_and_layer_dropout_is_what_it_is_on_average():
    plain = recipe(SwiGlu(hidden=12), layers=3)
    skipping = plain.model_copy(update={"objective": LayerSkip(dropout=0.4, exits=(1, 2))})
    found = flops.count(build(skipping, seed=0), skipping)
    head = 2 * 16 * 16 * 24
    layers = cost.forward_flops(plain, 16).total - head
    assert found.train.closed == found.train.dispatched == 3 * (layers + 2 * head), "one exit a step, every layer run"
    assert found.agree
    left_out = 0.4 * ((2**0.5 - 1) + 1) / 3  # layers 2 and 3 of 3: p (2^(l/(L-1)) - 1)
    assert found.train_flops_per_token * 16 == pytest.approx(3 * ((1 - left_out) * layers + 2 * head))


@pytest.mark.parametrize("teacher", ["swiglu", "moe", "gqa"])
@pytest.mark.parametrize("knobs", [{}, {"probabilities": 0.0}, {"hidden": 0.0}], ids=["all", "states", "probabilities"])
def test_the_passes_of_a_teacher_are_counted(teacher, knobs):
    shape = KINDS[teacher].model_dump(mode="json", include={"model", "ffn"})
    described = recipe(SwiGlu(), layers=1).model_copy(
        update={"objective": Distillation(teacher="large", shape=shape, **knobs)}
    )
    found = flops.count(build(described, seed=0), described, teacher=build(described.teacher, seed=0))
    assert found.train.closed == found.train.dispatched
    assert found.agree
    plain = flops.count(build(recipe(SwiGlu(), layers=1), seed=0), recipe(SwiGlu(), layers=1))
    assert found.forward == plain.forward, "what the student costs by itself"
    assert found.train.closed > plain.train.closed


def test_a_teacher_that_weighs_nothing_is_not_run():
    plain = recipe(SwiGlu())
    shape = plain.model_dump(mode="json", include={"model", "ffn"})
    silent = Distillation(teacher="large", shape=shape, targets=1.0, probabilities=0.0, hidden=0.0)
    described = plain.model_copy(update={"objective": silent})
    found = flops.count(build(described, seed=0), described, teacher=build(plain, seed=0))
    assert found.train == flops.count(build(plain, seed=0), plain).train


def test_by_hand():
    # 2 layers of: 4 matrices 16 x 16, 3 of 16 x 12, attention 2 x 16 x 16 x 16; head 16 x 24; each x 2 x 16 tokens
    described = recipe(SwiGlu(hidden=12))
    found = flops.count(build(described, seed=0), described)
    expected = 2 * (2 * 16 * (1024 + 576) + 2 * 2 * 16 * 16 * 16) + 2 * 16 * 384
    assert found.forward.dispatched == found.forward.fvcore == expected
    assert found.train.dispatched == 3 * expected
    assert found.train_flops_per_token == 3 * expected / 16
    assert found.infer_flops_per_token == expected / 16
    assert found.forward_causal == expected - 2 * 2 * 16 * 16 * 16


def test_empty_rows_of_a_capacity_are_executed_and_not_needed():
    # 16 tokens to 4 experts of 3 matrices 16 x 8, capacity 1.25 x 16 / 4 = 5 rows each: 4 rows more than tokens
    described = KINDS["moe-switch"]
    found = flops.count(build(described, seed=0), described)
    assert found.train.dispatched - found.train_model == 2 * 3 * 2 * 4 * (3 * 16 * 8)
    assert found.train_model == 3 * found.forward.dispatched
    # two sequences at a time: 32 tokens, 10 rows each: 8 rows more, 4 a sequence
    pair = described.model_copy(update={"batching": described.batching.model_copy(update={"sequences": 2})})
    assert flops.count(build(pair, seed=0), pair).train_flops_per_token == found.train_flops_per_token
    # capacity is rounded up: 1.5 x 16 / 5 = 4.8 -> 5 rows each; of 4 sequences at a time 19.2 -> 20
    wide = KINDS["moe-switch-wide"]
    four = wide.model_copy(update={"batching": wide.batching.model_copy(update={"sequences": 4})})
    assert [cost.ffn_cost(wide.ffn, 16, tokens).padding_flops_per_token for tokens in (16, 64)] == [
        2 * 3 * 16 * 8 * (5 * 5 / 16 - 1),
        2 * 3 * 16 * 8 * (5 * 20 / 64 - 1),
    ]
    assert flops.count(build(four, seed=0), four).train_flops_per_token == cost.train_flops_per_token(four).executed


def test_the_noise_of_a_router_is_counted_in_training_alone():
    plain, noisy = (KINDS[kind] for kind in ("moe", "moe-noisy"))
    counts = [flops.count(build(one, seed=0), one) for one in (plain, noisy)]
    assert counts[0].forward.dispatched == counts[1].forward.dispatched
    assert counts[1].train_model - counts[0].train_model == 3 * 2 * 16 * 2 * 16 * 4


@pytest.mark.parametrize("kind", ["moe", "moe-loss-free", "moe-noisy"])
def test_the_model_is_left_as_it_was(kind):
    described = KINDS[kind]
    model = build(described, seed=0)
    before = {name: value.clone() for name, value in (*model.named_parameters(), *model.named_buffers())}
    flops.count(model, described)
    assert all(parameter.grad is None for parameter in model.parameters())
    now = dict((*model.named_parameters(), *model.named_buffers()))
    assert all(torch.equal(before[name], now[name]) for name in before)
    assert model.training
    assert model.report() == {}


def test_an_embedding_counts_nothing_by_convention():
    with FlopCounterMode(display=False) as counter:
        torch.nn.Embedding(100, 8)(torch.arange(5))
    assert counter.get_total_flops() == 0


def test_a_large_model_is_counted_without_its_memory():
    described = recipe(SwiGlu(), length=1024, layers=16, width=2048, heads=16, vocab=50_000)
    model = build(described, seed=0, device="meta")
    found = flops.Counts(cost.forward_flops(described, 1024).total, None, flops.traced(model, 1024))
    assert cost.parameters(described).total > 8e8
    assert found.spread() == 0


def test_disagreement_is_said(monkeypatch):
    described = KINDS["swiglu"]
    monkeypatch.setattr(cost, "forward_flops", lambda *_: dataclasses.replace(real(*_), head=0))
    found = flops.count(build(described, seed=0), described)
    assert not found.agree
    assert "forward: closed" in found.disagreement
    assert json.loads(json.dumps(found.to_dict()))["agree"] is False


real = cost.forward_flops


def test_a_difference_within_half_a_percent_is_agreement():
    assert flops.Counts(1000, 1005, 1003).spread() < flops.TOLERANCE < flops.Counts(1000, 1006).spread()


# --- each formula is needed ----------------------------------------------------------------------


def counted(call, known=formulas.FORMULAS) -> int:
    with FlopCounterMode(display=False, custom_mapping=formulas.known_operators(known)) as counter:
        call()
    return counter.get_total_flops()


def attention_backward(requires_kept: bool):
    q, k = torch.randn(2, 4, 8, 16, requires_grad=True), torch.randn(2, 4, 8, 16, requires_grad=True)
    if requires_kept:
        attention.attend(q, k, k).sum().backward()
    else:
        functional.scaled_dot_product_attention(q, k, k, is_causal=True).sum().backward()


def grouped_backward():
    x, weight = torch.randn(12, 16, requires_grad=True), torch.randn(3, 16, 8, requires_grad=True)
    ends = torch.tensor([4, 4, 12], dtype=torch.int32)
    out = functional.grouped_mm(x, weight, offs=ends)
    out.backward(torch.ones_like(out))


def experts_backward():
    from lmopt.arch.experts import experts_grouped

    x, gate = torch.randn(6, 16, requires_grad=True), torch.ones(6, 2)
    up, down = torch.randn(3, 8, 16, requires_grad=True), torch.randn(3, 16, 8, requires_grad=True)
    experts_grouped(x, gate, torch.tensor([[0, 1]] * 6), up, down, "relu2").sum().backward()


def experts_backward_on_a_gpu():
    from lmopt.arch.experts_cuda import grouped_backward, grouped_forward

    x, token, ends = torch.randn(6, 16), torch.zeros(16, dtype=torch.int64), torch.tensor([6, 6, 12], dtype=torch.int32)
    up, down = torch.randn(3, 8, 16), torch.randn(3, 16, 8)
    made = grouped_forward(x, up, down, "relu2", token, ends, 12)
    grouped_backward(x, torch.ones(16), *made, up, down, "relu2", token, ends, 12, torch.float32)


def experts_backward_fused():
    from lmopt.arch.experts_fused import fused_backward, fused_forward

    def numbers(*shape, dtype=torch.bfloat16):
        return torch.ones(shape, dtype=dtype, device="meta")

    x, up, down = numbers(6, 16), numbers(3, 8, 16), numbers(3, 16, 8)
    where = "relu2", numbers(12, dtype=torch.int64), numbers(3, dtype=torch.int32), 12
    slots = numbers(6, 2, dtype=torch.float32), numbers(6, 2, dtype=torch.int64), None
    _, inner = fused_forward(x, up, down, *where, *slots)
    fused_backward(x, x, inner, up, down, *where, *slots)


def routing_backward_fused():
    from lmopt.arch.routing_fused import route_backward, route_forward

    x, weight = torch.ones(6, 16, dtype=torch.bfloat16, device="meta"), torch.ones(3, 16, device="meta")
    logits, gate, expert, loss, log_sum, pull = route_forward(x, weight, 2, True, 0.1, 0.1)
    route_backward(x, weight, logits, gate, expert, log_sum, pull, gate, loss, True, 0.1)


PAIR = 2 * 2 * 4 * 8 * 8 * 16
"""One product of an attention of 2 sequences, 4 heads, 8 positions, head width 16."""
GROUPED = 2 * 12 * 16 * 8
SCORES = 2 * 6 * 16 * 3

EXTENDED = (2, 3, 256), (20, 32), (20, 32), (5, 2, 20, 32), (5, 2, 20, 32), (2,), (2,)
"""Queries, keys and values; tables of positions; a cache's keys and values; places in it."""
NEEDED = {
    "aten::_scaled_dot_product_flash_attention_for_cpu": (lambda: attention_backward(False), 7 * PAIR, 2 * PAIR),
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": (
        lambda: attention_backward(False),
        7 * PAIR,
        5 * PAIR,
    ),
    "lmopt::causal_attention": (lambda: attention_backward(True), 6 * PAIR, 2 * PAIR),
    "lmopt::causal_attention_backward": (lambda: attention_backward(True), 6 * PAIR, 4 * PAIR),
    "lmopt::experts_forward": (experts_backward, 6 * GROUPED, 2 * GROUPED),
    "lmopt::experts_backward": (experts_backward, 6 * GROUPED, 4 * GROUPED),
    "lmopt::experts_fused_forward": (experts_backward_fused, 6 * GROUPED, 2 * GROUPED),
    "lmopt::experts_fused_backward": (experts_backward_fused, 6 * GROUPED, 4 * GROUPED),
    "lmopt::route_forward": (routing_backward_fused, 3 * SCORES, SCORES),
    "lmopt::route_backward": (routing_backward_fused, 3 * SCORES, 2 * SCORES),
    "lmopt::grouped_linear": (experts_backward_on_a_gpu, 6 * GROUPED, 4 * GROUPED),
    "lmopt::grouped_outer": (experts_backward_on_a_gpu, 6 * GROUPED, 2 * GROUPED),
    "aten::_grouped_mm": (grouped_backward, 3 * GROUPED, 3 * GROUPED),
    "lmopt::panels_multiplied": (lambda: announce(torch.empty(3, 32), 48), 2 * 3 * 32 * 48, 2 * 3 * 32 * 48),
    "lmopt::extend_attention": (
        lambda: extend(  # 3 tokens of 2 texts, 30 tokens in all, 4 heads on 2 of 32
            *(torch.empty(shape, device="meta") for shape in EXTENDED), 30
        ),
        4 * 3 * 30 * 4 * 32,
        4 * 3 * 30 * 4 * 32,
    ),
    "mkldnn::_linear_pointwise": (
        lambda: torch.ops.mkldnn._linear_pointwise(torch.ones(3, 5, 32), torch.ones(8, 32), None, "none", [], ""),
        2 * 15 * 32 * 8,
        2 * 15 * 32 * 8,
    ),
    "aten::_int_mm": (
        lambda: torch._int_mm(torch.ones(32, 16, dtype=torch.int8), torch.ones(16, 8, dtype=torch.int8)),
        2 * 32 * 16 * 8,
        2 * 32 * 16 * 8,
    ),
    "lmopt::filled_up_product": (
        lambda: filled_up_product(torch.ones(3, 20, dtype=torch.int8), torch.ones(20, 6, dtype=torch.int8)),
        2 * 3 * 20 * 6,
        2 * 3 * 20 * 6,
    ),
    "aten::_weight_int8pack_mm": (
        lambda: torch.ops.aten._weight_int8pack_mm(
            torch.ones(4, 32, dtype=torch.bfloat16),
            torch.ones(8, 32, dtype=torch.int8),
            torch.ones(8, dtype=torch.bfloat16),
        ),
        2 * 4 * 32 * 8,
        2 * 4 * 32 * 8,
    ),
}


@pytest.mark.parametrize("name", NEEDED)
def test_deleting_a_formula_loses_its_flops(name, monkeypatch):
    call, expected, lost = NEEDED[name]
    assert counted(call) == expected
    without = {other: formula for other, formula in formulas.FORMULAS.items() if other != name}
    for packet in formulas.known_operators(dict.fromkeys([name], formulas.product_flops)):
        monkeypatch.delitem(flop_registry, packet, raising=name not in formulas.FORMULAS)
    assert counted(call, without) == expected - lost


def test_every_formula_for_a_cpu_is_needed():
    elsewhere = {name for name in formulas.FORMULAS if "cpu" not in name and "scaled" in name}
    names = {str(packet).replace(".", "::") for packet in flop_registry}
    ours = {name for name in names if name.startswith(("lmopt", "mkldnn"))}
    assert ours | set(formulas.FORMULAS) - elsewhere == set(NEEDED)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
@pytest.mark.parametrize("ffn", [SwiGlu(), Moe(experts=4, top_k=2, hidden=64)], ids=["dense", "sparse"])
def test_a_counter_that_knows_nothing_of_us_counts_a_training_step(ffn, kind):
    """Torch's own counter as it is, on the operators that are taken in earnest."""
    described = recipe(ffn, length=64, width=128)
    model = build(described, seed=0)
    tokens = torch.zeros(1, described.batching.length, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16"):
        model.loss(tokens, tokens).cross_entropy.backward()
    expected = cost.train_flops_per_token(described).executed * described.batching.length
    assert counter.get_total_flops() == pytest.approx(expected, rel=flops.TOLERANCE)


@pytest.mark.parametrize("kind", ["flash", "efficient", "cudnn"])
def test_attention_kernels_of_cuda_count_grouped_heads(kind):
    q, k = (2, 4, 8, 16), (2, 2, 8, 16)
    forward = formulas.FORMULAS[f"aten::_scaled_dot_product_{kind}_attention"]
    backward = formulas.FORMULAS[f"aten::_scaled_dot_product_{kind}_attention_backward"]
    assert forward(q, k, k) == 2 * PAIR
    assert backward(q, q, k, k, q) == 5 * PAIR
    wide = (2, 4, 8, 20)  # heads of 20 numbers, widened to 24
    padded = forward((2, 4, 8, 24), (2, 2, 8, 24), (2, 2, 8, 24), scale=20**-0.5)
    assert padded == forward(wide, (2, 2, 8, 20), (2, 2, 8, 20)) == forward(wide, (2, 2, 8, 20), scale=0.1)
    again = backward(q, (2, 4, 8, 24), (2, 2, 8, 24), k, scale=20**-0.5)
    assert again == backward(q, wide, (2, 2, 8, 20), k)
    assert f"_scaled_dot_product_{kind}_attention" in str(formulas.known_operators(formulas.FORMULAS))


def test_grouped_products_in_all_four_forms():
    assert formulas.grouped_product_flops((12, 16), (3, 16, 8)) == 2 * 12 * 16 * 8  # groups of rows
    assert formulas.grouped_product_flops((16, 12), (12, 8)) == 2 * 16 * 12 * 8  # groups of the inner dimension
    assert formulas.grouped_product_flops((3, 5, 16), (16, 12)) == 2 * 5 * 16 * 12  # groups of columns
    assert formulas.grouped_product_flops((3, 5, 16), (3, 16, 8)) == 3 * 2 * 5 * 16 * 8  # a plain batch


def test_an_operator_that_this_torch_lacks_is_passed_over():
    assert formulas.known_operators({"aten::_not_in_any_version": formulas.product_flops}) == {}


@pytest.mark.parametrize("name", flops.HANDLES)
def test_deleting_a_handle_loses_its_flops(name, monkeypatch):
    described = KINDS["int8" if "Int8" in name else "moe"]
    model = build(described, seed=0)
    builder(described.precision)(described.precision).prepare(model)
    length = described.batching.length
    if name == "lmopt::causal_attention":  # seen by the tracer only where the model runs for real
        monkeypatch.setattr(flops, "_on_meta", lambda _: (_ for _ in ()).throw(NotImplementedError))
    full = flops.traced(model, length)
    monkeypatch.setattr(flops, "HANDLES", {other: handle for other, handle in flops.HANDLES.items() if other != name})
    assert full == cost.forward_flops(described, length).total
    assert flops.traced(model, length) < full
