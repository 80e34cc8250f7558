"""Runs side by side: like with like, over the seeds that they share, and said where they hardly compare."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest

from bench import api
from bench.comparison import TooFewRuns, render
from bench.record import RecordError, append, read
from tests.bench.synthetic import Planted, make_run

ARMS = (Planted("moe", saving=0.1),)


def run(folder: Path, **planted: Any) -> Path:
    return make_run(folder, arms=ARMS, items=0, **planted)


def row(found: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (one,) = [row for row in found if all(row[key] == value for key, value in wanted.items())]
    return one


def test_means_are_over_the_seeds_that_runs_share(tmp_path: Path) -> None:
    one, two = run(tmp_path / "one", seeds=(0, 1, 2)), run(tmp_path / "two", seeds=(1, 2, 3), draw=1)
    found = row(api.compare(one, two), kind="train", arm="moe", horizon=1.0, metric="val_loss")
    losses = {
        record.case.seed: record.value("val_loss")
        for record in read(one / "records.jsonl")
        if (record.case.kind, record.case.arm, record.case.horizon) == ("train", "moe", 1.0)
    }
    assert (found["seeds"], found["paired"]) == ([1, 2], True)
    assert found["values"][0] == pytest.approx(statistics.fmean([losses[1], losses[2]]))


def test_runs_of_other_seeds_have_means_and_no_change(tmp_path: Path) -> None:
    runs = [run(tmp_path / "one", seeds=(0, 1)), run(tmp_path / "two", seeds=(2, 3))]
    found = api.compare(*runs)
    assert not row(found, kind="train", arm="moe", horizon=1.0, metric="val_loss")["paired"]
    assert "other seeds" in render(found, runs)


def test_kinds_are_not_mixed_and_preparation_is_no_metric_of_an_arm(tmp_path: Path) -> None:
    found = api.compare(run(tmp_path / "one"), run(tmp_path / "two"))
    joules = [(each["kind"], each["arm"]) for each in found if each["metric"] == "energy_j" and each["arm"] == "moe"]
    assert sorted(set(joules)) == [("timing", "moe"), ("train", "moe")]


def test_estimates_failures_suites_and_machines_are_said(tmp_path: Path) -> None:
    one, two = run(tmp_path / "a" / "run", energy="modelled"), run(tmp_path / "b" / "run", seeds=(0, 1, 2))
    plan = (
        (two / "plan.json")
        .read_text()
        .replace("synthetic-8core", "other")
        .replace('"suite": "synthetic"', '"suite": "x"')
    )
    (two / "plan.json").write_text(plan)
    (last,) = [
        record for record in read(two / "records.jsonl")
        if (record.case.kind, record.case.arm, record.case.horizon, record.case.seed) == ("train", "moe", 1.0, 2)
    ]  # fmt: skip
    append(
        two / "records.jsonl", last.model_copy(update={"status": "failed", "attempt": 2, "reason": "no", "metrics": {}})
    )
    text = render(api.compare(one, two), [one, two])
    assert "energy_j [J, modelled]" in text
    assert "params_total " in text
    assert "[1]" not in text  # a number without a unit, not a footnote
    assert text.splitlines()[0].split()[-5:] == ["a/run", "b/run", "b/run", "vs", "1st"]  # both are called run
    assert "warning: different suites (synthetic, x)" in text
    assert "1 case failed or diverged (train moe seed 2)" in text


def test_what_is_no_run_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"holds no records\.jsonl; hint: give the run folders"):
        api.compare(run(tmp_path / "one"), tmp_path)
    with pytest.raises(RecordError, match=r"nowhere: no such run folder; hint: give the run folders"):
        api.compare(tmp_path / "one", tmp_path / "nowhere")
    with pytest.raises(TooFewRuns, match="at least two"):
        api.compare(tmp_path / "one")
