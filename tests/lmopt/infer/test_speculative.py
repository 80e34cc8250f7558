"""Speculation is lossless: each text's probability by enumeration, planted mistakes that are seen, drafts by kind."""

import functools
import itertools
import sys
import zlib

import numpy as np
import pytest
import torch

from lmopt.arch import fused
from lmopt.infer import speculative
from lmopt.infer.decoder import Decoder
from lmopt.infer.drafts import ExitDraft, ModelDraft, draw
from lmopt.infer.generate import generate, written
from lmopt.infer.lookup import LookupDraft
from lmopt.infer.ngramstore import NgramStore
from lmopt.infer.outcomes import outcomes
from lmopt.infer.sampling import probabilities, seeded
from lmopt.infer.sequence import Text
from lmopt.infer.speculative import DraftLength, Proposal, Round, rounds, speculate
from lmopt.techniques.decoding import Sampling
from tests.lmopt.infer.models import SHAPES, tiny, tokens

V = 3
"""Vocabulary of the toy models."""


def table(text, stream, vocab=None):
    """Logits after a text, drawn anew for every text: a model with no structure whatever."""
    return _drawn(tuple(text), stream, vocab or V)


@functools.cache
def _drawn(text, stream, vocab):
    seed = zlib.crc32(f"{stream} {text}".encode())
    return 2 * torch.randn(vocab, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class ToyTarget:
    def check(self, tokens, drafted):
        return torch.stack([table([*tokens, *drafted[:i]], "target") for i in range(len(drafted) + 1)])


class ToyDraft:
    def __init__(self, stream="draft", cost=0.1):
        self.stream, self.cost = stream, cost

    def propose(self, tokens, count, sampling, choose):
        return draw(lambda text: table(text, self.stream), tokens, count, sampling, choose)


class Wrong:
    """Drafts one token, the least likely of all."""

    cost = 0.1
    is_own_judge = False

    def propose(self, tokens, count, sampling, choose):
        return Proposal([int(table(tokens, "target").argmin())] * min(count, 1), vocab=V)


def of_the_target(length, sampling):
    """Probability of every continuation of the prompt under the target alone."""
    found = {}
    for text in itertools.product(range(V), repeat=length):
        p = 1.0
        for i, token in enumerate(text):
            p *= float(probabilities(table([0, *text[:i]], "target"), sampling)[token])
        if p:
            found[text] = p
    return found


def of_the_algorithm(length, sampling, draft, draft_tokens=2, adaptive=False):
    """Probability of every continuation under speculative sampling, over all its coin tosses."""

    def algorithm(choose):
        text = Text([0], 1, 1 + length, (), choose)
        for _ in rounds(ToyTarget(), draft, text, DraftLength(draft_tokens, draft.cost, adaptive), sampling):
            pass
        return tuple(text.tokens[1:])

    return outcomes(algorithm)


def difference(length=4, sampling=None, draft=None, **options):
    sampling, draft = sampling or Sampling(temperature=1), draft or ToyDraft()
    ours, target = of_the_algorithm(length, sampling, draft, **options), of_the_target(length, sampling)
    return max(abs(ours.get(text, 0.0) - target.get(text, 0.0)) for text in ours.keys() | target.keys())


class TestLossless:
    """Joint distribution of whole texts, summed over every random outcome."""

    @pytest.mark.parametrize(
        "sampling",
        [
            Sampling(temperature=1),
            Sampling(temperature=0.7, top_k=2),
            Sampling(temperature=1.4, top_p=0.8),
            Sampling(),
        ],
        ids=["plain", "top-k", "top-p", "greedy"],
    )
    @pytest.mark.parametrize(
        "draft",
        [
            ToyDraft(),
            LookupDraft(V, longest=2),
            LookupDraft(V, longest=2, store=NgramStore(np.array([0, 1, 2, 0, 1, 1, 2, 0]), 2), row_cost=0.2),
        ],
        ids=["model", "lookup", "store"],
    )
    def test_every_text_has_the_targets_probability(self, sampling, draft):
        assert difference(sampling=sampling, draft=draft) < 1e-12

    def test_also_when_the_draft_length_adapts(self, monkeypatch):
        monkeypatch.setattr(sys.modules[__name__], "V", 2)
        draft = ToyDraft(cost=0.35)  # at first two are drafted, after a refusal one
        assert difference(length=5, draft=draft, draft_tokens=3, adaptive=True) < 1e-12

    def test_draft_equal_to_the_target_is_always_kept(self):
        text = Text([0], 1, 13, (), seeded(0))
        played = list(rounds(ToyTarget(), ToyDraft("target"), text, DraftLength(3, 0, False), Sampling(temperature=1)))
        assert [(r.drafted, r.kept) for r in played] == [(0, 0), (3, 3), (3, 3), (2, 2)]

    def test_a_draft_that_is_always_wrong_is_never_kept(self):
        text = Text([0], 1, 9, (), seeded(0))
        played = list(rounds(ToyTarget(), Wrong(), text, DraftLength(3, 0, False), Sampling()))
        assert all(r.kept == 0 and len(r.tokens) == 1 for r in played)
        assert tuple(text.tokens[1:]) in of_the_target(8, Sampling())


def test_greedy_texts_are_checked_by_the_same_rule():
    """The short way, likeliest against drafted, keeps what the rule for chances keeps where there are none."""
    chance = torch.Generator().manual_seed(0)
    for _ in range(200):
        logits_GV = torch.randn(4, V, generator=chance)
        drafted = torch.randint(V, (3,), generator=chance).tolist()
        p_GV = probabilities(logits_GV, Sampling())
        by_chances = speculative.accept(Proposal(drafted, vocab=V), p_GV, seeded(0))
        assert speculative.agree(drafted, logits_GV) == by_chances


class TestMutations:
    """Each known way to get the algorithm wrong is seen by the proof."""

    def test_residual_from_p(self, monkeypatch):
        monkeypatch.setattr(speculative, "residual", lambda p_V, q_V: p_V)
        assert difference() > 1e-3

    def test_flipped_ratio(self, monkeypatch):
        right = speculative.keeps
        monkeypatch.setattr(speculative, "keeps", lambda p, q, choose: right(q, p, choose))
        assert difference() > 1e-3

    def test_bonus_from_the_draft(self, monkeypatch):
        right = speculative.accept

        def wrong(proposal, p_GV, choose):
            last = proposal.q_GV[-1:] if len(proposal.tokens) else p_GV[-1:]
            return right(proposal, torch.cat([p_GV[:-1], last.to(p_GV.dtype)]), choose)

        monkeypatch.setattr(speculative, "accept", wrong)
        assert difference() > 1e-3

    def test_missing_bonus(self, monkeypatch):
        right = speculative.play

        def wrong(*args):
            outcome = right(*args)
            full = outcome.drafted and outcome.kept == outcome.drafted
            return Round(outcome.tokens[:-1] if full else outcome.tokens, outcome.drafted, outcome.kept)

        def calls(play):
            monkeypatch.setattr(speculative, "play", play)
            text = Text([0], 1, 13, (), seeded(0))
            return len(list(rounds(ToyTarget(), ToyDraft("target"), text, DraftLength(3, 0, False), Sampling())))

        assert calls(right) == 4  # 1 + three rounds of 3 + 1, the last cut to what may be added
        assert calls(wrong) > 4

    def test_a_wrong_token_kept_where_it_is_greedy(self, monkeypatch):
        right = speculative.agree

        def wrong(drafted, logits_GV):
            kept = min(right(drafted, logits_GV)[0] + 1, len(drafted))
            return kept, int(logits_GV[kept].argmax())

        assert difference(sampling=Sampling(), draft=Wrong()) < 1e-12
        monkeypatch.setattr(speculative, "agree", wrong)
        assert difference(sampling=Sampling(), draft=Wrong()) > 1e-3

    def test_other_transforms_on_the_draft(self, monkeypatch):
        right = speculative.accept

        def wrong(proposal, p_GV, choose):
            flat = Proposal(proposal.tokens, proposal.q_GV.sqrt() / proposal.q_GV.sqrt().sum(-1, keepdim=True))
            return right(flat, p_GV, choose)

        monkeypatch.setattr(speculative, "accept", wrong)
        assert difference() > 1e-3


def drafts(decoder):
    small = Decoder(tiny(layers=1, seed=1))
    return {
        "model": ModelDraft(small, decoder),
        "exit": ExitDraft(decoder, exit_layer=2),
        "lookup": LookupDraft(decoder.vocab),
        "store": LookupDraft(decoder.vocab, store=NgramStore(tokens(400, seed=2).numpy(), 2), row_cost=0.03),
        "itself": ModelDraft(decoder, decoder),
    }


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["model", "exit", "lookup", "store", "itself"])
def test_greedy_text_is_token_for_token_that_of_plain_decoding(shape, kind):
    decoder = Decoder(tiny(**SHAPES[shape]))
    prompt = tokens(9).tolist() * 2
    plain = written(generate(decoder, [prompt], max_new=30))
    steps = list(speculate(decoder, drafts(decoder)[kind], prompt, max_new=30, adaptive=False))
    assert written(iter(steps)) == plain
    drafted = sum(step.notes.get("drafted", 0) for step in steps)
    kept = sum(step.notes.get("kept", 0) for step in steps)
    assert sum(step.tokens for step in steps) == 30
    if kind == "itself":
        assert drafted == kept > 0
    assert len(steps) == 30 - kept  # every call of the target adds one token of its own


