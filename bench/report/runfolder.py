"""A finished (or half-finished) study as it lies on disk, read once and asked many times.

Reads `records.jsonl`, `plan.json`, `verdict.json`, `environment.json`, `suite.yaml` and `looks.jsonl` of a run folder.
Only the plan and the records must be there; what else is missing is said on the page, never guessed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from bench.design import ArmDesign, Design
from bench.plainjson import parse
from bench.record import CaseKind, Record, packed, read
from bench.study import PUT_BACK, Study, StudyError, assemble


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric over the seeds of one arm: the mean with its standard deviation, or why there is none."""

    value: float | None
    sd: float | None
    n: int
    unit: str
    sources: tuple[str, ...]
    """Ids of the cases it was read from."""
    grades: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Everything a report is made of."""

    run: Path
    name: str
    design: Design
    plan: dict[str, Any]
    records: tuple[Record, ...]
    verdict: dict[str, Any] | None
    environment: dict[str, Any]
    suite_text: str
    looks: tuple[dict[str, Any], ...] = ()
    absent: tuple[str, ...] = field(default=())
    """Files of the run folder that are not there, each with what it would have told."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Every arm, the baseline first; its place is its number in all plots."""
        return (self.design.baseline, *(arm.name for arm in self.design.arms))

    def style(self, arm: str) -> int:
        """The arm's number: marker, line and colour follow from it."""
        return self.arms.index(arm) if arm in self.arms else len(self.arms)

    def declared(self, arm: str) -> ArmDesign | None:
        """What the suite says about an arm; None for the baseline."""
        return next((one for one in self.design.arms if one.name == arm), None)

    def role(self, arm: str) -> str:
        """`reference`, or the declared role."""
        declared = self.declared(arm)
        return "reference" if declared is None else declared.role

    def reference(self, arm: str) -> str:
        """The arm that this one is compared with."""
        declared = self.declared(arm)
        return (declared.against if declared else None) or self.design.baseline

    def of(
        self, kind: CaseKind, arm: str | None = None, scale: str | None = None, horizon: float | None = None
    ) -> list[Record]:
        """Finished records of a kind but for tuning trials, in the order of seed and horizon."""
        found = [
            record
            for record in self.records
            if record.status == "ok"
            and record.case.kind == kind
            and not record.is_trial
            and arm in (None, record.case.arm)
            and scale in (None, record.case.scale)
            and (horizon is None or same(record.case.horizon, horizon))
        ]
        return sorted(found, key=lambda record: (record.case.horizon or 0.0, record.case.seed or 0, record.case.id))

    def planned(self, arm: str, scale: str) -> dict[str, Any]:
        """What the plan computed about an arm at a scale: parameters, FLOPs a token, the change in words."""
        return mapping(mapping(mapping(self.plan.get("arms")).get(arm)).get(scale))

    def full_horizon(self) -> float:
        """The horizon at which arms are compared: 1.0 where the study has it, else the longest."""
        horizons = self.design.horizons
        return 1.0 if not horizons or any(same(one, 1.0) for one in horizons) else max(horizons)

    def judged(self, arm: str) -> dict[str, Any]:
        """The verdict's entry of an arm; empty where there is none."""
        return mapping(mapping((self.verdict or {}).get("arms")).get(arm))


def same(one: float | None, two: float | None) -> bool:
    """Whether two horizons are the same."""
    return one is not None and two is not None and math.isclose(one, two, rel_tol=1e-9)


def mapping(value: Any) -> dict[str, Any]:
    """`value` where it is a mapping, else an empty one: verdicts and fingerprints vary from version to version."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def sequence(value: Any) -> list[Any]:
    """`value` where it is a list, else an empty one."""
    return list(cast("Iterable[Any]", value)) if isinstance(value, list | tuple) else []


def number(value: Any) -> float | None:
    """`value` where it is a finite number, else None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def over_seeds(records: Sequence[Record], metric: str) -> Mean:
    """Mean of a metric over records, with the reason of the first missing reading where none has a value."""
    found = [(record, record.metrics[metric]) for record in records if metric in record.metrics]
    known = [(record, one) for record, one in found if one.value is not None]
    if not known:
        reasons = [one.reason for _, one in found if one.reason]
        why = reasons[0] if reasons else "no record holds it" if records else "no case of this arm has ended well"
        return Mean(None, None, 0, found[0][1].unit if found else "", (), (), why)
    values = [float(one.value) for _, one in known if one.value is not None]
    return Mean(
        value=statistics.fmean(values),
        sd=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        unit=known[0][1].unit,
        sources=tuple(record.case.id for record, _ in known),
        grades=tuple(sorted({one.grade for _, one in known if one.grade})),
    )


def load(run: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        StudyError: no plan or no records there, records of another run, or a file that is not what it should be.
        RecordError: the records cannot be trusted.
    """
    if not run.is_dir():
        raise StudyError(f"{run}: no such run folder; hint: give the folder that `lmbench run` printed")
    plan = _json(run / "plan.json", PUT_BACK)
    if plan is None:
        raise StudyError(f"{run}: holds no plan.json, so nothing can be reported; hint: is it a run folder?")
    if not any(file.exists() for file in (run / "records.jsonl", packed(run / "records.jsonl"))):
        raise StudyError(f"{run}: holds no records.jsonl yet; hint: `lmbench run` writes one as cases finish")
    records, looks = read(run / "records.jsonl"), _lines(run / "looks.jsonl")
    study = assemble(plan, records, lambda _: None, where=run / "plan.json")
    verdict, environment = _json(run / "verdict.json"), _json(run / "environment.json")
    unjudged = "verdict.json: the study has not been judged yet (`lmbench judge`)"
    if verdict is not None and looks and not _is_of(looks[-1], study):
        verdict = None
        unjudged = "verdict.json: drawn from other records than these (`lmbench judge` judges again)"
    suite = run / "suite.yaml"
    absent = [
        text
        for there, text in (
            (verdict is not None, unjudged),
            (environment is not None, "environment.json: the machine is not known"),
            (suite.exists(), "suite.yaml: the suite's text is not known"),
        )
        if not there
    ]
    return RunFolder(
        run=run,
        name=str(plan.get("run") or run.name),
        design=study.design,
        plan=plan,
        records=tuple(records),
        verdict=verdict,
        environment=environment or {},
        suite_text=_text(suite) if suite.exists() else "",
        looks=tuple(looks),
        absent=tuple(absent),
    )


def _is_of(look: dict[str, Any], study: Study) -> bool:
    """Whether a look, and so the verdict that it ended with, was at the records that are there now."""
    return set(map(str, sequence(look.get("records")))) == {record.sha256 for record in study.records.values()}


def _json(path: Path, hint: str = "hint: delete it and judge or run again") -> dict[str, Any] | None:
    if not path.exists():
        return None
    text = _text(path, hint)
    try:
        value = parse(text)
    except ValueError as error:
        raise StudyError(f"{path}: not JSON ({error}); {hint}") from error
    if not isinstance(value, dict):
        raise StudyError(f"{path}: holds a JSON {type(value).__name__}, expected an object; {hint}")
    return cast("dict[str, Any]", value)


def _text(path: Path, hint: str = "hint: put back the file that the run wrote, or delete it") -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise StudyError(f"{path}: not UTF-8 at byte {error.start}; {hint}") from error


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines: list[dict[str, Any]] = []
    for line in _text(path).splitlines():
        try:
            lines.append(mapping(parse(line)))
        except ValueError:
            continue  # torn by a kill: a look that was never finished
    return [line for line in lines if line]
