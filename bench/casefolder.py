"""The files through which a runner and the process of a case talk.

`case.json` (what to do), `machine.json` (where it ran, if not here), `progress.json` (how far it is, overwritten twice
a second), `outcome.json` (the result, written once), `log.txt`. Files, not pipes: a case on another machine looks
the same.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from bench.case import Case
from bench.design import Frozen
from bench.record import Reading

PROGRESS_EVERY_S = 0.5
"""Shortest time between two notes of progress: a display needs no more."""
PROGRESS_BYTES = 512
"""Length of a note, so that a shorter one covers a longer one before it."""


class Job(Frozen):
    """case.json: the case, and where its parents' results lie."""

    case: Case
    parents: dict[str, str]
    """Case id -> folder."""
    commit: str | None = None
    env: str | None = None
    flops_per_s_peak: float | None = None
    """Measured matrix-product peak of this machine at the case's precision, for MFU."""
    idle_power_w: float | None = None
    memory_limit_bytes: int | None = None
    """What its process may hold resident: above that it is ended."""


class Outcome(Frozen):
    """outcome.json: what a case found."""

    status: Literal["ok", "diverged", "failed", "not_applicable"]
    reason: str | None = None
    segments: int = 1
    env: str | None = None
    """Fingerprint of the machine that ran it, where the runner could not know it before."""
    metrics: dict[str, Reading] = Field(default_factory=dict[str, Reading])
    detail: dict[str, Any] = Field(default_factory=dict[str, Any])


def write_atomically(path: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old text or the new, never half.

    Raises:
        OSError: it cannot be written, as on a full disk; names the file, and leaves no scratch beside it.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def forget_scratch(path: Path) -> None:
    """Remove what writers of a file that were killed left beside it; for who alone writes that file."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.[0-9]*"):
        stale.unlink(missing_ok=True)


class Progress:
    """Tells whoever watches how far a case is, at most every `PROGRESS_EVERY_S`.

    The file is overwritten in place: a rename over an existing file can wait for the disk for milliseconds, in the
    middle of what is being timed. A reader that meets a half-written one waits for the next.
    """

    def __init__(self, folder: Path, total: int | None = None, unit: str = "steps") -> None:
        self._file = os.open(folder / "progress.json", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._total = total
        self._unit = unit
        self._next_s = 0.0

    def __del__(self) -> None:
        os.close(self._file)

    def show(self, done: int, **values: float | str | None) -> None:
        """Note `done` units and any values worth showing (`loss`, `tokens_per_s`)."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + PROGRESS_EVERY_S
        text = json.dumps({"done": done, "total": self._total, "unit": self._unit, **values})
        os.pwrite(self._file, text.encode().ljust(PROGRESS_BYTES), 0)


def read_progress(folder: Path) -> Mapping[str, Any] | None:
    """The latest progress of a case, or None before the first."""
    try:
        return json.loads((folder / "progress.json").read_text())
    except (OSError, ValueError):
        return None
