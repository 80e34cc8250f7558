"""The whole way on real processes: a suite on its own small text, run, killed at the worst moments, and continued."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.record import Record, read

SUITE = """
suite: tiny
about: A planted text, two arms, one seed.
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms: [{name: moe, change: {ffn: {kind: moe, experts: 2, top_k: 1}}}]
over:
  scale: [{name: xs, layers: 1, width: 32, heads: 2, tokens: TOKENS, context: 32}]
  seed: [0]
  horizon: [1.0]
"""


DEADLINE_S = 900.0
"""A run of seconds may take minutes where other work has the machine; one that hangs is ended and says so."""
_started: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """A test that fails half-way leaves its run behind, which would slow down whatever comes after it."""
    yield
    for process in _started:
        if process.poll() is None:
            process.kill()  # its server ends with it, and the case with the server
            process.communicate()
    _started.clear()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + "."}) for _ in range(400))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    return tmp_path


def start(place: Path, out: str, tokens: int, *, every_s: float = 20.0, suite: str = SUITE) -> subprocess.Popen[str]:
    (place / "tiny.yaml").write_text(suite.replace("TOKENS", str(tokens)))
    program = "import sys; from bench.cli import main\nsys.exit(main(['run', 'tiny.yaml', '--out', sys.argv[1]]))"
    environment = os.environ | {"LMBENCH_CHECKPOINT_EVERY_S": str(every_s), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", program, out], cwd=place, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    _started.append(process)
    return process


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    try:
        out, errors = process.communicate(timeout=DEADLINE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail(f"not finished in {DEADLINE_S:g} s: {process.communicate()[1]}")
    assert process.returncode == code, errors
    return out


def until(condition: Callable[[], object], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()[1]}"
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def trainings(folder: Path) -> dict[str, Record]:
    return {r.case.arm: r for r in read(folder / "records.jsonl") if r.case.kind == "train" and r.status == "ok"}


def test_a_run_leaves_everything_the_architecture_names(place: Path) -> None:
    out = finish(start(place, "run", 3000))
    assert out.strip().splitlines()[-1] == "run"
    folder = place / "run"
    for name in ("suite.yaml", "plan.json", "environment.json", "records.jsonl", "looks.jsonl", "verdict.json",
                 "report.html", "report.md"):  # fmt: skip
        assert (folder / name).exists(), name
    found = trainings(folder)
    assert set(found) == {"dense", "moe"}
    for record in found.values():
        assert record.detail["counts"]["agree"] is True
        assert record.value("val_loss") is not None
        assert record.value("train_flops") == pytest.approx(
            (record.value("train_flops_per_token") or 0) * record.detail["tokens"]
        )
    (timing,) = (r for r in read(folder / "records.jsonl") if r.case.kind == "timing")
    assert len(timing.detail["blocks"]) >= 8
    again = finish(start(place, "run", 3000))
    assert again == out
    assert len((folder / "looks.jsonl").read_text().splitlines()) == 1, "the same records are one look"


def test_a_tuned_run_trains_each_arm_at_the_best_of_its_trials_and_reports_the_grid(place: Path) -> None:
    suite = SUITE.replace("{name: moe,", "{name: moe, timed: false,") + "tune: {lr: [1e-4, 1e-2], share: 0.5}\n"
    out = finish(start(place, "run", 6000, suite=suite))
    assert out.strip().splitlines()[-1] == "run"
    records = read(place / "run" / "records.jsonl")
    trials = {(r.case.arm, r.detail["trial"]["lr"]): r for r in records if r.is_trial}
    assert set(trials) == {(arm, lr) for arm in ("dense", "moe") for lr in (1e-4, 1e-2)}
    for record in records:
        if record.case.kind == "train" and not record.is_trial:
            tuning = record.detail["tuning"]
            losses = {lr: trials[record.case.arm, lr].value("val_loss") or math.inf for lr in (1e-4, 1e-2)}
            best = min(losses, key=lambda lr: losses[lr])
            assert tuning["chosen"] == {"lr": best}
            assert set(tuning["edges"]) == {"lr"}, "of two rates the best is an end"
            job = json.loads((place / "run" / "cases" / record.case.id / "case.json").read_text())
            assert job["case"]["recipe"]["optimizer"]["lr"] == best
    verdict = json.loads((place / "run" / "verdict.json").read_text())
    assert verdict["tuning"]["xs"]["equal"] is True
    page = (place / "run" / "report.md").read_text()
    assert "How hard each arm was tuned" in page
    assert "the grid may be too narrow" in page
    assert not list((place / "run" / "cases" / trials["moe", 1e-4].case.id).glob("model")), "nobody builds on a trial"


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["runner", "worker"])
def test_killed_with_kill_9_a_training_continues_to_the_same_bits(place: Path, killed: str) -> None:
    tokens = 400_000
    finish(start(place, "whole", tokens))
    process = start(place, "broken", tokens, every_s=0.2)
    folder = place / "broken"
    until(lambda: list(folder.glob("cases/*/checkpoint/step-*/checkpoint.json")), process, "a checkpoint")
    time.sleep(0.3)
    if killed == "runner":
        process.kill()
        process.communicate()
        before = len(read(folder / "records.jsonl"))
    else:
        for pid in workers_of(process.pid):
            os.kill(pid, signal.SIGKILL)
        finish(process, code=4)
        before = sum(r.status == "ok" for r in read(folder / "records.jsonl"))
    finish(start(place, "broken", tokens))
    records = read(folder / "records.jsonl")
    assert sum(r.status == "ok" for r in records) >= before
    assert len({r.case.id for r in records if r.status == "ok"}) == sum(r.status == "ok" for r in records)
    whole, broken = trainings(place / "whole"), trainings(folder)
    assert any(record.segments > 1 for record in broken.values()), "nothing was continued"
    for arm in whole:
        assert broken[arm].value("val_loss") == whole[arm].value("val_loss")
        assert broken[arm].detail["tokens"] == whole[arm].detail["tokens"]


def workers_of(runner: int) -> list[int]:
    """Processes of the cases: grandchildren of the runner."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            parents = [int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("PPid:")]
            grand = Path(f"/proc/{parents[0]}/status").read_text()
        except (OSError, IndexError):
            continue
        if f"PPid:\t{runner}\n" in grand:
            found.append(int(status.parent.name))
    return found


@pytest.mark.slow
def test_ctrl_c_saves_the_case_in_flight_and_leaves_with_130(place: Path) -> None:
    process = start(place, "run", 2_000_000)
    folder = place / "run"
    until(lambda: list(folder.glob("cases/*/progress.json")), process, "a case")
    until(lambda: sum('"train"' in p.read_text() for p in folder.glob("cases/*/case.json")), process, "a training")
    until(
        lambda: any('"loss"' in p.read_text() and '"unit": "steps"' in p.read_text()
                    for p in folder.glob("cases/*/progress.json")),
        process, "a training step",
    )  # fmt: skip
    process.send_signal(signal.SIGINT)
    finish(process, code=130)
    assert list(folder.glob("cases/*/checkpoint/step-*/checkpoint.json"))


def test_a_second_run_into_the_same_folder_is_refused_with_5(place: Path) -> None:
    first = start(place, "run", 2_000_000)
    until((place / "run" / "plan.json").exists, first, "the folder")
    second = start(place, "run", 2_000_000)
    _, errors = second.communicate(timeout=DEADLINE_S)
    first.kill()
    first.communicate()
    assert second.returncode == 5
    assert "another run" in errors
    assert "Traceback" not in errors
