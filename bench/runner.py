"""Plan -> records: run every case that has none yet, and write each record as it is made.

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
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

from bench import trials
from bench.case import TUNING, Case
from bench.casefolder import Outcome, forget_scratch, write_atomically
from bench.flight import Display, Flight, Limits, RunContext, launch, look, stop
from bench.plainjson import parse
from bench.plan import Plan
from bench.record import CaseKey, Record, append, read
from bench.registration import NotRegistered, register
from bench.study import PUT_BACK

__all__ = ["Display", "FolderInUse", "Limits", "OtherRun", "RunContext", "adopt", "locked", "run_cases"]

POLL_EVERY_S = 0.1
MAX_LOSSES = 3
"""A case that is lost from outside more often than this in one run is left to the next run."""


class FolderInUse(RuntimeError):
    """Another run is writing into this folder."""


class OtherRun(ValueError):
    """The folder holds another study."""


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold the folder for this process (flock: gone with the process, however that ends).

    Raises:
        FolderInUse: another run holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"the run folder {folder} cannot be made ({error.strerror}); hint: name one by --out") from error
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
            held = parse(known.read_text(encoding="utf-8"))
        except ValueError as error:
            raise OtherRun(f"{known}: not readable ({error}); {PUT_BACK}") from error
        if not isinstance(held, dict):
            raise OtherRun(f"{known}: holds a JSON {type(held).__name__}, expected an object; {PUT_BACK}")
        held = cast("dict[str, Any]", held).get("run")
        if held != plan.run:
            raise OtherRun(
                f"{folder} holds run {held}, this is run {plan.run}: the suite, the budget, the version or the machine "
                "is another than in its suite.yaml and plan.json; hint: choose another --out"
            )
        _refuse_dropped(folder, plan)
    elif (folder / "records.jsonl").exists():
        raise OtherRun(f"{folder} holds records without a plan; {PUT_BACK}")
    for written in (folder / "suite.yaml", known, folder / "environment.json"):
        forget_scratch(written)
    write_atomically(folder / "suite.yaml", suite_yaml)
    write_atomically(known, plan.to_json())
    write_atomically(folder / "environment.json", json.dumps(environment, indent=1))


def _refuse_dropped(folder: Path, plan: Plan) -> None:
    """Where the folder holds records of cases that are no longer planned: seeds may be added, never dropped."""
    path = folder / "records.jsonl"
    planned = {case.id for case in plan.cases}
    left = [record.case for record in (read(path) if path.exists() else []) if record.case.id not in planned]
    if not left:
        return
    seeds = sorted({case.seed for case in left if case.seed is not None} - set(plan.design.seeds))
    which = f"seed {', '.join(map(str, seeds))}" if seeds else f"case {left[0].id} ({left[0].kind} {left[0].arm})"
    raise OtherRun(
        f"{folder} holds records of {which}, which this suite leaves out; hint: seeds may be added, never dropped: "
        "put it back, or choose another --out"
    )


def run_cases(folder: Path, plan: Plan, context: RunContext) -> list[Record]:
    """Run whatever has no finished record, in the plan's order; returns this call's records.

    As many cases run at once as the executor has places for; a case waits for those it builds on.

    Raises:
        KeyboardInterrupt: after the cases in flight have saved themselves.
        RecordError: the folder's records cannot be trusted.
        ExecutorError: there is nowhere left to run cases.
    """
    path = folder / "records.jsonl"
    known = read(path) if path.exists() else []
    attempts = Counter(record.case.id for record in known)
    finished = {record.case.id: record for record in known if record.status != "failed"}
    cases = {case.id: case for case in plan.cases}
    waiting = [case for case in plan.cases if case.id not in finished]
    flights: list[Flight] = []
    losses: Counter[str] = Counter()
    tuning: dict[str, dict[str, Any]] = {}
    made: list[Record] = []
    broken: dict[str, str] = {}
    """Case -> the case that failed first on the way to it, and why."""

    def note(case: Case, outcome: Outcome) -> None:
        attempts[case.id] += 1
        record = _record(case, outcome, attempts[case.id], context, tuning[case.id])
        append(path, record)
        (folder / "cases" / case.id / "outcome.json").unlink(missing_ok=True)
        made.append(record)
        if record.status != "failed":
            finished[case.id] = record
            broken.pop(case.id, None)
            _drop_checkpoint(folder, case)
        else:
            why = f"{case.label} ({case.id}) failed: {(record.reason or 'no reason').splitlines()[0]}"
            broken[case.id] = next((broken[parent] for parent in case.parents if parent in broken), why)
        context.display.case_ended(case, record)

    context.display.begin(plan, finished)
    try:
        with interruptible():
            while waiting or flights:
                while len(flights) < context.executor.slots and (case := _next(waiting, flights)):
                    waiting.remove(case)
                    context.display.case_started(case)
                    begun, tuning[case.id] = _begin(folder, case, cases, finished, broken, context)
                    if isinstance(begun, Outcome):
                        note(case, begun)
                    else:
                        flights.append(begun)
                for flight in list(flights):
                    if (end := look(flight, context)) is None:
                        continue
                    flights.remove(flight)
                    outcome, lost = end
                    note(flight.case, outcome)
                    losses[flight.case.id] += lost
                    if lost and losses[flight.case.id] <= MAX_LOSSES:
                        waiting.insert(0, cases[flight.case.id])
                if flights:
                    time.sleep(POLL_EVERY_S)
    except KeyboardInterrupt:
        _stop_all(flights, context)
        raise
    finally:
        context.display.end()
        context.executor.close()
    return made


def _next(waiting: Sequence[Case], flights: Sequence[Flight]) -> Case | None:
    """The first case whose parents have all come to an end, good or bad."""
    open_ids = {case.id for case in waiting} | {flight.case.id for flight in flights}
    return next((case for case in waiting if not open_ids.intersection(case.parents)), None)


def _stop_all(flights: Sequence[Flight], context: RunContext) -> None:
    """Every case in flight saves its state; all are asked before the first is waited for."""
    for flight in flights:
        context.display.note(f"stopping: {flight.case.label} saves its state")
        flight.running.terminate()
    for flight in flights:
        stop(flight)


def _begin(
    folder: Path,
    case: Case,
    cases: Mapping[str, Case],
    finished: Mapping[str, Record],
    broken: Mapping[str, str],
    context: RunContext,
) -> tuple[Flight | Outcome, dict[str, Any]]:
    """Start a case, with the setting that its trials chose where it has any; and how that was chosen.

    A case that cannot run, or whose outcome a killed runner left behind, has its outcome at once.
    """
    blocked = _blocked(case, cases, finished, broken) or _bereft(folder, case, cases)
    if blocked is not None:
        return blocked, {}
    if "tune" not in case.spec or case.recipe is None:
        return launch(folder, case, context), {}
    choice = trials.choice(case, cases, finished)
    if choice is None:
        reason = (
            f"not run: every trial of {case.arm} at scale {case.scale} diverged; hint: lower the rates of `tune.lr`"
        )
        return Outcome(status="failed", reason=reason), {}
    tuned = case.model_copy(update={"recipe": trials.at(case.recipe, choice.setting)})
    return launch(folder, tuned, context), {"tuning": choice.to_dict(case.spec["tune"]["metric"])}


def _blocked(
    case: Case, cases: Mapping[str, Case], finished: Mapping[str, Record], broken: Mapping[str, str]
) -> Outcome | None:
    """A case that cannot run gets its reason instead. A trial that diverged is a bad setting, not an obstacle."""
    if not case.applies:
        return Outcome(status="not_applicable", reason=case.reason)
    if not case.fits:
        return Outcome(status="failed", reason=f"not run: {case.reason}")
    for parent in case.parents:
        record = finished.get(parent)
        if record is None:
            return Outcome(status="failed", reason=f"not run: {broken[parent]}")
        if record.status == "not_applicable":
            return Outcome(status="not_applicable", reason=record.reason)
        if record.status == "diverged" and cases[parent].purpose != "tune":
            return Outcome(status="failed", reason=f"not run: {cases[parent].label} ({parent}), its parent, diverged")
    return None


def _bereft(folder: Path, case: Case, cases: Mapping[str, Case]) -> Outcome | None:
    """A case whose parents ended well and left what is no longer there, as when only the records were copied."""
    for parent in case.parents:
        left = folder / "cases" / parent
        if cases[parent].purpose != "tune" and not left.is_dir():
            reason = (
                f"not run: what {cases[parent].label} left is gone ({left}); hint: bring the folder back, or begin "
                "anew with --out DIR"
            )
            return Outcome(status="failed", reason=reason)
    return None


def _record(case: Case, outcome: Outcome, attempt: int, context: RunContext, tuning: Mapping[str, Any]) -> Record:
    trial = {"trial": case.spec.get("trial", {})} if case.purpose in TUNING else {}
    return Record(
        status=outcome.status,
        attempt=attempt,
        segments=outcome.segments,
        commit=context.commit,
        env=outcome.env or context.env,
        reason=outcome.reason,
        case=CaseKey(id=case.id, kind=case.kind, arm=case.arm, scale=case.scale, seed=case.seed, horizon=case.horizon),
        metrics=outcome.metrics,
        detail={**outcome.detail, **trial, **tuning},
    )


def _drop_checkpoint(folder: Path, case: Case) -> None:
    """A finished training keeps its weights, not its optimizer."""
    shutil.rmtree(folder / "cases" / case.id / "checkpoint", ignore_errors=True)


@contextlib.contextmanager
def interruptible() -> Generator[None]:
    """SIGTERM, and a terminal that is closed, stop a run like Ctrl-C does: with the case in flight saved."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    heard = [signal.SIGTERM, signal.SIGHUP]
    before = {one: signal.getsignal(one) for one in heard if signal.getsignal(one) != signal.SIG_IGN}  # as nohup asks
    try:
        for one in before:
            signal.signal(one, stop)
    except ValueError:  # not the main thread: the caller decides about signals
        yield
        return
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler or signal.SIG_DFL)
