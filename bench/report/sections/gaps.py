"""What was not measured, and why: every reading without a value, every case without a result."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from bench.report.numbers import DASH, count, listing
from bench.report.runfolder import RunFolder, mapping, sequence
from bench.report.tree import Block, Cell, Column, Paragraph, Row, Section, Table, words

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
"""In a reason: readings that are missing alike but for a number are told once."""


def section(study: RunFolder) -> Section:
    """Missing readings grouped by reason; cases that failed, diverged or never ran."""
    blocks: list[Block] = []
    unjudged = [Paragraph(text=text, kind="warning") for text in study.absent if text.startswith("verdict")]
    blocks.extend(unjudged)
    blocks.extend(_not_compiled(study))
    readings = _readings(study)
    if readings.rows:
        blocks.append(readings)
    cases = _cases(study)
    if cases.rows:
        blocks.append(cases)
    if not blocks:
        blocks.append(Paragraph(text="Every case finished, and every reading that was asked for was taken."))
    return Section(id="gaps", title="What was not measured, and why", blocks=tuple(blocks))


def _not_compiled(study: RunFolder) -> list[Block]:
    """Arms whose compiler failed where the recipe left the choice to the harness: their times are of other code."""
    reasons: dict[str, list[str]] = defaultdict(list)
    for record in study.records:
        reason = mapping(record.detail.get("compiled")).get("reason")
        if reason:
            reasons[str(reason)].append(record.case.arm)
    return [
        Paragraph(
            text=f"Not compiled: {listing(_in_order(study, arms))} ({reason}). Where the arm compared with was, "
            "the ratio of step times says more of the compiler than of the arms.",
            kind="warning",
        )
        for reason, arms in sorted(reasons.items())
    ]


def _in_order(study: RunFolder, arms: Iterable[str]) -> list[str]:
    """Each once: arms as the suite names them, then ways of decoding as they ran. Equal records give equal reports."""
    return sorted(dict.fromkeys(arms), key=study.style)


def _readings(study: RunFolder) -> Table:
    groups: dict[tuple[str, str], list[tuple[str, str]]] = defaultdict(list)
    reasons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for record in study.records:
        for name, one in record.metrics.items():
            if one.value is None:
                reason = one.reason or "no reason was given"
                kind = name, _NUMBER.sub("#", reason)
                groups[kind].append((record.case.arm, record.case.id))
                reasons[kind].add(reason)
    rows = [
        Row(
            cells=(
                words(name, code=True),
                words(
                    min(reasons[name, kind]),
                    small="and alike with other numbers" if len(reasons[name, kind]) > 1 else "",
                ),
                words(listing(_in_order(study, [arm for arm, _ in where]))),
                Cell(text=str(len(where)), value=len(where), sources=tuple(case for _, case in where)),
            )
        )
        for (name, kind), where in sorted(groups.items())
    ]
    return Table(
        id="missing-readings",
        caption="Readings without a value.",
        columns=(
            Column(key="metric", label="Reading", numeric=False),
            Column(key="reason", label="Why", numeric=False),
            Column(key="arms", label="Arms", numeric=False),
            Column(key="records", label="Records"),
        ),
        rows=tuple(rows),
    )


def _cases(study: RunFolder) -> Table:
    done = {record.case.id for record in study.records if record.status == "ok"}
    last = {record.case.id: record for record in study.records if record.status != "ok"}
    rows: list[Row] = []
    for planned in sequence(study.plan.get("cases")):
        case = mapping(planned)
        case_id = str(case.get("id"))
        if case_id in done:
            continue
        record = last.get(case_id)
        if record is not None:
            what, why = record.status.replace("_", " "), record.reason or "no reason was recorded"
        elif case.get("fits") is False:
            what, why = "did not fit", str(case.get("reason") or "the plan says no more")
        else:
            what, why = "not run", "the run ended before it, or is still under way"
        seed, horizon = case.get("seed"), case.get("horizon")
        cells = (
            words(case_id, code=True), words(str(case.get("kind"))), words(str(case.get("arm")), code=True),
            words(DASH if seed is None else str(seed)), words(DASH if horizon is None else f"{horizon:g}"),
            words(what, tone="bad" if record and record.status != "not_applicable" else "none"), words(why),
        )  # fmt: skip
        rows.append(Row(cells=cells))
    diverged = any(record.status == "diverged" for record in last.values())
    counted = "; a training that diverged counts as one that never reached the loss" if diverged else ""
    return Table(
        id="missing-cases",
        caption=f"{count(len(rows), 'planned case')} without a result{counted}.",
        columns=tuple(
            Column(key=key, label=label, numeric=False)
            for key, label in (
                ("case_id", "Case"),
                ("kind", "Kind"),
                ("arm", "Arm"),
                ("seed", "Seed"),
                ("horizon", "Horizon"),
                ("what", "Happened"),
                ("why", "Why"),
            )
        ),
        rows=tuple(rows),
        wide=True,
    )
