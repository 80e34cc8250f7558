"""FLOPs counted by independent ways, and whether they agree."""

from __future__ import annotations

from typing import Any

from bench.report import numbers
from bench.report.runfolder import RunFolder, mapping, number
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

WAYS = (
    ("forward", "closed", "Forward, closed form"),
    ("forward", "dispatched", "Forward, dispatched"),
    ("forward", "fvcore", "Forward, 2 \u00d7 fvcore"),
    ("train", "closed", "Training, closed form"),
    ("train", "dispatched", "Training, dispatched"),
    ("forward", "causal", "Forward, causal half"),
    ("train", "model", "Training, as needed"),
)
"""(part, way, title). The last two are other quantities, shown beside and not compared."""
COMPARED = ("dispatched", "fvcore")


def section(study: RunFolder) -> Section | None:
    """One row an arm and scale; None where no record holds counts."""
    rows: list[Row] = []
    reasons: list[str] = []
    lengths: set[str] = set()
    several = len(study.design.scales) > 1
    for scale in study.design.scales:
        for arm in study.arms:
            found = _counts(study, arm, scale)
            if found is None:
                continue
            case, counts = found
            cells = [_cell(counts, part, way, case) for part, way, _ in WAYS]
            scale_cell = [words(scale, code=True)] if several else []
            agree = counts.get("agree")
            lengths.add(str(counts.get("length") or "as many"))
            if not agree and counts.get("disagreement"):
                reasons.append(f"{arm}: {counts['disagreement']}")
            rows.append(Row(cells=(words(arm, code=True), *scale_cell, *cells, _agreement(agree))))
    if not rows:
        return None
    table = Table(
        id="counts",
        caption=f"FLOPs of one sequence of {numbers.listing(sorted(lengths))} tokens, counted independently "
        "(1 multiply-add = 2 FLOPs).",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            *(Column(key=f"{part}_{way}_flops", label=label) for part, way, label in WAYS),
            Column(key="agree", label="Within 0.5\u202f%", numeric=False),
        ),
        rows=tuple(rows),
    )
    warnings = tuple(Paragraph(text=reason, kind="warning") for reason in reasons)
    lead = Paragraph(
        text="A count is only as good as its blind spots, so each arm is counted in ways that share none: from "
        "the description of the model, from the operations that really ran, and by fvcore. They must agree within "
        "0.5\u202f%. Attention is counted in full; its causal half, and what the mathematics needs (a backward pass of "
        "twice the forward), stand beside.",
    )
    return Section(id="counts", title="FLOPs, counted more than once", blocks=(lead, *warnings, table))


def _counts(study: RunFolder, arm: str, scale: str) -> tuple[str, dict[str, Any]] | None:
    for record in (*study.of("train", arm, scale), *study.of("timing", arm, scale)):
        counts = mapping(record.detail.get("counts"))
        if counts:
            return record.case.id, counts
    return None


def _cell(counts: dict[str, Any], part: str, way: str, case: str) -> Cell:
    """One count, and for those that are compared how far it is from the closed form."""
    value, closed = (number(mapping(counts.get(part)).get(name)) for name in (way, "closed"))
    if value is None:
        return absent("this way was not counted")
    apart = numbers.percent(value / closed - 1, sign=True, decimals=2) if way in COMPARED and closed else ""
    return Cell(text=numbers.si(value, "FLOP", 4), value=value, small=apart, sources=(case,))


def _agreement(agree: Any) -> Cell:
    if agree is None:
        return absent("the counts were not compared")
    return words("agree", tone="good") if agree else words("disagree", tone="bad")
