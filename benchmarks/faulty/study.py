"""A study of a few seconds to do harm to: its text, its processes, its records, and the bits that it must end with."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bench.record import Record, read

SUITE = """
suite: tiny
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms: [{name: moe, timed: false, change: {ffn: {kind: moe, experts: 2, top_k: 1}}}]
over:
  scale: [{name: xs, layers: 1, width: 32, heads: 2, tokens: TOKENS, context: 32}]
  seed: SEEDS
  horizon: [1.0]
"""
PROGRAM = "import sys; from bench.cli import main; sys.exit(main(sys.argv[1:]))"
TIMEOUT_S = 900.0
PATIENCE_S = 180.0
WORDS = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")


def prepare(place: Path, *, tokens: int, seeds: int) -> None:
    """Text and suite of a study with two trainings a seed."""
    place.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(WORDS, k=60)) + "."}) for _ in range(400))
    (place / "text.jsonl").write_text("\n".join(lines))
    (place / "tiny.yaml").write_text(SUITE.replace("TOKENS", str(tokens)).replace("SEEDS", str(list(range(seeds)))))


def start(place: Path, out: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`lmbench run` of the study in a process of its own, saving a checkpoint ten times a second."""
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "run", "tiny.yaml", "--out", str(out)],
        cwd=place, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env=os.environ | {"LMBENCH_CHECKPOINT_EVERY_S": "0.1", "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said, when it has ended by itself."""
    errors = process.communicate(timeout=TIMEOUT_S)[1]
    return process.returncode, errors


def run(place: Path, out: str | Path, **environment: str) -> tuple[int, str]:
    """Start and wait."""
    return ended(start(place, out, **environment))


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Wait until something is so; False where the process ended first or it took too long."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline_s:
            return False
        time.sleep(0.005)
    return True


# --- processes -----------------------------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Processes that a process has started and that still run."""
    found: list[int] = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
        except OSError:  # it ended while we looked
            continue
        if lines.get("PPid") == str(pid) and not lines.get("State", "").startswith("Z"):
            found.append(int(status.parent.name))
    return found


def family(pid: int) -> list[int]:
    """All descendants."""
    own = children(pid)
    return own + [further for child in own for further in family(child)]


def server_of(runner: int) -> int | None:
    """The warm server that forks a runner's cases."""
    return next(iter(children(runner)), None)


def worker_of(runner: int) -> int | None:
    """The process of the case that runs now."""
    server = server_of(runner)
    return None if server is None else next(iter(children(server)), None)


def has_saved(folder: Path, since_s: float) -> bool:
    """Whether a case has saved a checkpoint since then."""
    saved = folder.glob("cases/*/checkpoint/*")
    try:
        return any(path.stat().st_mtime >= since_s for path in saved)
    except OSError:  # replaced while we looked
        return False


def kill(pid: int | None, number: int = signal.SIGKILL) -> bool:
    """Send a signal; False where nobody is there any more."""
    if pid is None:
        return False
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def alive(pids: list[int]) -> list[int]:
    """Those that still run after they had some seconds to go."""
    for _ in range(100):
        left = [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _is_zombie(pid)]
        if not left:
            return []
        time.sleep(0.05)
    return left


def _is_zombie(pid: int) -> bool:
    try:
        return ") Z " in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True


# --- what is left --------------------------------------------------------------------------------


def lines(folder: Path) -> list[str]:
    """Finished lines of the records, as they stand on the disk."""
    path = folder / "records.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def trainings(folder: Path) -> dict[str, Record]:
    """Case id -> record of each finished training."""
    found = read(folder / "records.jsonl")
    return {record.case.id: record for record in found if record.case.kind == "train" and record.status == "ok"}


def result(folder: Path) -> dict[str, Mapping[str, Any]]:
    """What a study ended with, to the last bit: each training's weights, loss, FLOPs, tokens and steps."""
    return {
        case: {
            "weights": hashlib.sha256(
                (folder / "cases" / case / "model" / "model.safetensors").read_bytes()
            ).hexdigest(),
            "loss": record.value("val_loss"),
            "flops": record.value("train_flops"),
            "tokens": record.detail["tokens"],
            "steps": record.detail["steps"],
        }
        for case, record in trainings(folder).items()
    }


def duplicated(folder: Path) -> int:
    """Cases with more than one finished record, read without the reader that refuses them."""
    done = [json.loads(line)["case"]["id"] for line in lines(folder) if json.loads(line)["status"] != "failed"]
    return len(done) - len(set(done))
