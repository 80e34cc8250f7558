"""Memory: what the kernel keeps, what a sampler sees where it does not, and what was there before."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from bench.instruments.memory import DeviceMemory, HostMemory, rss_bytes

PAGE = os.sysconf("SC_PAGE_SIZE")


class FakeProc:
    """/proc/self of a process whose size is told."""

    def __init__(self, root: Path, *, keeps_peak: bool) -> None:
        self.root = root / "proc"
        self.folder = self.root / "self"
        self.folder.mkdir(parents=True)
        if keeps_peak:
            (self.folder / "clear_refs").touch()
        else:
            (self.folder / "clear_refs").mkdir()  # a file that cannot be written
        self.set(rss_pages=100, peak_pages=100)

    def set(self, rss_pages: int, peak_pages: int, file_pages: int = 0) -> None:
        (self.folder / "statm").write_text(f"9999 {rss_pages} 5 1 0 50 0\n")
        kb = PAGE // 1024
        told = {"VmHWM": peak_pages, "VmRSS": rss_pages, "RssFile": file_pages}
        lines = "".join(f"{name}:\t{pages * kb} kB\n" for name, pages in told.items())
        (self.folder / "status").write_text(f"Name:\tx\n{lines}")


def test_the_kernel_keeps_the_peak(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, keeps_peak=True)
    sensor = HostMemory(proc.root, sample_period_s=None)
    assert sensor.probe().available
    sensor.before_model()
    proc.set(rss_pages=300, peak_pages=300)
    sensor.start()
    assert (proc.folder / "clear_refs").read_text() == "5"
    proc.set(rss_pages=200, peak_pages=900)
    found = sensor.stop()
    assert found["peak_rss_bytes"].value == 900 * PAGE
    assert found["rss_before_bytes"].value == 100 * PAGE
    assert found["peak_memory_bytes"].value == 800 * PAGE
    assert found["peak_memory_bytes"].grade == "counted"
    assert found["peak_memory_bytes"].scope == "host"


def test_pages_of_files_are_not_the_models(tmp_path: Path) -> None:
    """A forked case touches its libraries anew; nothing is subtracted where files went out instead."""
    proc = FakeProc(tmp_path, keeps_peak=True)
    for files_before, files, expected in ((20, 320, 500), (320, 20, 800)):
        sensor = HostMemory(proc.root, sample_period_s=None)
        proc.set(rss_pages=100, peak_pages=100, file_pages=files_before)
        sensor.start()
        proc.set(rss_pages=200, peak_pages=900, file_pages=files)
        found = sensor.stop()
        assert found["peak_memory_bytes"].value == expected * PAGE
        assert found["peak_rss_bytes"].value == 900 * PAGE


def test_where_the_peak_cannot_be_reset_it_is_sampled(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, keeps_peak=False)
    sensor = HostMemory(proc.root, sample_period_s=None)
    sensor.start()
    proc.set(rss_pages=700, peak_pages=5000)  # a peak from before the window, which must not count
    sensor.sample()
    proc.set(rss_pages=150, peak_pages=5000)
    found = sensor.stop()
    assert found["peak_rss_bytes"].value == 700 * PAGE
    assert found["peak_memory_bytes"].value == 600 * PAGE
    assert found["peak_memory_bytes"].grade == "integrated"


def test_without_before_model_the_start_counts(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, keeps_peak=True)
    sensor = HostMemory(proc.root, sample_period_s=None)
    proc.set(rss_pages=400, peak_pages=400)
    sensor.start()
    assert sensor.stop()["rss_before_bytes"].value == 400 * PAGE


def test_a_proc_that_goes_away(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, keeps_peak=True)
    sensor = HostMemory(proc.root, sample_period_s=None)
    sensor.start()
    (proc.folder / "status").unlink()
    found = sensor.stop()
    assert set(found) == set(sensor.measures)
    assert all(reading.value is None and reading.reason for reading in found.values())


def test_no_proc_at_all(tmp_path: Path) -> None:
    assert rss_bytes(tmp_path) is None
    assert not HostMemory(tmp_path).probe().available


def test_the_real_process_grows_and_its_peak_is_seen() -> None:
    sensor = HostMemory()
    if not sensor.probe().available:
        pytest.skip("no /proc here")
    sensor.before_model()
    sensor.start()
    size = 64 * 2**20
    with mmap.mmap(-1, size) as block:  # pages that are new, whatever the heap still has
        block.write(os.urandom(1) * size)
    found = sensor.stop()
    assert found["peak_memory_bytes"].value is not None
    assert 0.9 * size < found["peak_memory_bytes"].value < 3 * size


def test_device_memory_without_a_device() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert not DeviceMemory().probe().available


@pytest.mark.gpu
def test_device_memory_sees_what_was_reserved() -> None:
    import torch

    sensor = DeviceMemory()
    assert sensor.probe().available
    sensor.start()
    block = torch.empty(64 * 2**20, dtype=torch.uint8, device="cuda")
    del block
    found = sensor.stop()["peak_memory_bytes"]
    assert found.value is not None
    assert found.value >= 64 * 2**20
    assert found.scope == "gpu0"
