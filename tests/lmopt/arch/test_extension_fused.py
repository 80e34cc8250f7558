"""Attention of new tokens over a cache by its kernel: against float64, whatever else shares the batch or a thread."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.instruments.flops import known_operators
from bench.instruments.formulas import FORMULAS
from lmopt.arch import extension_fused, fused
from lmopt.arch.attention import Rotary, rotate
from lmopt.arch.extension_fused import extend
from lmopt.infer.decoder import Decoder
from lmopt.infer.generate import generate, prefill, written
from lmopt.recipe import Model
from tests.lmopt.arch.kernels import assert_no_bit_depends_on_threads, needs_kernel
from tests.lmopt.infer.models import WIDE, tiny, tokens

pytestmark = needs_kernel

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Largest error, as a share of the largest value."""
ROOM = 100
SHAPES = {"own keys": (4, 4, 64), "shared keys": (6, 2, 32), "wide heads": (2, 1, 160)}


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Layer:
    """A cache filled by chance, new tokens behind it, and positions' tables."""

    def __init__(self, heads, key_heads, width, dtype, *, batch=3, count=1, rows=3):
        self.heads, self.key_heads, self.width = heads, key_heads, width
        self.keys = draw(rows, key_heads, ROOM, width, dtype=dtype, seed=1)
        self.values = draw(rows, key_heads, ROOM, width, dtype=dtype, seed=2)
        self.qkv = draw(batch, count, (heads + 2 * key_heads) * width, dtype=dtype, seed=3)
        rotary = Rotary(Model(layers=1, width=heads * width, heads=heads, vocab=16, context=ROOM))
        rotary.fill()
        self.cos, self.sin = rotary(ROOM, dtype)

    def extend(self, start, rows, *, only=None):
        """The kernel's result, with copies of the cache that it wrote."""
        keys, values = self.keys.clone(), self.values.clone()
        chosen = slice(None) if only is None else slice(only, only + 1)
        places = torch.tensor([start[chosen], rows[chosen]])
        seen = sum(start[chosen]) + self.qkv.shape[1] * places.shape[1]
        out = extend(self.qkv[chosen], self.cos, self.sin, keys, values, places[0], places[1], seen)
        return out, keys, values

    def expected(self, start, rows):
        """The same in float64, token by token."""
        keys, values, cos, sin = (x.double() for x in (self.keys, self.values, self.cos, self.sin))
        batch, count, _ = self.qkv.shape
        out = torch.empty(batch, count, self.heads, self.width, dtype=torch.float64)
        for b, (first, row) in enumerate(zip(start, rows, strict=True)):
            for t in range(count):
                heads = self.qkv[b, t].double().unflatten(0, (-1, self.width))
                q, k, v = heads.split([self.heads, self.key_heads, self.key_heads])
                turned = rotate(torch.cat([q, k])[None, :, None], cos[first + t], sin[first + t])[0, :, 0]
                keys[row, :, first + t], values[row, :, first + t] = turned[self.heads :], v
                end, shared = first + t + 1, self.heads // self.key_heads
                seen_keys = keys[row, :, :end].repeat_interleave(shared, 0)
                scores = torch.einsum("hc,hsc->hs", turned[: self.heads], seen_keys) / self.width**0.5
                seen_values = values[row, :, :end].repeat_interleave(shared, 0)
                out[b, t] = torch.einsum("hs,hsc->hc", scores.softmax(-1), seen_values)
        return out.flatten(2), keys, values


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 3, 32])
def test_it_is_what_float64_says(shape, dtype, count):
    layer = Layer(*SHAPES[shape], dtype, count=count, rows=5)
    start, rows = [0, 17, 61], [4, 0, 2]
    for found, expected in zip(layer.extend(start, rows), layer.expected(start, rows), strict=True):
        assert found.dtype == dtype
        assert (found - expected).abs().max() <= ROUNDING[dtype] * expected.abs().max()


def test_only_the_new_tokens_places_are_written():
    layer = Layer(4, 2, 32, torch.float32, count=3)
    _, keys, values = layer.extend([5, 0, 30], [0, 1, 2])
    for before, after in ((layer.keys, keys), (layer.values, values)):
        changed = {tuple(place) for place in (before != after).any(-1).any(1).nonzero().tolist()}
        assert changed == {(0, 5), (0, 6), (0, 7), (1, 0), (1, 1), (1, 2), (2, 30), (2, 31), (2, 32)}


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_bits_depend_neither_on_the_batch_nor_on_tokens_at_once_nor_on_threads(dtype):
    layer = Layer(4, 2, 64, dtype, count=4)
    start, rows = [3, 40, 21], [2, 1, 0]
    together, keys, _ = layer.extend(start, rows)
    for b in range(3):
        assert torch.equal(layer.extend(start, rows, only=b)[0][0], together[b])
    assert_no_bit_depends_on_threads(lambda: layer.extend(start, rows))
    one_by_one = Layer(4, 2, 64, dtype, count=4)
    for t in range(4):
        one_by_one.qkv = layer.qkv[:, t : t + 1]
        out, one_by_one.keys, one_by_one.values = one_by_one.extend([first + t for first in start], rows)
        assert torch.equal(out[:, 0], together[:, t])
    assert torch.equal(one_by_one.keys, keys)


