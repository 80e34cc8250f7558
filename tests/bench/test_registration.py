"""A confirming study is fixed before its first run and held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.plan import Plan
from bench.registration import NAME
from bench.runner import OtherRun, adopt
from tests.bench.fakes import plan


def confirming(run: str = "aaaaaaaaaa", **design: Any) -> Plan:
    planned = plan(run=run)
    fixed = planned.design.model_copy(update={"purpose": "confirm", "seeds": (0, 1), **design})
    return planned.model_copy(update={"design": fixed})


def start(folder: Path, planned: Plan) -> None:
    adopt(folder, planned, "suite: fake\n", {})


def test_what_is_fixed_is_written_once_before_anything_else(tmp_path: Path) -> None:
    start(tmp_path, confirming())
    first = (tmp_path / NAME).read_text()
    held = json.loads(first)
    assert (held["run"], held["arms"], held["seeds"], held["horizons"]) == ("aaaaaaaaaa", ["moe"], [0, 1], [1.0])
    start(tmp_path, confirming(seeds=(0, 1, 2)))
    assert (tmp_path / NAME).read_text() == first, "an added seed was not registered"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (confirming(run="bbbbbbbbbb"), "the suite changed since"),
        (confirming(horizons=(0.5, 1.0)), "its horizons changed since"),
        (confirming(arms=()), "its arms changed since"),
        (confirming(seeds=(0, 2)), "seed 1 was registered and is gone"),
    ],
)
def test_a_changed_study_is_refused_in_its_folder_and_leaves_it_alone(
    tmp_path: Path, changed: Plan, words: str
) -> None:
    start(tmp_path, confirming())
    before = (tmp_path / "plan.json").read_text()
    with pytest.raises(OtherRun, match=f"(?s){words}.*hint:"):
        start(tmp_path, changed)
    assert (tmp_path / "plan.json").read_text() == before


def test_records_from_before_a_registration_are_not_confirmed(tmp_path: Path) -> None:
    start(tmp_path, confirming())
    (tmp_path / "records.jsonl").write_text("")
    (tmp_path / NAME).unlink()
    with pytest.raises(OtherRun, match="never registered"):
        start(tmp_path, confirming())


def test_a_broken_registration_is_no_licence(tmp_path: Path) -> None:
    start(tmp_path, confirming())
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(OtherRun, match="not a registration"):
        start(tmp_path, confirming())


def test_exploring_registers_nothing(tmp_path: Path) -> None:
    start(tmp_path, plan())
    assert not (tmp_path / NAME).exists()
