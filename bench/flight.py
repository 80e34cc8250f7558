"""One case under way, from its start to its outcome: watched, stopped over its limits, never waited for.

The runner starts flights and looks at them in turn; a flight talks to its case through an executor and the case folder.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bench.case import Case
from bench.casefolder import Job, Outcome, forget_scratch, read_progress, write_atomically
from bench.executors import Executor, Exit, Running
from bench.plan import Plan
from bench.process import signal_name
from bench.record import Record
from lmopt.quantities import human_bytes

STOP_GRACE_S = 30.0
"""Time a case has to save its checkpoint after being asked to stop."""
HANG_AFTER_S = 900.0
"""A case that reports no progress for this long is ended: the longest silence seen is a compilation of minutes."""
STOP_POLL_S = 0.025
LOG_TAIL_BYTES = 4096
"""Of a case's log, in which its last error is looked for."""


class Display(Protocol):
    """Shows a run to a person."""

    def begin(self, plan: Plan, finished: Mapping[str, Record]) -> None:
        """The run starts; these cases are done already."""
        ...

    def case_started(self, case: Case) -> None:
        """A case starts."""
        ...

    def case_progress(self, case: Case, progress: Mapping[str, object]) -> None:
        """A case got further."""
        ...

    def case_ended(self, case: Case, record: Record) -> None:
        """A case has its record."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def end(self) -> None:
        """The run is over."""
        ...


@dataclass(slots=True)
class Limits:
    """What one case may use."""

    time_s: float
    memory_bytes: int | None = None
    hang_s: float = HANG_AFTER_S


@dataclass(slots=True)
class RunContext:
    """What a run needs beside its plan."""

    executor: Executor
    display: Display
    limits: Limits
    commit: str | None = None
    env: str | None = None
    flops_per_s_peak: Mapping[str, float] = field(default_factory=dict[str, float])
    idle_power_w: float | None = None


@dataclass(slots=True)
class Flight:
    """A case that runs now."""

    case: Case
    place: Path
    running: Running
    begun_s: float
    news_s: float
    """When it last got further."""
    last: Mapping[str, object] | None = None
    """Its latest progress."""


def launch(folder: Path, case: Case, context: RunContext) -> Flight | Outcome:
    """Start a case of the run in `folder`; the outcome itself where a killed runner left one behind.

    Raises:
        ExecutorError: there is nowhere to run it.
    """
    place = folder / "cases" / case.id
    place.mkdir(parents=True, exist_ok=True)
    job = Job(
        case=case,
        parents={parent: str((folder / "cases" / parent).resolve()) for parent in case.parents},
        commit=context.commit,
        env=None if context.executor.is_remote else context.env,
        flops_per_s_peak=context.flops_per_s_peak.get(case.recipe.precision.arithmetic) if case.recipe else None,
        idle_power_w=None if context.executor.is_remote else context.idle_power_w,  # of this machine
        memory_limit_bytes=context.limits.memory_bytes,
    )
    left = _left_by_killed_runner(place, job)
    if left is not None:
        return left
    for stale in ("outcome.json", "progress.json"):
        (place / stale).unlink(missing_ok=True)
    for written in ("case.json", "outcome.json"):
        forget_scratch(place / written)
    write_atomically(place / "case.json", job.model_dump_json())
    now_s = time.monotonic()
    return Flight(case, place, context.executor.start(place), now_s, now_s)


def look(flight: Flight, context: RunContext) -> tuple[Outcome, bool] | None:
    """None while it runs; at its end the outcome, and whether it was lost from outside and is worth another try.

    A case over its limits is stopped here, which takes as long as it needs to save its state.
    """
    ended = flight.running.poll()
    if ended is not None:
        return _outcome(flight.place, ended, None), ended.lost
    now_s = time.monotonic()
    if flight.running.is_waiting():
        flight.begun_s = flight.news_s = now_s
        return None
    progress = read_progress(flight.place)
    if progress is not None and progress != flight.last:
        flight.last, flight.news_s = progress, now_s
        context.display.case_progress(flight.case, progress)
    reason = _over_limit(flight.running, context.limits, now_s - flight.begun_s, now_s - flight.news_s)
    if reason is None:
        return None
    return _outcome(flight.place, stop(flight), reason), False


def stop(flight: Flight) -> Exit:
    """SIGTERM, then SIGKILL when the grace is over; how it ended."""
    flight.running.terminate()
    deadline_s = time.monotonic() + STOP_GRACE_S
    while (ended := flight.running.poll()) is None:
        if time.monotonic() > deadline_s:
            flight.running.kill()
            deadline_s += STOP_GRACE_S
        time.sleep(STOP_POLL_S)
    return ended


def _left_by_killed_runner(place: Path, job: Job) -> Outcome | None:
    """The outcome of a case that finished when its runner was no longer there to record it."""
    try:
        same = Job.model_validate_json((place / "case.json").read_text()) == job
        outcome = Outcome.model_validate_json((place / "outcome.json").read_text())
    except (OSError, ValueError):  # not there, or half of it
        return None
    return outcome if same and outcome.status != "failed" else None


def _over_limit(running: Running, limits: Limits, elapsed_s: float, silent_s: float) -> str | None:
    if elapsed_s > limits.time_s:
        return f"over its time limit of {limits.time_s:g} s; hint: raise limits.case_time (a training then continues)"
    if silent_s > limits.hang_s:
        return f"no progress for {silent_s:.0f} s"
    resident = running.resident_bytes() if limits.memory_bytes else None
    if resident and limits.memory_bytes and resident > limits.memory_bytes:
        return (
            f"over its memory limit of {human_bytes(limits.memory_bytes)} by "
            f"{human_bytes(resident - limits.memory_bytes)}; "
            "hint: lower batching.micro_sequences, or raise limits.case_memory"
        )
    return None


def _outcome(place: Path, ended: Exit, reason: str | None) -> Outcome:
    """What the worker left, or why it left nothing."""
    found = place / "outcome.json"
    if found.exists():
        try:
            return Outcome.model_validate_json(found.read_text())
        except ValueError as error:  # damaged on its way: the case has no result
            return Outcome(status="failed", reason=f"{found.name} cannot be understood: {str(error).splitlines()[0]}")
    reason = reason or ended.reason
    if reason is None and ended.signal is not None:
        reason = f"its process was ended by {signal_name(ended.signal)}"
        if ended.signal == signal.SIGKILL:
            reason += " (by hand, or by the kernel for want of memory)"
    if reason is None:
        reason = f"its process left with code {ended.code} and no result{_want(place)}; see {place.name}/log.txt"
    return Outcome(status="failed", reason=reason)


def _want(place: Path) -> str:
    """What its last words say that it had too little of: where memory is short, an outcome cannot be written either."""
    try:
        last = (place / "log.txt").read_bytes()[-LOG_TAIL_BYTES:]
    except OSError:
        return ""
    return ", out of memory" if b"MemoryError" in last or b"allocate memory" in last else ""
