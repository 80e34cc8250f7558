"""What the report says of routers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.record import append, read
from bench.report.page import compose
from bench.report.runfolder import load
from bench.report.sections import experts
from tests.bench.report.study_folder import write

ROUTER = {
    "layer0/router_entropy": 1.2, "layer0/drop_rate": 0.1, "layer0/load/0": 0.7, "layer0/load/1": 0.3,
    "layer1/router_entropy": 1.0, "layer1/drop_rate": 0.0, "layer1/load/0": 0.5, "layer1/load/1": 0.5,
}  # fmt: skip


def with_routers(folder: Path, router: dict[str, float]) -> Path:
    """A study folder whose `moe` trainings hold what their routers did."""
    return with_detail(folder, {"router": router})


def with_detail(folder: Path, detail: dict[str, object]) -> Path:
    """A study folder whose `moe` trainings hold more detail."""
    run = write(folder)
    path = run / "records.jsonl"
    records = read(path)
    path.unlink()
    for record in records:
        if record.case.kind == "train" and record.case.arm == "moe":
            record = record.model_copy(update={"detail": {**record.detail, **detail}})
        append(path, record)
    return run


def test_a_row_a_sparse_arm(tmp_path: Path) -> None:
    study = load(with_routers(tmp_path, ROUTER))
    section = experts.section(study)
    assert section is not None
    (row,) = section.blocks[1].rows
    name, *numbers = [cell.value for cell in row.cells]
    assert name == "moe"
    assert numbers == pytest.approx([3_600_000, 1_200_000, 1.4, 0.6, 0.05, 1.1])
    assert len(row.cells[-1].sources) == 3
    assert "experts" in [one.id for one in compose(study).sections]


def test_what_older_records_do_not_hold_is_said(tmp_path: Path) -> None:
    older = {name: value for name, value in ROUTER.items() if not name.endswith("drop_rate")}
    (row,) = experts.section(load(with_routers(tmp_path, older))).blocks[1].rows
    assert row.cells[-2].value is None
    assert row.cells[-2].reason


def test_no_section_without_routers(tmp_path: Path) -> None:
    assert experts.section(load(write(tmp_path))) is None
    assert "experts" not in json.dumps([one.id for one in compose(load(write(tmp_path / "again"))).sections])
