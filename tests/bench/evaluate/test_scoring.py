"""Batched, sorted, shared scoring against one forward pass a request."""

from __future__ import annotations

import random

import pytest
import torch

from bench.evaluate.scoring import Request, score, window
from lmopt.arch.transformer import build
from lmopt.recipe import FixedBatch, Model, Recipe
from lmopt.step import run_to_end
from tests.bench.evaluate.tiny import slow_score


def _requests(count: int, longest: int) -> list[Request]:
    """Random ones, some with a common context, some longer than the model's context of 48."""
    rng = random.Random(0)
    stems = [[rng.randrange(300) for _ in range(rng.randrange(1, longest))] for _ in range(count // 4)]
    requests: list[Request] = []
    for _ in range(count):
        tail = [rng.randrange(300) for _ in range(rng.randrange(1, 6))]
        requests.append(Request([*rng.choice(stems), *tail], len(tail)))
    return requests


def test_equal_to_scoring_one_by_one(model):
    requests = _requests(60, 70)
    for request, found in zip(requests, run_to_end(score(model, requests)), strict=True):
        likelihood, greedy = slow_score(model, request.tokens, request.scored)
        assert found.log_likelihood == pytest.approx(likelihood, abs=2e-4)
        assert found.greedy == greedy


def test_the_greedy_continuation_is_recognised(model):
    tokens = [5, 6, 7]
    for _ in range(4):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    wrong = [*tokens[:-1], (tokens[-1] + 1) % 300]
    found = run_to_end(score(model, [Request(tokens, 4), Request(wrong, 4)]))
    assert [one.greedy for one in found] == [True, False]


@pytest.mark.parametrize("batch_tokens", [1, 100, 1_000, 10**6])
def test_the_batch_size_does_not_matter(model, batch_tokens):
    requests = _requests(40, 40)
    expected = run_to_end(score(model, requests))
    found = run_to_end(score(model, requests, batch_tokens=batch_tokens))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-4)


def test_the_order_of_requests_does_not_matter(model):
    requests = _requests(40, 40)
    shuffled = list(range(len(requests)))
    random.Random(1).shuffle(shuffled)
    expected = run_to_end(score(model, requests))
    found = run_to_end(score(model, [requests[index] for index in shuffled]))
    for index, one in zip(shuffled, found, strict=True):
        assert one.log_likelihood == pytest.approx(expected[index].log_likelihood, abs=1e-4)


def test_equal_requests_get_equal_bits(model):
    request = Request([4, 5, 6, 7, 8, 9, 10, 11, 12, 13], 2)
    first, *_, last = run_to_end(score(model, [request, *_requests(20, 30), request], batch_tokens=50))
    assert first == last


def test_small_chunks_of_the_head_change_nothing(model, monkeypatch):
    requests = _requests(20, 40)
    expected = run_to_end(score(model, requests))
    monkeypatch.setattr("bench.evaluate.scoring.HEAD_BYTES", 4 * 300 * 3)
    for ours, theirs in zip(run_to_end(score(model, requests)), expected, strict=True):
        assert ours.log_likelihood == pytest.approx(theirs.log_likelihood, abs=1e-5)
        assert ours.greedy == theirs.greedy


def test_steps_tell_the_progress(model):
    requests = _requests(30, 40)
    steps = list(score(model, requests, batch_tokens=100))
    done = [step.notes["requests"] for step in steps]
    assert done == sorted(done)
    assert done[-1] == steps[-1].notes["requests_total"] == 30
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    assert sum(step.tokens for step in steps) < sum(len(request.tokens) for request in requests)


def test_no_requests_no_steps(model):
    assert run_to_end(score(model, [])) == []


def test_a_long_context_is_cut_off_the_front():
    inputs, targets = window(Request(list(range(100)), 2), 10)
    assert inputs.tolist() == list(range(89, 99))
    assert targets.tolist() == [98, 99]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="one must come before"):
        Request([1, 2], 2)
    with pytest.raises(ValueError, match="do not fit a context of 10"):
        window(Request(list(range(20)), 11), 10)


def test_precision_context_is_entered_for_each_batch(model):
    entered = 0

    def forward():
        nonlocal entered
        entered += 1
        return torch.autocast("cpu", torch.bfloat16)

    requests = _requests(20, 30)
    exact = run_to_end(score(model, requests))
    rounded = run_to_end(score(model, requests, forward=forward, batch_tokens=200))
    assert entered > 1
    differences = [abs(a.log_likelihood - b.log_likelihood) for a, b in zip(exact, rounded, strict=True)]
    assert 0 < max(differences) < 2


@pytest.mark.parametrize("vocab", [300, 304], ids=["odd vocabulary", "whole registers"])
def test_in_bfloat16_it_says_what_the_model_says(vocab):
    model = _model(vocab)
    requests = _requests(400, 70)

    def forward():
        return torch.autocast("cpu", torch.bfloat16)

    found = run_to_end(score(model, requests, forward=forward))
    exact = [slow_score(model, request.tokens, request.scored)[0] for request in requests]
    with forward():
        slow = [slow_score(model, request.tokens, request.scored)[0] for request in requests]

    def error(likelihoods):
        return sum(abs(one - other) for one, other in zip(likelihoods, exact, strict=True)) / len(exact)

    assert error([one.log_likelihood for one in found]) < 1.2 * error(slow)


def test_a_feed_forward_may_answer_in_float32():
    """States behind one of another package's, say, that ends with a softmax: under autocast they are float32 then."""
    model = _model(304)
    requests = _requests(40, 40)
    for block in model.blocks:
        block.ffn.register_forward_hook(lambda _, __, result: (result[0].float(), result[1]))
    found = run_to_end(score(model, requests, forward=lambda: torch.autocast("cpu", torch.bfloat16)))
    exact = run_to_end(score(model, requests))
    for one, other in zip(found, exact, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, rel=0.05, abs=0.5)


def test_a_model_is_left_as_it_was_even_where_scoring_is_broken_off():
    model = _model(304)
    steps = score(model, _requests(40, 40), forward=lambda: torch.autocast("cpu", torch.bfloat16), batch_tokens=50)
    next(steps)
    steps.close()
    assert all(getattr(module, "panels", None) is None for module in model.modules())


def _model(vocab):
    shape = Model(layers=2, width=64, heads=2, kv_heads=2, vocab=vocab, context=48)
    model = build(Recipe(model=shape, batching=FixedBatch(sequences=1, length=48), tokens=10**6), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model
