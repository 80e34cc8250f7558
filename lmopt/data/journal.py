"""What models made, one line each as it is made: a killed build finds it again, and so does another arm.

<cache>/generated/<generator>.jsonl      {"key": ..., "text": ..., "flops": ..., "seconds": ...}
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmopt.data import cache


@dataclass(frozen=True, slots=True)
class Made:
    """A text that a model made of another one, and what it took."""

    text: str
    flops: float
    seconds: float


def path_of(kind: str, settings: dict[str, Any]) -> Path:
    """The journal of a generator with these settings; other settings write another file."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return cache.folder() / "generated" / f"{re.sub('[^a-z0-9_]', '_', kind)}-{digest}.jsonl"


class Journal:
    """Appends to a file that several processes may share; a line that was cut short is as if never written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        self._found = self._read()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def get(self, key: str) -> Made | None:
        """What was made under a key before this journal was opened, or since; None if nothing was."""
        return self._found.get(key)

    def add(self, made: dict[str, Made]) -> None:
        """Write so many texts to disk.

        Raises:
            OSError: the disk is full or the like; what was whole stays readable.
        """
        rows = ({"key": key, "text": m.text, "flops": m.flops, "seconds": m.seconds} for key, m in made.items())
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            self._file.write(self._line_end() + lines.encode("utf-8", "surrogatepass"))
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._found |= made

    def _line_end(self) -> bytes:
        """A line end where the last writer was killed in the middle of a line."""
        if not self._file.seek(0, os.SEEK_END):
            return b""
        self._file.seek(-1, os.SEEK_END)
        return b"" if self._file.read(1) == b"\n" else b"\n"

    def _read(self) -> dict[str, Made]:
        found: dict[str, Made] = {}
        self._file.seek(0)
        for line in self._file:
            try:
                row = json.loads(line)
                found[row["key"]] = Made(row["text"], row["flops"], row["seconds"])
            except (ValueError, KeyError, TypeError):
                continue  # cut short
        return found
