"""Generation against the slow loop: batches, seeds, stops, refusals, and probabilities' transforms by hand."""

import pytest
import torch

from lmopt.infer import generate as generation
from lmopt.infer.decoder import Decoder, PromptTooLong
from lmopt.infer.generate import generate, prefill, written
from lmopt.infer.sampling import probabilities, seeded
from lmopt.techniques.decoding import Sampling
from tests.lmopt.infer.models import SHAPES, tiny, tokens

PROMPTS = [tokens(length, seed=length).tolist() for length in (7, 3, 12, 1)]
WARM = Sampling(temperature=1.3, top_k=20, top_p=0.95)


def slow(model, prompt, count):
    """The obvious loop: the whole text through the model for every token."""
    text = list(prompt)
    for _ in range(count):
        text.append(int(model(torch.tensor([text]))[0, -1].argmax()))
    return text[len(prompt) :]


@pytest.mark.parametrize("shape", SHAPES)
def test_greedy_text_is_that_of_the_slow_loop_in_a_batch_of_unequal_lengths(shape):
    model = tiny(**SHAPES[shape])
    texts = written(generate(Decoder(model), PROMPTS, max_new=8))
    assert texts == [slow(model, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "warm"])
def test_a_batch_gives_what_its_prompts_give_one_by_one(sampling):
    decoder = Decoder(tiny())
    together = written(generate(decoder, PROMPTS, max_new=10, sampling=sampling, seed=5))
    for number, prompt in enumerate(PROMPTS):
        alone = written(generate(decoder, [prompt], max_new=10, sampling=sampling, seed=5 + number))
        assert alone == [together[number]]


def shapes_of_passes(monkeypatch, decoder):
    """(texts, tokens of each) of every pass from now on."""
    found, run = [], decoder.run

    def noted(x_BTD, *given, **named):
        found.append(tuple(x_BTD.shape[:2]))
        return run(x_BTD, *given, **named)

    monkeypatch.setattr(decoder, "run", noted)
    return found


