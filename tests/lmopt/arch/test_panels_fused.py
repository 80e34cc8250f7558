"""Products with matrices in panels: against float64, row by row, and with what stands around them; whole layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from lmopt.arch import fused, panels_fused
from lmopt.arch.panels_fused import FEW_ROWS, Panels
from lmopt.infer.decoder import Decoder
from lmopt.infer.weights import quantize
from tests.lmopt.arch.kernels import assert_no_bit_depends_on_threads, needs_kernel
from tests.lmopt.infer.models import WIDE, tiny, tokens

pytestmark = needs_kernel

KINDS = ["bf16", "two bytes", "a byte"]
ROUNDING = {"bf16": 2**-8, "two bytes": 2**-8, "a byte": 0.02}
"""Largest error of a row, as a share of its length: rounding the result, and activations where they have 8 bits."""
ROWS = [1, 2, 3, 4, 5, 6, 7, 9, 13, FEW_ROWS, FEW_ROWS + 1, 48, 64, 79, 130]
SHAPES = [(16, 16), (96, 32), (64, 704), (208, 176), (320, 1040), (17, 16), (97, 48), (383, 64)]


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def matrix(kind, outputs, inputs, activation=None):
    """The panels, and the same weights in float64."""
    weight_FD = draw(outputs, inputs, seed=1) / inputs**0.5
    if kind == "bf16":
        return Panels(weight_FD.bfloat16(), activation=activation), weight_FD.bfloat16().double()
    q_FD, scale_F = quantize(weight_FD)
    panels = Panels(q_FD, scale_F, activation, two_bytes=kind == "two bytes")
    return panels, q_FD.double() * scale_F.double()[:, None]


def furthest(found, expected):
    """Largest distance of a row from what it should be, as a share of that one's length."""
    return ((found.double() - expected).norm(dim=1) / expected.norm(dim=1)).max().item()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_what_float64_says(kind, shape, rows):
    panels, exact_FD = matrix(kind, *shape)
    x_ND = draw(rows, shape[1], seed=2).bfloat16()
    y_NF = panels.multiply(x_ND)
    assert y_NF.dtype == torch.bfloat16
    assert y_NF.shape == (rows, shape[0])
    assert furthest(y_NF, x_ND.double() @ exact_FD.T) < ROUNDING[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_know_of_the_others(kind):
    panels, _ = matrix(kind, 208, 176)
    x_ND = draw(FEW_ROWS, 176, seed=2).bfloat16()
    together_NF = panels.multiply(x_ND)
    for count in range(1, FEW_ROWS):
        assert torch.equal(panels.multiply(x_ND[:count]), together_NF[:count])


@pytest.mark.parametrize("rows", [3, FEW_ROWS + 10])
@pytest.mark.parametrize("activation", [None, "swiglu", "relu2"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_around_a_product(kind, activation, rows):
    outputs, inputs = 176, 208
    panels, exact_FD = matrix(kind, 2 * outputs if activation == "swiglu" else outputs, inputs, activation)
    x_ND, gains_D = draw(rows, inputs, seed=2).bfloat16(), 1 + 0.1 * draw(inputs, seed=3)
    others_NF = draw(rows, outputs, seed=4).bfloat16()
    exact = functional.rms_norm(x_ND.double(), (inputs,), gains_D.double(), 1e-5) @ exact_FD.T
    if activation == "swiglu":
        gate, up = exact.chunk(2, 1)
        exact = functional.silu(gate) * up
    if activation == "relu2":
        exact = functional.relu(exact) ** 2
    found = panels.multiply(x_ND, gains_D, 1e-5, others_NF)
    assert furthest(found, exact + others_NF.double()) < 2 * ROUNDING[kind]
    assert furthest(panels.multiply(x_ND, gains_D, 1e-5), exact) < 3 * ROUNDING[kind]


@pytest.mark.parametrize("rows", [2, FEW_ROWS + 5])
@pytest.mark.parametrize("outputs", [64, 41])
def test_outputs_in_float32_and_sums(outputs, rows):
    panels, exact_FD = matrix("bf16", outputs, 48)
    x_ND, others_NF = draw(rows, 48, seed=2).bfloat16(), draw(rows, outputs, seed=3).bfloat16()
    exact = x_ND.double() @ exact_FD.T
    found = panels.multiply_to_float(x_ND)
    assert found.dtype == torch.float32
    assert furthest(found, exact) < 1e-6
    assert furthest(panels.multiply(x_ND, others_NF=others_NF), exact + others_NF.double()) < 2**-8


@pytest.mark.parametrize("rows", [1, 5])
def test_whole_numbers_are_multiplied_exactly(rows):
    """Those that the largest of a row makes whole again: a step of 1/256 in two bytes, of 1 in one."""
    q_FD = torch.randint(-127, 128, (48, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    x_ND = torch.randint(-127, 128, (rows, 64), generator=torch.Generator().manual_seed(1)).double()
    x_ND[:, 7] = -127
    exact = (x_ND @ q_FD.double().T).float().bfloat16()
    for two_bytes in (True, False):
        panels = Panels(q_FD, torch.ones(48).bfloat16(), two_bytes=two_bytes)
        assert torch.equal(panels.multiply(x_ND.bfloat16()), exact)


@pytest.mark.parametrize("rows", [4, 70])
@pytest.mark.parametrize("kind", KINDS)
def test_no_bit_depends_on_threads(kind, rows):
    panels, _ = matrix(kind, 2 * 208, 176, "swiglu")
    x_ND, gains_D = draw(rows, 176, seed=2).bfloat16(), draw(176, seed=3)
    assert_no_bit_depends_on_threads(lambda: [panels.multiply(x_ND, gains_D, 1e-5)])


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_stays_none_and_in_its_row(kind, rows, number):
    panels, _ = matrix(kind, 32, 64)
    for place in (0, 17, 63):
        x_ND = draw(rows, 64).bfloat16()
        x_ND[1, place] = number
        y_NF = panels.multiply(x_ND)
        assert not y_NF[1].isfinite().any()
        assert y_NF[0].isfinite().all()
        assert y_NF[2:].isfinite().all()
    assert (panels.multiply(torch.zeros(rows, 64).bfloat16()) == 0).all()


def test_for_which_matrices_it_is_made(monkeypatch):
    cpu = torch.device("cpu")
    assert panels_fused.suits(cpu, 48, 32)
    assert panels_fused.suits(cpu, 64, 32, "swiglu")
    assert not panels_fused.suits(cpu, 48, 32, "swiglu"), "halves of 24"
    assert not panels_fused.suits(cpu, 40, 32, "relu2")
    assert panels_fused.suits(cpu, 41, 32), "a vocabulary is what it is"
    assert not panels_fused.suits(cpu, 48, 24)
    assert not panels_fused.suits(cpu, 16, 2**16 + 16), "sums beyond 32 bits"
    assert not panels_fused.suits(torch.device("meta"), 48, 32)
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    assert not panels_fused.suits(cpu, 48, 32)


@pytest.mark.parametrize("shape", [WIDE, {**WIDE, "heads": 1, "kv_heads": 1}], ids=["shared keys", "wide head"])
@pytest.mark.parametrize("format", ["bf16", "int8", "int8_dynamic"])
class TestLayers:
    def test_all_at_once_are_each_by_itself(self, format, shape, monkeypatch):
        decoder = Decoder(tiny(**shape), format)
        prompt_BT, more_BT = tokens(2, 9), tokens(2, 4, seed=1)

        def states():
            cache = decoder.new_cache(batch=2, capacity=20)
            found = [decoder.extend(prompt_BT, cache)]
            cache.rollback([9, 5])
            x_BTD = decoder.run(decoder.embed(more_BT), cache, last=2)
            found += [x_BTD, decoder.run(x_BTD, cache, first=2), decoder.run(x_BTD[1:], cache, first=1, rows=[1])]
            return [*found, cache.keys_LBKSC, cache.values_LBKSC]

        calls, call = [], fused.call
        monkeypatch.setattr(fused, "call", lambda name, *given: calls.append(name) or call(name, *given))
        together = states()
        assert calls.count("decode_layers") == 4
        assert "extend" not in calls
        monkeypatch.setattr(decoder, "_together", None)
        assert all(torch.equal(ours, other) for ours, other in zip(together, states(), strict=True))
        assert calls.count("extend") == 3 + 2 + 1 + 2

    def test_what_they_are_given_is_left_as_it_was(self, format, shape):
        decoder = Decoder(tiny(**shape), format)
        x_BTD = decoder.embed(tokens(1, 3))
        before = x_BTD.clone()
        decoder.run(x_BTD, decoder.new_cache(batch=1, capacity=8))
        assert torch.equal(x_BTD, before)

    def test_tokens_beyond_the_cache_are_refused(self, format, shape):
        decoder = Decoder(tiny(**shape), format)
        with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
            decoder.extend(tokens(1, 9), decoder.new_cache(batch=1, capacity=8))


@pytest.mark.parametrize("format", ["bf16", "int8"])
def test_a_copied_decoder_reads_its_own_weights(format):
    decoder = Decoder(tiny(**WIDE, vocab=64), format)
    copied = copy.deepcopy(decoder)

    def states(decoder):
        return decoder.extend(tokens(1, 3), decoder.new_cache(batch=1, capacity=8))

    before = states(decoder)
    for layer in decoder.layers:
        layer.qkv.panels.panels_PWE.zero_()
    assert torch.equal(states(copied), before)
    assert not torch.equal(states(decoder), before)
