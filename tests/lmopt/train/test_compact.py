"""AdamW in fewer bits: the same as the plain one where nothing is kept small, near it where something is."""

import copy

import pytest
import torch
from torch import nn

from lmopt import cost_memory
from lmopt.arch import loss
from lmopt.compute import precision
from lmopt.recipe import AdamW, AdamW8bit, Bf16Stochastic
from lmopt.train import compact, optimizer


class Toy(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embedding = nn.Embedding(16, width)
        self.inner = nn.Linear(width, width, bias=False)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, tokens):
        return self.inner(self.embedding(tokens)) * self.gain


def run(model, adam, steps=6):
    torch.manual_seed(1)
    width = model.gain.numel()
    for _ in range(steps):
        model(torch.arange(16)).float().mul(torch.randn(16, width)).sum().backward()
        norm = adam.step(0.5)
    return norm


@pytest.mark.parametrize("clip", [None, 0.5])
def test_in_float32_it_is_adamw(clip):
    torch.manual_seed(0)
    one = Toy()
    two = copy.deepcopy(one)
    config = AdamW(lr=1e-2, clip=clip, weight_decay=0.3)
    torch.testing.assert_close(run(one, optimizer.build(config, one)), run(two, compact.build(config, two)))
    for mine, theirs in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
        assert mine.grad is None


def test_eight_bits_are_near():
    torch.manual_seed(0)
    one = Toy(width=96)
    two = copy.deepcopy(one)
    start = one.inner.weight.detach().clone()
    run(one, optimizer.build(AdamW(lr=1e-2), one))
    adam = compact.build(AdamW8bit(lr=1e-2), two)
    run(two, adam)
    moved, apart = one.inner.weight - start, two.inner.weight - one.inner.weight
    assert apart.norm() < 0.1 * moved.norm()
    assert adam.kept["exp_avg/inner.weight"].dtype == torch.uint8  # 9,216 numbers
    assert adam.kept["exp_avg/gain"].dtype == torch.float32  # 96
    assert adam.kept["exp_avg_scale/inner.weight"].numel() == 96 * 96 // 256


@pytest.mark.parametrize("config", [AdamW(lr=1e-2), AdamW8bit(lr=1e-2), AdamW8bit(lr=1e-2, block=300)])
def test_a_slice_after_the_other_is_the_same_to_the_bit(config, monkeypatch):
    def trained(numbers):
        monkeypatch.setattr(compact, "SLICE", numbers)
        torch.manual_seed(0)
        model = Toy(width=96)
        adam = compact.build(config, model)
        run(model, adam)
        return dict(model.named_parameters()) | adam.state()

    whole, sliced = trained(1 << 30), trained(1000)
    assert whole.keys() == sliced.keys()
    assert all(torch.equal(whole[name], sliced[name]) for name in whole)


def test_the_plan_knows_the_slice_and_the_heads_chunk():
    assert cost_memory.EIGHT_BIT_SLICE == compact.SLICE
    assert cost_memory.LOGIT_CHUNK_BYTES == loss.CHUNK_BYTES


def test_moments_stay_where_they_are_from_the_first_step_on():
    torch.manual_seed(0)
    model = Toy(width=96)
    adam = compact.build(AdamW8bit(lr=1e-2), model)
    run(model, adam, steps=1)
    places = {name: kept.data_ptr() for name, kept in adam.kept.items()}
    run(model, adam, steps=2)
    assert {name: kept.data_ptr() for name, kept in adam.kept.items()} == places


