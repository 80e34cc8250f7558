"""A few of the changed suites and records of `benchmarks/faults.py`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.suite import check
from benchmarks.faulty import fuzz

SEEDS = (1, 2)


@pytest.mark.parametrize("seed", SEEDS)
def test_no_changed_suite_ends_in_a_traceback_or_writes_elsewhere(seed: int, tmp_path: Path) -> None:
    tally = fuzz.suites(tmp_path / "fuzz", 40, random.Random(seed))
    assert tally.tracebacks == []
    assert tally.elsewhere == []
    assert tally.codes["check 2"] > 20, "changes hardly ever leave a suite valid"


@pytest.mark.parametrize("seed", SEEDS)
def test_no_changed_record_is_taken_for_a_whole_one_unless_it_was_hashed_anew(seed: int, tmp_path: Path) -> None:
    tally = fuzz.records(tmp_path / "fuzz", 30, random.Random(seed), judged=0)
    assert tally.tracebacks == []
    assert tally.elsewhere == []
    assert tally.codes["read refused"] >= 25


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("seed: [0, 1, 2]", "seed: [{}, 1]"),
        ("      ffn: {kind: moe, experts: 8, top_k: 2}\n", "      optimizer: 5\n"),
        ("tokens: 251k", "tokens: 1e999"),
    ],
)
def test_what_once_ended_in_a_traceback_is_said(before: str, after: str, tmp_path: Path) -> None:
    text = (fuzz.ROOT / "suites" / "ladder.yaml").read_text()
    assert before in text
    (tmp_path / "suite.yaml").write_text(text.replace(before, after))
    assert check(tmp_path / "suite.yaml")


def test_a_traceback_would_be_noticed(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    tally = fuzz.Tally(tmp_path / "place")

    def fail() -> None:
        (tmp_path / "elsewhere").write_text("x")
        raise ZeroDivisionError("a fault of ours")

    tally.look("fail", fail)
    assert tally.tracebacks == ["fail: ZeroDivisionError: a fault of ours"]
    assert tally.elsewhere == [str(tmp_path / "elsewhere")]
