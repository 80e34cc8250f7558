"""Energy of NVIDIA GPUs through NVML: the total-energy counter where there is one, else the integral of power.

The counter (Volta and later) is in millijoules since the driver was loaded and steps about every 100 ms. Power is
sampled beside it all the same: a counter that disagrees with the integral of power is worth knowing.
A window holds the device that its work is on and no other, whoever works on those. Scopes count the devices that this
process may see: `gpu0` is the first of CUDA_VISIBLE_DEVICES, as it is in PyTorch.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from bench.instruments import ENERGY, Probe, gpus, refusal
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
    uuid: str
    has_counter: bool
    is_sliced: bool = False
    """In MIG mode: this process has a part of it, and its counter holds the joules of all parts."""
    is_certain: bool = True
    """Whether it is surely the one that CUDA calls so."""
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


def _unfit(gpu: _Gpu) -> str | None:
    """Why its counter would not tell of this process's work."""
    if gpu.is_sliced:
        return f"{gpu.scope}: in MIG mode, where a device's counter holds the joules of all its slices"
    if not gpu.is_certain:
        return (
            f"{gpu.scope}: these GPUs are unlike, CUDA numbers the fastest first and does not say yet which that is; "
            "hint: CUDA_DEVICE_ORDER=PCI_BUS_ID"
        )
    return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


class Nvml:
    """Joules of the GPU that the work is on, or of each visible one."""

    name = "nvml"
    update_period_s = UPDATE_PERIOD_S

    def __init__(
        self,
        library: Any = None,
        *,
        device: str | None = None,
        clock: Clock = now_ns,
        environment: Mapping[str, str] | None = None,
        sample_period_s: float | None = UPDATE_PERIOD_S,
        running_uuid: Callable[[int], str | None] = gpus.running_uuid,
    ) -> None:
        """Nothing is looked for yet.

        Args:
            library: the module `pynvml` or something like it.
            device: where the work is: `cuda`, `cuda:1`; None: every visible device, to describe the machine.
            clock: nanoseconds, monotonic.
            environment: of the process that does the work; default: this one's.
            sample_period_s: seconds between samples of power; None: no thread, the owner samples.
            running_uuid: UUID of a CUDA device by its number, where CUDA is in use.
        """
        self.measures: tuple[str, ...] = ()
        self.grade: Grade = "counter"
        self._index = None if device is None else gpus.index_of(device)
        self._running_uuid = running_uuid
        self._library = library
        self._clock = clock
        self._environment = os.environ if environment is None else environment
        self._ticker = Ticker(sample_period_s, self.sample) if sample_period_s else None
        self._gpus: list[_Gpu] = []
        self._initialised_in: int | None = None
        self._start_ns = 0

    def probe(self) -> Probe:
        """Find the devices to measure and whether each has a counter or at least power."""
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
        """Read every counter and begin to sample power, of the device that CUDA names where it is in use by now."""
        if self._index is not None and self._running_uuid(self._index) is not None:
            with suppress(*self._errors):  # a driver that fails here fails in the readings too
                self._gpus = self._find() or self._gpus
        self._start_ns = self._clock()
        for gpu in self._gpus:
            gpu.integral_j, gpu.last_power_w, gpu.lost = 0.0, None, _unfit(gpu)
            try:
                gpu.start_j = self._counter_j(gpu) if gpu.has_counter else 0.0
            except self._errors as error:
                gpu.lost = gpu.lost or f"{gpu.scope}: NVML failed at the start of the window ({error})"
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
        """Per device: which it is, and joules by the counter and by the integral of power, in the last window."""
        return {gpu.scope: {"device": gpus.digest(gpu.uuid), **gpu.readings} for gpu in self._gpus}

    def names(self) -> list[str]:
        """Names of the devices, in order; empty before a successful `probe`."""
        return [_text(self._library.nvmlDeviceGetName(gpu.handle)) for gpu in self._gpus]

    def driver(self) -> str | None:
        """Version of NVIDIA's driver; None before a successful `probe`."""
        return _text(self._library.nvmlSystemGetDriverVersion()) if self._gpus else None

    def free_bytes(self) -> int | None:
        """Free memory of the first device; None before a successful `probe`, or where NVML does not say."""
        try:
            return int(self._library.nvmlDeviceGetMemoryInfo(self._gpus[0].handle).free)
        except (IndexError, *self._errors):
            return None

    def capability(self) -> tuple[int, int] | None:
        """CUDA's compute capability of the first device; None before a successful `probe`, or where NVML is silent."""
        try:
            major, minor = self._library.nvmlDeviceGetCudaComputeCapability(self._gpus[0].handle)
            return int(major), int(minor)
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
        sliced = [n for n, handle in enumerate(handles) if self._is_sliced(handle)]
        slices = {uuid: n for n in sliced for uuid in self._slices(handles[n])}
        chosen = dict(enumerate(gpus.visible_devices(uuids, self._environment, slices)))
        certain = True
        if self._index is not None:
            running = self._running_uuid(self._index)
            named = None if running is None else gpus.with_uuid(running, uuids, slices)
            names = [_text(library.nvmlDeviceGetName(handle)) for handle in handles]
            certain = named is not None or gpus.is_certain(names, self._environment)
            found = chosen.get(self._index) if named is None else named
            chosen = {} if found is None else {self._index: found}
        return [
            _Gpu(f"gpu{n}", handles[at], uuids[at], self._has_counter(handles[at]), at in sliced, certain)
            for n, at in chosen.items()
        ]

    def _is_sliced(self, handle: Any) -> bool:
        try:
            return bool(self._library.nvmlDeviceGetMigMode(handle)[0])
        except self._errors:
            return False

    def _slices(self, handle: Any) -> list[str]:
        """UUIDs of the slices that a device is cut into."""
        found: list[str] = []
        with suppress(*self._errors):
            for n in range(self._library.nvmlDeviceGetMaxMigDeviceCount(handle)):
                with suppress(*self._errors):  # a place without a slice
                    part = self._library.nvmlDeviceGetMigDeviceHandleByIndex(handle, n)
                    found.append(_text(self._library.nvmlDeviceGetUUID(part)))
        return found

    def _has_counter(self, handle: Any) -> bool:
        try:
            self._library.nvmlDeviceGetTotalEnergyConsumption(handle)
        except self._errors:
            return False
        return True

    def _describe(self) -> Probe:
        if not self._gpus:
            which = "no GPU" if self._index is None else f"no GPU numbered {self._index}"
            return Probe(False, f"{which} is visible to this process", "check nvidia-smi and CUDA_VISIBLE_DEVICES")
        sliced = next((_unfit(gpu) for gpu in self._gpus if gpu.is_sliced), None)
        if sliced and self._index is not None:
            return Probe(False, sliced, "use a whole device rather than a MIG slice")
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
        return Probe(True, f"{len(self._gpus)} GPU(s), {how}{f'; not for {sliced}' if sliced else ''}")

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
