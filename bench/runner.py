"""Plan -> records: run every case that has none yet, one after the other, and write each record as it is made.

A run folder can be killed at any moment. The next run of the same suite keeps every finished record, continues an
interrupted training from its checkpoint, and tries failed cases again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import signal
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from pydantic import ValidationError

from bench import trials
from bench.case import Case
from bench.casefolder import Job, Outcome, read_progress, write_atomically
from bench.executors import Executor, Exit, Running
from bench.plan import Plan
from bench.process import signal_name
from bench.record import CaseKey, Record, append, read
from bench.registration import NotRegistered, register

POLL_EVERY_S = 0.1
STOP_GRACE_S = 30.0
"""Time a case has to save its checkpoint after being asked to stop."""
HANG_AFTER_S = 900.0
"""A case that reports no progress for this long is ended: the longest silence seen is a compilation of minutes."""
INTERRUPTED = 75
"""Exit code of a worker that was asked to stop (see bench.worker)."""


class FolderInUse(RuntimeError):
    """Another run is writing into this folder."""


class OtherRun(ValueError):
    """The folder holds another study."""


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


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder for this process (flock: gone with the process, however that ends).

    Raises:
        FolderInUse: another run holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(
                f"{folder}: another run is writing here; hint: wait for it, or choose another --out"
            ) from None
        yield


def adopt(folder: Path, plan: Plan, suite_yaml: str, environment: Mapping[str, object]) -> None:
    """Write what a run folder starts with; a folder that holds the same study is continued.

    Raises:
        OtherRun: the folder holds another study, or a confirming study that differs from its registration.
    """
    try:
        register(folder, plan)
    except NotRegistered as error:
        raise OtherRun(str(error)) from None
    known = folder / "plan.json"
    if known.exists():
        try:
            held = json.loads(known.read_text()).get("run")
        except ValueError as error:
            raise OtherRun(f"{known}: not readable ({error}); hint: move the folder away") from error
        if held != plan.run:
            raise OtherRun(f"{folder} holds run {held}, this is run {plan.run}; hint: choose another --out")
    elif (folder / "records.jsonl").exists():
        raise OtherRun(f"{folder} holds records without a plan; hint: choose another --out")
    write_atomically(folder / "suite.yaml", suite_yaml)
    write_atomically(known, plan.to_json())
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1))


def run_cases(folder: Path, plan: Plan, context: RunContext) -> list[Record]:
    """Run whatever has no finished record, in the plan's order; returns this call's records.

    Raises:
        KeyboardInterrupt: after the case in flight has saved itself.
        RecordError: the folder's records cannot be trusted.
    """
    path = folder / "records.jsonl"
    known = read(path) if path.exists() else []
    attempts = {case.id: sum(r.case.id == case.id for r in known) for case in plan.cases}
    finished = {record.case.id: record for record in known if record.status != "failed"}
    cases = {case.id: case for case in plan.cases}
    made: list[Record] = []
    context.display.begin(plan, finished)
    try:
        with _interruptible():
            for case in plan.cases:
                if case.id in finished:
                    continue
                context.display.case_started(case)
                outcome, tuning = _run(folder, case, cases, finished, context)
                record = _record(case, outcome, attempts[case.id] + 1, context, tuning)
                append(path, record)
                (folder / "cases" / case.id / "outcome.json").unlink(missing_ok=True)
                made.append(record)
                if record.status != "failed":
                    finished[case.id] = record
                    _drop_checkpoint(folder, case)
                context.display.case_ended(case, record)
    finally:
        context.display.end()
        context.executor.close()
    return made


def _run(
    folder: Path, case: Case, cases: Mapping[str, Case], finished: Mapping[str, Record], context: RunContext
) -> tuple[Outcome, dict[str, Any]]:
    """One case, with the setting that its trials chose where it has any; the outcome and how that was chosen."""
    blocked = _blocked(case, cases, finished)
    if blocked is not None:
        return blocked, {}
    if "tune" not in case.spec or case.recipe is None:
        return _execute(folder, case, context), {}
    choice = trials.choice(case, cases, finished)
    if choice is None:
        reason = (
            f"not run: every trial of {case.arm} at scale {case.scale} diverged; hint: lower the rates of `tune.lr`"
        )
        return Outcome(status="failed", reason=reason), {}
    tuned = case.model_copy(update={"recipe": trials.at(case.recipe, choice.setting)})
    return _execute(folder, tuned, context), {"tuning": choice.to_dict(case.spec["tune"]["metric"])}


def _blocked(case: Case, cases: Mapping[str, Case], finished: Mapping[str, Record]) -> Outcome | None:
    """A case that cannot run gets its reason instead. A trial that diverged is a bad setting, not an obstacle."""
    if not case.applies:
        return Outcome(status="not_applicable", reason=case.reason)
    if not case.fits:
        return Outcome(status="failed", reason=f"not run: {case.reason}")
    for parent in case.parents:
        record = finished.get(parent)
        if record is None:
            return Outcome(status="failed", reason=f"not run: case {parent}, which it builds on, has no result")
        if record.status == "not_applicable":
            return Outcome(status="not_applicable", reason=record.reason)
        if record.status == "diverged" and cases[parent].purpose != "tune":
            return Outcome(status="failed", reason=f"not run: case {parent}, which it builds on, diverged")
    return None


def _execute(folder: Path, case: Case, context: RunContext) -> Outcome:
    """One case from start to outcome.

    Raises:
        KeyboardInterrupt: the run was asked to stop.
    """
    place = folder / "cases" / case.id
    place.mkdir(parents=True, exist_ok=True)
    job = Job(
        case=case,
        parents={parent: str((folder / "cases" / parent).resolve()) for parent in case.parents},
        commit=context.commit,
        env=context.env,
        flops_per_s_peak=context.flops_per_s_peak.get(case.recipe.precision.arithmetic) if case.recipe else None,
        idle_power_w=context.idle_power_w,
    )
    left = _left_by_killed_runner(place, job)
    if left is not None:
        return left
    for stale in ("outcome.json", "progress.json"):
        (place / stale).unlink(missing_ok=True)
    write_atomically(place / "case.json", job.model_dump_json())
    running = context.executor.start(place)
    try:
        ended, reason = _watch(running, case, place, context)
    except KeyboardInterrupt:
        context.display.note(f"stopping: {case.label} saves its state")
        _stop(running)
        raise
    return _outcome(place, ended, reason)


def _left_by_killed_runner(place: Path, job: Job) -> Outcome | None:
    """The outcome of a case that finished when its runner was no longer there to record it."""
    try:
        same = Job.model_validate_json((place / "case.json").read_text()) == job
        outcome = Outcome.model_validate_json((place / "outcome.json").read_text())
    except (OSError, ValidationError):
        return None
    return outcome if same and outcome.status != "failed" else None


def _watch(running: Running, case: Case, place: Path, context: RunContext) -> tuple[Exit, str | None]:
    """Wait for the end; a case over its limits is stopped, with the reason."""
    begun_s = last_news_s = time.monotonic()
    last: Mapping[str, object] | None = None
    while (ended := running.poll()) is None:
        time.sleep(POLL_EVERY_S)
        now_s = time.monotonic()
        progress = read_progress(place)
        if progress is not None and progress != last:
            last, last_news_s = progress, now_s
            context.display.case_progress(case, progress)
        reason = _over_limit(running, context.limits, now_s - begun_s, now_s - last_news_s)
        if reason:
            return _stop(running), reason
    return ended, None


def _over_limit(running: Running, limits: Limits, elapsed_s: float, silent_s: float) -> str | None:
    if elapsed_s > limits.time_s:
        return f"over its time limit of {limits.time_s:g} s; hint: raise limits.case_time (a training then continues)"
    if silent_s > limits.hang_s:
        return f"no progress for {silent_s:.0f} s"
    resident = running.resident_bytes() if limits.memory_bytes else None
    if resident and limits.memory_bytes and resident > limits.memory_bytes:
        return (
            f"over its memory limit: {resident / 2**30:.2f} GiB of {limits.memory_bytes / 2**30:.2f} GiB; "
            "hint: lower batching.micro_sequences, or raise limits.case_memory"
        )
    return None


def _stop(running: Running) -> Exit:
    """SIGTERM, then SIGKILL when the grace is over."""
    running.terminate()
    deadline_s = time.monotonic() + STOP_GRACE_S
    while (ended := running.poll()) is None:
        if time.monotonic() > deadline_s:
            running.kill()
            deadline_s += STOP_GRACE_S
        time.sleep(POLL_EVERY_S / 4)
    return ended


def _outcome(place: Path, ended: Exit, reason: str | None) -> Outcome:
    """What the worker left, or why it left nothing."""
    found = place / "outcome.json"
    if found.exists():
        return Outcome.model_validate_json(found.read_text())
    if reason is None and ended.signal is not None:
        reason = f"its process was ended by {signal_name(ended.signal)}"
        if ended.signal == signal.SIGKILL:
            reason += " (by hand, or by the kernel for want of memory)"
    if reason is None:
        reason = f"its process left with code {ended.code} and no result; see {place.name}/log.txt"
    return Outcome(status="failed", reason=reason)


def _record(case: Case, outcome: Outcome, attempt: int, context: RunContext, tuning: Mapping[str, Any]) -> Record:
    trial = {"trial": case.spec["trial"]} if "trial" in case.spec else {}
    return Record(
        status=outcome.status,
        attempt=attempt,
        segments=outcome.segments,
        commit=context.commit,
        env=context.env,
        reason=outcome.reason,
        case=CaseKey(id=case.id, kind=case.kind, arm=case.arm, scale=case.scale, seed=case.seed, horizon=case.horizon),
        metrics=outcome.metrics,
        detail={**outcome.detail, **trial, **tuning},
    )


def _drop_checkpoint(folder: Path, case: Case) -> None:
    """A finished training keeps its weights, not its optimizer."""
    shutil.rmtree(folder / "cases" / case.id / "checkpoint", ignore_errors=True)


@contextlib.contextmanager
def _interruptible() -> Generator[None]:
    """SIGTERM stops a run like Ctrl-C does: with the case in flight saved."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: the caller decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
