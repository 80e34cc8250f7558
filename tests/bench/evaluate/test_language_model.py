"""The adapter: tokens, truncation, empty contexts, rolling windows, generation."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from lm_eval.api.instance import Instance

from bench.evaluate.language_model import DecoderLM
from tests.bench.evaluate.conftest import TEXT
from tests.bench.evaluate.tiny import slow_score


@pytest.fixture
def lm(model, tokenizer) -> DecoderLM:
    return DecoderLM(model, tokenizer, forward=nullcontext)


def _instance(kind: str, *arguments) -> Instance:
    return Instance(kind, {}, arguments, 0)


def test_requests_follow_the_harness(lm, tokenizer):
    """Its own way of encoding a pair (`_encode_pair`) gives the same tokens and the same split."""
    pairs = [("The old man", " went down"), ("The bird ", "came"), ("sat on", " the line;"), ("", "The fish")]
    for pair, request in zip(pairs, lm.requests(pairs), strict=True):
        context, rest = lm._encode_pair(*pair) if pair[0] else ([lm.eot_token_id], tokenizer.encode(pair[1]).ids)
        assert list(request.tokens) == [*context, *rest]
        assert request.scored == len(rest)


def test_tokenising_apart_equals_tokenising_together(lm, tokenizer):
    """Random pairs out of everything that words, numbers, marks and spaces of several scripts can do at a boundary."""
    rng = random.Random(0)
    parts = [
        "the",
        " sea",
        "'s",
        "'",
        " ",
        "  ",
        "\n",
        "1",
        "23",
        ".",
        "...",
        "é",
        "漢字",
        "🙂",
        "\t",
        "\u00a0",
        "_",
        "x'd",
    ]
    pairs = []
    while len(pairs) < 3_000:
        pair = tuple("".join(rng.choices(parts, k=rng.randrange(1, 5))) for _ in range(2))
        if pair[0].strip():
            pairs.append(pair)
    apart = 0
    for (context, text), request in zip(pairs, lm.requests(pairs), strict=True):
        assert list(request.tokens) == tokenizer.encode(context + text).ids
        assert request.scored == max(1, len(request.tokens) - len(tokenizer.encode(context.rstrip()).ids))
        apart += lm._tokenised_apart(context.rstrip(), context[len(context.rstrip()) :] + text)
    assert apart > 200


def test_an_empty_context_is_the_end_of_text(lm, model, tokenizer):
    (found,) = lm.loglikelihood([_instance("loglikelihood", "", "The old man")])
    tokens = [tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode("The old man").ids]
    assert found[0] == pytest.approx(slow_score(model, tokens, len(tokens) - 1)[0], abs=1e-4)


def test_tokens_that_merge_across_the_boundary_are_scored_at_least_once(lm):
    (request,) = lm.requests([("wen", "t")])
    assert request.scored == 1
    (request,) = lm.requests([("th", "e")])
    assert request.scored == 1


def test_an_empty_continuation_is_refused(lm):
    with pytest.raises(ValueError, match="empty continuation"):
        lm.requests([("a context", "")])


def test_truncation_is_counted(lm):
    short, long = ("The old man", " went"), (TEXT * 2, " went")
    lm.loglikelihood([_instance("loglikelihood", *short), _instance("loglikelihood", *long)])
    assert not lm.is_truncated(short)
    assert lm.is_truncated(long)


def test_both_ways_in_give_the_same(lm):
    pair = ("The old man went", " down to the sea")
    context, rest = lm._encode_pair(*pair)
    (direct,) = lm._loglikelihood_tokens([(pair, context, rest)])
    (found,) = lm.loglikelihood([_instance("loglikelihood", *pair)])
    assert found == direct


def test_rolling_scores_each_token_once(lm, model, tokenizer):
    """A text of more than two contexts against the windows of the harness's documentation, one by one."""
    tokens = tokenizer.encode(TEXT).ids
    context = model.model.context
    assert len(tokens) > 2 * context
    expected, done = 0.0, 0
    while done < len(tokens):
        count = min(context, len(tokens) - done)
        before = [lm.eot_token_id, *tokens] if done == 0 else tokens
        end = done + count + (1 if done == 0 else 0)
        window = before[max(0, end - context - 1) : end]
        expected += slow_score(model, window, count)[0]
        done += count
    found = lm.loglikelihood_rolling(
        [_instance("loglikelihood_rolling", TEXT), _instance("loglikelihood_rolling", "A")]
    )
    assert found[0] == pytest.approx(expected, abs=1e-2)
    assert found[1] < 0


def test_generation_is_greedy_and_stops(lm, model, tokenizer):
    (free,) = lm.generate_until([_instance("generate_until", "The old", {"until": [], "max_gen_toks": 6})])
    tokens = tokenizer.encode("The old").ids
    start = len(tokens)
    for _ in range(6):
        tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    assert free == tokenizer.decode(tokens[start:])
    stop = free[2:4]
    (stopped,) = lm.generate_until([_instance("generate_until", "The old", {"until": ["", stop], "max_gen_toks": 6})])
    assert stopped == free[: free.index(stop)]


def test_sampling_is_refused(lm):
    with pytest.raises(ValueError, match="generates greedily"):
        lm.generate_until([_instance("generate_until", "x", {"until": [], "temperature": 0.7})])
