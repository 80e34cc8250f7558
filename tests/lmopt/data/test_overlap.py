"""N-gram overlap and its Bloom filter, against sets of n-grams."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import stage
from lmopt.data.documents import Dropped
from lmopt.data.overlap import BloomFilter, overlap
from lmopt.data.shingles import words
from lmopt.data.storage import DataError
from lmopt.recipe import NgramOverlap

from .texts import edited, numbered, prose


def _reasons(config: NgramOverlap, texts: list[str]) -> list[str | None]:
    return [i.reason if isinstance(i, Dropped) else None for i in overlap(config, numbered(texts))]


def _slow(config: NgramOverlap, texts: list[str]) -> list[str | None]:
    kept: set[tuple[bytes, ...]] = set()
    reasons: list[str | None] = []
    for text in texts:
        found = words(text)
        grams = (
            [tuple(found[i : i + config.ngram]) for i in range(max(len(found) - config.ngram + 1, 1))] if found else []
        )
        distinct = set(grams)
        reason = None
        if grams and config.max_repeated is not None and 1 - len(distinct) / len(grams) > config.max_repeated:
            reason = "repeats_itself"
        elif grams and config.max_seen is not None and len(distinct & kept) / len(distinct) > config.max_seen:
            reason = "overlaps_earlier"
        else:
            kept |= distinct
        reasons.append(reason)
    return reasons


texts_of_few_words = st.lists(st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=12).map(" ".join), max_size=10)


@settings(max_examples=150, deadline=None)
@given(texts_of_few_words, st.integers(1, 4), st.sampled_from([None, 0.0, 0.3, 0.8]), st.sampled_from([None, 0.0, 0.4]))
def test_it_equals_sets_of_ngrams(texts: list[str], n: int, seen: float | None, repeated: float | None) -> None:
    config = NgramOverlap(ngram=n, max_seen=seen, max_repeated=repeated)
    assert _reasons(config, texts) == _slow(config, texts)


def test_limits() -> None:
    texts = [prose(0, 80), prose(0, 80), edited(prose(0, 80), 0.01), prose(1, 80), "a b c " * 30, "..."]
    assert _reasons(NgramOverlap(max_seen=None, max_repeated=None), texts) == [None] * 6
    assert _reasons(NgramOverlap(), texts) == [
        None,
        "overlaps_earlier",
        "overlaps_earlier",
        None,
        "repeats_itself",
        None,
    ]
    assert _reasons(NgramOverlap(max_seen=1.0), texts)[1] is None, "not more than all of them"


def test_batches_do_not_change_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [edited(prose(seed % 7, 60), 0.01 * (seed % 3), seed) for seed in range(40)]
    whole = list(overlap(NgramOverlap(), numbered(texts)))
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 3)
    assert list(overlap(NgramOverlap(), numbered(texts))) == whole
    assert any(isinstance(item, Dropped) for item in whole)


def test_the_filter_forgets_nothing_and_errs_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    known, other = rng.integers(0, 2**63, (2, 20_000), dtype=np.uint64)
    kept = BloomFilter(1 << 14)
    for part in np.split(known, 40):
        kept.add(part)
    assert kept.has(known).all()
    rate = kept.false_positive_rate()
    assert 0.02 < rate < 0.2
    assert abs(kept.has(other).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / len(other))


def test_a_full_table_is_said() -> None:
    with pytest.raises(DataError, match=r"table of 1024 bytes is full(.|\n)*hint: a larger `table`"):
        list(overlap(NgramOverlap(table=1024), numbered([prose(seed, 200) for seed in range(20)])))
