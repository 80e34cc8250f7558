"""A run folder as trackers want it: one entry a record, with flat names, numbers, and words for what is missing.

Needs nothing but the records and the plan; each tracker's own file turns entries into calls of its library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.record import Record
from bench.report.runfolder import RunFolder, load, mapping, number, sequence

FILES = ("report.html", "report.md", "verdict.json", "suite.yaml", "environment.json")
"""Files of the run folder that go along where a tracker keeps files."""


@dataclass(frozen=True, slots=True)
class Point:
    """A point of a loss curve."""

    tokens: int
    loss: float
    seconds: float | None
    train_flops: float | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One record."""

    key: str
    """Ten hex digits of the record's hash: the same record has the same key, an edited or repeated case another."""
    name: str
    """`train moe/s seed 0 x1`."""
    group: str
    """Arm and scale: what seeds and horizons are compared within."""
    labels: Mapping[str, str]
    """What it is, in words: case, kind, arm, scale, seed, horizon, status, commit, machine."""
    metrics: Mapping[str, float]
    """Readings with a value; the unit stands in the name or in `units`."""
    units: Mapping[str, str]
    missing: Mapping[str, str]
    """Readings without a value: the reason. Never sent as a number."""
    curve: Sequence[Point]
    final_tokens: int
    """Tokens trained on: where on the axis the metrics stand; 0 where nothing was trained."""


@dataclass(frozen=True, slots=True)
class Study:
    """A run folder's records, ready to be sent."""

    suite: str
    run: str
    entries: tuple[Entry, ...]
    outcomes: Mapping[str, str]
    """Arm -> the verdict's word."""
    files: tuple[Path, ...]


def read(run: Path) -> Study:
    """Everything of a run folder that a tracker gets.

    Raises:
        StudyError, RecordError: the folder holds no run, or its records cannot be trusted.
    """
    folder = load(run)
    arms = mapping((folder.verdict or {}).get("arms"))
    return Study(
        suite=folder.design.suite,
        run=folder.name,
        entries=tuple(_entry(folder, record) for record in folder.records if record.status != "failed"),
        outcomes={arm: str(mapping(found).get("outcome")) for arm, found in arms.items()},
        files=tuple(path for name in FILES if (path := run / name).is_file()),
    )


def _entry(folder: RunFolder, record: Record) -> Entry:
    case = record.case
    named = {"scale": case.scale, "seed": case.seed, "horizon": case.horizon}
    place = f"{case.arm}/{case.scale}" if case.scale else case.arm
    change = folder.planned(case.arm, case.scale or "").get("change")
    labels = {"suite": folder.design.suite, "run": folder.name, "case": case.id, "kind": case.kind, "arm": case.arm,
              "status": record.status, "attempt": str(record.attempt), "segments": str(record.segments)}  # fmt: skip
    labels |= {name: f"{value:g}" if isinstance(value, float) else str(value)
               for name, value in named.items() if value is not None}  # fmt: skip
    labels |= {name: text for name, text in (("commit", record.commit), ("machine", record.env),
                                             ("change", change), ("reason", record.reason)) if text}  # fmt: skip
    seed = "" if case.seed is None else f" seed {case.seed}"
    horizon = "" if case.horizon is None else f" x{case.horizon:g}"
    known = {name: one for name, one in record.metrics.items() if one.value is not None}
    return Entry(
        key=(record.sha256 or "")[:10],
        name=f"{case.kind} {place}{seed}{horizon}",
        group=place,
        labels=labels,
        metrics={name: float(one.value) for name, one in known.items() if one.value is not None},
        units={name: one.unit for name, one in known.items()},
        missing={name: one.reason or "not recorded" for name, one in record.metrics.items() if one.value is None},
        curve=tuple(_points(record)),
        final_tokens=int(number(record.detail.get("tokens")) or 0),
    )


def _points(record: Record) -> list[Point]:
    found: list[Point] = []
    for raw in sequence(record.detail.get("curve")):
        point = mapping(raw)
        tokens, loss = number(point.get("tokens")), number(point.get("loss"))
        if tokens is not None and loss is not None:
            found.append(Point(int(tokens), loss, number(point.get("seconds")), number(point.get("train_flops"))))
    return found
