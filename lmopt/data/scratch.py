"""Room to work in: how much memory a data step may keep, and where the rest goes."""

from __future__ import annotations

import errno
import mmap
import os
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from lmopt.data.storage import DataError

DEFAULT_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Scratch:
    """What the tables of one data step may use."""

    memory_bytes: int = DEFAULT_MEMORY_BYTES
    """Tables larger than this are kept in sorted runs on disk. Texts in flight come on top: a few batches."""
    folder: Path | None = None
    """Where temporary files lie; default: the system's folder for them (TMPDIR). They vanish with the process."""

    def open(self) -> IO[bytes]:
        """A temporary file without a name."""
        return tempfile.TemporaryFile(dir=self.folder)


class Column:
    """An array on disk that grows at its end; rows are fetched by number."""

    def __init__(self, scratch: Scratch, kind: np.typing.DTypeLike) -> None:
        self.kind = np.dtype(kind)
        self._file = scratch.open()
        weakref.finalize(self, self._file.close)
        self._rows = 0

    def __len__(self) -> int:
        return self._rows

    def append(self, rows: NDArray[np.generic]) -> None:
        """Rows at the end."""
        self._file.write(np.ascontiguousarray(rows, self.kind).tobytes())
        self._file.flush()
        self._rows += len(rows)

    def fetch(self, first: int, count: int = 1) -> NDArray[np.generic]:
        """So many rows from `first` on."""
        size = self.kind.itemsize
        return np.frombuffer(os.pread(self._file.fileno(), size * count, size * first), self.kind)

    def map(self) -> Mapped:
        """All rows as one array, mapped into memory. Nothing may be appended afterwards."""
        return Mapped(self._file.fileno(), self.kind, self._rows)


class Mapped:
    """An array in a file; `release` gives the pages that were read back to the system."""

    def __init__(self, descriptor: int, kind: np.dtype[np.generic], rows: int) -> None:
        self._map = mmap.mmap(descriptor, rows * kind.itemsize, access=mmap.ACCESS_READ)
        self.array = np.frombuffer(self._map, kind, rows)

    def release(self) -> None:
        """Forget what was read; it is read again when it is looked at."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)


@contextmanager
def full_disk_said(where: Path) -> Iterator[None]:
    """Turns the system's "no space left" into an error that says where, and what would help.

    Raises:
        DataError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DataError(
            f"{where}: no space left on the disk ({error.filename or 'or that of temporary files'})\n"
            "hint: free some, or choose other folders with --out and TMPDIR; nothing half-written was left"
        ) from error