@pytest.mark.parametrize("kind", ["model", "exit", "lookup", "store"])
def test_the_seed_decides(kind):
    decoder, warm = Decoder(tiny()), Sampling(temperature=1.5)

    def text(seed):
        draft = drafts(decoder)[kind]
        return written(speculate(decoder, draft, [1, 2, 3], max_new=20, sampling=warm, seed=seed))

    assert text(0) == text(0) != text(1)


def test_first_tokens_drawn_follow_the_target():
    """The sampler itself, with real models: the second token, which a draft proposes, over many seeds."""
    decoder, warm, draws = Decoder(tiny(vocab=8)), Sampling(temperature=1.5), 800
    first = written(generate(decoder, [[1, 2]], max_new=1))[0]
    p_V = probabilities(decoder.logits(decoder.extend(torch.tensor([[1, 2, *first]]),
                        decoder.new_cache(batch=1, capacity=4)))[0, -1], warm)  # fmt: skip
    draft = ExitDraft(decoder, exit_layer=1)
    check = draft
    found = torch.zeros(8)
    for seed in range(draws):
        outcome = speculative.play(check, draft, [1, 2, *first], 2, warm, seeded(seed))
        found[outcome.tokens[0]] += 1 / draws
    assert (found - p_V).abs().max() < 4 * 0.5 / draws**0.5


