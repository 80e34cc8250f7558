"""AdamW against torch's plain one, clipping against `clip_grad_norm_`, and the schedule against its formula."""

import copy
import math

import pytest
import torch
from torch import nn

from lmopt.recipe import AdamW, Cosine
from lmopt.train import optimizer


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.inner = nn.Linear(8, 8, bias=False)
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, tokens):
        return self.inner(self.embedding(tokens)) * self.gain


def gradients(model, seed):
    torch.manual_seed(seed)
    model(torch.arange(16)).mul(torch.randn(16, 8)).sum().backward()


@pytest.mark.parametrize("clip", [None, 0.5, 1e6])
def test_equal_to_the_slow_obvious_version(clip):
    torch.manual_seed(0)
    fast, slow = Toy(), None
    slow = copy.deepcopy(fast)
    ours = optimizer.build(AdamW(lr=1e-2, clip=clip, weight_decay=0.3), fast)
    groups = [
        {"params": [slow.inner.weight], "weight_decay": 0.3},
        {"params": [slow.embedding.weight, slow.gain], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, foreach=False)
    for step in range(5):
        gradients(fast, step)
        gradients(slow, step)
        norm = torch.nn.utils.clip_grad_norm_(slow.parameters(), clip if clip is not None else float("inf"))
        for group in plain.param_groups:
            group["lr"] = 0.5 * 1e-2
        plain.step()
        plain.zero_grad()
        torch.testing.assert_close(ours.step(0.5), norm)
    for mine, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=2e-6, rtol=1e-5)
        assert mine.grad is None


def test_state_round_trip():
    one, two = Toy(), Toy()
    two.load_state_dict(one.state_dict())
    first, second = (optimizer.build(AdamW(), m) for m in (one, two))
    assert first.state() == {}
    gradients(one, 0)
    first.step(1.0)
    two.load_state_dict(one.state_dict())
    second.restore({name: t.clone() for name, t in first.state().items()})
    for model, adam in ((one, first), (two, second)):
        gradients(model, 1)
        adam.step(1.0)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_schedule_at_the_points_that_define_it():
    share = optimizer.schedule(Cosine(warmup=0.1, final=0.2), 100)
    assert share(1) == pytest.approx(1 / 10)
    assert share(10) == 1.0
    assert share(11) < 1.0
    assert share(55) == pytest.approx(0.2 + 0.8 / 2)  # half-way down at half of the 90 steps after warm-up
    assert share(100) == pytest.approx(0.2)
    assert share(32) == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * 22 / 90)))
    shares = [share(step) for step in range(11, 101)]
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 1), (0.0, 7), (1.0, 5), (0.5, 2)])
def test_schedule_edges_stay_in_bounds(warmup, steps):
    share = optimizer.schedule(Cosine(warmup=warmup, final=0.0), steps)
    assert all(0 <= share(step + 1) <= 1 for step in range(steps))
    assert share(1) > 0
