"""Two or more runs side by side: the mean of each metric over the seeds of an arm, and how runs differ."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.forecast import columns
from bench.record import Record, RecordError, read

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
)
"""Metrics compared beside the accuracies."""


def rows(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """A row an arm, scale, horizon and metric: `values` holds each run's mean over seeds (None where it has none).

    Raises:
        RecordError: a run's records cannot be trusted, or fewer than two runs were named.
    """
    if len(runs) < 2:
        raise RecordError("compare needs at least two run folders")
    means = [_means(read(run / "records.jsonl")) for run in runs]
    keys = sorted({key for run in means for key in run}, key=str)
    return [
        {"arm": arm, "scale": scale, "horizon": horizon, "metric": metric, "unit": unit,
         "values": [run.get((arm, scale, horizon, metric, unit)) for run in means]}
        for arm, scale, horizon, metric, unit in keys
    ]  # fmt: skip


def _means(records: Sequence[Record]) -> dict[tuple[str, str | None, float | None, str, str], float]:
    found: dict[tuple[str, str | None, float | None, str, str], list[float]] = {}
    for record in records:
        if record.status != "ok" or record.is_trial:
            continue
        for name, reading in record.metrics.items():
            if reading.value is None or not (name in SHOWN or name.startswith("accuracy/")):
                continue
            key = (record.case.arm, record.case.scale, record.case.horizon, name, reading.unit)
            found.setdefault(key, []).append(float(reading.value))
    return {key: statistics.fmean(values) for key, values in found.items()}


def render(found: Sequence[dict[str, Any]], runs: Sequence[Path]) -> str:
    """The rows as text, with each run's change against the first, and a warning where machines differ."""
    table = [
        ("arm", "scale", "horizon", "metric", *(run.name for run in runs), *(f"{run.name} vs 1st" for run in runs[1:]))
    ]
    for row in found:
        values: list[float | None] = row["values"]
        table.append(
            (
                row["arm"],
                row["scale"] or "",
                "" if row["horizon"] is None else f"{row['horizon']:g}",
                f"{row['metric']} [{row['unit']}]",
                *("" if value is None else f"{value:.5g}" for value in values),
                *(_change(values[0], value) for value in values[1:]),
            )
        )
    return "\n\n".join(part for part in (columns(table, numeric_from=4), _warning(runs)) if part)


def _change(first: float | None, value: float | None) -> str:
    if first is None or value is None or first == 0:
        return ""
    return f"{100 * (value / first - 1):+.2f} %"


def _warning(runs: Sequence[Path]) -> str:
    machines = set[str]()
    for run in runs:
        try:
            machines.add(json.loads((run / "plan.json").read_text())["machine_class"])
        except (OSError, ValueError, KeyError):
            machines.add("unknown")
    if len(machines) < 2:
        return ""
    return f"warning: different machines ({', '.join(sorted(machines))}): times and joules do not compare"