def test_codebooks():
    for signed, least in ((True, -1.0), (False, 0.0)):
        book = compact.codebook(signed, torch.device("cpu"))
        assert len(book) == len(book.unique()) == 256
        assert book[-1] == 1
        assert (book == 0).sum() == 1
        assert book[0] == (pytest.approx(-0.9929687, abs=1e-6) if signed else least)


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("numbers", [256, 300, 5])
def test_each_number_becomes_the_nearest_of_its_block(signed, numbers):
    torch.manual_seed(0)
    x = torch.randn(numbers) if signed else torch.randn(numbers).square()
    codes, scale = compact.encode(x, 256, signed=signed)
    back = compact.decode(codes, scale, 256, signed=signed)
    book = compact.codebook(signed, torch.device("cpu"))
    for start in range(0, numbers, 256):
        block, largest = x[start : start + 256], x[start : start + 256].abs().max()
        allowed = book if signed else book[1:]
        nearest = allowed[(block[:, None] / largest - allowed).abs().argmin(1)] * largest
        error, least = (back[start : start + 256] - block).abs(), (nearest - block).abs()
        assert (error <= least + 1e-3 * block.abs() + 1e-7 * largest).all()


@pytest.mark.parametrize("signed", [True, False])
def test_numbers_a_millionth_of_the_largest_become_the_nearest_too(signed):
    x = torch.logspace(-7, 0, 256, dtype=torch.float64).float()
    codes, scale = compact.encode(x, 256, signed=signed)
    book = compact.codebook(signed, torch.device("cpu"))
    allowed = book if signed else book[1:]
    error, least = (book[codes.int()] - x).abs(), (x[:, None] - allowed).abs().amin(1)
    assert scale.item() == 1
    assert (error <= least + 1e-3 * x).all()


def test_zeros_stay_zeros():
    codes, scale = compact.encode(torch.zeros(300), 256, signed=True)
    assert not compact.decode(codes, scale, 256, signed=True).any()


def test_seldom_tokens_beside_frequent_ones_move_no_farther_than_in_float32():
    """Rows of an embedding share a block; a mean square that became zero let the quotient grow to 33."""
    torch.manual_seed(1)
    lr, tokens, width = 1e-3, 512, 64
    share = 1 / torch.arange(1, tokens + 1)  # Zipf's law
    farthest = {}
    model = nn.Module()
    for config in (AdamW(lr=lr, clip=None), AdamW8bit(lr=lr, clip=None)):
        model.weight, farthest[config.kind] = nn.Parameter(torch.zeros(tokens, width)), 0.0
        adam = compact.build(config, model)
        for step in range(200):
            torch.manual_seed(step)
            seen = torch.multinomial(share, 256, replacement=True).bincount(minlength=tokens)
            model.weight.grad = 1e-3 * seen.sqrt()[:, None] * torch.randn(tokens, width)
            before = model.weight.detach().clone()
            adam.step(1.0)
            moved = (model.weight.detach() - before * (1 - lr * config.weight_decay)).abs().max().item()
            farthest[config.kind] = max(farthest[config.kind], moved / lr)
    assert farthest["adamw_8bit"] < 1.1 * farthest["adamw"]


def test_updates_far_below_the_spacing_add_up():
    """A weight of 1 and 2,000 updates of 1e-4: to nearest nothing would ever move, at random it moves by 0.2."""
    model = nn.Module()
    model.weight = nn.Parameter(torch.ones(32, 32, dtype=torch.bfloat16))
    adam = compact.build(AdamW(lr=1e-4, weight_decay=0.0, clip=None), model)
    torch.manual_seed(0)
    for _ in range(2000):
        model.weight.grad = torch.ones_like(model.weight)
        adam.step(1.0)
    assert model.weight.float().mean().item() == pytest.approx(0.8, abs=0.005)


def test_bfloat16_weights_choose_it():
    model = Toy()
    precision.build(Bf16Stochastic()).prepare(model)
    assert model.inner.weight.dtype == torch.bfloat16
    assert model.gain.dtype == torch.float32
    assert isinstance(optimizer.build(AdamW(), model), compact.CompactAdamW)
    assert isinstance(optimizer.build(AdamW(), Toy()), optimizer.ClippedAdamW)


@pytest.mark.parametrize("config", [AdamW(), AdamW8bit()])
def test_state_round_trip(config):
    torch.manual_seed(0)
    one = Toy(width=96)
    first = compact.build(config, one)
    assert first.state() == {}
    run(one, first)
    two = copy.deepcopy(one)
    second = compact.build(config, two)
    second.restore({key: value.clone() for key, value in first.state().items()})
    run(one, first)
    run(two, second)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
