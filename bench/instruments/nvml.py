"""Energy of NVIDIA GPUs through NVML: the total-energy counter where there is one, else the integral of power.

The counter (Volta and later) is in millijoules since the driver was loaded and steps about every 100 ms. Power is
sampled beside it all the same: a counter that disagrees with the integral of power is worth knowing.
Scopes count the devices this process may see: `gpu0` is the first of CUDA_VISIBLE_DEVICES, as it is in PyTorch.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.instruments import ENERGY, Probe, refusal
from bench.instruments.clock import NS_PER_S, Clock, now_ns
from bench.instruments.ticker import Ticker
from bench.record import Grade, Reading, missing, reading

UPDATE_PERIOD_S = 0.1
"""Step of the counter and period of the power samples."""
MILLI = 1e-3


@dataclass(slots=True)
class _Gpu:
    """One device within a window."""

    scope: str
    handle: Any
    has_counter: bool
    start_j: float = 0.0
    integral_j: float = 0.0
    last_power_w: float | None = None
    last_power_ns: int = 0
    lost: str | None = None
    readings: dict[str, float] = field(default_factory=dict[str, float])


def load_library() -> Any:
    """NVIDIA's binding `pynvml` (package nvidia-ml-py); raises ImportError where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("pynvml")


def visible_devices(uuids: Sequence[str], environment: Mapping[str, str]) -> list[int]:
    """NVML indices of the devices that CUDA shows this process, in CUDA's order.

    CUDA_VISIBLE_DEVICES holds indices or beginnings of UUIDs; as in CUDA, the list ends at the first entry that
    names no device. CUDA numbers unlike devices fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID; NVML numbers them
    by PCI bus.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        matches = [n for n, uuid in enumerate(uuids) if uuid.startswith(entry)] if entry.startswith("GPU-") else []
        if entry.isdigit() and int(entry) < len(uuids):
            matches = [int(entry)]
        if len(matches) != 1 or matches[0] in found:
            break
        found.append(matches[0])
    return found


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Nvml:
    """Joules of each visible GPU."""

    name = "nvml"
    update_period_s = UPDATE_PERIOD_S

    def __init__(
        self,
        library: Any = None,
        *,
        clock: Clock = now_ns,
        environment: Mapping[str, str] | None = None,
        sample_period_s: float | None = UPDATE_PERIOD_S,
    ) -> None:
        """`library`: the module `pynvml` or something like it. `sample_period_s` None: no thread, the owner samples."""
        self.measures: tuple[str, ...] = ()
        self.grade: Grade = "counter"
        self._library = library
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._ticker = Ticker(sample_period_s, self.sample) if sample_period_s else None
        self._gpus: list[_Gpu] = []
        self._initialised_in: int | None = None
        self._start_ns = 0

    def probe(self) -> Probe:
        """Find the visible devices and whether each has a counter or at least power."""
        try:
            self._initialise()
        except ImportError:
            return Probe(False, "the package nvidia-ml-py is not installed", "pip install nvidia-ml-py")
        except self._errors as error:
            return Probe(
                False,
                f"NVML does not start: {error}",
                "install NVIDIA's driver; in a container, start it with --gpus all",
            )
        try:
            self._gpus = self._find()
        except self._errors as error:
            return Probe(False, f"NVML does not list its devices: {error}", "check nvidia-smi")
        return self._describe()

    def start(self) -> None:
        """Read every counter and begin to sample power."""
        self._start_ns = self._clock()
        for gpu in self._gpus:
            gpu.integral_j, gpu.last_power_w, gpu.lost = 0.0, None, None
            try:
                gpu.start_j = self._counter_j(gpu) if gpu.has_counter else 0.0
            except self._errors as error:
                gpu.lost = f"{gpu.scope}: NVML failed at the start of the window ({error})"
        self.sample()
        if self._ticker is not None:
            self._ticker.start()

    def sample(self) -> None:
        """Take one power sample of each device and add its trapezoid to the integral."""
        for gpu in self._gpus:
            try:
                watts = self._library.nvmlDeviceGetPowerUsage(gpu.handle) * MILLI
            except self._errors as error:
                gpu.last_power_w = None
                if not gpu.has_counter:
                    gpu.lost = gpu.lost or f"{gpu.scope}: power could not be read within the window ({error})"
                continue
            now = self._clock()
            if gpu.last_power_w is not None:
                gpu.integral_j += 0.5 * (watts + gpu.last_power_w) * (now - gpu.last_power_ns) / NS_PER_S
            gpu.last_power_w, gpu.last_power_ns = watts, now

    def so_far(self) -> Mapping[str, Reading]:
        """Joules since `start`, one reading a device."""
        window_s = (self._clock() - self._start_ns) / NS_PER_S
        return {f"{ENERGY}{gpu.scope}": self._reading(gpu, window_s) for gpu in self._gpus}

    def stop(self) -> Mapping[str, Reading]:
        """Joules of the window, one reading a device; missing with its reason where a device failed meanwhile."""
        if self._ticker is not None:
            self._ticker.stop()
        self.sample()
        return self.so_far()

    def findings(self) -> Mapping[str, Any]:
        """Per device: joules by the counter and by the integral of power, in the last window."""
        return {gpu.scope: dict(gpu.readings) for gpu in self._gpus}

    def names(self) -> list[str]:
        """Names of the visible devices, in order; empty before a successful `probe`."""
        return [_text(self._library.nvmlDeviceGetName(gpu.handle)) for gpu in self._gpus]

    def driver(self) -> str | None:
        """Version of NVIDIA's driver; None before a successful `probe`."""
        return _text(self._library.nvmlSystemGetDriverVersion()) if self._gpus else None

    def free_bytes(self) -> int | None:
        """Free memory of the first visible device; None before a successful `probe`, or where NVML does not say."""
        try:
            return int(self._library.nvmlDeviceGetMemoryInfo(self._gpus[0].handle).free)
        except (IndexError, *self._errors):
            return None

    @property
    def _errors(self) -> tuple[type[BaseException], ...]:
        """What NVML raises: its own error, and whatever ctypes makes of a library that lacks a function."""
        return (self._library.NVMLError, OSError, AttributeError)

    def _initialise(self) -> None:
        """Once in each process: a handle does not outlive a fork."""
        if self._library is None:
            self._library = load_library()
        if self._initialised_in != os.getpid():
            self._library.nvmlInit()
            self._initialised_in = os.getpid()

    def _find(self) -> list[_Gpu]:
        library = self._library
        handles = [library.nvmlDeviceGetHandleByIndex(n) for n in range(library.nvmlDeviceGetCount())]
        uuids = [_text(library.nvmlDeviceGetUUID(handle)) for handle in handles]
        chosen = visible_devices(uuids, self._environment)
        return [_Gpu(f"gpu{n}", handles[index], self._has_counter(handles[index])) for n, index in enumerate(chosen)]

    def _has_counter(self, handle: Any) -> bool:
        try:
            self._library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._errors:
            return False
        return True

    def _describe(self) -> Probe:
        if not self._gpus:
            return Probe(False, "no GPU is visible to this process", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
        sampled = [gpu.scope for gpu in self._gpus if not gpu.has_counter]
        try:
            for gpu in self._gpus:
                self._library.nvmlDeviceGetPowerUsage(gpu.handle)
        except self._errors as error:
            if sampled:
                return Probe(
                    False,
                    f"neither an energy counter nor power on {', '.join(sampled)} ({error})",
                    "use a whole device rather than a MIG slice, on a GPU that reports power",
                )
        self.measures = tuple(f"{ENERGY}{gpu.scope}" for gpu in self._gpus)
        self.grade = "integrated" if sampled else "counter"
        how = f"power sampled on {', '.join(sampled)}" if sampled else "total-energy counter"
        return Probe(True, f"{len(self._gpus)} GPU(s), {how}")

    def _counter_j(self, gpu: _Gpu) -> float:
        return self._library.nvmlDeviceGetTotalEnergyConsumption(gpu.handle) * MILLI

    def _reading(self, gpu: _Gpu, window_s: float) -> Reading:
        gpu.readings = {"integrated_j": gpu.integral_j}
        if gpu.has_counter and gpu.lost is None:
            try:
                counted_j = self._counter_j(gpu) - gpu.start_j
            except self._errors as error:
                gpu.lost = f"{gpu.scope}: the energy counter failed within the window ({error})"
            else:
                gpu.readings["counter_j"] = counted_j
                if counted_j < 0:
                    gpu.lost = f"{gpu.scope}: the energy counter went back (was the driver reloaded?)"
        reason = gpu.lost or refusal(window_s, self.update_period_s)
        if reason is not None:
            return missing("J", reason, gpu.scope)
        if gpu.has_counter:
            return reading(gpu.readings["counter_j"], "J", "counter", gpu.scope)
        return reading(gpu.integral_j, "J", "integrated", gpu.scope)
