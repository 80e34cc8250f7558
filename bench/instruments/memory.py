"""Peak memory: of the device what its allocator reserved, of the host the resident set beyond what was there before.

Host: the kernel keeps the high-water mark itself (`VmHWM`); writing 5 to /proc/self/clear_refs resets it, and no
sampling is needed at all. Where that file cannot be written, a thread reads the resident set from outside the step;
a sampled peak can miss a short one, so it carries the grade `integrated`.

Pages of files (libraries, memory-mapped text) that come in meanwhile are no memory of the model's: the kernel drops
them when it needs room, and a process that was forked touches all its libraries anew.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from bench.instruments import Probe
from bench.instruments.ticker import Ticker
from bench.record import Grade, Reading, missing, reading

SAMPLE_PERIOD_S = 0.05
RESET_HIGH_WATER = "5"
"""proc(5), /proc/pid/clear_refs: 'Reset the peak resident set size to the process's current value'."""


def _status_bytes(proc: Path, field: str) -> int | None:
    """A `kB` line of /proc/self/status in bytes; None where it is not there."""
    try:
        text = (proc / "self/status").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    return None


def rss_bytes(proc: Path = Path("/proc")) -> int | None:
    """Resident set of this process now, in bytes; None where /proc does not say."""
    try:
        pages = int((proc / "self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class HostMemory:
    """Peak resident set of this process, and its growth since `before_model` but for pages of files."""

    name = "rss"
    measures: tuple[str, ...] = ("peak_memory_bytes", "peak_rss_bytes", "rss_before_bytes")
    grade: Grade = "counted"
    update_period_s = 0.0

    def __init__(self, proc: Path = Path("/proc"), *, sample_period_s: float | None = SAMPLE_PERIOD_S) -> None:
        """`sample_period_s` None: no thread; `sample` is called by the owner."""
        self._proc = proc
        self._ticker = Ticker(sample_period_s, self.sample) if sample_period_s else None
        self._before: int | None = None
        self._files_before = 0
        self._sampled: int | None = None
        self._kernel_keeps_peak = False

    def probe(self) -> Probe:
        """Available wherever /proc/self/statm can be read."""
        if rss_bytes(self._proc) is None:
            return Probe(False, f"{self._proc}/self/statm cannot be read", "run on Linux with /proc mounted")
        return Probe(True, "resident set of this process from /proc")

    def before_model(self) -> None:
        """Remember the resident set that is there before anything under test is built."""
        self._before, self._files_before = rss_bytes(self._proc), self._files()

    def start(self) -> None:
        """Reset the high-water mark, or start sampling where the kernel does not let us."""
        if self._before is None:
            self.before_model()
        self._kernel_keeps_peak = self._reset_high_water()
        self._sampled = rss_bytes(self._proc)
        if not self._kernel_keeps_peak and self._ticker is not None:
            self._ticker.start()

    def sample(self) -> None:
        """Look at the resident set once."""
        now = rss_bytes(self._proc)
        if now is not None:
            self._sampled = max(now, self._sampled or 0)

    def stop(self) -> Mapping[str, Reading]:
        """`peak_memory_bytes` is `peak_rss_bytes` minus `rss_before_bytes` and pages of files since; host."""
        if not self._kernel_keeps_peak and self._ticker is not None:
            self._ticker.stop()
        self.sample()
        peak = _status_bytes(self._proc, "VmHWM") if self._kernel_keeps_peak else self._sampled
        before, self._before = self._before, None
        if peak is None or before is None:
            reason = f"{self._proc}/self stopped answering"
            return {name: missing("B", reason, "host") for name in self.measures}
        grade: Grade = "counted" if self._kernel_keeps_peak else "integrated"
        files = max(0, self._files() - self._files_before)  # as many as at the end: they come in during the first steps
        return {
            "peak_memory_bytes": reading(max(0, peak - before - files), "B", grade, "host"),
            "peak_rss_bytes": reading(peak, "B", grade, "host"),
            "rss_before_bytes": reading(before, "B", "counted", "host"),
        }

    def _files(self) -> int:
        return _status_bytes(self._proc, "RssFile") or 0

    def _reset_high_water(self) -> bool:
        try:
            (self._proc / "self/clear_refs").write_text(RESET_HIGH_WATER)
        except OSError:
            return False
        return _status_bytes(self._proc, "VmHWM") is not None


class DeviceMemory:
    """Peak of what PyTorch's CUDA allocator reserved, summed over the devices this process used."""

    name = "cuda_memory"
    measures: tuple[str, ...] = ("peak_memory_bytes",)
    grade: Grade = "counted"
    update_period_s = 0.0

    def probe(self) -> Probe:
        """Available where PyTorch sees a CUDA device."""
        import torch

        if not torch.cuda.is_available():
            return Probe(False, "PyTorch sees no CUDA device", "install a CUDA build of torch and NVIDIA's driver")
        return Probe(True, f"{torch.cuda.device_count()} CUDA device(s)")

    def start(self) -> None:
        """Reset the allocator's peak."""
        import torch

        torch.cuda.init()  # before it, the allocator knows no device
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)

    def stop(self) -> Mapping[str, Reading]:
        """Bytes reserved at the peak; the scope names the devices that hold any (`gpu0`, `gpu0+gpu1`)."""
        import torch

        peaks = {f"gpu{n}": torch.cuda.max_memory_reserved(n) for n in range(torch.cuda.device_count())}
        used = {scope: peak for scope, peak in peaks.items() if peak} or {"gpu0": 0}
        return {"peak_memory_bytes": reading(sum(used.values()), "B", "counted", "+".join(used))}
