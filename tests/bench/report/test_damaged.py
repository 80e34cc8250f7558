"""Files of a run folder that hold what no run wrote: said in a sentence, never a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.cli import main
from bench.mistakes import INVALID, NOTHING, OK
from tests.bench.report.study_folder import write

NESTED = b"[" * 100_000 + b"]" * 100_000
LOOK = json.dumps({"time": "2026-01-01T00:00:00Z", "records": [{"a": 1}], "outcomes": {}}).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("suite.yaml", b"suite: \xff", "suite.yaml: not UTF-8 at byte 7"),
        ("verdict.json", b"\xff", "verdict.json: not UTF-8 at byte 0"),
        ("verdict.json", NESTED, "verdict.json: not JSON (nested too deeply)"),
        ("environment.json", NESTED, "environment.json: not JSON (nested too deeply)"),
        ("plan.json", NESTED, "plan.json: not JSON (nested too deeply)"),
    ],
)
def test_a_report_says_what_cannot_be_read(
    name: str, content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert main(["export", str(folder), "--to", "tensorboard"]) == NOTHING
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan.json", "looks.jsonl", "registered.json"])
def test_a_judge_does_so_too(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run")
    (folder / name).write_bytes(NESTED + b"\n")
    assert main(["judge", str(folder)]) == NOTHING
    assert "nested too deeply" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "content"), [("suite.yaml", b"9" * 5000), ("suite.yaml", NESTED), ("looks.jsonl", LOOK)]
)
def test_what_a_report_can_do_without_stops_none(name: str, content: bytes, tmp_path: Path) -> None:
    folder = write(tmp_path / "run")
    (folder / name).write_bytes(content)
    assert main(["report", str(folder)]) == OK


@pytest.mark.parametrize("declared", [None, "all", ["all"]])
def test_a_registration_of_no_arms(declared: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run")
    (folder / "registered.json").write_text(json.dumps({"seeds": [0], "declared": declared}))
    assert main(["judge", str(folder)]) == NOTHING
    assert "not a registration (no list of arms)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("entry", "value", "words"),
    [
        ("arms", {"moe": {"s": {"infer_flops_per_token": "1e6 or so"}}}, "plan.json: arms.moe.s.infer_flops_per_token"),
        ("arms", {"moe": [1]}, "plan.json: arms.moe: Input should be a valid dictionary"),
        ("arms", [1], "plan.json: arms: Input should be a valid dictionary"),
        ("cases", 3, "plan.json: cases: Input should be a valid tuple"),
        ("cases", [None], "plan.json: cases.0: Input should be a valid dictionary"),
        ("run", "x' OR 1", "plan.json: run: String should match pattern"),
    ],
)
def test_a_plan_that_says_something_else(
    entry: str, value: object, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run")
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(plan | {entry: value}))
    for command in ("judge", "report"):
        assert main([command, str(folder)]) == NOTHING
        assert words in capsys.readouterr().err


def test_a_comparison_needs_no_plan(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two")
    (one / "plan.json").write_bytes(NESTED)
    (two / "plan.json").write_text(json.dumps({"design": [1]}))
    assert main(["compare", str(one), str(two)]) == OK


def test_a_suite_in_another_encoding_is_no_suite(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_bytes(b"suite: \xff")
    assert main(["check", str(tmp_path / "suite.yaml")]) == INVALID
