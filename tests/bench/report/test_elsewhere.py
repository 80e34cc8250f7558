"""What a study of one size says of others: what a ladder carries to it, and that it was hardly trained."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bench.report import terminal
from bench.report.runfolder import RunFolder, load
from bench.report.sections import sizes
from bench.report.tree import Paragraph, Table
from tests.bench.report.study_folder import write

PUBLISHED = Path(__file__).parents[3] / "results" / "reference" / "1b"


def study(folder: Path, *, beside: str = "reference", params: float = 1e9) -> RunFolder:
    """A copy of the published steps at a billion parameters, with a ladder that is carried to some size."""
    run = folder / "reference" / "1b"
    shutil.copytree(PUBLISHED, run)
    target = {"params": params, "tokens": 2e10, "flops": 1e20, "saving": 0.3, "bounds": [-0.1, 0.6],
              "outcome": "CONSISTENT WITH", "why": "extrapolated"}  # fmt: skip
    arms = {"all": {"slope": 0.1, "slope_bounds": [-0.1, 0.3], "at_targets": [target, {**target, "params": 7e9}]}}
    place = folder / beside / "ladder"
    place.mkdir(parents=True)
    (place / "verdict.json").write_text(json.dumps({"sizes": {"arms": arms}}))
    return load(run)


def test_the_saving_that_smaller_sizes_carry_here_is_shown_with_its_interval(tmp_path: Path) -> None:
    section = sizes.section(study(tmp_path))
    assert section is not None
    table = next(block for block in section.blocks if isinstance(block, Table))
    (row,) = table.rows
    saving = row.cells[3]
    assert (saving.value, saving.low, saving.high) == (pytest.approx(0.3), pytest.approx(-0.1), pytest.approx(0.6))


@pytest.mark.parametrize("other", [{"params": 5e8}, {"beside": "elsewhere"}])
def test_a_ladder_of_another_size_or_none_leaves_it_unmeasured(
    other: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    section = sizes.section(study(tmp_path, **other))
    assert section is not None
    assert not any(isinstance(block, Table) for block in section.blocks)


def test_a_verdict_that_cannot_be_read_leaves_it_unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = study(tmp_path)
    for text in ("{", "[]", '{"sizes": {"arms": {"all": 3}}}', '{"sizes": {"arms": {"all": {"at_targets": [1]}}}}'):
        (tmp_path / "reference" / "ladder" / "verdict.json").write_text(text)
        section = sizes.section(found)
        assert section is not None
        assert not any(isinstance(block, Table) for block in section.blocks)


@pytest.mark.parametrize(("tokens_a_parameter", "is_said"), [(0.01, True), (0.5, False)])
def test_a_model_that_was_hardly_trained_is_said_to_be(
    tokens_a_parameter: float, is_said: bool, tmp_path: Path
) -> None:
    run = write(tmp_path / "run")
    found = load(run)
    params = 4_000_000
    plan = {**found.plan, "arms": {found.design.baseline: {found.design.scales[0]: {"params_active": params}}}}
    records = tuple(
        record.model_copy(update={"detail": {**record.detail, "tokens": tokens_a_parameter * params}})
        for record in found.records
    )
    section = sizes.section(replace(found, records=records, plan=plan))
    assert section is not None
    said = [block.text for block in section.blocks if isinstance(block, Paragraph) and block.kind == "warning"]
    assert bool(said) == is_said
    assert all("0.0100 a parameter" in text for text in said)


def test_a_terminal_shows_what_steps_at_true_size_cost() -> None:
    shown = terminal(PUBLISHED)
    assert "Time a token" in shown
    assert "Memory" in shown
    assert re.search(r"planned 1\d\.\d GiB, [+-]\d+\.\d+%", shown), "not cut"
    assert "Saved at equal loss" not in shown, "nothing was trained"
    assert all(len(line) <= 100 for line in shown.splitlines())
