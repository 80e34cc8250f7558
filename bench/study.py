"""A run folder as judging sees it: design, plan, one record a case and the item tables, checked against each other.

Records that do not belong to the plan, disagree with it, or hold an item table that was edited are refused here, so
that whatever judges a `Study` can trust it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from bench import looks, registered
from bench.design import ArmDesign, Design
from bench.plainjson import parse
from bench.planned import Contents, PlannedCase
from bench.plausible import implausible
from bench.record import RUN_AGAIN, CaseKind, Record, read

PLAN_SCHEMA = 1
PUT_BACK = "hint: put back the plan.json that the run wrote, or run the suite into another --out"
"""What mends a plan that was changed: records tell nothing without it, and another may be of another machine."""


class StudyError(ValueError):
    """A run folder that cannot be judged: says the file, what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class Items:
    """Per-item results of one evaluation, as parallel columns."""

    task: Sequence[str]
    item: Sequence[str]
    passage: Sequence[str | None]
    score: Sequence[float]
    """1 for a right answer; 1/m for a tie among m best choices."""
    choice_bits_per_byte: Sequence[float | None]


ItemReader = Callable[[Record], Items | None]


@dataclass(frozen=True)
class Study:
    """What a run left, indexed by case."""

    design: Design
    cases: Mapping[str, PlannedCase]
    """Every planned case, in running order."""
    records: Mapping[str, Record]
    """The record of each case that has one: the finished one, else the last failed attempt."""
    items: ItemReader
    """Per-item results of an evaluation; None where they were not kept."""
    run: str = ""
    machine_class: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """arm -> scale -> what the plan computed of it."""
    looks: tuple[frozenset[str], ...] = ()
    """The sets of records (their hashes) that earlier judgings saw."""
    deviations: tuple[str, ...] = ()
    """How it differs from what was registered before its first run, each in words that follow 'if'."""
    is_registered: bool = False
    """Whether it was registered as a confirming study, whatever its plan says now."""

    @property
    def confirms(self) -> bool:
        """Whether it is held to the rules of a confirming study."""
        return self.design.purpose == "confirm" or self.is_registered

    @cached_property
    def _by_place(self) -> dict[tuple[Any, ...], list[PlannedCase]]:
        found: dict[tuple[Any, ...], list[PlannedCase]] = {}
        for case in self.cases.values():
            found.setdefault((case.place, case.arm, case.scale), []).append(case)
        return found

    @cached_property
    def _by_seed(self) -> dict[tuple[Any, ...], list[PlannedCase]]:
        found: dict[tuple[Any, ...], list[PlannedCase]] = {}
        for case in self.cases.values():
            found.setdefault((case.place, case.arm, case.scale, case.seed), []).append(case)
        return found

    def of_seed(self, kind: CaseKind, arm: str, scale: str, seed: int) -> list[PlannedCase]:
        """Planned cases of a kind, arm, scale and seed, in running order."""
        return self._by_seed.get((kind, arm, scale, seed), [])

    def planned(self, kind: CaseKind, arm: str, scale: str | None) -> list[PlannedCase]:
        """Planned cases of a kind, arm and scale, in running order; tuning trials are no trainings."""
        return self._by_place.get((kind, arm, scale), [])

    def trials(self, arm: str, scale: str) -> list[PlannedCase]:
        """Planned tuning trials of an arm at a scale."""
        return self._by_place.get(("trial", arm, scale), [])

    def finished(self, case: PlannedCase) -> Record | None:
        """The case's record if it has a result (`ok` or `diverged`)."""
        record = self.records.get(case.id)
        return record if record is not None and record.status in ("ok", "diverged") else None

    def at(self, kind: CaseKind, arm: str, scale: str, seed: int, horizon: float) -> Record | None:
        """The finished record at a horizon."""
        for case in self.of_seed(kind, arm, scale, seed):
            if same_horizon(case.horizon, horizon):
                return self.finished(case)
        return None

    def evaluations(self, arm: str, scale: str, seed: int, horizon: float) -> list[PlannedCase]:
        """Planned cases that score one training's model: as it is, and after fine-tuning."""
        found = [*self.of_seed("evaluate", arm, scale, seed), *self.of_seed("finetune", arm, scale, seed)]
        return [case for case in found if same_horizon(case.horizon, horizon)]

    def trainings(self, arm: str, scale: str, seed: int) -> list[Record]:
        """Finished trainings of one seed by rising horizon."""
        cases = self.of_seed("train", arm, scale, seed)
        found = [record for case in cases if (record := self.finished(case)) is not None]
        return sorted(found, key=lambda record: record.case.horizon or 0.0)

    def arm(self, name: str) -> ArmDesign | None:
        """The declared arm; None for the baseline.

        Raises:
            StudyError: the study has no such arm.
        """
        if name == self.design.baseline:
            return None
        for arm in self.design.arms:
            if arm.name == name:
                return arm
        known = ", ".join([self.design.baseline, *(arm.name for arm in self.design.arms)])
        raise StudyError(f"the study has no arm {name!r}; hint: one of {known}")

    def reference(self, arm: ArmDesign) -> str:
        """The arm that it is compared with."""
        return arm.against or self.design.baseline

    def ancestors(self, parents: Iterable[str]) -> dict[str, PlannedCase]:
        """These cases and everything that had to be run before them, but for what tuning took."""
        found: dict[str, PlannedCase] = {}
        waiting = list(parents)
        while waiting:
            case = self.cases.get(waiting.pop())
            if case is not None and case.id not in found and not case.is_tuning:
                found[case.id] = case
                waiting.extend(case.parents)
        return found

    @cached_property
    def _needed(self) -> dict[tuple[str, str], dict[str, PlannedCase]]:
        return {}

    def needed(self, arm: str, scale: str) -> Mapping[str, PlannedCase]:
        """Everything that had to be run before the trainings of an arm at a scale."""
        known = self._needed.get((arm, scale))
        if known is None:
            known = self._needed[arm, scale] = {}
            for parents in dict.fromkeys(case.parents for case in self.planned("train", arm, scale)):
                known |= self.ancestors(parents)
        return known

    def without_record(self, cases: Iterable[PlannedCase]) -> list[PlannedCase]:
        """Planned cases that were never brought to any end."""
        return [case for case in cases if case.id not in self.records]

    def failed(self, cases: Iterable[PlannedCase]) -> list[PlannedCase]:
        """Planned cases whose last attempt failed."""
        return [case for case in cases if case.id in self.records and self.records[case.id].status == "failed"]

    def missing_words(self, case: PlannedCase) -> str:
        """Why a case has no result, in words."""
        record = self.records.get(case.id)
        if record is not None and record.status == "not_applicable":
            return f"{case.label}: {record.reason}"
        if record is not None:
            why = (record.reason or "no reason was recorded").replace("\nhint:", "; hint:")
            return f"{case.label}: failed ({why})"
        return f"{case.label}: " + ("no record" if case.fits else f"does not fit ({case.reason})")


