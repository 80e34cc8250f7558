"""A few steps at true size: what every arm costs, and that nothing is known of its quality."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from bench.record import Record
from bench.report import numbers
from bench.report.cells import mean_cell
from bench.report.runfolder import RunFolder, number, over_seeds, sequence
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

COLUMNS = (
    Column(key="arm", label="Arm", numeric=False),
    Column(key="params_total", label="Parameters"),
    Column(key="params_active", label="Active", hint="Parameters that one token's forward pass reads."),
    Column(key="train_flops_per_token", label="FLOPs a token", hint="As executed; against the reference beneath."),
    Column(key="step_time_s", label="Step", hint="Median of all measured steps; fastest and slowest beneath."),
    Column(key="s_per_token", label="Time a token", hint="Median step over its tokens; against the reference beneath."),
    Column(key="energy_j_per_token", label="Energy a token"),
    Column(key="peak_memory_bytes", label="Memory", hint="Peak over the empty process; the plan's estimate beneath."),
)


def section(study: RunFolder) -> Section | None:
    """One row an arm and scale; None unless the study's layout is `sample`."""
    if study.design.layout != "sample":
        return None
    several = len(study.design.scales) > 1
    rows = tuple(_row(study, arm, scale, several) for scale in study.design.scales for arm in study.arms)
    steps = sorted({len(_steps([record])) for record in study.of("train")})
    table = Table(
        id="sample",
        caption=f"{numbers.listing([str(count) for count in steps]) or 'No'} measured steps a case, at true size.",
        columns=COLUMNS[:1] + ((Column(key="scale", label="Scale", numeric=False),) if several else ()) + COLUMNS[1:],
        rows=rows,
        sortable=True,
        wide=True,
    )
    lead = Paragraph(
        text="Instead of trainings, which the budget may not allow, each arm took a few real steps at true size, one "
        "arm after the other. What they cost is measured. Loss, accuracy and savings at equal quality are not "
        "measurable at this budget; times of arms that ran one after the other carry whatever the machine did "
        "meanwhile."
    )
    return Section(id="sample", title="Steps at true size", blocks=(lead, table))


def _row(study: RunFolder, arm: str, scale: str, several: bool) -> Row:
    records, reference = study.of("train", arm, scale), study.of("train", study.reference(arm), scale)
    cells = (
        Cell(text=arm, value=arm, small=study.role(arm), code=True),
        *((words(scale, code=True),) if several else ()),
        mean_cell(over_seeds(records, "params_total"), show_sd=False),
        mean_cell(over_seeds(records, "params_active"), show_sd=False),
        _flops(records, reference),
        _step(records),
        _token(records, reference),
        mean_cell(over_seeds(records, "energy_j_per_token"), show_sd=False),
        _memory(records),
    )
    return Row(cells=cells, emphasis=arm == study.design.baseline)


def _steps(records: Sequence[Record]) -> list[float]:
    """Seconds of every measured step."""
    found = [number(value) for record in records for value in sequence(record.detail.get("steps_s"))]
    return [value for value in found if value is not None]


def _per_token(records: Sequence[Record]) -> float | None:
    """Median seconds of a step over its tokens."""
    steps = _steps(records)
    tokens, count = (number(records[0].detail.get(name)) for name in ("tokens", "steps")) if records else (None, None)
    return statistics.median(steps) / (tokens / count) if steps and tokens and count else None


def _times(value: float, other: float | None, is_reference: bool) -> str:
    return f"{numbers.significant(value / other)}{numbers.THIN}\u00d7" if other and not is_reference else ""


def _flops(records: Sequence[Record], reference: Sequence[Record]) -> Cell:
    own, other = (over_seeds(of, "train_flops_per_token") for of in (records, reference))
    cell = mean_cell(own, show_sd=False)
    if own.value is None:
        return cell
    beside = _times(own.value, other.value, records == reference)
    return Cell(text=cell.text, value=own.value, small=beside, sources=own.sources)


def _step(records: Sequence[Record]) -> Cell:
    steps = _steps(records)
    if not steps:
        return absent("no case of this arm has ended well")
    span = f"{numbers.duration(min(steps))} to {numbers.duration(max(steps))}"
    middle = statistics.median(steps)
    return Cell(text=numbers.duration(middle), value=middle, small=span, sources=tuple(r.case.id for r in records))


def _token(records: Sequence[Record], reference: Sequence[Record]) -> Cell:
    own, other = _per_token(records), _per_token(reference)
    if own is None:
        return absent("no case of this arm has ended well")
    beside = _times(own, other, records == reference)
    return Cell(text=numbers.duration(own), value=own, small=beside, sources=tuple(r.case.id for r in records))


def _memory(records: Sequence[Record]) -> Cell:
    found = over_seeds(records, "peak_memory_bytes")
    cell = mean_cell(found, show_sd=False)
    planned = next((n for r in records if (n := number(r.detail.get("predicted_memory_bytes")))), None)
    if found.value is None or planned is None:
        return cell
    beside = f"planned {numbers.size(planned)}, {numbers.percent(planned / found.value - 1, sign=True)}"
    return Cell(text=cell.text, value=found.value, small=beside, sources=found.sources)
