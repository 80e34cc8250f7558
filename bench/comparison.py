"""Two or more runs side by side: the mean of each metric over the seeds that they share, and how runs differ."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.forecast import columns
from bench.plainjson import parse
from bench.record import Record, RecordError, packed, read
from bench.words import listed, several

SHOWN = (
    "val_loss",
    "bits_per_byte",
    "train_flops",
    "train_flops_per_token",
    "train_time_s",
    "step_time_s",
    "step_time_ratio",
    "energy_j",
    "peak_memory_bytes",
    "params_total",
    "params_active",
    "decode_flops_per_token",
    "decode_time_ratio",
    "decode_tokens_per_s",
    "token_accuracy",
    "token_agreement",
)
"""Metrics compared beside the accuracies."""
Key = tuple[str, str, str | None, float | None, str, str]
"""kind, arm, scale, horizon, metric, unit"""


class TooFewRuns(RecordError):
    """Fewer than two runs to compare."""


def rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row a kind of case, arm, scale, horizon and metric.

    `values` holds each run's mean over `seeds`, those that all runs with this row share (None where a run lacks it);
    where they share none, each has the mean over its own and is not `paired`. `modelled`: some reading is an estimate.

    Raises:
        RecordError: a run's records cannot be trusted.
        TooFewRuns: fewer than two runs were named.
    """
    if len(runs) < 2:
        raise TooFewRuns("compare needs at least two run folders; hint: those that `lmbench run` printed")
    found = [_readings(_records(run)) for run in runs]
    keys = sorted({key for by_seed in found for key in by_seed}, key=str)
    return [_row(key, [by_seed.get(key, {}) for by_seed in found]) for key in keys]


def _row(key: Key, found: Sequence[Mapping[int | None, tuple[float, str | None]]]) -> dict[str, Any]:
    kind, arm, scale, horizon, metric, unit = key
    there = [by_seed for by_seed in found if by_seed]
    shared = set(there[0]).intersection(*there[1:])
    values = [
        statistics.fmean(value for seed, (value, _) in by_seed.items() if seed in shared or not shared)
        if by_seed
        else None
        for by_seed in found
    ]
    grades = {grade for by_seed in there for _, grade in by_seed.values()}
    return {
        "kind": kind, "arm": arm, "scale": scale, "horizon": horizon, "metric": metric, "unit": unit,
        "modelled": "modelled" in grades, "seeds": sorted(seed for seed in shared if seed is not None),
        "paired": bool(shared), "values": values,
    }  # fmt: skip


def _records(run: Path) -> list[Record]:
    path = run / "records.jsonl"
    if not run.is_dir():
        raise RecordError(f"{run}: no such run folder; hint: give the run folders that `lmbench run` printed")
    if not path.exists() and not packed(path).exists():
        raise RecordError(f"{run}: holds no records.jsonl; hint: give the run folders that `lmbench run` printed")
    return read(path)


def _readings(records: Sequence[Record]) -> dict[Key, dict[int | None, tuple[float, str | None]]]:
    """key -> seed -> (value, grade). Preparation is left out: it is done once, and `lmbench report` bills it."""
    found: dict[Key, dict[int | None, tuple[float, str | None]]] = {}
    for record in records:
        case = record.case
        if record.status != "ok" or record.is_trial or case.kind == "prepare":
            continue
        for name, reading in record.metrics.items():
            if reading.value is None or not (name in SHOWN or name.startswith("accuracy/")):
                continue
            key = (case.kind, case.arm, case.scale, case.horizon, name, reading.unit)
            found.setdefault(key, {})[case.seed] = (float(reading.value), reading.grade)
    return found


# --- as text -------------------------------------------------------------------------------------


def render(found: Sequence[dict[str, Any]], runs: Sequence[Path]) -> str:
    """The rows as text, with each run's change against the first, and warnings where runs hardly compare."""
    names = _names(runs)
    table = [("case", "scale", "horizon", "metric", *names, *(f"{name} vs 1st" for name in names[1:]))]
    for row in found:
        values: list[float | None] = row["values"]
        notes = [note for note in (row["unit"] if row["unit"] != "1" else "", "modelled" * row["modelled"]) if note]
        table.append(
            (
                f"{row['kind']} {row['arm']}",
                row["scale"] or "",
                "" if row["horizon"] is None else f"{row['horizon']:g}",
                row["metric"] + (f" [{', '.join(notes)}]" if notes else ""),
                *("" if value is None else f"{value:.5g}" for value in values),
                *(_change(values[0], value) if row["paired"] else "other seeds" for value in values[1:]),
            )
        )
    return "\n\n".join(part for part in (columns(table, numeric_from=4), "\n".join(_warnings(runs, names))) if part)


def _names(runs: Sequence[Path]) -> list[str]:
    """The folders' names, with as many of those above them as tell any two apart."""
    parts = [run.resolve().parts for run in runs]
    for depth in range(1, max(map(len, parts))):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return [str(run) for run in runs]


def _change(first: float | None, value: float | None) -> str:
    if first is None or value is None or first == 0:
        return ""
    return f"{100 * (value / first - 1):+.2f}%"


def _warnings(runs: Sequence[Path], names: Sequence[str]) -> Iterator[str]:
    plans = [_plan(run) for run in runs]
    machines = sorted({str(plan.get("machine_class", "unknown")) for plan in plans})
    if len(machines) > 1:
        yield f"warning: different machines ({', '.join(machines)}): times and joules do not compare"
    designs = [design if isinstance(design := plan.get("design"), dict) else {} for plan in plans]
    suites = sorted({str(design.get("suite", "unknown")) for design in designs})
    if len(suites) > 1:
        yield f"warning: different suites ({', '.join(suites)}): an arm of the same name may be another arm"
    for run, name in zip(runs, names, strict=True):
        lost = [record for record in _last(_records(run)) if record.status in ("failed", "diverged")]
        if lost:
            labels = [f"{one.case.kind} {one.case.arm} seed {one.case.seed}" for one in lost]
            yield f"warning: {name}: {several(len(lost), 'case')} failed or diverged ({listed(labels)}): left out"


def _last(records: Sequence[Record]) -> list[Record]:
    """The last record of each case: an attempt that failed may have been made good."""
    return list({record.case.id: record for record in records}.values())


def _plan(run: Path) -> dict[str, Any]:
    try:
        plan = parse((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return plan if isinstance(plan, dict) else {}