def test_draft_and_target_of_different_vocabularies_are_refused():
    with pytest.raises(ValueError, match=r"the draft knows 50 tokens, the target 61\nhint: .* same tokenizer"):
        ModelDraft(Decoder(tiny(vocab=50)), Decoder(tiny()))


def test_another_model_s_layers_cannot_draft():
    """They would check their own drafts, and the other model's text would come out."""
    with pytest.raises(ValueError, match="another model's own layers"):
        next(speculative.speculate(Decoder(tiny()), ExitDraft(Decoder(tiny(seed=1)), exit_layer=1), [1], max_new=2))


@pytest.mark.parametrize("count", [0, -3])
def test_nothing_to_draft_is_refused(count):
    decoder = Decoder(tiny())
    draft = ExitDraft(decoder, exit_layer=1)
    with pytest.raises(ValueError, match=f"draft_tokens is {count}: at least one"):
        next(speculative.speculate(decoder, draft, [1], max_new=2, draft_tokens=count))


@pytest.mark.parametrize("exit_layer", [0, 3, 4])
def test_an_exit_beyond_the_depth_is_refused(exit_layer):
    with pytest.raises(ValueError, match=f"exit layer {exit_layer} of a model of 3 layers: 1 to 2 are possible"):
        ExitDraft(Decoder(tiny()), exit_layer=exit_layer)


class TestDraftLength:
    def test_grows_when_drafts_are_kept_and_shrinks_when_not(self):
        length = DraftLength(8, cost=0.2)
        before = length.next()
        for _ in range(20):
            length.learn(Round([0] * 9, 8, 8))
        assert length.next() == 8 > before
        for _ in range(20):
            length.learn(Round([0], 4, 0))
        assert length.next() == 1

    def test_speed_is_theorem_3_8(self):
        length = DraftLength(5, cost=0.1)
        length.acceptance = 0.8
        assert length.speed(4) == pytest.approx((1 - 0.8**5) / ((1 - 0.8) * (4 * 0.1 + 1)))


def test_drafts_are_shorter_where_every_row_to_check_costs_time(monkeypatch):
    """Looked-up drafts cost nothing to make; torch's 8-bit kernel takes time in proportion to rows."""
    monkeypatch.setattr(fused, "_obstacle", lambda: "left out")
    text, drafted = [*range(8), *range(8)], {}
    for format in ("bf16", "int8"):
        decoder = Decoder(tiny(), format)
        steps = speculate(decoder, LookupDraft(61, row_cost=decoder.row_cost), text, max_new=20, draft_tokens=12)
        drafted[format] = max(step.notes.get("drafted", 0) for step in steps)
    assert drafted["int8"] < drafted["bf16"]