def same_horizon(one: float | None, two: float | None) -> bool:
    """Whether two horizons are the same to the rounding of a plan."""
    return one is not None and two is not None and math.isclose(one, two, rel_tol=1e-6)


# --- reading -------------------------------------------------------------------------------------


def load(run: Path) -> Study:
    """Read and check a run folder.

    Raises:
        StudyError: no plan, a plan that cannot be read, or records that do not belong to it.
        RecordError: records that cannot be trusted.
    """
    plan = _plan(run / "plan.json")
    records = read(run / "records.jsonl")
    if not records:
        raise StudyError(f"{run / 'records.jsonl'}: holds no record; hint: `lmbench run` writes one as each case ends")
    try:
        looked = looks.read(run / "looks.jsonl")
        study = assemble(plan, records, _item_reader(run), where=run / "plan.json", looks=looked)
        held = registered.read(run)
        found = tuple(registered.deviations(held, study.run, study.design, looks.first(run / "looks.jsonl")))
    except StudyError:
        raise
    except (TypeError, ValueError) as error:
        raise StudyError(str(error)) from error
    return replace(study, deviations=found, is_registered=held is not None)


def assemble(
    plan: Mapping[str, Any],
    records: Iterable[Record],
    items: ItemReader,
    *,
    where: Path | str = "plan",
    looks: tuple[frozenset[str], ...] = (),
) -> Study:
    """A study of a plan and its records, which are checked against each other.

    Raises:
        StudyError: they do not belong together.
    """
    if plan.get("schema") != PLAN_SCHEMA:
        raise StudyError(
            f"{where}: plan of schema version {plan.get('schema')!r}, this program reads version {PLAN_SCHEMA}; "
            "hint: judge it with the version that wrote it"
        )
    try:
        contents = Contents.model_validate(plan)
    except ValidationError as error:
        first = error.errors()[0]
        raise StudyError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    cases = {case.id: case for case in contents.cases}
    if len(cases) != len(contents.cases):
        raise StudyError(f"{where}: two planned cases have the same id; hint: plan the suite again")
    kept = _one_a_case(records, cases, where)
    return Study(
        design=contents.design,
        cases=cases,
        records=kept,
        items=items,
        run=contents.run,
        machine_class=str(plan.get("machine_class") or ""),
        facts=contents.facts,
        looks=looks,
    )


