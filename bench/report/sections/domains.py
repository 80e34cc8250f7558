"""Bits per byte, domain by domain: as measured, and judged against each arm's reference."""

from __future__ import annotations

from typing import Any

from bench.report import numbers
from bench.report.cells import interval_decimals, loss_cell, tone_of
from bench.report.outcomes import at_scale, pair
from bench.report.runfolder import RunFolder, mapping, number, over_seeds
from bench.report.sections.savings import level_words
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

ALL = "bits_per_byte"
PREFIX = "bits_per_byte/"
MANY = 5
"""More columns than this need a wide page."""


def section(study: RunFolder) -> Section | None:
    """One column a domain; None where only the total was measured."""
    domains = sorted(
        {
            name.removeprefix(PREFIX)
            for record in study.of("train")
            for name in record.metrics
            if name.startswith(PREFIX)
        }
    )
    if not domains:
        return None
    lead = Paragraph(
        text="An arm that wins on average can still lose on one kind of text. Bits a byte compare across tokenizers; "
        "losses a token do not.",
    )
    judged = _judged(study, domains)
    blocks = (lead, _measured(study, domains), *((judged,) if judged else ()))
    return Section(id="domains", title="Domain by domain", blocks=blocks)


def _measured(study: RunFolder, domains: list[str]) -> Table:
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms:
            records = study.of("train", arm, scale, study.full_horizon())
            if records:
                cells = [loss_cell(over_seeds(records, metric)) for metric in (ALL, *(PREFIX + d for d in domains))]
                rows.append(Row(cells=(*_names(study, arm, scale), *cells), emphasis=arm == study.design.baseline))
    return Table(
        id="domains",
        caption="Validation bits a byte of text (lower is better), mean and standard deviation over seeds.",
        columns=_columns(study, domains),
        rows=tuple(rows),
        sortable=True,
        wide=len(domains) > MANY,
    )


def _judged(study: RunFolder, domains: list[str]) -> Table | None:
    """Change of each arm against its reference; None where nothing was judged."""
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms[1:]:
            found = mapping(at_scale(study, arm, scale).get("domains"))
            if found:
                cells = [_change(mapping(found.get(key))) for key in (ALL, *domains)]
                rows.append(Row(cells=(*_names(study, arm, scale), *cells)))
    if not rows:
        return None
    return Table(
        id="domains-judged",
        caption="Change of bits a byte against the arm's reference after the same number of tokens (negative is "
        f"better), with {level_words(study)} intervals over seeds.",
        columns=_columns(study, domains, "bits_per_byte_change", bounded=True),
        rows=tuple(rows),
        notes=("BETTER and WORSE hold for all domains of an arm at once (Holm); intervals are each for themselves.",),
        wide=len(domains) > MANY,
    )


def _change(found: dict[str, Any]) -> Cell:
    change, outcome = number(found.get("change")), str(found.get("outcome") or "")
    if change is None:
        return absent("arm or reference was not measured on it")
    low, high = pair(found.get("bounds")) or (None, None)
    told = numbers.interval(low, high, interval_decimals(low, high))
    return Cell(
        text=numbers.percent(change, sign=True), value=change, low=low, high=high, tone=tone_of(outcome),
        small=told if outcome == "UNCLEAR" else f"{told} {outcome}",
    )  # fmt: skip


def _names(study: RunFolder, arm: str, scale: str) -> tuple[Cell, ...]:
    several = len(study.design.scales) > 1
    return (words(arm, code=True), *((words(scale, code=True),) if several else ()))


def _columns(study: RunFolder, domains: list[str], stem: str = ALL, *, bounded: bool = False) -> tuple[Column, ...]:
    scale = (Column(key="scale", label="Scale", numeric=False),) if len(study.design.scales) > 1 else ()
    return (
        Column(key="arm", label="Arm", numeric=False),
        *scale,
        Column(key=stem, label="All", bounded=bounded),
        *(Column(key=f"{stem}_{domain}", label=domain, bounded=bounded) for domain in domains),
    )