def test_prompts_of_like_length_are_read_together(monkeypatch):
    decoder = Decoder(tiny())
    lengths = [5, 50, 3, 9, 45]
    prompts = [tokens(length, seed=length).tolist() for length in lengths]
    read = shapes_of_passes(monkeypatch, decoder)
    cache = decoder.new_cache(batch=5, capacity=50)
    together = prefill(decoder, prompts, cache)
    assert read == [(2, 50), (3, 9)]
    assert cache.lengths == lengths
    for row, prompt in enumerate(prompts):
        alone = decoder.new_cache(batch=1, capacity=50)
        torch.testing.assert_close(together[row], prefill(decoder, [prompt], alone)[0], rtol=1e-5, atol=1e-5)
        kept = cache.keys_LBKSC[:, row, :, : len(prompt)], alone.keys_LBKSC[:, 0, :, : len(prompt)]
        torch.testing.assert_close(*kept, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", ["dense", "wide"])
def test_long_prompts_are_filled_up_where_there_is_room(monkeypatch, shape):
    decoder = Decoder(tiny(**SHAPES[shape]))
    prompts = [tokens(length, seed=length).tolist() for length in (41, 35)]
    expected = prefill(decoder, prompts, decoder.new_cache(batch=2, capacity=60))
    monkeypatch.setattr(generation, "LONG", 40)
    read = shapes_of_passes(monkeypatch, decoder)
    for capacity, width in ((60, 48), (48, 48), (47, 41)):
        cache = decoder.new_cache(batch=2, capacity=capacity)
        torch.testing.assert_close(prefill(decoder, prompts, cache), expected, rtol=1e-5, atol=1e-5)
        assert read.pop() == (2, width)
        assert cache.lengths == [41, 35]


def test_the_seed_decides():
    decoder = Decoder(tiny(), "bf16")
    first, again, other = (
        written(generate(decoder, PROMPTS[:1], max_new=20, sampling=WARM, seed=seed)) for seed in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_a_text_ends_behind_its_stop_sequence_and_the_others_go_on():
    decoder = Decoder(tiny())
    free = written(generate(decoder, PROMPTS, max_new=12))
    stop = tuple(free[1][3:5])
    stopped = written(generate(decoder, PROMPTS, max_new=12, stops=(stop,)))
    for text, whole in zip(stopped, free, strict=True):
        ends = [end for end in range(2, 13) if tuple(whole[end - 2 : end]) == stop]
        assert text == whole[: ends[0] if ends else 12]
    assert len(stopped[1]) <= 5


def test_stop_sequences_may_be_lists():
    decoder = Decoder(tiny())
    first = written(generate(decoder, PROMPTS[:1], max_new=1))[0]
    assert written(generate(decoder, PROMPTS[:1], max_new=8, stops=[first])) == [first]


def test_steps_stream_the_prompts_first():
    steps = list(generate(Decoder(tiny()), PROMPTS[:2], max_new=3))
    assert [(step.index, step.tokens) for step in steps] == [(1, 2), (2, 2), (3, 2)]
    assert steps[0].notes == {"prompt_tokens": 10}
    assert all(len(added) == 1 for step in steps for added in step.added)


@pytest.mark.parametrize(
    ("prompts", "options", "error", "words"),
    [
        ([[1] * 60], {"max_new": 5}, PromptTooLong, "60 tokens and 5 new ones exceed the model's context of 64"),
        ([[1], []], {"max_new": 5}, ValueError, "prompt 1 is empty"),
        ([[1, 61]], {"max_new": 5}, ValueError, "token id 61 is not in the vocabulary of 61"),
        ([], {"max_new": 5}, ValueError, "0 prompts"),
        ([[1]], {"max_new": 0}, ValueError, "0 new tokens"),
        ([[1]], {"max_new": 1, "stops": ((),)}, ValueError, "empty stop"),
    ],
)
def test_what_cannot_be_written_is_refused(prompts, options, error, words):
    with pytest.raises(error, match=words):
        next(generate(Decoder(tiny()), prompts, **options))


class TestProbabilities:
    LOGITS = torch.tensor([2.0, 1.0, 1.0, 0.0, -1.0], dtype=torch.float64)

    @pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-300])
    def test_a_tiny_temperature_is_all_but_greedy(self, temperature):
        logits_V = torch.tensor([3.0, -2e4, 40.0, 39.0])
        assert probabilities(logits_V, Sampling(temperature=temperature)).tolist() == [0, 0, 1, 0]

    def test_temperature_divides_and_0_takes_the_first_of_the_likeliest(self):
        warm = probabilities(self.LOGITS, Sampling(temperature=2))
        torch.testing.assert_close(warm, (self.LOGITS / 2).softmax(-1))
        assert probabilities(torch.tensor([1.0, 3.0, 3.0]), Sampling()).tolist() == [0, 1, 0]

    def test_top_k_keeps_ties_with_the_last(self):
        kept = probabilities(self.LOGITS, Sampling(temperature=1, top_k=2))
        assert (kept > 0).tolist() == [True, True, True, False, False]

    def test_top_p_keeps_the_fewest_that_reach_it(self):
        p = self.LOGITS.softmax(-1)  # .520 .191 .191 .070 .026
        for top_p, count in ((0.1, 1), (float(p[0]) + 1e-9, 2), (0.95, 4), (1.0, 5)):
            kept = probabilities(self.LOGITS, Sampling(temperature=1, top_p=top_p))
            assert int((kept > 0).sum()) == count
            torch.testing.assert_close(kept.sum(), torch.tensor(1.0, dtype=torch.float64))

    def test_choices_follow_the_probabilities_and_never_the_impossible(self):
        p_V = torch.tensor([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
        choose = seeded(0)
        drawn = torch.tensor([choose(p_V) for _ in range(4000)]).bincount(minlength=6) / 4000
        assert (drawn[p_V == 0] == 0).all()
        assert (drawn - p_V).abs().max() < 4 * 0.5 / 4000**0.5
