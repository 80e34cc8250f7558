"""A study that only measured steps says what a ladder of smaller sizes carries to its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bench.report.runfolder import RunFolder, load
from bench.report.sections import sizes
from bench.report.tree import Table

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
