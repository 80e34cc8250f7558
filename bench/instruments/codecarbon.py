"""Energy as CodeCarbon estimates it without any counter: processor load x rated power, plus a constant for memory.

A model, not a measurement: at constant load it is time in disguise, so its grade is `modelled` and no judgement uses
it. CodeCarbon's hardware models are called directly: no tracker, no file, no network, and a wake-up each second.
Looking up the rated power takes CodeCarbon more than a second (a table of processors is searched by likeness), so the
answer is kept in the user's cache folder.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from bench.instruments import ENERGY, Probe, refusal
from bench.instruments.clock import NS_PER_S, Clock, now_ns
from bench.instruments.ticker import Ticker
from bench.record import Grade, Reading, missing, reading

SAMPLE_PERIOD_S = 1.0
"""CodeCarbon's own period; the model is not linear in load, so another period would give another number."""
UPDATE_PERIOD_S = 0.01
"""Linux counts processor time in ticks of a hundredth of a second."""


class PowerModel(Protocol):
    """Watts of the host, estimated over the time since the previous call."""

    def start(self) -> None:
        """Forget the load before now."""
        ...

    def power_w(self) -> float:
        """Mean watts since the previous call or `start`."""
        ...


def cache_folder() -> Path:
    """Where this user's caches of lmbench lie (not created)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmbench"


@cache
def rated_power_w(folder: Path | None = None) -> tuple[str, float]:
    """(processor, rated watts) as CodeCarbon's table has them, or its default of 4 W a thread.

    Args:
        folder: where the answer is kept; default the user's cache.
    """
    path = (folder or cache_folder()) / "rated_power.json"
    key = f"codecarbon {importlib.metadata.version('codecarbon')}, {os.cpu_count()} x {_processor()}"
    with suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())[key]
        return str(kept[0]), float(kept[1])
    from codecarbon.core.cpu import TDP

    found = TDP()
    answer = (str(found.model), float(found.tdp))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({key: answer}))
    return answer


def _processor(proc: Path = Path("/proc")) -> str:
    """A name for this processor that costs no second to find, to file the answer under."""
    with suppress(OSError):
        for line in (proc / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


class HostModel:
    """CodeCarbon's models of processor and memory."""

    def __init__(self) -> None:
        from codecarbon.external.hardware import CPU
        from codecarbon.external.ram import RAM

        self.processor, self.rated_w = rated_power_w()
        self._cpu = CPU.from_utils(
            output_dir=".",
            mode="cpu_load",
            model=self.processor,
            tdp=self.rated_w,  # pyright: ignore[reportArgumentType]
        )
        self._memory_w = float(RAM(tracking_mode="machine").total_power().W)

    def start(self) -> None:
        """Forget the load before now."""
        self._cpu.start()

    def power_w(self) -> float:
        """Mean watts since the previous call or `start`."""
        return float(self._cpu.total_power().W) + self._memory_w


def _open_model() -> HostModel:
    from codecarbon.external.logger import set_logger_level

    set_logger_level("error")
    return HostModel()


class CodeCarbon:
    """Modelled joules of the host."""

    name = "codecarbon"
    measures: tuple[str, ...] = (f"{ENERGY}host",)
    grade: Grade = "modelled"
    update_period_s = UPDATE_PERIOD_S

    def __init__(
        self,
        open_model: Callable[[], PowerModel] = _open_model,
        *,
        clock: Clock = now_ns,
        sample_period_s: float | None = SAMPLE_PERIOD_S,
    ) -> None:
        """`sample_period_s` None: no thread, the owner calls `sample`."""
        self._open_model = open_model
        self._clock = clock
        self._ticker = Ticker(sample_period_s, self.sample) if sample_period_s else None
        self._model: PowerModel | None = None
        self._joules = 0.0
        self._start_ns = 0
        self._last_ns = 0
        self._lost: str | None = None
        self._sampling = threading.Lock()

    def probe(self) -> Probe:
        """Available wherever CodeCarbon is installed and knows or guesses the processor."""
        try:
            self._model = self._open_model()
        except ImportError:
            return Probe(False, "the package codecarbon is not installed", "pip install codecarbon")
        except Exception as error:  # noqa: BLE001 - a model of unknown hardware may fail in any way; it is only a fallback
            return Probe(False, f"CodeCarbon's model does not start ({type(error).__name__}: {error})")
        about = ""
        if isinstance(self._model, HostModel):
            about = f": {self._model.processor} rated {self._model.rated_w:g} W"
        return Probe(True, f"estimate from processor load x rated power{about}; no evidence for an energy verdict")

    def start(self) -> None:
        """Begin to add up."""
        self._joules, self._lost = 0.0, None
        self._start_ns = self._last_ns = self._clock()
        if self._model is None:
            self._lost = "CodeCarbon's model is not open"
            return
        self._model.start()
        if self._ticker is not None:
            self._ticker.start()

    def sample(self) -> None:
        """Add the estimated power of the time since the last sample."""
        with self._sampling:
            if self._model is None or self._lost:
                return
            now = self._clock()
            try:
                self._joules += self._model.power_w() * (now - self._last_ns) / NS_PER_S
            except Exception as error:  # noqa: BLE001 - as in `probe`
                self._lost = f"CodeCarbon's model failed within the window ({type(error).__name__}: {error})"
            self._last_ns = now

    def so_far(self) -> Mapping[str, Reading]:
        """Modelled joules since `start`."""
        self.sample()
        window_s = (self._clock() - self._start_ns) / NS_PER_S
        reason = self._lost or refusal(window_s, self.update_period_s)
        if reason is not None:
            return {self.measures[0]: missing("J", reason, "host")}
        return {self.measures[0]: reading(self._joules, "J", self.grade, "host")}

    def stop(self) -> Mapping[str, Reading]:
        """Modelled joules of the window."""
        if self._ticker is not None:
            self._ticker.stop()
        return self.so_far()

    def findings(self) -> Mapping[str, Any]:
        """What the model was given."""
        if isinstance(self._model, HostModel):
            return {"processor": self._model.processor, "rated_power_w": self._model.rated_w}
        return {}
