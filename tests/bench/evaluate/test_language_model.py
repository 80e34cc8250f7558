"""The adapter: tokens, truncation, empty contexts, rolling windows, generation."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.utils import postprocess_generated_text

from bench.evaluate.language_model import DecoderLM, Unanswerable
from tests.bench.evaluate.conftest import TEXT
from tests.bench.evaluate.tiny import slow_score, tiny_model


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


def test_tokenising_apart_equals_tokenising_together(lm):
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
        if pair[0].strip() and lm._encode_pair(*pair)[1]:
            pairs.append(pair)
    apart = 0
    for (context, text), request in zip(pairs, lm.requests(pairs), strict=True):
        before, rest = lm._encode_pair(context, text)
        assert (list(request.tokens), request.scored) == ([*before, *rest], len(rest))
        apart += lm._tokenised_apart(context.rstrip(), context[len(context.rstrip()) :] + text)
    assert apart > 200


def test_an_empty_context_is_the_end_of_text(lm, model, tokenizer):
    (found,) = lm.loglikelihood([_instance("loglikelihood", "", "The old man")])
    tokens = [tokenizer.token_to_id("<|endoftext|>"), *tokenizer.encode("The old man").ids]
    assert found[0] == pytest.approx(slow_score(model, tokens, len(tokens) - 1)[0], abs=1e-4)


def test_texts_cut_anywhere_are_encoded_as_the_harness_does(lm):
    """Within words too, where a token of the whole reaches across the cut."""
    rng = random.Random(0)
    cuts = [(rng.randrange(len(TEXT) - 30), rng.randrange(1, 30), rng.randrange(1, 30)) for _ in range(2_000)]
    pairs = [(TEXT[at : at + before], TEXT[at + before : at + before + rest]) for at, before, rest in cuts]
    pairs = [pair for pair in pairs if pair[0].strip() and lm._encode_pair(*pair)[1]]
    across = 0
    for pair, request in zip(pairs, lm.requests(pairs), strict=True):
        before, rest = lm._encode_pair(*pair)
        assert (list(request.tokens), request.scored) == ([*before, *rest], len(rest))
        across += request.tokens != lm.tok_encode("".join(pair))
    assert across > 100


def test_a_continuation_without_a_token_of_its_own_is_refused(lm):
    """As the harness's backend does: `th` and `e` are one token."""
    assert lm._encode_pair("th", "e")[1] == []
    with pytest.raises(Unanswerable, match="'e' behind 'th': it has no token of its own"):
        lm.requests([("th", "e")])
    with pytest.raises(Unanswerable, match="'' behind 'a context'"):
        lm.requests([("a context", "")])


def test_a_continuation_longer_than_the_context_is_refused(lm):
    with pytest.raises(Unanswerable, match="do not fit the model's context of 48\nhint"):
        lm.requests([("The old", TEXT)])


def test_truncation_is_counted(lm):
    assert [lm.is_truncated(one) for one in lm.requests([("The old man", " went"), (TEXT, " went")])] == [False, True]
    asked = [("The old man", {"max_gen_toks": 8}), (TEXT, {"max_gen_toks": 8}), ("The old man", {"max_gen_toks": 47})]
    assert [lm.is_truncated(one) for one in lm.prompts(asked)] == [False, True, True]
    assert not lm.is_truncated(TEXT)


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


def _slowly(lm, context: str, max_new: int, stops=()) -> str:
    """Token by token, each from a pass over the whole text, cut as the harness cuts."""
    tokens = (lm.tok_encode(context) or [lm.eot_token_id])[-(lm.max_length - max_new) :]
    written: list[int] = []
    while len(written) < max_new:
        with lm._forward():
            following = int(lm.model(torch.tensor([[*tokens, *written]]))[0, -1].argmax())
        if following == lm.eot_token_id:
            break
        written.append(following)
    return postprocess_generated_text(lm.tokenizer.decode(written), list(stops), None)


def _written(lm, *asked) -> list[str]:
    return lm.generate_until([_instance("generate_until", context, settings) for context, settings in asked])


