"""Every kind of decoding from its description; FLOPs of a text against what is dispatched; texts read as given."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.instruments.formulas import FORMULAS, known_operators
from lmopt.cost_decoding import written_flops
from lmopt.infer import exactness, speculative
from lmopt.infer.decoder import Decoder
from lmopt.infer.early_exit import ExitRule
from lmopt.infer.forced import forced
from lmopt.infer.generate import generate, written
from lmopt.infer.ngramstore import NgramStore
from lmopt.recipe import EarlyExit, OneByOne, Speculative, builder
from lmopt.techniques.decoding import LookupDraft, Sampling
from tests.lmopt.infer.models import SHAPES, recipe, tiny, tokens

PROMPT = tokens(9, seed=3).tolist()
NEW = 24
LAYERS = 4
DRAFTS = {
    "model": {"kind": "model", "arm": "small"},
    "exit": {"kind": "exit", "layer": 2},
    "lookup": {"kind": "lookup"},
    "store": {"kind": "lookup", "corpus": 1000},
}
STORE = NgramStore(tokens(300, seed=4).numpy(), 3)

DECODINGS = {
    "one_by_one": OneByOne(),
    "gap": EarlyExit(exits=(1, 2), threshold=0.9),
    "similarity": EarlyExit(exits=(2, 3), threshold=0.6, measure="similarity"),
    "full depth": EarlyExit(exits=(1, 2), threshold=1.0),
    **{f"draft by {name}": Speculative(draft=draft) for name, draft in DRAFTS.items()},
    "fixed length": Speculative(draft=DRAFTS["model"], adaptive=False, draft_tokens=3),
}
SMALL = {"layers": 1, "width": 16}


def aid_of(config, small):
    """What its draft needs beside the target."""
    return STORE if getattr(config, "draft", None) == LookupDraft(corpus=1000) else small


def built(name, target, small):
    return builder(DECODINGS[name])(DECODINGS[name], target, aid_of(DECODINGS[name], small))


def decoders(shape="dense"):
    return Decoder(tiny(layers=LAYERS, **SHAPES[shape])), Decoder(tiny(**SMALL, seed=5))


@pytest.mark.parametrize("name", DECODINGS)
@pytest.mark.parametrize("shape", ["dense", "grouped"])
def test_a_text_costs_what_is_dispatched(name, shape):
    target, draft = decoders(shape)
    write = built(name, target, draft)
    steps = write(PROMPT, max_new=NEW)
    next(steps)
    counter = FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS))
    with counter:
        rest = list(steps)
    described = recipe(layers=LAYERS, **SHAPES[shape])
    closed = written_flops(DECODINGS[name], described, rest, prompt=len(PROMPT), draft=recipe(**SMALL))
    assert closed == counter.get_total_flops()
    assert sum(step.tokens for step in rest) == NEW - 1


@pytest.mark.parametrize("name", ["one_by_one", "full depth", *(f"draft by {name}" for name in DRAFTS)])
def test_what_is_lossless_writes_what_one_by_one_writes(name):
    target, draft = decoders()
    write = built(name, target, draft)
    assert written(write(PROMPT, max_new=NEW)) == written(generate(target, [PROMPT], max_new=NEW))


@pytest.mark.parametrize("name", DECODINGS)
def test_the_seed_decides(name):
    target, draft = decoders()
    write, warm = built(name, target, draft), Sampling(temperature=1.5)
    texts = [written(write(PROMPT, max_new=NEW, sampling=warm, seed=seed)) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_what_cannot_be_built_is_refused():
    target, _ = decoders()
    with pytest.raises(ValueError, match="calibrate it"):
        builder(EarlyExit(exits=(1,)))(EarlyExit(exits=(1,)), target)
    with pytest.raises(ValueError, match="exits \\[1, 4\\] of a model of 4 layers"):
        builder(EarlyExit(exits=(1, 4), threshold=0.5))(EarlyExit(exits=(1, 4), threshold=0.5), target)
    by_model = Speculative(draft=DRAFTS["model"])
    with pytest.raises(ValueError, match="'small' shall draft"):
        builder(by_model)(by_model, target)
    with pytest.raises(ValueError, match="the draft knows 50 tokens"):
        builder(by_model)(by_model, target, Decoder(tiny(vocab=50)))
    by_store = Speculative(draft=DRAFTS["store"])
    with pytest.raises(ValueError, match="looked up in a corpus, and no store"):
        builder(by_store)(by_store, target)
    deep = Speculative(draft={"kind": "exit", "layer": 4})
    with pytest.raises(ValueError, match="exit layer 4 of a model of 4 layers"):
        builder(deep)(deep, target)


# --- known texts ---------------------------------------------------------------------------------


TEXTS = tokens(3, 20, seed=8)


def test_a_text_is_read_as_the_full_forward_reads_it():
    model = tiny(layers=LAYERS)
    found = forced(Decoder(model), TEXTS, prompt=5)
    logits = model(TEXTS)[:, 5:-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), TEXTS[:, 6:].flatten(), reduction="none")
    torch.testing.assert_close(found.nats_BN.flatten(), expected, atol=2e-4, rtol=1e-4)
    assert (found.choice_BN == logits.argmax(-1)).all()
    assert (found.left_BN == LAYERS).all()


def test_at_full_depth_step_by_step_equals_one_pass():
    decoder = Decoder(tiny(layers=LAYERS))
    one, step = forced(decoder, TEXTS, prompt=5), forced(decoder, TEXTS, prompt=5, rule=ExitRule((1, 2), 1.0))
    torch.testing.assert_close(one.nats_BN, step.nats_BN, atol=2e-4, rtol=1e-4)
    assert (one.choice_BN == step.choice_BN).all()
    assert (step.left_BN == LAYERS).all()


def test_a_text_left_early_is_the_one_that_would_be_written():
    """Read the text that an early-exit decoding wrote: it chooses the same tokens and leaves at the same depths."""
    decoder, _ = decoders("grouped")
    config = DECODINGS["gap"]
    steps = list(builder(config)(config, decoder)(PROMPT, max_new=NEW))
    text = torch.tensor([[*PROMPT, *written(iter(steps))[0]]])
    found = forced(decoder, text, prompt=len(PROMPT), rule=ExitRule(config.exits, config.threshold))
    assert found.choice_BN.tolist() == [text[0, len(PROMPT) + 1 :].tolist()]
    lefts = [int(name.removeprefix("left/")) for step in steps[1:] for name in step.notes]
    assert found.left_BN.tolist() == [lefts]
    assert len(set(lefts)) > 1


def test_too_short_a_text_is_refused():
    with pytest.raises(ValueError, match="texts of 20 tokens with a prompt of 19"):
        forced(Decoder(tiny()), TEXTS, prompt=19)


# --- exactness -----------------------------------------------------------------------------------


@pytest.mark.parametrize("draft", DRAFTS.values(), ids=DRAFTS)
def test_sampled_text_has_the_models_own_distribution(draft):
    target, small = decoders()
    config = Speculative(draft=draft)
    found = exactness.sampled(config, target, aid_of(config, small), PROMPT * 2)
    assert found.distance < 1e-5
    assert found.drafted > 0


def test_a_model_whose_logits_are_no_numbers_has_no_outcomes_to_go_through():
    model = tiny()
    model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="a probability is no number"):
        exactness.sampled(Speculative(draft={"kind": "lookup"}), Decoder(model), None, [1, 2, 3])


def _from_p(p_V, _q_V):
    return p_V


def test_a_broken_rule_is_seen(monkeypatch):
    model = tiny(layers=LAYERS)
    model.embedding.weight.div_(3)  # less sure of itself: drafts are refused now and then
    target, config = Decoder(model), Speculative(draft={"kind": "exit", "layer": 3})
    assert exactness.sampled(config, target, None, PROMPT).distance < 1e-5
    monkeypatch.setattr(speculative, "residual", _from_p)
    assert exactness.sampled(config, target, None, PROMPT).distance > 1e-2


def test_texts_that_differ_are_wrong_unless_the_tokens_tie():
    decoder = Decoder(tiny())
    (text,) = written(generate(decoder, [PROMPT], max_new=6))
    same = exactness.agreement(decoder, [PROMPT], [text], [text])
    assert (same.identical, same.tied, same.wrong) == (1, 0, 0)
    other = [*text[:3], (text[3] + 1) % 61, *text[4:]]
    assert exactness.agreement(decoder, [PROMPT], [text], [other]).wrong == 1
    assert exactness.agreement(decoder, [PROMPT], [text], [text[:3]]).wrong == 1, "a text that ends early"


def test_equal_logits_tie():
    model = tiny()
    model.embedding.weight[7] = model.embedding.weight[8]
    decoder = Decoder(model)
    assert exactness._tie(decoder, PROMPT, 7, 8) == exactness._tie(decoder, PROMPT, 8, 7)
    best = int(
        decoder.logits(decoder.extend(torch.tensor([PROMPT]), decoder.new_cache(batch=1, capacity=9))[0, -1]).argmax()
    )
    assert exactness._tie(decoder, PROMPT, best, best)
    worst = int(
        decoder.logits(decoder.extend(torch.tensor([PROMPT]), decoder.new_cache(batch=1, capacity=9))[0, -1]).argmin()
    )
    assert not exactness._tie(decoder, PROMPT, best, worst)
