"""Allocator thresholds: applied once, and the effect that is claimed (each in a process of its own)."""

import subprocess
import sys

import pytest

from lmopt.compute import memory

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt belongs to glibc")

FAULTS = """
import resource, sys, torch
from lmopt.compute import memory
if sys.argv[1] == "tuned":
    assert memory.tune_allocator().applied
torch.set_num_threads(1)
def work():
    for _ in range(5):
        torch.ones(12_000_000)  # 48 MB: above the 32 MiB up to which glibc adapts by itself
for _ in range(4):  # the heap settles: the first blocks lie beside each other before they merge
    work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(kind: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, kind], capture_output=True, text=True, check=True)
    return int(done.stdout)


@linux
def test_freed_pages_are_used_again():
    plain, tuned = page_faults("plain"), page_faults("tuned")
    assert plain > 50  # zeroed by the kernel again and again: 58,000 pages of 4 kB, or 115 of 2 MB
    assert tuned < plain / 20


@linux
def test_applied_once_and_recorded():
    first = memory.tune_allocator()
    assert first.applied
    assert first.reason is None
    assert first.mmap_threshold_bytes == memory.MMAP_THRESHOLD_BYTES
    assert memory.tune_allocator() is first


def test_elsewhere_it_says_why_not(monkeypatch):
    untouched = memory.tune_allocator.__wrapped__
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert untouched() == memory.Allocator(False, "no mallopt on darwin", None)
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    assert untouched().reason == "the C library is not glibc"


@linux
def test_the_limit_of_a_process_counts_what_it_holds(monkeypatch, tmp_path):
    monkeypatch.setattr(memory.controlgroup, "available_bytes", lambda root: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemAvailable: 1000000 kB\n")
    (tmp_path / "proc/self/statm").write_text("500 100 9 9 9 9 9\n")
    page = memory.os.sysconf("SC_PAGE_SIZE")
    assert memory.available_bytes(tmp_path) == 1_000_000 * 1024
    memory.limit_process(150 * page)
    try:
        assert memory.available_bytes(tmp_path) == 50 * page
        memory.limit_process(50 * page)
        assert memory.available_bytes(tmp_path) == 0
    finally:
        memory.limit_process(None)


@pytest.mark.parametrize(
    ("error", "sure", "perhaps"),
    [
        (MemoryError(), True, True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True, True),
        (RuntimeError("std::bad_alloc"), True, True),
        (RuntimeError("could not create a primitive"), False, True),
        (RuntimeError("could not create a memory object"), False, True),
        (RuntimeError("shapes do not match"), False, False),
    ],
)
def test_errors_that_mean_want_of_memory(error, sure, perhaps):
    assert (memory.ran_out(error), memory.may_have_run_out(error)) == (sure, perhaps)
