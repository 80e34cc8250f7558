"""Whether a record can be what it says: units, signs, ranges and shapes that no case of this program ever leaves.

A hash tells an edited line from a written one; it does not tell a written line from a true one. What cannot be is an
error and never a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from bench import metrics
from bench.record import Record

POSITIVE = frozenset(
    {"train_flops", "train_model_flops", "train_flops_per_token", "infer_flops_per_token", "params_total",
     "params_active", "step_time_s", "step_time_ratio", "tokens_per_s", "perplexity", "val_loss", "bits_per_byte"}
)  # fmt: skip
"""Metrics that a finished case cannot have zero of."""
MOST = 1e100
"""No reading is larger: sums and squares of larger ones would leave what a float holds."""
SIGNED = frozenset({"energy_net_j"})
"""Metrics that may be negative: less power than before the run."""
SHARES = ("accuracy/", "acceptance_rate", "drop_rate")
"""Beginnings of names of metrics that lie between 0 and 1."""
FAMILIES = frozenset({"lm", "qa", "nli"})
DETAILS = ("tasks", "counts", "tuning", "finetune", "trial")
"""Parts of a record's detail that are mappings wherever they are."""
NUMBERS = ("tokens", "tokens_per_step", "reference_tokens_per_step")
"""Parts that are numbers."""
BLOCK_NUMBERS = ("arm_s", "reference_s", "arm_j", "reference_j")
"""What an interleaved block holds for each side: seconds, and joules where a counter could tell."""


def implausible(record: Record) -> str | None:
    """What is impossible in a record, in words; None where nothing is."""
    found = (*_readings(record), *_details(record.detail))
    return found[0] if found else None


def _readings(record: Record) -> Iterator[str]:
    if record.case.kind == "train" and record.status == "ok":
        for name in ("train_flops", "val_loss"):
            if name not in record.metrics:
                yield f"it ended well and holds no {name}, not even a reason why it is missing"
    for name, reading in record.metrics.items():
        known = metrics.METRICS.get(name) or (metrics.find(name) if name.startswith(SHARES) else None)
        if known is not None and reading.unit != known.unit:
            yield f"{name} is in {reading.unit!r}, expected {known.unit!r}"
        value = reading.value
        if value is None:
            continue
        below = known is not None and ((value < 0 and name not in SIGNED) or (value == 0 and name in POSITIVE))
        if below or abs(value) > MOST:
            yield f"{name} is {value:g}, which cannot be"
        elif name.startswith(SHARES) and value > 1:
            yield f"{name} is {value:g}, expected a share from 0 to 1"


def _details(detail: Mapping[str, Any]) -> Iterator[str]:
    for name in DETAILS:
        if not isinstance(detail.get(name) or {}, Mapping):
            yield f"its {name} are a {type(detail[name]).__name__}, expected a mapping"
            return
    for name in NUMBERS:
        if not _is_number(detail.get(name)):
            yield f"its {name} are {detail[name]!r}, expected a number"
    blocks = detail.get("blocks") or []
    if not isinstance(blocks, list) or not all(isinstance(block, Mapping) for block in blocks):
        yield "its blocks are no list of mappings"
        return
    for block in blocks:
        for name in BLOCK_NUMBERS:
            if not _is_number(block.get(name)):
                yield f"a block's {name} is {block[name]!r}, expected a number"
    for task, facts in (detail.get("tasks") or {}).items():
        if not isinstance(facts, Mapping):
            yield f"task {task} is described by a {type(facts).__name__}, expected a mapping"
            continue
        chance = facts.get("chance")
        if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
            yield f"task {task} says its chance level is {chance!r}, expected a number from 0 to 1"
        elif facts.get("family") not in FAMILIES:
            yield f"task {task} is of family {facts.get('family')!r}, expected one of {', '.join(sorted(FAMILIES))}"


def _is_number(value: Any) -> bool:
    """Whether it is one, or is left out."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def contradicts_items(record: Record, task: str, mean: float) -> str | None:
    """How the accuracy that a record states differs from that of its items; None where it is theirs."""
    stated = record.value(f"accuracy/{task}")
    if stated is not None and math.isclose(stated, mean, rel_tol=0, abs_tol=1e-9):
        return None
    return f"states accuracy/{task} {stated}, its items give {mean:.6g}"
