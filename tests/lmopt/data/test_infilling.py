"""Infilling: T5's spans, candidates that see both sides, and a text that depends on itself alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.arch.transformer import Transformer, build
from lmopt.data import cache, continuation, infilling, smollm, tokenizer
from lmopt.data.continuation import fill
from lmopt.data.documents import Document, Spent, is_synthetic
from lmopt.data.infilling import Infiller, acceptable, gaps, spans
from lmopt.data.spec import Bpe
from lmopt.recipe import FixedBatch, Fp32, Infilling, Model, Recipe

from .texts import document, numbered, prose

SMALL = {"kind": "trained", "layers": 1, "width": 32, "heads": 2, "vocab": 300, "tokens": 20_000}


@settings(max_examples=60, deadline=None)
@given(n=st.integers(0, 400), share=st.floats(0.01, 0.5), mean=st.floats(1, 20), seed=st.integers(0, 5))
def test_spans_lie_apart_and_inside(n: int, share: float, mean: float, seed: int) -> None:
    found = spans(n, share, mean, np.random.default_rng(seed))
    at = 0
    for first, last in found:
        assert at < first < last < n, "words that stay before, between and behind"
        at = last
    if found:
        assert sum(last - first for first, last in found) == round(n * share)


def test_spans_are_t5s() -> None:
    rng = np.random.default_rng(0)
    many = [spans(200, 0.15, 3.0, rng) for _ in range(200)]
    assert {len(found) for found in many} == {10}
    lengths = [last - first for found in many for first, last in found]
    assert np.mean(lengths) == pytest.approx(3.0)
    assert max(lengths) > 8
    starts = np.array([first for found in many for first, _ in found])
    assert np.histogram(starts, 4, (0, 200))[0].min() > 300, "everywhere in the text"


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.set_num_threads(1)
    shape = Model(layers=2, width=32, heads=4, kv_heads=2, vocab=50, context=64)
    recipe = Recipe(model=shape, precision=Fp32(), batching=FixedBatch(sequences=1, length=64), tokens=1000)
    found = build(recipe, seed=0)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.mul_(3)
    return found


def test_scores_are_those_of_the_whole_sequence(model: Transformer) -> None:
    chance = torch.Generator().manual_seed(0)
    prefix, suffix = torch.randint(50, (3, 7)), torch.randint(50, (3, 5))
    made, score = fill(model, prefix, 4, suffix, candidates=6, temperature=1.0, top_p=1.0, chance=chance)
    assert made.shape == (3, 6, 4)
    for gap in range(3):
        for candidate in range(6):
            whole = torch.cat([prefix[gap], made[gap, candidate], suffix[gap]])
            log_p = model(whole[None, :-1])[0].log_softmax(-1)
            slow = log_p[torch.arange(10, 15), suffix[gap]].mean()
            assert score[gap, candidate].item() == pytest.approx(slow.item(), abs=1e-4)


def test_candidates_are_drawn_from_the_model(model: Transformer) -> None:
    chance = torch.Generator().manual_seed(0)
    prefix = torch.randint(50, (1, 9))
    made, score = fill(
        model, prefix, 1, torch.empty(1, 0, dtype=torch.int64), candidates=20_000, temperature=1.0, top_p=1.0,
        chance=chance,
    )  # fmt: skip
    p = model(prefix)[0, -1].softmax(-1)
    share = torch.bincount(made.flatten(), minlength=50) / 20_000
    assert (share - p).abs().max() < 4 * (0.25 / 20_000) ** 0.5
    assert not score.any()
    one, _ = fill(model, prefix, 3, prefix[:, :2], candidates=5, temperature=1.0, top_p=1e-6, chance=chance)
    assert (one == one[:, :1]).all(), "the likeliest token alone is left"


def test_a_gap_may_begin_with_some_tokens_only(model: Transformer) -> None:
    chance = torch.Generator().manual_seed(0)
    prefix, first = torch.randint(50, (2, 7)), torch.arange(50) < 3
    made, _ = fill(model, prefix, 3, prefix, candidates=50, temperature=1.0, top_p=1.0, chance=chance, first_V=first)
    assert set(made[..., 0].flatten().tolist()) == {0, 1, 2}
    assert made[..., 1:].max() > 3


def test_a_seed_is_a_seed(model: Transformer) -> None:
    def drawn(seed: int) -> torch.Tensor:
        chance = torch.Generator().manual_seed(seed)
        prefix = torch.arange(14).reshape(2, 7)
        return fill(model, prefix, 4, prefix, candidates=4, temperature=1.0, top_p=0.9, chance=chance)[0]

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


@pytest.mark.parametrize(
    ("made", "original", "may"),
    [(" a new", " an old", True), (" An  OLD", " an old", False), ("", " x", False), ("  ", " x", False),
     ("new", " old", False), (" a\nb", " a c", False), (" a\nb", " a\nc", True), (" a\ufffd", " b", False)],
)  # fmt: skip
def test_what_may_stand_in_a_gap(made: str, original: str, may: bool) -> None:
    assert acceptable(made, original) is may


def test_gaps_know_what_is_around_them() -> None:
    text = prose(1, 100)
    words = tokenizer.train([text] * 3, Bpe(vocab=300))
    config = Infilling(before=10, after=5)
    for gap in gaps(text, config, words, np.random.default_rng(0)):
        assert text[gap.start].isspace()
        assert text[: gap.start].endswith(words.decode(list(gap.prefix)))
        assert text[gap.end :].startswith(words.decode(list(gap.suffix)))
        assert len(words.encode(text[gap.start : gap.end]).ids) == gap.tokens
    assert gaps("", config, words, np.random.default_rng(0)) == []
    assert gaps("one two", config, words, np.random.default_rng(0)) == []


@pytest.fixture(scope="module")
def infiller() -> Infiller:
    torch.set_num_threads(1)
    found = Infiller(Infilling.model_validate({"model": SMALL, "candidates": 4}))
    assert found.prepare(iter(numbered([prose(seed, 100) for seed in range(60)]))) > 20_000 * 6 * 32 * 300
    return found


def test_a_text_is_filled_in_its_gaps_and_nowhere_else(infiller: Infiller) -> None:
    text = prose(100, 120)
    ((made, flops),) = infiller.make([text])
    before, after = text.split(" "), made.split(" ")
    assert made != text
    assert before[0] == after[0]
    kept = set(before) & set(after)
    assert len(kept) > 0.6 * len(set(before))
    assert flops > 0


def test_what_is_made_depends_on_the_text_and_the_seed_alone(infiller: Infiller) -> None:
    texts = [prose(100 + seed, 60) for seed in range(3)]
    together = infiller.make(texts)
    assert [infiller.make([text])[0] for text in texts] == together
    assert infiller.make(texts[::-1]) == together[::-1]
    other = Infiller(Infilling.model_validate({"model": SMALL, "candidates": 4, "seed": 1}))
    other._model, other._words, other._spaced_V = infiller._model, infiller._words, infiller._spaced_V
    assert other.make(texts) != together
    assert other.settings != infiller.settings


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200))
def test_any_text_can_be_filled(infiller: Infiller, text: str) -> None:
    ((made, _),) = infiller.make([text.encode("utf-8", "replace").decode()])
    made.encode()


def test_a_small_domain_grows_and_the_arm_pays_for_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path))
    corpus = [document(prose(seed, 100), f"b{seed}", "web") for seed in range(50)]
    corpus += [document(prose(1000 + seed, 100), f"s{seed}", "letters") for seed in range(5)]
    config = Infilling.model_validate({"below": 0.2, "candidates": 2, "model": SMALL})
    items = list(infilling.build(config, corpus))
    made = [item for item in items if isinstance(item, Document) and is_synthetic(item)]
    assert {item.domain for item in made} == {"letters"}
    assert all("infilling by a model trained here" in item.provenance for item in made)
    flops = sum(item.flops for item in items if isinstance(item, Spent))
    assert flops > 20_000 * 6 * 32 * 300
    again = list(infilling.build(config, corpus))
    assert [i for i in again if isinstance(i, Document)] == [i for i in items if isinstance(i, Document)]
    assert sum(item.flops for item in again if isinstance(item, Spent)) == pytest.approx(flops)


@pytest.mark.slow
def test_the_packaged_model_knows_english() -> None:
    pytest.importorskip("gguf")
    try:
        found, words = smollm.load()
    except cache.SourceError as error:
        pytest.skip(str(error))
    ids = torch.tensor([words.encode("The capital of France is Paris, and the capital of Italy is Rome.").ids])
    with torch.inference_mode():
        loss = torch.nn.functional.cross_entropy(found(ids[:, :-1])[0], ids[0, 1:])
    assert loss < 2.5
    assert words.decode(words.encode("In 1984 it's naïve.").ids) == "In 1984 it's naïve."
    assert continuation._extend(found, ids, None)[0].shape == (1, ids.shape[1], 576)