def _one_a_case(records: Iterable[Record], cases: Mapping[str, PlannedCase], where: Path | str) -> dict[str, Record]:
    kept: dict[str, Record] = {}
    for record in records:
        key = record.case
        case = cases.get(key.id)
        if case is None:
            raise StudyError(
                f"a record of case {key.id} ({key.kind} {key.arm}) is not in {where}: records of another suite or run; "
                "hint: keep the records of one run in one folder"
            )
        place = (case.kind, case.arm, case.scale, case.seed, case.horizon)
        if (key.kind, key.arm, key.scale, key.seed, key.horizon) != place:
            raise StudyError(f"the record of case {key.id} says {key.kind} {key.arm}, {where} says {case.label}")
        impossible = implausible(record)
        if impossible:
            raise StudyError(f"the record of case {key.id} ({case.label}): {impossible}; {RUN_AGAIN}")
        before = kept.get(key.id)
        if before is not None and before.status != "failed":
            if record.status != "failed":
                raise StudyError(f"case {key.id} ({case.label}) has two finished records; hint: keep one of them")
            continue
        kept[key.id] = record
    return kept


def _plan(path: Path) -> Mapping[str, Any]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StudyError(f"{path}: not there; hint: give the run folder that `lmbench run` printed") from None
    except (OSError, ValueError) as error:
        raise StudyError(f"{path}: cannot be read ({error}); {PUT_BACK}") from error
    if not isinstance(found, dict):
        raise StudyError(f"{path}: holds a JSON {type(found).__name__}, expected an object; {PUT_BACK}")
    return cast("Mapping[str, Any]", found)


def _item_reader(run: Path) -> ItemReader:
    def read_items(record: Record) -> Items | None:
        path = run / "cases" / record.case.id / "items.parquet"
        if not path.exists():
            return None
        content = path.read_bytes()
        expected = record.detail.get("items_sha256")
        if expected is None:
            raise StudyError(f"{path}: its record holds no hash of it, so it may be any; {RUN_AGAIN}")
        if hashlib.sha256(content).hexdigest() != expected:
            raise StudyError(f"{path}: does not match the hash in its record (edited or damaged); {RUN_AGAIN}")
        return _items(path, content)

    return read_items


def _items(path: Path, content: bytes) -> Items:
    import pyarrow as pa
    import pyarrow.parquet as pq

    wanted = ["task", "item", "passage", "score", "choice_bits_per_byte"]
    try:
        table = pq.read_table(pa.BufferReader(content), columns=wanted)
        columns = {name: table.column(name) for name in wanted}
    except (pa.ArrowInvalid, KeyError) as error:
        raise StudyError(f"{path}: not a table of items ({error}); {RUN_AGAIN}") from error
    scores = columns["score"].to_numpy()
    if not all(0 <= score <= 1 for score in scores):  # NaN is not
        raise StudyError(f"{path}: holds a score that is no number from 0 to 1; {RUN_AGAIN}")
    return Items(
        task=columns["task"].to_pylist(),
        item=columns["item"].to_pylist(),
        passage=columns["passage"].to_pylist(),
        score=scores,
        choice_bits_per_byte=columns["choice_bits_per_byte"].to_numpy(),
    )
