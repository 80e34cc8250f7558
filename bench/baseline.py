"""The stored values that a gate compares with: one versioned JSON file, a value a seed, meant to be committed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bench.design import Design, GateRule
from bench.metrics import Metric, find
from bench.plausible import MOST
from bench.record import Record
from bench.stats.noise import pooled
from bench.study import PlannedCase, Study, same_horizon

SCHEMA = 1
WITHOUT_SEED = "-"
"""Key of the value of a case that has no seed (preparation)."""


class BaselineError(ValueError):
    """A baseline file that cannot be used: says the file, what is wrong and what to do."""


Stored = Annotated[float, Field(ge=-MOST, le=MOST)]
"""A value that can be summed and squared."""


Sample = Annotated[float, Field(gt=0, le=MOST)]
"""A reading of a block: seconds, or a ratio of seconds, and so never zero."""
CellName = Annotated[str, Field(pattern=r"^[a-z]+ [^ ]")]
"""`train all/s x1`: a kind, then an arm."""


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Cell(_Stored):
    """One metric of one case, over its seeds."""

    values: Annotated[dict[str, Stored], Field(min_length=1)]
    """seed -> value."""
    samples: tuple[Sample, ...] = ()
    """Repeated readings inside one case (interleaved blocks), where the case has no seeds to repeat over."""


class Floor(_Stored):
    """What an A/A run says of a metric: runs that differ in nothing but their initial weights scatter by this much."""

    sd: Annotated[float, Field(ge=0, le=MOST)]
    """Standard deviation of ln(metric) of one run."""
    df: Annotated[int, Field(ge=1)]
    run: str
    """The A/A run."""


class Baseline(_Stored):
    """Everything a run is compared with."""

    schema_: Literal[1] = Field(alias="schema")
    suite: str
    run: str
    machine_class: str
    commit: str | None = None
    metrics: dict[str, dict[CellName, Cell]]
    """metric -> case (`train all/s x1`) -> its values."""
    noise: dict[str, Floor] = Field(default_factory=dict[str, Floor])
    """metric -> its scatter in an A/A run, from which noisy rules take their floor; empty: the rules state it."""


def cells(study: Study, metric: Metric, rule: GateRule) -> dict[str, Cell]:
    """Every case of the study that holds a metric, for the arms a rule is about."""
    values: dict[str, dict[str, float]] = {}
    samples: dict[str, tuple[float, ...]] = {}
    for case in study.cases.values():
        record = study.finished(case)
        if record is None or record.status != "ok" or case.is_tuning or rule.arm not in (None, case.arm):
            continue
        value = metric.of(record)
        if value is not None:
            key = cell_name(study, case)
            values.setdefault(key, {})[seed_name(record)] = value
            samples[key] = _samples(record, metric.name)
    return {key: Cell(values=found, samples=samples[key]) for key, found in values.items()}


def cell_name(study: Study, case: PlannedCase) -> str:
    """`train all/s x1`: the case without its seed. A claim point keeps its name when its horizon moves."""
    name = f"{case.place} {case.arm}" + (f"/{case.scale}" if case.scale else "")
    point = study.design.claim_points.get(case.arm, {}).get(case.scale or "")
    if same_horizon(case.horizon, point) and not same_horizon(case.horizon, 1.0):
        return f"{name} at its claim point"
    return name + (f" x{case.horizon:g}" if case.horizon is not None else "")


def seed_name(record: Record) -> str:
    """The key of a record's value in its cell. A timing has one seed and repeats inside itself."""
    seed = record.case.seed
    return WITHOUT_SEED if seed is None or record.case.kind == "timing" else str(seed)


