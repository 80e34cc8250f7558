"""A confirming study is fixed before its first run and held to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.plan import Plan
from bench.registered import NAME
from bench.runner import OtherRun, adopt
from bench.study import StudyError
from bench.verdict import judge
from tests.bench.fakes import plan
from tests.bench.synthetic import make_run


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


# --- judging -------------------------------------------------------------------------------------


def refuted(folder: Path, **more: Any) -> Path:
    """A confirming study whose claim saves too little."""
    return make_run(folder, saving=0.02, seeds=5, items=0, purpose="confirm", tuned=True, **more)


def edit(path: Path, *where: str, to: Any) -> None:
    whole = json.loads(path.read_text())
    inner = whole
    for key in where[:-1]:
        inner = inner[int(key) if isinstance(inner, list) else key]
    inner[where[-1]] = to
    path.write_text(json.dumps(whole))


def why(run: Path) -> str:
    arm = judge(run)["arms"]["all"]
    assert arm["outcome"] == "INCONCLUSIVE"
    assert arm["why"].startswith("would be REFUTED if ")
    return arm["why"].partition("; ")[0]


@pytest.mark.parametrize(
    ("where", "to", "words"),
    [
        (("hypothesis", "saving", "at_least"), 0.1, "its hypothesis were as registered (saving.at_least 0.1, now 0.2)"),
        (("hypothesis", "alpha"), 0.01, "its hypothesis were as registered (alpha 0.01, now 0.025)"),
        (("layout",), "economical", "its layout were as registered (economical, now full)"),
        (("arms",), ["all"], "its arms were those registered (all, now fp32, clean, moe, all)"),
        (("declared", "3", "primary"), "time", "the primary of all were as registered (time, now flops)"),
        (("declared", "3", "role"), "component", "the role of all were as registered (component, now claim)"),
        (("seeds",), [0, 1, 2, 3, 4, 9], "no registered seed had been dropped (9)"),
        (("purpose",), "confirm", "the smaller control had been run"),
    ],
)
def test_what_differs_from_the_registration_decides_nothing(
    tmp_path: Path, where: tuple[str, ...], to: Any, words: str
) -> None:
    run = refuted(tmp_path)
    edit(run / NAME, *where, to=to)
    assert words in why(run)


def test_an_unregistered_confirming_study_decides_nothing(tmp_path: Path) -> None:
    run = refuted(tmp_path)
    (run / NAME).unlink()
    assert "the study had been registered before its first run" in why(run)


def test_calling_a_registered_study_exploring_changes_nothing(tmp_path: Path) -> None:
    run = refuted(tmp_path)
    edit(run / "plan.json", "design", "purpose", to="explore")
    assert "it had stayed the confirming study that was registered" in why(run)
    (run / "looks.jsonl").write_text(json.dumps({"time": "2026-01-02T00:00:00Z", "records": ["0"]}) + "\n")
    assert judge(run)["look"] == {"number": 2, "alpha": 0.0125}, "and its looks are paid for"


def test_a_registration_after_the_first_look_is_none(tmp_path: Path) -> None:
    run = refuted(tmp_path)
    (run / "looks.jsonl").write_text(json.dumps({"time": "2025-12-31T00:00:00Z", "records": ["0"]}) + "\n")
    assert "(on 2026-01-01T00:00:00Z) before its first look (on 2025-12-31T00:00:00Z)" in why(run)


def test_an_older_registration_is_compared_as_far_as_it_goes(tmp_path: Path) -> None:
    run = refuted(tmp_path)
    held = json.loads((run / NAME).read_text())
    kept = {name: held[name] for name in ("time", "run", "suite", "arms", "horizons", "seeds")}
    (run / NAME).write_text(json.dumps(kept))
    assert "registered" not in why(run)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"seeds": 3}', '{"seeds": ["x"]}'])
def test_a_registration_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    run = refuted(tmp_path)
    (run / NAME).write_text(text)
    with pytest.raises(StudyError, match="not a registration"):
        judge(run)
