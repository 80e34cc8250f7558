"""A plan, an executor and a display that need neither torch nor time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path

from bench.case import Case
from bench.casefolder import Job, Outcome, write_atomically
from bench.design import ArmDesign, Design
from bench.executors import Exit
from bench.plan import Plan
from bench.record import Record, reading

Behaviour = Callable[[Job, Path], Exit | None]
"""What a fake case does when started: leaves files, and says how it ends (None: it never does)."""


def succeed(job: Job, folder: Path) -> Exit:
    """A case that finds one number."""
    outcome = Outcome(status="ok", metrics={"val_loss": reading(4.0, "nat/token", "counted")})
    write_atomically(folder / "outcome.json", outcome.model_dump_json())
    return Exit(0)


class FakeExecutor:
    """Runs `behaviours[case id]`, or succeeds; remembers what it started."""

    is_remote = False

    def __init__(self, behaviours: Mapping[str, Behaviour] | None = None, slots: int = 1) -> None:
        self.behaviours = behaviours or {}
        self.slots = slots
        self.started: list[str] = []
        self.closed = False

    def start(self, folder: Path) -> FakeRunning:
        job = Job.model_validate_json((folder / "case.json").read_text())
        self.started.append(job.case.id)
        return FakeRunning(self.behaviours.get(job.case.id, succeed)(job, folder))

    def close(self) -> None:
        self.closed = True


class FakeRunning:
    """Ends as its behaviour said, or when it is told to."""

    def __init__(self, end: Exit | None, resident: int | None = 1000) -> None:
        self.end = end
        self.resident = resident
        self.asked_to_stop = False

    def poll(self) -> Exit | None:
        return self.end

    def is_waiting(self) -> bool:
        return False

    def resident_bytes(self) -> int | None:
        return self.resident

    def terminate(self) -> None:
        self.asked_to_stop = True
        self.end = self.end or Exit(75)

    def kill(self) -> None:
        self.end = Exit(None, 9)


class FakeDisplay:
    """Keeps what it was told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def begin(self, plan: Plan, finished: Mapping[str, Record]) -> None:
        self.finished_before = set(finished)

    def case_started(self, case: Case) -> None: ...

    def case_progress(self, case: Case, progress: Mapping[str, object]) -> None: ...

    def case_ended(self, case: Case, record: Record) -> None:
        self.ended.append((case.id, record.status))

    def note(self, text: str) -> None:
        self.notes.append(text)

    def end(self) -> None: ...


def case(number: int, *, parents: tuple[str, ...] = (), **fields: object) -> Case:
    """A case with an id made of one digit."""
    return Case.model_validate(
        {"id": f"{number:x}" * 16, "kind": "prepare", "arm": "dense", "purpose": "corpus", "parents": parents} | fields
    )


def plan(*cases: Case, run: str = "0123456789") -> Plan:
    """A plan of these cases."""
    design = Design(
        suite="fake", baseline="dense", arms=(ArmDesign(name="moe", role="component"),),
        scales=("s",), seeds=(0,), horizons=(1.0,),
    )  # fmt: skip
    return Plan(schema=1, run=run, machine_class="fake", design=design, arms={}, cases=cases)


def chain(length: int) -> tuple[Case, ...]:
    """Cases that each build on the one before."""
    cases: list[Case] = []
    for number in itertools.islice(itertools.count(1), length):
        cases.append(case(number, parents=(cases[-1].id,) if cases else ()))
    return tuple(cases)
