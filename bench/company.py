"""Who else was on the machine while a case ran: its load, and other cases of this harness.

Each case holds a lock on a file of its own in a folder of this machine; a lock goes with its process, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

FOLDER = f"lmbench-cases-{os.getuid()}"


class Company:
    """Open while a case runs: `with Company(case_id) as company: ...; company.found()`."""

    def __init__(self, case: str, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir()) / FOLDER
        self._path = self._folder / f"{case}-{os.getpid()}"
        self._file: int | None = None
        self._load_before: float | None = None
        self._others = 0

    def __enter__(self) -> Self:
        with contextlib.suppress(OSError):  # a folder that cannot be written: `found` says so
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._load_before = _load()
        self._others = self._count_others()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None

    def found(self) -> dict[str, Any]:
        """For a record's detail: host, load averages at both ends, and the most other cases seen at either end."""
        self._others = max(self._others, self._count_others())
        seen = self._file is not None
        return {
            "host": socket.gethostname(),
            "cpus": os.cpu_count(),
            "load_1min_before": self._load_before,
            "load_1min_after": _load(),
            "other_cases": self._others if seen else None,
            "other_cases_reason": None if seen else f"{self._folder} cannot be written",
        }

    def _count_others(self) -> int:
        """Files of living cases; those of dead ones are cleared away."""
        living = 0
        with contextlib.suppress(OSError):
            for path in self._folder.iterdir():
                living += path != self._path and _is_locked(path)
        return living


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None