def test_no_number_is_passed_on_and_what_lies_behind_is_not_seen():
    layer = Layer(4, 4, 32, torch.float32)
    layer.values[0, :, 20:] = float("nan")  # unwritten memory
    layer.keys[0, :, 20:] = float("nan")
    layer.keys[1, 0, 3, 5] = float("nan")
    layer.values[2, 1, 0, 0] = float("inf")
    out = layer.extend([20, 8, 8], [0, 1, 2])[0].unflatten(2, (4, 32))
    assert out[0].isfinite().all()
    assert out[1, 0, 0].isnan().all()
    assert out[1, 0, 1:].isfinite().all()
    assert out[2, 0, 1, 0].isinf()
    assert out[2, 0, 1, 1:].isfinite().all()


# --- in the decoder ------------------------------------------------------------------------------


@pytest.fixture
def kernels(monkeypatch):
    """Names of the kernels that were called."""
    found, call = [], fused.call
    monkeypatch.setattr(fused, "call", lambda name, *given: found.append(name) or call(name, *given))
    return found


def extensions(kernels, layers):
    """Layers that went through this kernel, by themselves or with the whole model."""
    return sum(name.startswith("extend") for name in kernels) + layers * kernels.count("decode_layers")


def composed(monkeypatch):
    monkeypatch.setattr(extension_fused, "suits", lambda *_: False)


@pytest.mark.parametrize("format", ["fp32", "bf16", "int8"])
def test_a_decoder_says_the_same_with_it_as_by_torchs_operations(monkeypatch, kernels, format):
    model = tiny(**WIDE)
    prompts = [
        list(tokens(1, length, seed=length)[0]) for length in (4, 40, 7)
    ]  # the long one by itself, and by torch's operations

    def logits():
        decoder = Decoder(model, format)
        cache = decoder.new_cache(batch=3, capacity=50)
        states = [prefill(decoder, prompts, cache)]
        states += [decoder.extend(tokens(3, count, seed=count), cache)[:, -1] for count in (1, 3, 1)]
        return decoder.logits(torch.stack(states)).float()

    by_kernel = logits()
    assert extensions(kernels, model.model.layers) == 4 * model.model.layers
    assert ("extend_float" in kernels) == (format == "fp32")
    composed(monkeypatch)
    torchs = logits()
    assert (by_kernel - torchs).abs().max() < (1e-5 if format == "fp32" else 0.05) * torchs.std()


@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_autocast_hands_it_no_numbers_of_another_type_than_the_cache_s(kernels, format):
    decoder, text = Decoder(tiny(**WIDE), format), tokens(2, 5)

    def logits(autocast):
        cache = decoder.new_cache(batch=2, capacity=8)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            states = [decoder.extend(text[:, :4], cache), decoder.extend(text[:, 4:], cache)]
            return decoder.logits(torch.cat(states, 1)).float()

    plain = logits(autocast=False)
    layers = decoder.model.layers
    called = extensions(kernels, layers)
    assert called
    assert (logits(autocast=True) - plain).abs().max() < 0.1 * plain.std()
    assert extensions(kernels, layers) == (called if format == "fp32" else 2 * called)


def test_flops_are_those_of_torchs_attention(monkeypatch):
    def counted():
        decoder = Decoder(tiny(**WIDE))
        with FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS)) as counter:
            written(generate(decoder, [list(range(9))] * 2, max_new=6))
        return counter.get_total_flops()

    by_kernel = counted()
    composed(monkeypatch)
    assert by_kernel == counted()


@pytest.mark.parametrize("format", ["bf16", "int8", "int8_dynamic"])
@pytest.mark.parametrize("prompt", [9, 40], ids=["few rows", "many rows"])
def test_a_counter_sees_as_many_flops_in_every_format(format, prompt):
    def counted(format):
        decoder = Decoder(tiny(**WIDE), format)
        with FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS)) as counter:
            written(generate(decoder, [list(range(prompt))] * 2, max_new=6))
        return counter.get_total_flops()

    expected = counted("fp32")
    assert expected > 0
    assert counted(format) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [{"width": 64, "heads": 4}, {**WIDE, "qk_norm": True}], ids=["heads of 16", "normed"])
def test_other_models_do_without(kernels, shape):
    decoder = Decoder(tiny(**shape))
    cache = decoder.new_cache(batch=1, capacity=8)
    decoder.extend(tokens(1, 3), cache)
    assert not extensions(kernels, decoder.model.layers)


def test_a_full_cache_is_refused_before_anything_is_written():
    decoder = Decoder(tiny(**WIDE))
    cache = decoder.new_cache(batch=2, capacity=8)
    decoder.extend(tokens(2, 6), cache)
    before = cache.keys_LBKSC.clone()
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        decoder.extend(tokens(2, 3), cache)
    assert torch.equal(cache.keys_LBKSC, before)
