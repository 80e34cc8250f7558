"""Early exit against a slow loop over layers, one token at a time."""

from collections import Counter

import pytest
import torch

from lmopt.infer.decoder import Decoder
from lmopt.infer.early_exit import ExitRule, generate_early, read
from lmopt.infer.generate import generate, written
from lmopt.techniques.decoding import Sampling
from tests.lmopt.infer.models import SHAPES, tiny, tokens

PROMPTS = [tokens(length, seed=length).tolist() for length in (7, 3, 12)]
MEASURES = ["gap", "confidence", "similarity"]


def slow(decoder, prompt, rule, count):
    """One token at a time through plain loops over layers, to the depth that the rule says."""
    text, lefts = list(prompt), []
    cache = decoder.new_cache(batch=1, capacity=len(prompt) + count)
    logits_V = decoder.logits(decoder.extend(torch.tensor([text]), cache))[0, -1]
    text.append(int(logits_V.argmax()))
    while len(text) < len(prompt) + count:
        x, left = decoder.embed(torch.tensor([text[-1:]])), len(decoder.layers)
        for layer in range(1, len(decoder.layers) + 1):
            before, x = x, decoder.run(x, cache, first=layer - 1, last=layer)
            p = decoder.logits(decoder.norm(x))[0, 0].softmax(-1).sort(descending=True).values
            sure = {
                "gap": p[0] - p[1],
                "confidence": p[0],
                "similarity": torch.cosine_similarity(before[0, 0], x[0, 0], dim=0),
            }[rule.measure]
            if layer in rule.exits and sure >= rule.threshold:
                left = layer
                break
        for layer in range(left, len(decoder.layers)):  # the exit state through the skipped layers' K and V
            block = decoder.layers[layer]
            cos, sin = decoder._angles(cache.lengths, 1)
            _, k, v = block.apart(block.qkv(block.attention_norm(x)), cos, sin)
            cache.write(layer, cache.lengths, k, v)
        cache.advance([1])
        text.append(int(decoder.logits(decoder.norm(x))[0, 0].argmax()))
        lefts.append(left)
    return text[len(prompt) :], lefts


def left_behind(steps):
    """Layer -> tokens that left behind it, those that the reading of the prompts gave left out."""
    found = Counter()
    for step in steps[1:]:
        found.update({int(name.removeprefix("left/")): count for name, count in step.notes.items()})
    return found


@pytest.mark.parametrize("shape", ["grouped", "wide"])
@pytest.mark.parametrize("measure", MEASURES)
def test_a_batch_whose_rows_leave_at_different_depths_equals_the_slow_loop_alone(measure, shape):
    decoder = Decoder(tiny(**SHAPES[shape]))
    rule = ExitRule((1, 2), {"gap": 0.2, "confidence": 0.3, "similarity": 0.85}[measure], measure)
    steps = list(generate_early(decoder, PROMPTS, rule, max_new=10))
    alone = [slow(decoder, prompt, rule, 10) for prompt in PROMPTS]
    assert written(iter(steps)) == [text for text, _ in alone]
    lefts = [left for _, row in alone for left in row]
    assert left_behind(steps) == Counter(lefts)


def test_depths_really_differ():
    decoder = Decoder(tiny(**SHAPES["grouped"]))
    first, *between, last = (
        left_behind(list(generate_early(decoder, PROMPTS, ExitRule((1, 2), threshold), max_new=10)))
        for threshold in (0.0, 0.2, 0.6, 1.0)
    )
    assert first.keys() == {1}
    assert last.keys() == {3}
    assert any(len(depths) > 1 for depths in between)


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("format", ["fp32", "bf16"])
def test_threshold_1_is_full_depth_exactly(measure, format):
    decoder = Decoder(tiny(), format)
    warm = Sampling(temperature=1.2)
    steps = list(generate_early(decoder, PROMPTS, ExitRule((1, 2), 1.0, measure), max_new=8, sampling=warm))
    assert written(iter(steps)) == written(generate(decoder, PROMPTS, max_new=8, sampling=warm))
    assert left_behind(steps).keys() == {3}


def test_every_layer_has_keys_and_values_behind_an_early_token():
    decoder = Decoder(tiny())
    cache = decoder.new_cache(batch=1, capacity=8)
    decoder.extend(tokens(1, 3), cache)
    _, left = read(decoder, tokens(1, 1), cache, ExitRule((1,), 0.0))
    assert left == [1]
    assert cache.lengths == [4]
    assert (cache.keys_LBKSC[:, :, :, 3].abs().sum((1, 2, 3)) > 0).all()
    assert (cache.keys_LBKSC[:, :, :, 4:] == 0).all()


@pytest.mark.parametrize(
    ("exits", "threshold", "measure", "words"),
    [
        ((1, 3), 0.5, "gap", r"exits \[1, 3\] of a model of 3 layers: 1 to 2 are possible, in asc"),
        ((0,), 0.5, "gap", "exits"),
        ((2, 1), 0.5, "gap", "ascending"),
        ((1,), 1.5, "gap", "threshold 1.5: from 0 to 1"),
        ((1,), 0.5, "entropy", "nothing measures 'entropy': gap, confidence, similarity"),
    ],
)
def test_a_rule_that_does_not_fit_is_refused(exits, threshold, measure, words):
    with pytest.raises(ValueError, match=words):
        next(generate_early(Decoder(tiny()), PROMPTS, ExitRule(exits, threshold, measure), max_new=2))


def test_the_seed_decides():
    decoder, warm = Decoder(tiny()), Sampling(temperature=1.5)
    rule = ExitRule((1, 2), 0.3)
    texts = [written(generate_early(decoder, PROMPTS, rule, max_new=8, sampling=warm, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
