"""Difficulty of texts, and the order of a training that begins with the easy ones."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmopt.data import batches, corpus, difficulty, order, shards, storage
from lmopt.data.documents import Document, Spent
from lmopt.data.shards import Shards
from lmopt.data.spec import Data
from lmopt.data.storage import DataError
from lmopt.recipe import Curriculum, Difficulty, ExactDedup, FixedBatch, Model, Recipe, Shuffled

from .texts import numbered, prose, write_jsonl

END = 0


def _shards(lengths: list[int], hard: list[float] | None = None) -> Shards:
    """Documents of so many tokens (the end included), numbered from 1 by their token ids."""
    pieces = [np.append(np.full(length - 1, number + 1), END) for number, length in enumerate(lengths)]
    tokens = np.concatenate(pieces).astype(np.uint16)
    return Shards(tokens, {"end_of_text": END}, None if hard is None else np.array(hard, np.float32))


def test_window_difficulty_is_the_mean_over_its_tokens() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 40, 30).tolist()
    hard = rng.random(30).tolist()
    found = _shards(lengths, hard)
    per_token = np.repeat(np.array(hard, np.float32).astype(np.float64), lengths)
    starts = np.arange(3, len(per_token) - 16, 16)
    expected = [per_token[start : start + 16].mean() for start in starts]
    np.testing.assert_allclose(order.window_difficulty(found, starts, 16), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("pacing", "x", "share"),
    [("linear", 0.0, 0.2), ("linear", 0.5, 0.6), ("linear", 1.0, 1.0), ("root", 0.0, 0.2), ("root", 1.0, 1.0),
     ("root", 0.5, math.sqrt(0.04 + 0.96 / 2)), ("step", 0.24, 0.2), ("step", 0.25, 0.4), ("step", 1.0, 1.0)],
)  # fmt: skip
def test_pacing(pacing: str, x: float, share: float) -> None:
    config = Curriculum(pacing=pacing, start=0.2, stages=4)  # type: ignore[arg-type]
    assert order.allowed(config, x) == pytest.approx(share)


@settings(max_examples=60, deadline=None)
@given(
    windows=st.integers(1, 200),
    warmup=st.integers(0, 300),
    start=st.floats(0.01, 1.0),
    pacing=st.sampled_from(["linear", "root", "step"]),
    seed=st.integers(0, 9),
)
def test_every_window_once_and_none_before_it_is_allowed(
    windows: int, warmup: int, start: float, pacing: str, seed: int
) -> None:
    config = Curriculum(pacing=pacing, start=start)  # type: ignore[arg-type]
    ranked = np.random.default_rng(1).permutation(windows)
    found = order.paced(config, ranked, warmup, seed)
    assert sorted(found.tolist()) == list(range(windows))
    rank = np.argsort(ranked)
    for place in range(min(warmup, windows)):
        share = order.allowed(config, place / min(warmup, windows))
        assert rank[found[place]] < max(math.ceil(share * windows), place + 1)


def test_a_warmup_of_nothing_or_of_all_is_a_shuffle() -> None:
    ranked = np.arange(500)
    for config, warmup in ((Curriculum(), 0), (Curriculum(start=1.0), 500)):
        found = order.paced(config, ranked, warmup, 0)
        first, last = found[:250].mean(), found[250:].mean()
        assert abs(first - last) < 60, "easy and hard ones all along"
    early = order.paced(Curriculum(start=0.1), ranked, 400, 0)
    assert early[:50].mean() < 60


def _take(found: Shards, config: Curriculum | Shuffled, steps: int, *, seed: int = 0, start: int = 0) -> torch.Tensor:
    from lmopt.recipe import builder

    batch = FixedBatch(sequences=4, length=16)
    windows = builder(config)(config, found, length=16, run_windows=240)
    drawn = batches.build(batch, found, seed=seed, start=start, order=windows)
    return torch.cat(list(itertools.islice(drawn, steps)))


@pytest.fixture
def graded() -> Shards:
    """200 documents of about 32 tokens; the later, the easier."""
    return _shards([32] * 200, np.linspace(1, 0, 200).tolist())


def test_easy_text_comes_first_and_all_of_it_once(graded: Shards) -> None:
    found = _take(graded, Curriculum(start=0.2, warmup=0.5), 60)
    kind = found[:, :-1].float().mean(1)
    assert kind[:40].mean() > 150, "documents 160 to 200 are the easiest fifth"
    assert kind[:40].mean() > kind[120:160].mean() + 30
    windows = batches.windows_per_epoch(len(graded.tokens), 16)
    rows = lambda table: sorted(map(tuple, table[:windows].tolist()))  # noqa: E731
    plain = rows(_take(graded, Shuffled(), 100))
    assert rows(_take(graded, Curriculum(), 100)) == plain, "an epoch has the windows that it has without a curriculum"


def test_the_control_begins_with_the_hardest(graded: Shards) -> None:
    found = _take(graded, Curriculum(start=0.2, warmup=0.5, hardest_first=True), 10)
    assert found[:, :-1].float().mean() < 60


def test_the_same_seed_and_step_give_the_same_bits_wherever_one_begins(graded: Shards) -> None:
    config = Curriculum(warmup=0.5)
    whole = _take(graded, config, 60)
    assert torch.equal(whole[28:], _take(graded, config, 53, start=7))
    assert not torch.equal(whole, _take(graded, config, 60, seed=1))
    later = _take(graded, config, 200)[400:]
    assert torch.equal(later, _take(graded, Shuffled(), 200)[400:]), "behind the first epoch it is a shuffle"


def test_without_difficulty_a_curriculum_is_refused(graded: Shards) -> None:
    bare = Shards(graded.tokens, graded.manifest)
    with pytest.raises(DataError, match=r"hold no difficulty(.|\n)*hint: put \{kind: difficulty\}"):
        _take(bare, Curriculum(), 1)
    parts = {"model": Model(layers=1, width=32, heads=2), "tokens": 10**6}
    with pytest.raises(ValidationError, match="order curriculum needs the step"):
        Recipe.model_validate({**parts, "order": {"kind": "curriculum"}})
    Recipe.model_validate({**parts, "order": {"kind": "curriculum"}, "data": [{"kind": "difficulty"}]})
    with pytest.raises(
        ValidationError, match="infilling makes text that the step difficulty before it has not measured"
    ):
        Recipe.model_validate({**parts, "data": [{"kind": "difficulty"}, {"kind": "c4"}, {"kind": "infilling"}]})
    with pytest.raises(ValidationError, match="`reference` is a part of `by: loss`"):
        Difficulty.model_validate({"by": "compression", "reference": {}})


def test_compression_knows_repetition() -> None:
    assert difficulty.compression("the sea. " * 100) < 0.1 < 0.4 < difficulty.compression(prose(0, 100))
    assert difficulty.compression("") > 0


def test_readability_is_flesch() -> None:
    text = "The cat sat on the mat. It was a big cat."
    ease = 206.835 - difficulty.readability(text)
    assert ease == pytest.approx(206.835 - 1.015 * 11 / 2 - 84.6 * 11 / 11)
    hard = "Institutional considerations notwithstanding, administrative responsibilities necessitate deliberation."
    assert difficulty.readability(hard) > difficulty.readability(text) + 100


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("table", 2), ("make", 1), ("tree", 1), ("responsibility", 6), ("rhythm", 1), ("x", 1)],
)
def test_syllables(word: str, count: int) -> None:
    assert difficulty.syllables(word.encode()) == count


def test_diversity_is_mtld() -> None:
    assert difficulty.diversity("of the of the " * 30) == pytest.approx(_slow_mtld("of the of the " * 30))
    text = prose(3, 400)
    assert difficulty.diversity(text) == pytest.approx(_slow_mtld(text))
    assert difficulty.diversity(text) > difficulty.diversity("of the of the " * 30)
    assert difficulty.diversity("all different words here") == 4.0
    assert difficulty.diversity("") == 0.0


def _slow_mtld(text: str) -> float:
    """Word by word, as McCarthy & Jarvis 2010 describe it."""

    def one_way(tokens: list[str]) -> float:
        factors, at = 0.0, 0
        for end in range(1, len(tokens) + 1):
            part = tokens[at:end]
            if len(set(part)) / len(part) <= 0.72:
                factors, at = factors + 1, end
        rest = tokens[at:]
        if rest:
            factors += (1 - len(set(rest)) / len(rest)) / 0.28
        return len(tokens) / factors

    tokens = text.replace(".", "").split()
    return (one_way(tokens) + one_way(tokens[::-1])) / 2


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_any_text_has_a_difficulty(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    for measure in difficulty.MEASURES.values():
        assert math.isfinite(measure(clean))


def test_documents_pass_unchanged_and_shards_keep_what_was_measured(tmp_path: Path) -> None:
    texts = [prose(seed, 60) for seed in range(40)] + ["word " * 60]
    data = Data.model_validate(
        {
            "corpus": [write_jsonl(tmp_path / "a.jsonl", texts)],
            "validation": [{"kind": "holdout", "share": 0.2}],
            "tokenizer": {"vocab": 300},
        }
    )
    list(corpus.build(data, tmp_path / "c"))
    training = list(storage.documents(tmp_path / "c" / "documents.parquet"))
    list(shards.build(tmp_path / "c", (ExactDedup(), Difficulty()), tmp_path / "s"))
    found = shards.open_shards(tmp_path / "s")
    assert found.difficulty is not None
    expected = [difficulty.compression(document.text) for document in training]
    np.testing.assert_allclose(found.difficulty, expected, rtol=1e-6)
    list(shards.build(tmp_path / "c", (), tmp_path / "plain"))
    plain = shards.open_shards(tmp_path / "plain")
    assert plain.difficulty is None
    np.testing.assert_array_equal(plain.tokens, found.tokens)


def test_a_scorer_never_sees_validation_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setitem(difficulty.MEASURES, "compression", lambda text: float(seen.append(text) or len(seen)))
    texts = [prose(seed, 60) for seed in range(40)]
    data = Data.model_validate(
        {
            "corpus": [write_jsonl(tmp_path / "a.jsonl", texts)],
            "validation": [{"kind": "holdout", "share": 0.3}],
            "tokenizer": {"vocab": 300},
        }
    )
    list(corpus.build(data, tmp_path / "c"))
    list(shards.build(tmp_path / "c", (Difficulty(),), tmp_path / "s"))
    held = {d.text for d in storage.documents(tmp_path / "c" / "validation" / "holdout.parquet")}
    assert held
    assert seen
    assert not held & set(seen)


def test_loss_under_a_model_trained_on_the_same_documents() -> None:
    config = Difficulty.model_validate(
        {"by": "loss", "reference": {"layers": 1, "width": 32, "heads": 2, "vocab": 300, "tokens": 20_000}}
    )
    texts = [prose(seed, 100) for seed in range(60)] + ["%$#@ {}[]<> ~~ ++ " * 10]
    items = list(difficulty.build(config, numbered(texts)))
    again = list(difficulty.build(config, numbered(texts)))
    assert items == again
    found = [item for item in items if isinstance(item, Document)]
    assert [document.text for document in found] == texts
    hard = [document.difficulty or 0.0 for document in found]
    assert min(hard) > 0
    assert hard[-1] > max(hard[:-1]), "unlike the rest"
    assert sum(item.flops for item in items if isinstance(item, Spent)) > 20_000 * 6 * 32 * 300
    other = list(difficulty.build(config.model_copy(update={"seed": 1}), numbered(texts)))
    assert other != items
