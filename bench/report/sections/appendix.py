"""Every record behind the page, by case id: the other end of every number's trail."""

from __future__ import annotations

from bench.record import Record
from bench.report import numbers
from bench.report.panels import Tone
from bench.report.runfolder import RunFolder
from bench.report.tree import Cell, Column, Folded, Paragraph, Row, Section, Table, absent, words

STATUS_TONES: dict[str, Tone] = {"ok": "good", "diverged": "bad", "failed": "bad", "not_applicable": "none"}
SHOWN = {
    "prepare": ("prepare_time_s", "prepare_flops"),
    "train": ("train_flops", "train_time_s", "val_loss", "bits_per_byte"),
    "finetune": ("train_flops", "train_time_s"),
    "timing": ("step_time_ratio", "step_time_s"),
    "generate": ("decode_tokens_per_s",),
}
"""The metrics that stand for a record of each kind; all of them are in tables/readings.csv."""


def section(study: RunFolder) -> Section:
    """The table of records, folded away on a screen."""
    kinds = ("prepare", "train", "finetune", "evaluate", "generate", "timing")
    ordered = sorted(
        study.records,
        key=lambda one: (
            kinds.index(one.case.kind), study.style(one.case.arm), one.case.scale or "", one.case.horizon or 0.0,
            one.case.seed or 0, one.attempt,
        ),
    )  # fmt: skip
    last = {record.case.id: record for record in study.records}
    table = Table(
        id="records",
        caption="Every record of this study. Ids, and the SHA-256 of each line, are those of records.jsonl.",
        columns=(
            Column(key="case_id", label="Case", numeric=False),
            Column(key="kind", label="Kind", numeric=False),
            Column(key="arm", label="Arm", numeric=False),
            Column(key="scale", label="Scale", numeric=False),
            Column(key="seed", label="Seed"),
            Column(key="horizon", label="Horizon"),
            Column(key="status", label="Status", numeric=False),
            Column(key="readings", label="Readings", numeric=False),
            Column(key="sha256", label="SHA-256", numeric=False),
        ),
        rows=tuple(_row(record, is_last=last[record.case.id] is record) for record in ordered),
        sortable=True,
        wide=True,
    )
    lead = Paragraph(
        text="Point at a number on this page to see the cases it comes from; they are listed here by id. All readings "
        "with unit, grade and reason are in tables/readings.csv.",
    )
    folded = Folded(id="records-fold", summary=f"{numbers.count(len(ordered), 'record')} by case", blocks=(table,))
    return Section(id="appendix", title="Every record", blocks=(lead, folded))


def _row(record: Record, *, is_last: bool) -> Row:
    """One record; links to a case lead to its last attempt."""
    case = record.case
    status = record.status if record.attempt == 1 else f"{record.status}, attempt {record.attempt}"
    cells = (
        words(case.id, code=True),
        words(case.kind),
        words(case.arm, code=True),
        words(case.scale or numbers.DASH, code=bool(case.scale)),
        words(numbers.DASH) if case.seed is None else Cell(text=str(case.seed), value=case.seed),
        words(numbers.DASH) if case.horizon is None else Cell(text=f"{case.horizon:g}", value=case.horizon),
        words(status, tone=STATUS_TONES[record.status], small=record.reason or ""),
        _readings(record),
        words((record.sha256 or "")[:12] or numbers.DASH, code=True),
    )
    return Row(cells=cells, anchor=f"case-{case.id}" if is_last else f"case-{case.id}-{record.attempt}")


def _readings(record: Record) -> Cell:
    if record.status in ("failed", "not_applicable"):
        return absent(record.reason or "the case failed")
    chosen = SHOWN.get(record.case.kind) or tuple(name for name in record.metrics if name.startswith("accuracy/"))
    parts = [
        f"{name} {numbers.quantity(float(one.value), one.unit, 4)}"
        for name in chosen
        if (one := record.metrics.get(name)) is not None and one.value is not None
    ]
    return words("; ".join(parts) or f"{numbers.count(len(record.metrics), 'reading')}")


def readings(study: RunFolder) -> Table:
    """Every single reading of every record: a file, not a part of the page."""
    names = ("case_id", "kind", "arm", "scale", "seed", "horizon", "status", "metric", "value", "unit", "grade",
             "scope", "reason")  # fmt: skip
    rows: list[Row] = []
    for record in study.records:
        case = record.case
        head = (case.id, case.kind, case.arm, case.scale, case.seed, case.horizon, record.status)
        for name, one in sorted(record.metrics.items()):
            tail = (name, one.value, one.unit, one.grade, one.scope, one.reason)
            rows.append(Row(cells=tuple(Cell(text=str(part or ""), value=part) for part in head + tail)))
    columns = tuple(Column(key=name, label=name, numeric=name in ("seed", "horizon", "value")) for name in names)
    return Table(id="readings", caption="Every reading of every record.", columns=columns, rows=tuple(rows))