@pytest.mark.parametrize("head_width", [8, 32], ids=["heads of 8", "heads of 32, which have a kernel"])
def test_generation_equals_a_pass_over_the_whole_text_for_every_token(tokenizer, head_width):
    """Unequal prompts and limits in one batch, an empty one, some that do not fit the context."""
    lm = DecoderLM(tiny_model(tokenizer, width=4 * head_width, heads=4), tokenizer, forward=nullcontext)
    words = TEXT.split()
    contexts = ["", "The old", *(" ".join(words[:count]) for count in (3, 9, 14, 30, 60)), "Is it larger"]
    limits = [6, 20, 5, 12, 30, 20, 40, 47]
    found = _written(lm, *((text, {"max_gen_toks": limit}) for text, limit in zip(contexts, limits, strict=True)))
    assert found == [_slowly(lm, text, limit) for text, limit in zip(contexts, limits, strict=True)]
    lm._batch_tokens = 60
    again = _written(lm, *((text, {"max_gen_toks": limit}) for text, limit in zip(contexts, limits, strict=True)))
    assert again == found


def test_texts_end_before_their_stops_while_others_go_on(lm):
    contexts = [" ".join(TEXT.split()[start : start + 4]) for start in range(12)]
    free = [_slowly(lm, context, 30) for context in contexts]
    stops = [free[0][2:4], free[5][9:12], "", "never said"]
    found = _written(lm, *((context, {"until": list(stops), "max_gen_toks": 30}) for context in contexts))
    assert found == [_slowly(lm, context, 30, stops) for context in contexts]
    assert found[0] != free[0]
    (one,) = _written(lm, ("The old", {"until": free[1][3], "max_gen_toks": 30}))
    assert one == _slowly(lm, "The old", 30, [free[1][3]])


def test_the_end_of_the_text_ends_it(lm, model):
    end = lm.eot_token_id
    with torch.no_grad():  # the end is a little likelier than what would be said fourth
        states_D = model.hidden(torch.tensor([lm.tok_encode("The old" + _slowly(lm, "The old", 3))]))[0][0, -1]
        head_VD = model.head_weight_VD
        head_VD[end] = states_D * (1.5 * (head_VD @ states_D).max() / states_D.dot(states_D))
    assert _written(lm, ("The old", {"max_gen_toks": 20})) == [_slowly(lm, "The old", 20)]


def test_generation_in_bfloat16(model, tokenizer):
    """The format of the forward passes is the decoder's: most of what is said stays as it is in float32."""
    exact = DecoderLM(model, tokenizer, forward=nullcontext)
    rounded = DecoderLM(model, tokenizer, forward=lambda: torch.autocast("cpu", torch.bfloat16))
    asked = [(" ".join(TEXT.split()[start : start + 4]), {"max_gen_toks": 1}) for start in range(40)]
    same = sum(one == other for one, other in zip(_written(exact, *asked), _written(rounded, *asked), strict=True))
    assert same > 30


def test_each_token_of_a_batch_is_a_step(lm):
    prompts = lm.prompts([("The old", {"max_gen_toks": 3}), ("The bird came out", {"max_gen_toks": 5})])
    steps = list(lm.write_steps(prompts))
    assert [step.index for step in steps] == [1, 2, 3, 4, 5]
    assert steps[0].tokens == sum(len(prompt.tokens) for prompt in prompts)
    assert [step.notes["requests"] for step in steps] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
    "settings",
    [{"do_sample": False, "temperature": 1}, {"temperature": 0}, {"do_sample": False, "num_beams": 1, "top_p": 0.9}],
)
def test_greedy_settings(lm, settings):
    assert _written(lm, ("The old", {"max_new_tokens": 6} | settings)) == [_slowly(lm, "The old", 6)]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"temperature": 0.7}, "asks for sampling"),
        ({"do_sample": True}, "asks for sampling"),
        ({"num_beams": 4}, "mean nothing to greedy decoding"),
        ({"repetition_penalty": 1.3}, "mean nothing to greedy decoding"),
        ({"max_gen_toks": 48}, "48 new tokens, and the model's context of 48"),
        ({"max_gen_toks": 0}, "0 new tokens"),
        ({}, "256 new tokens"),
    ],
)
def test_what_greedy_decoding_cannot_answer_is_refused(lm, settings, why):
    with pytest.raises(Unanswerable, match=why):
        lm.prompts([("x", {"until": []} | settings)])
