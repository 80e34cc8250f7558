"""The process of a case: what its outcome says of an error, and what it tells the training of its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import worker
from bench.case import Case
from bench.casefolder import Job, Outcome
from lmopt.compute import memory

ALLOCATION = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"
)
HINT = "; hint: lower batching.micro_sequences, or a smaller model"


@pytest.fixture(autouse=True)
def _signals_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.signal, "signal", lambda *_: None)


def job(limit_bytes: int | None = None) -> Job:
    case = Case(id="0" * 16, kind="train", arm="dense", purpose="variant")
    return Job(case=case, parents={}, memory_limit_bytes=limit_bytes, env="here")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError("no"), f"out of memory: no{HINT}"),
        (RuntimeError(ALLOCATION), f"out of memory: {ALLOCATION}{HINT}"),
        (MemoryError("one sequence\nhint: shorter"), "out of memory: one sequence\nhint: shorter"),
        (
            RuntimeError("could not create a primitive"),
            f"RuntimeError: could not create a primitive (out of memory, perhaps){HINT}",
        ),
        (RuntimeError("shapes do not match"), "RuntimeError: shapes do not match"),
    ],
)
def test_want_of_memory_is_said_with_a_hint(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_job: Job, _folder: Path) -> Outcome:
        raise error

    monkeypatch.setitem(worker.CASES, "train", fail)
    (tmp_path / "case.json").write_text(job().model_dump_json())
    assert worker.work(tmp_path) == 0
    found = Outcome.model_validate_json((tmp_path / "outcome.json").read_text())
    assert (found.status, found.reason) == ("failed", reason)


def test_a_case_counts_as_free_what_its_limit_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    seen: list[int | None] = []

    def look(_job: Job, _folder: Path) -> Outcome:
        seen.append(memory.available_bytes())
        return Outcome(status="ok")

    monkeypatch.setitem(worker.CASES, "train", look)
    try:
        for limit in (2**20, None):
            (tmp_path / "case.json").write_text(job(limit).model_dump_json())
            worker.work(tmp_path)
    finally:
        memory.limit_process(None)
    assert seen[0] == 0, "this process holds more than that already"
    assert seen[1]
