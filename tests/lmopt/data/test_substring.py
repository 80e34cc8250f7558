"""Repeated spans: against comparing every window with every other, and against a suffix array where one is there."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import stage
from lmopt.data.documents import Document, Dropped
from lmopt.data.scratch import Scratch
from lmopt.data.substring import substring
from lmopt.recipe import SubstringDedup, builder

from .texts import numbered, prose

SMALL = Scratch(memory_bytes=1 << 12)
"""So small that the windows of any test lie in many runs on disk."""


def _run(config: SubstringDedup, texts: list[str], scratch: Scratch | None = None) -> list[Document | Dropped]:
    return list(substring(config, numbered(texts), None, scratch))


def _words(items: list[Document | Dropped]) -> list[list[str]]:
    return [[] if isinstance(item, Dropped) else item.text.split() for item in items]


def _slow(n: int, texts: list[str]) -> list[list[str]]:
    """The words that no earlier window of n words covers, every window compared with all before it."""
    seen: set[tuple[str, ...]] = set()
    left = []
    for text in texts:
        words = text.split()
        cut = [False] * len(words)
        for i in range(len(words) - n + 1):
            window = tuple(words[i : i + n])
            if window in seen:
                cut[i : i + n] = [True] * n
            seen.add(window)
        left.append([word for word, gone in zip(words, cut, strict=True) if not gone])
    return left


few = st.lists(st.sampled_from(["a", "b", "c", "dd", "é"]), max_size=25).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(few, max_size=8), st.integers(1, 5))
def test_it_equals_comparing_all_windows(texts: list[str], n: int) -> None:
    assert _words(_run(SubstringDedup(words=n), texts)) == _slow(n, texts)


def test_the_first_occurrence_stays_and_the_text_around() -> None:
    span = prose(0, 60)
    first, second = f"Before.\n{span}\n\nAfter.", f"  One  more:\n\t{span}\n\n The end. "
    kept, other = _run(SubstringDedup(), [first, second])
    assert isinstance(kept, Document)
    assert isinstance(other, Document)
    assert kept.text == first
    assert other.text == "One  more:\n\tThe end."


def test_a_document_of_nothing_else_is_dropped() -> None:
    span = prose(0, 60)
    items = _run(SubstringDedup(min_words=3), [span, span, span + " and more", f"{span} but then more"])
    assert [item.reason if isinstance(item, Dropped) else item.text for item in items] == [
        span, "repeated_span", "repeated_span", "but then more",
    ]  # fmt: skip
    assert "60 of 60 words" in items[1].detail  # type: ignore[union-attr]


def test_shorter_repeats_and_repeats_within_a_document() -> None:
    span = prose(0, 49)
    assert _words(_run(SubstringDedup(), [span, span])) == [span.split()] * 2
    once = prose(0, 50)
    assert _words(_run(SubstringDedup(), [f"{once} x {once} y"])) == [[*once.split(), "x", "y"]]


@pytest.mark.parametrize("scratch", [Scratch(), SMALL], ids=["memory", "disk"])
def test_runs_on_disk_and_batches_change_nothing(scratch: Scratch, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [" ".join(prose(seed % 5, 30 + seed).split()[seed % 3 :]) for seed in range(40)]
    expected = _slow(12, texts)
    assert any(len(left) < len(text.split()) for left, text in zip(expected, texts, strict=True))
    monkeypatch.setattr(stage, "BATCH_DOCUMENTS", 3)
    assert _words(_run(SubstringDedup(words=12), texts, scratch)) == expected


def test_the_suite_word_finds_it() -> None:
    assert builder(SubstringDedup()) is substring


@pytest.mark.slow
def test_a_suffix_array_finds_the_same_spans() -> None:
    """Groups of equal windows, from a suffix array over word numbers, are the groups of windows hashed alike."""
    library = pytest.importorskip("pydivsufsort")
    import numpy as np

    texts = [" ".join(prose(seed % 9, 200).split()[seed % 13 :]) for seed in range(60)]
    vocabulary: dict[str, int] = {}
    ends: list[int] = []
    numbers: list[int] = []
    for place, text in enumerate(texts):
        numbers += [vocabulary.setdefault(word, len(vocabulary)) + len(texts) for word in text.split()] + [place]
        ends.append(len(numbers))
    words = np.array(numbers, np.uint32)
    array = library.divsufsort(words)
    common = library.kasai(words, array)
    cut = np.zeros(len(words), bool)
    group: list[int] = []
    for rank, start in enumerate(array):
        group.append(int(start))
        if rank + 1 == len(array) or common[rank] < 50:
            for later in sorted(group)[1:]:
                cut[later : later + 50] = True
            group = []
    left = [
        [word for word, gone in zip(text.split(), cut[end - 1 - len(text.split()) : end - 1], strict=True) if not gone]
        for text, end in zip(texts, ends, strict=True)
    ]
    assert _words(_run(SubstringDedup(), texts)) == left