def _samples(record: Record, metric: str) -> tuple[float, ...]:
    """Readings of single blocks behind a timing's metric."""
    if metric == "decode_time_ratio":
        return tuple(float(one["arm_s"]) / float(one["reference_s"]) for one in record.detail.get("prompts") or ())
    blocks: list[dict[str, Any]] = record.detail.get("blocks") or []
    if record.case.kind != "timing" or metric not in ("step_time_s", "step_time_ratio"):
        return ()
    pairs = [(float(block.get("arm_s") or 0), float(block.get("reference_s") or 0)) for block in blocks]
    if any(arm <= 0 or reference <= 0 for arm, reference in pairs):
        return ()
    return tuple(arm / reference if metric == "step_time_ratio" else arm for arm, reference in pairs)


def of(study: Study, noise: Mapping[str, Floor] | None = None) -> Baseline:
    """The values of a study that its gate rules are about, with the noise to hold against them."""
    metrics: dict[str, dict[str, Cell]] = {}
    for rule in study.design.gate:
        metrics.setdefault(rule.metric, {}).update(cells(study, find(rule.metric), rule))
    commits = {record.commit for record in study.records.values()}
    return Baseline(
        schema=SCHEMA, suite=study.design.suite, run=study.run, machine_class=study.machine_class,
        commit=commits.pop() if len(commits) == 1 else None, metrics=metrics, noise=dict(noise or {}),
    )  # fmt: skip


def noise_of(study: Study, metrics: Sequence[str]) -> dict[str, Floor]:
    """The scatter of metrics over the arms of an A/A study, pooled over its seeds and scales at horizon 1.0.

    A metric that its trainings do not hold (a timing's) is left to the floor of its rule.

    Raises:
        BaselineError: no arm differs from the baseline by its initialisation alone, or no metric has enough values.
    """
    alike = [study.design.baseline, *(arm.name for arm in study.design.arms if _is_placebo(study, arm.name))]
    if len(alike) < 2:
        raise BaselineError(
            f"run {study.run} of {study.design.suite} holds no A/A arm, so it says nothing about noise; "
            "hint: give a run of suites/aa.yaml, or an arm `change: {model: {init_stream: 1}}`"
        )
    found: dict[str, Floor] = {}
    for name in metrics:
        metric = find(name)
        groups: dict[object, list[float]] = {}
        for arm, scale, seed in product(alike, study.design.scales, study.design.seeds):
            record = study.at("train", arm, scale, seed, 1.0)
            value = metric.of(record) if record is not None and record.status == "ok" else None
            if value is not None:
                groups.setdefault((scale, seed), []).append(value)
        noise = pooled(groups)
        if noise is not None:
            found[name] = Floor(sd=noise.sd, df=noise.df, run=f"{study.design.suite}/{study.run}")
    if not found:
        listed = ", ".join(metrics) or "any noisy rule"
        raise BaselineError(f"run {study.run} of {study.design.suite} holds too few values of {listed} to tell noise")
    return found


def _is_placebo(study: Study, arm: str) -> bool:
    """Whether an arm differs from the baseline in the draw of its initial weights and in nothing else."""
    changes = [str(facts.get("change", "")) for facts in study.facts.get(arm, {}).values()]
    return bool(changes) and all(change.startswith("model.init_stream:") and ";" not in change for change in changes)


def without_value(study: Study, design: Design) -> Iterable[GateRule]:
    """Required rules of which the study holds no value at all."""
    return [rule for rule in design.gate if rule.required and not cells(study, find(rule.metric), rule)]


def read(path: Path) -> Baseline:
    """Read a baseline file.

    Raises:
        BaselineError: missing, unreadable, or of another version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = f"hint: write one with `lmbench gate RUN --baseline {path} --update`"
        raise BaselineError(f"{path}: no baseline there; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BaselineError(f"{path}: cannot be read ({error})") from error
    try:
        return Baseline.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise BaselineError(f"{path}: {place}: {first['msg']}; hint: write it again with --update") from error


def write(path: Path, baseline: Baseline) -> None:
    """Write a baseline file, all or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(baseline.model_dump_json(indent=1, by_alias=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
