"""Energy of processor packages and their memory through RAPL (Running Average Power Limit).

Linux shows RAPL's counters under /sys/class/powercap, in microjoules, each returning to zero beyond its
`max_energy_range_uj` (after a minute or so of full load on some machines). pyRAPL finds the domains where it works;
it is not maintained and knows nothing of the wrap, so the counters are read here, often enough to see every wrap.
Package and dram are disjoint and are added; `core` and `uncore` lie inside the package, and `psys` (the whole
platform) around it, so neither is ever added. The second interface `intel-rapl-mmio` shows the same packages again.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.instruments import ENERGY, Probe, refusal
from bench.instruments.clock import NS_PER_S, Clock, now_ns
from bench.instruments.ticker import Ticker
from bench.record import Grade, Reading, missing, reading

UPDATE_PERIOD_S = 0.001
"""The counters change about every millisecond (Intel SDM vol. 3B, 16.10.3)."""
POLL_PERIOD_S = 5.0
"""Well below the fastest wrap seen in practice (about 60 s)."""
MOST_POWER_W = 2000.0
"""More than any package draws: a step that would need more is a reset of the counter, not a wrap."""
GRACE_J = 5.0
"""Joules that may appear in one step however short the time was: the counter and the clock are not read at once."""
SYSFS = Path("/sys")

HINT_PERMISSION = (
    "sudo chmod a+r /sys/class/powercap/intel-rapl:*/energy_uj /sys/class/powercap/intel-rapl:*/*/energy_uj   "
    '(until the next boot); for good: echo \'SUBSYSTEM=="powercap", ACTION=="add", '
    'RUN+="/bin/chmod a+r /sys%p/energy_uj"\' | sudo tee /etc/udev/rules.d/70-rapl.rules; '
    "or for one interpreter: sudo setcap cap_dac_read_search+ep $(readlink -f $(which python))"
)
HINT_MODULE = (
    "sudo modprobe intel_rapl_msr (in a container, mount /sys/class/powercap and /sys/devices/virtual/powercap)"
)
HINT_VIRTUAL = "run on bare metal: a guest is not shown its host's RAPL counters"


@dataclass(frozen=True, slots=True)
class Domain:
    """One counter."""

    scope: str
    """`package0`, `dram0`."""
    path: Path
    """Folder with `energy_uj`, `max_energy_range_uj` and `name`."""


class Odometer:
    """Microjoules since the first reading, of a counter that returns to zero beyond its range."""

    def __init__(self, raw_uj: int, range_uj: int | None, at_ns: int) -> None:
        self.total_uj = 0
        self.wraps = 0
        self.lost: str | None = None
        """Why the total cannot be trusted any more."""
        self._range_uj = range_uj
        self._last_uj = raw_uj
        self._last_ns = at_ns

    def advance(self, raw_uj: int, at_ns: int) -> None:
        """Take the next reading: the step from `last` to a smaller `raw` is `range - last + raw`."""
        elapsed_s = (at_ns - self._last_ns) / NS_PER_S
        step_uj = raw_uj - self._last_uj
        if step_uj < 0 and self._range_uj is None:
            self.lost = "the counter wrapped and max_energy_range_uj does not say at what value"
        elif step_uj < 0:
            step_uj += self._range_uj or 0
            self.wraps += 1
        if self._range_uj is not None and elapsed_s * MOST_POWER_W > self._range_uj * 1e-6:
            self.lost = f"not read for {elapsed_s:.0f} s: it may have wrapped more than once"
        elif self.lost is None and not 0 <= step_uj * 1e-6 <= elapsed_s * MOST_POWER_W + GRACE_J:
            self.lost = "the counter was reset (suspended machine?)"
        self.total_uj += step_uj
        self._last_uj, self._last_ns = raw_uj, at_ns


def find_domains(sysfs: Path = SYSFS) -> list[Domain]:
    """Packages and their dram, each once, sorted by scope.

    pyRAPL is asked first where it works (it knows the real /sys only, and gives up on packages of several dies);
    what it does not find is looked up directly.
    """
    zones = _zones(sysfs)
    known = _pyrapl_paths() if zones and sysfs == SYSFS else frozenset[str]()
    domains: dict[str, Domain] = {}
    for zone in sorted(zones, key=lambda path: str(path) not in known):
        package = _package_scope(_name(zone))
        if package is None or package in domains:
            continue
        domains[package] = Domain(package, zone)
        for part in sorted(zone.glob(f"{zone.name}:*")):
            if _name(part) == "dram":
                scope = package.replace("package", "dram")
                domains[scope] = Domain(scope, part)
    return [domains[scope] for scope in sorted(domains)]


def _zones(sysfs: Path) -> list[Path]:
    root = sysfs / "class/powercap"
    for interface in ("intel-rapl", "intel-rapl-mmio"):
        zones = sorted(path for path in root.glob(f"{interface}:*") if path.name.count(":") == 1)
        if zones:
            return zones
    return []


def _name(zone: Path) -> str:
    try:
        return (zone / "name").read_text().strip()
    except OSError:
        return ""


def _package_scope(name: str) -> str | None:
    """`package-0` -> `package0`, `package-0-die-1` -> `package0die1`; None for psys and other zones."""
    match = re.fullmatch(r"package-(\d+)(?:-die-(\d+))?", name)
    if match is None:
        return None
    return f"package{match[1]}" + (f"die{match[2]}" if match[2] else "")


@functools.cache
def _pyrapl_paths() -> frozenset[str]:
    """Folders of the packages that pyRAPL finds; none where it does not import or work.

    Its class opens the counters' files; their names are what is wanted.
    """
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in its regular expressions, files it leaves open
        root.handlers[:] = [logging.NullHandler()]  # importing it without pymongo logs through the root logger
        try:
            from pyRAPL import PkgAPI

            files = PkgAPI()._sys_files  # pyright: ignore[reportPrivateUsage]
        except Exception:  # noqa: BLE001 - unmaintained code on unknown hardware; the direct way stays
            files = []
        root.handlers[:] = handlers
    for file in files:
        file.close()
    return frozenset(str(Path(file.name).parent) for file in files)


def is_virtual(proc: Path = Path("/proc")) -> bool:
    """Whether the processor says that it runs under a hypervisor."""
    try:
        text = (proc / "cpuinfo").read_text()
    except OSError:
        return False
    return re.search(r"^flags\s*:.*\bhypervisor\b", text, re.MULTILINE) is not None


def _read_int(path: Path) -> int:
    return int(path.read_text())


class Rapl:
    """Joules of each package and its memory."""

    name = "rapl"
    grade: Grade = "counter"
    update_period_s = UPDATE_PERIOD_S

    def __init__(
        self,
        sysfs: Path = SYSFS,
        *,
        proc: Path = Path("/proc"),
        clock: Clock = now_ns,
        poll_period_s: float | None = POLL_PERIOD_S,
    ) -> None:
        """`poll_period_s` None: no thread, the owner calls `poll`."""
        self.measures: tuple[str, ...] = ()
        self._sysfs = sysfs
        self._proc = proc
        self._clock = clock
        self._ticker = Ticker(poll_period_s, self.poll) if poll_period_s else None
        self._domains: list[Domain] = []
        self._odometers: dict[str, Odometer] = {}
        self._lost: dict[str, str] = {}
        self._start_ns = 0
        self._polling = threading.Lock()

    def probe(self) -> Probe:
        """Find the domains and try to read each."""
        domains = find_domains(self._sysfs)
        if not domains:
            return self._nothing()
        for domain in domains:
            try:
                _read_int(domain.path / "energy_uj")
            except PermissionError:
                return Probe(
                    False,
                    f"{domain.path}/energy_uj may be read by root only (Linux's answer to PLATYPUS, CVE-2020-8694)",
                    HINT_PERMISSION,
                )
            except (OSError, ValueError) as error:
                return Probe(False, f"{domain.path}/energy_uj cannot be read ({error})", HINT_MODULE)
        self._domains = domains
        self.measures = tuple(f"{ENERGY}{domain.scope}" for domain in domains)
        return Probe(True, f"RAPL domains {', '.join(domain.scope for domain in domains)}")

    def _nothing(self) -> Probe:
        if (self._sysfs / "class/powercap/intel-rapl").exists():
            return Probe(False, "powercap is there but shows no package domain", HINT_MODULE)
        if is_virtual(self._proc):
            return Probe(False, "no RAPL in this virtual machine", HINT_VIRTUAL)
        return Probe(False, f"no RAPL under {self._sysfs}/class/powercap", HINT_MODULE)

    def start(self) -> None:
        """Read every counter and begin to poll."""
        self._start_ns = self._clock()
        self._odometers, self._lost = {}, {}
        for domain in self._domains:
            try:
                raw_uj = _read_int(domain.path / "energy_uj")
            except (OSError, ValueError) as error:
                self._lost[domain.scope] = f"{domain.scope}: not readable at the start of the window ({error})"
                continue
            self._odometers[domain.scope] = Odometer(raw_uj, self._range_uj(domain), self._clock())
        if self._ticker is not None:
            self._ticker.start()

    def poll(self) -> None:
        """Read every counter once, so that no wrap is missed. A domain that fails stays failed for this window."""
        with self._polling:  # two readings that overtake each other would look like a wrap
            for domain in self._domains:
                odometer = self._odometers.get(domain.scope)
                if odometer is not None and domain.scope not in self._lost:
                    self._advance(domain, odometer)

    def _advance(self, domain: Domain, odometer: Odometer) -> None:
        try:
            odometer.advance(_read_int(domain.path / "energy_uj"), self._clock())
        except (OSError, ValueError) as error:
            self._lost[domain.scope] = f"{domain.scope}: vanished within the window ({error})"
        if odometer.lost:
            self._lost[domain.scope] = f"{domain.scope}: {odometer.lost}"

    def so_far(self) -> Mapping[str, Reading]:
        """Joules since `start`, one reading a domain."""
        self.poll()
        window_s = (self._clock() - self._start_ns) / NS_PER_S
        short = refusal(window_s, self.update_period_s)
        found: dict[str, Reading] = {}
        for domain in self._domains:
            reason = self._lost.get(domain.scope) or short
            if reason is not None:
                found[f"{ENERGY}{domain.scope}"] = missing("J", reason, domain.scope)
                continue
            joules = self._odometers[domain.scope].total_uj * 1e-6
            found[f"{ENERGY}{domain.scope}"] = reading(joules, "J", self.grade, domain.scope)
        return found

    def stop(self) -> Mapping[str, Reading]:
        """Joules of the window, one reading a domain; missing with its reason where a domain failed meanwhile."""
        if self._ticker is not None:
            self._ticker.stop()
        return self.so_far()

    def findings(self) -> Mapping[str, Any]:
        """How often each counter returned to zero in the last window."""
        return {"wraps": {scope: odometer.wraps for scope, odometer in sorted(self._odometers.items())}}

    def _range_uj(self, domain: Domain) -> int | None:
        try:
            return _read_int(domain.path / "max_energy_range_uj")
        except (OSError, ValueError):
            return None
