"""What the report says of arms side by side."""

from __future__ import annotations

from pathlib import Path

from bench.record import append, read
from bench.report.runfolder import load
from bench.report.sections import arms
from bench.report.tree import Paragraph
from tests.bench.report.study_folder import write


def notes(run: Path) -> list[str]:
    return [block.text for block in arms.section(load(run)).blocks if isinstance(block, Paragraph)]


def with_losses_of(run: Path, arm: str, other: str, *, but_for_seed: int | None = None) -> Path:
    """A study whose `arm` ended as `other` did, wherever both were trained."""
    path = run / "records.jsonl"
    records = read(path)
    trained = [record for record in records if record.case.kind == "train"]
    ends = {
        (record.case.scale, record.case.seed, record.case.horizon): record.metrics["val_loss"]
        for record in trained
        if record.case.arm == other
    }
    path.unlink()
    for record in records:
        end = ends.get((record.case.scale, record.case.seed, record.case.horizon))
        if record.case.kind == "train" and record.case.arm == arm and end and record.case.seed != but_for_seed:
            record = record.model_copy(update={"metrics": {**record.metrics, "val_loss": end}})
        append(path, record)
    return run


def test_arms_that_learned_the_same_are_named(tmp_path: Path) -> None:
    (said,) = notes(with_losses_of(write(tmp_path), "moe", "all"))
    assert said.startswith("\u201cmoe\u201d ended with the losses of \u201call\u201d to the last digit")


def test_one_seed_that_differs_tells_arms_apart(tmp_path: Path) -> None:
    assert notes(with_losses_of(write(tmp_path), "moe", "all", but_for_seed=0)) == []
    assert notes(write(tmp_path / "other")) == []
