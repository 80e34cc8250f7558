"""Closed forms against hand-computed numbers and against the models built."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lmopt import cost, cost_memory, native
from lmopt.recipe import Model, Moe, Recipe, Relu2, SwiGlu


def recipe(ffn, length=16, **shape) -> Recipe:
    shape = {"layers": 2, "width": 8, "heads": 2, "vocab": 10, "context": 4096} | shape
    return Recipe(model=Model(**shape), ffn=ffn, batching={"length": length, "sequences": 1}, tokens=100_000)


# One sequence of 16 tokens, width 8, 2 layers, vocabulary 10. A layer:
#   projections   4 matrices of 8 x 8            2 x 16 x 256         =  8,192
#   attention     2 products 16 x 16 x 8         2 x 2 x 16 x 16 x 8  =  8,192
#   SwiGLU        3 matrices of 8 x 12           2 x 16 x 288         =  9,216
# Head            8 x 10                         2 x 16 x 80          =  2,560
BY_HAND = {
    "swiglu": (recipe(SwiGlu(hidden=12)), 2 * (8_192 + 8_192 + 9_216) + 2_560),
    # 2 matrices of 8 x 12: 2 x 16 x 192 = 6,144
    "relu2": (recipe(Relu2(hidden=12)), 2 * (8_192 + 8_192 + 6_144) + 2_560),
    # 2 of 4 experts, 3 matrices of 8 x 6: 2 x 16 x 2 x 144 = 9,216; router 8 x 4: 2 x 16 x 32 = 1,024
    "moe": (recipe(Moe(experts=4, top_k=2, hidden=6)), 2 * (8_192 + 8_192 + 9_216 + 1_024) + 2_560),
    # one key head of 4: query and output 8 x 8, key and value 8 x 4: 2 x 16 x 192 = 6,144; attention as before
    "gqa": (recipe(SwiGlu(hidden=12), kv_heads=1), 2 * (6_144 + 8_192 + 9_216) + 2_560),
    # another matrix, the same products
    "untied": (recipe(SwiGlu(hidden=12), tied_head=False), 2 * (8_192 + 8_192 + 9_216) + 2_560),
}


@pytest.mark.parametrize(("described", "expected"), BY_HAND.values(), ids=BY_HAND)
def test_forward_flops_by_hand(described, expected):
    assert cost.forward_flops(described, 16).total == expected
    assert cost.infer_flops_per_token(described) == expected / 16


def test_parameters_by_hand():
    # layer: 256 + 288 + 2 norms of 8; embedding 80; last norm 8
    assert cost.parameters(recipe(SwiGlu(hidden=12))) == cost.Parameters(2 * 560 + 88, 2 * 560 + 88, 80)
    # two norms of a head's width more, a head of its own
    own_head = recipe(SwiGlu(hidden=12), tied_head=False, qk_norm=True)
    assert cost.parameters(own_head).total == 2 * (560 + 8) + 168
    # 4 experts of 144 and a router of 32, 2 of them active
    sparse = cost.parameters(recipe(Moe(experts=4, top_k=2, hidden=6)))
    assert sparse.total == 2 * (272 + 4 * 144 + 32) + 88
    assert sparse.active == 2 * (272 + 2 * 144 + 32) + 88


MIXTURES = [
    Moe(experts=6, top_k=3),
    Moe(activation="relu2"),
    Moe(experts=8, top_k=3, shared=2),
    Moe(activation="relu2", shared=1),
    Moe(routing={"kind": "noisy"}),
    Moe(top_k=1, routing={"kind": "switch"}),
    Moe(routing={"kind": "loss_free"}),
]
SHAPES = [
    {},
    {"kv_heads": 1, "qk_norm": True, "tied_head": False},
    {"heads": 4, "kv_heads": 2, "qk_norm": True, "qk_norm_over": "all"},
]


@pytest.mark.parametrize("ffn", [SwiGlu(), Relu2(), *MIXTURES])
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_are_those_of_the_model_built(ffn, shape):
    from lmopt.arch.transformer import build

    described = recipe(ffn, width=24, **shape)
    built = build(described, seed=0, device="meta")
    assert cost.parameters(described).total == sum(parameter.numel() for parameter in built.parameters())


def test_backward_is_twice_forward_and_more_where_scores_are_computed_again():
    described = recipe(SwiGlu(hidden=12))
    forward = cost.forward_flops(described, 16)
    kept = cost.train_flops(described, 16, "cpu")
    assert kept.executed == kept.model == 3 * forward.total
    again = cost.train_flops(described, 16, "cuda")
    assert again.model == 3 * forward.total
    assert again.executed == 3 * forward.linear + 3.5 * forward.attention
    assert cost.train_flops(described, 1025, "cpu").executed > cost.train_flops(described, 1025, "cpu").model
    assert cost.train_flops_per_token(described).executed == kept.executed / 16


def test_causal_half():
    forward = cost.forward_flops(recipe(SwiGlu(hidden=12)), 16)
    assert forward.total - forward.causal == 8_192


def test_experts_of_default_width_cost_what_the_dense_layer_costs():
    dense, sparse = recipe(SwiGlu(), width=192), recipe(Moe(experts=8, top_k=2), width=192)
    assert cost.forward_flops(dense, 16).ffn == cost.forward_flops(sparse, 16).ffn


def test_a_mixture_by_hand():
    # width 8, experts of 3 matrices 8 x 6 = 144: 3 chosen and 2 shared of them a token; router 8 x 6
    shared = cost.ffn_cost(Moe(experts=6, top_k=3, shared=2, hidden=6), 8)
    assert (shared.parameters_total, shared.parameters_active) == (8 * 144 + 48, 5 * 144 + 48)
    assert (shared.flops_per_token, shared.router_flops_per_token) == (2 * 5 * 144, 2 * 48)
    assert shared.padding_flops_per_token == shared.noise_flops_per_token == 0
    # the noise is another matrix 8 x 6, in training
    noisy = cost.ffn_cost(Moe(experts=6, top_k=3, hidden=6, routing={"kind": "noisy"}), 8)
    assert noisy.parameters_total == 6 * 144 + 2 * 48
    assert (noisy.router_flops_per_token, noisy.noise_flops_per_token) == (2 * 48, 2 * 48)
    # 1.25 rows a token are computed, 1 is needed
    switch = cost.ffn_cost(Moe(experts=6, top_k=1, hidden=6, routing={"kind": "switch"}), 8)
    assert (switch.flops_per_token, switch.padding_flops_per_token) == (2 * 144, 2 * 144 * 0.25)


def test_memory_grows_with_what_fills_it():
    small = cost_memory.peak_memory_bytes(recipe(SwiGlu(), width=64))
    assert small < cost_memory.peak_memory_bytes(recipe(SwiGlu(), width=128))
    assert small < cost_memory.peak_memory_bytes(recipe(SwiGlu(), width=64, length=512))
    assert small < cost_memory.peak_memory_bytes(recipe(Moe(), width=64))
    micro = Recipe.model_validate(
        recipe(SwiGlu(), width=64).model_dump() | {"batching": {"sequences": 64, "length": 256}}
    )
    split = micro.model_copy(update={"batching": micro.batching.model_copy(update={"micro_sequences": 8})})
    assert cost_memory.peak_memory_bytes(split) < cost_memory.peak_memory_bytes(micro)


MIB = 2**20


def planned(size: str, *, precision: str = "bf16", sequences: int = 8, length: int = 256, **change: object) -> int:
    """Planned peak of a training, in bytes."""
    model = {
        "0.4m": {"layers": 4, "width": 96, "heads": 3, "vocab": 1024, "context": 256},
        "1m": {"layers": 4, "width": 128, "heads": 4, "vocab": 2048, "context": 256},
    }[size]
    plain = {
        "model": model,
        "precision": {"kind": precision},
        "batching": {"sequences": sequences, "length": length},
        "ffn": {"kind": "swiglu"},
        "tokens": 10**9,
    }
    return cost_memory.peak_memory_bytes(Recipe.model_validate(plain | change))


RECOMPUTED = {"activations": {"kind": "recompute"}, "optimizer": {"kind": "adamw_8bit"}}


@pytest.mark.parametrize(
    ("size", "change", "measured_mib"),
    [  # peaks of 30 to 200 steps on a CPU with AVX512-BF16, the largest of several (benchmarks/memory.py)
        ("0.4m", {"length": 128}, 45.5),
        ("0.4m", {"length": 128, **RECOMPUTED}, 29.0),
        ("0.4m", {"length": 128, "precision": "fp32"}, 65.1),
        ("1m", {}, 111.9),
        ("1m", RECOMPUTED, 61.9),
        ("1m", {"sequences": 4, "length": 128}, 45.0),
        ("1m", {"sequences": 16}, 176.9),
        ("1m", {"precision": "fp32"}, 172.0),
        ("1m", {"precision": "fp32", "sequences": 16, **RECOMPUTED}, 210.8),
        ("1m", {"compile": True}, 221.0),
        ("1m", {"objective": {"kind": "layer_skip", "dropout": 0.2}}, 154.8),
        ("1m", {"objective": {"kind": "layer_skip", "dropout": 0.1, "exits": [1, 3]}}, 161.5),
        ("1m", {"objective": {"kind": "layer_skip", "dropout": 0.2}, "sequences": 16, "length": 128}, 187.7),
        ("1m", {"objective": {"kind": "layer_skip", "dropout": 0.2}, "sequences": 32, "length": 64}, 230.6),
        ("1m", {"objective": {"kind": "layer_skip", "exits": [1, 3]}, "precision": "fp32"}, 181.7),
    ],
)
def test_small_models_peaks_lie_below_the_plan_and_near_it(size, change, measured_mib, monkeypatch):
    monkeypatch.setattr(native, "mkl_keeps_to_avx2", lambda: False)
    assert measured_mib * MIB <= planned(size, **change) <= 1.35 * measured_mib * MIB


def test_what_leaving_out_layers_takes(monkeypatch):
    monkeypatch.setattr(native, "mkl_keeps_to_avx2", lambda: False)

    def more(precision: str = "bf16", sequences: int = 8, **knobs: object) -> int:
        skip = {"kind": "layer_skip", **knobs}
        return planned("1m", precision=precision, sequences=sequences, objective=skip) - planned(
            "1m", precision=precision, sequences=sequences
        )

    assert more(dropout=0) == more(precision="fp32", dropout=0.2) == more(sequences=1, dropout=0.2) == 0
    # 8 sequences, the last layer runs 6.4 +- 1.13 of them: 2 to 7, each with its own compiled products
    assert more(dropout=0.2) == 6 * cost_memory.COMPILED_BLOCK_BYTES
    # an exit: a gradient of the whole head in float32, and four rows of the width a token in bfloat16
    assert more(dropout=0, exits=[2]) == 4 * 2048 * 128 + 8 * 256 * 2 * 4 * 128
    assert more(dropout=0, exits=[1, 2, 3], exits_a_step=2) == 2 * more(dropout=0, exits=[2])


@pytest.mark.parametrize(("sequences", "length", "measured_mib"), [(8, 256, 222.8), (32, 64, 277.8)])
def test_float32_products_that_onednn_makes_are_compiled_too(sequences, length, measured_mib, monkeypatch):
    skip = {"precision": "fp32", "objective": {"kind": "layer_skip", "dropout": 0.2}}
    monkeypatch.setattr(native, "mkl_keeps_to_avx2", lambda: True)
    assert measured_mib * MIB <= planned("1m", sequences=sequences, length=length, **skip) <= 1.35 * measured_mib * MIB


def test_a_foreign_feed_forward_says_what_it_costs():
    class Own:
        def cost(self, width):
            return cost.FfnCost(7 * width, 5 * width, 3 * width)

    assert cost.ffn_cost(Own(), 4) == cost.FfnCost(28, 20, 12)
    with pytest.raises(LookupError, match="does not say what it costs"):
        cost.ffn_cost(object(), 4)


def test_no_vocabulary_is_said():
    with pytest.raises(ValueError, match="vocab is not set"):
        cost.parameters(recipe(SwiGlu(), vocab=None))


def test_planning_needs_no_torch():
    program = "import sys, lmopt.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
