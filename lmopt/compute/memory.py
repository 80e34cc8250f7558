"""How the C library hands out memory for large tensors on the CPU.

glibc serves every large request with a fresh `mmap` and gives it back on free, so each training step has its
activations zeroed by the kernel page by page again. Raising two thresholds keeps them in the process's heap, where
the next step finds the same pages. It changes where tensors lie, never what is in them, and applies to the whole
process: every arm of a comparison gets it, or none.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from lmopt.compute import controlgroup

# mallopt(3): parameter numbers from glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3

MMAP_THRESHOLD_BYTES = 1 << 30
"""Requests below this stay in the heap (mallopt takes a C int: 2 GiB - 1 is the most that can be asked for)."""
NEVER_TRIM = -1
"""Free heap is never given back to the kernel while the process lives."""
TOP_PAD_BYTES = 64 << 20
"""The heap grows by at least this much at a time, so that growing it is rare."""
SPARING_BYTES = 1 << 20
"""The threshold of mappings once memory ran out: tensors give back even their addresses, which code needs too."""


@dataclass(frozen=True, slots=True)
class Allocator:
    """What the C library's allocator was told in this process."""

    applied: bool
    """Whether large tensors now reuse heap pages."""
    reason: str | None
    """Why not, where `applied` is false."""
    mmap_threshold_bytes: int | None
    """Requests from this size on still get a mapping of their own; None where the allocator was left alone."""


@functools.cache
def tune_allocator() -> Allocator:
    """Tell glibc to keep large freed blocks. Done once a process; later calls return what the first one found."""
    if not sys.platform.startswith("linux"):
        return _untouched(f"no mallopt on {sys.platform}")
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version.restype = ctypes.c_char_p
        libc.gnu_get_libc_version()
        mallopt = libc.mallopt
    except (OSError, AttributeError):
        return _untouched("the C library is not glibc")
    # mallopt answers 1 on success; trimming comes last, so that a refusal leaves the defaults in force.
    if not mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) or not mallopt(M_TRIM_THRESHOLD, NEVER_TRIM):
        return _untouched("mallopt refused the thresholds")
    mallopt(M_TOP_PAD, TOP_PAD_BYTES)
    return Allocator(True, None, MMAP_THRESHOLD_BYTES)


def _untouched(reason: str) -> Allocator:
    return Allocator(False, reason, None)


# --- what is free --------------------------------------------------------------------------------

_limit_bytes: int | None = None


def limit_process(limit_bytes: int | None) -> None:
    """Say what this process may hold resident in all; whoever started it ends it above that. None: no such limit."""
    global _limit_bytes
    _limit_bytes = limit_bytes


def available_bytes(root: Path = controlgroup.ROOT) -> int | None:
    """Memory that this process could still take: of the CUDA device in use, else of the machine, its control groups and
    what was said to `limit_process`.

    None where none says.
    """
    import torch

    if torch.cuda.is_available():
        return torch.cuda.mem_get_info()[0]
    found = [_machine_bytes(root / "proc"), controlgroup.available_bytes(root), _below_limit(root / "proc")]
    return min((size for size in found if size is not None), default=None)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on a CPU torch raises a plain RuntimeError."""
    import torch

    told = ("can't allocate memory", "std::bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(text in str(error) for text in told)


def may_have_run_out(error: BaseException) -> bool:
    """The same of an error that may mean something else, too: oneDNN does not say why it refuses."""
    refusals = ("could not create a primitive", "could not create a memory object", "could not execute a primitive")
    return ran_out(error) or any(text in str(error) for text in refusals)


def give_back() -> None:
    """Return freed memory that this process holds on to, so that others can have it."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    with contextlib.suppress(OSError, AttributeError):  # no glibc: nothing was held on to
        ctypes.CDLL(None).malloc_trim(0)


_spares = False


def spares() -> bool:
    """Whether memory ran out in this process: then kernels that take more than torch's own leave the work to those."""
    return _spares


def keeps_freed() -> bool:
    """Whether what a step lets go of stays with this process: in CUDA's cache, or in a heap that is never trimmed."""
    import torch

    return torch.cuda.is_available() or not _spares


def economise() -> None:
    """After memory ran out: give back what is free, and take no more than is asked for while the process lives.

    A heap that grows by `TOP_PAD_BYTES` fails where less is left, and its holes are addresses that no mapping gets.
    """
    global _spares
    _spares = True
    with contextlib.suppress(OSError, AttributeError):  # no glibc: as it was
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TOP_PAD, 0)
        mallopt(M_MMAP_THRESHOLD, SPARING_BYTES)
    give_back()


def _below_limit(proc: Path) -> int | None:
    """What the limit of this process leaves it beyond what is resident."""
    if _limit_bytes is None:
        return None
    try:
        resident_bytes = int((proc / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
    return max(0, _limit_bytes - resident_bytes)


def _machine_bytes(proc: Path) -> int | None:
    try:
        text = (proc / "meminfo").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None
