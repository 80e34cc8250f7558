"""The training text: what each preparation kept and dropped, and what was cut to keep the evaluation unseen."""

from __future__ import annotations

from typing import Any

from bench.record import Record
from bench.report import numbers
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.tree import Block, Cell, Column, Paragraph, Row, Section, Table, absent, words

WORTHWHILE_PASSES = 4
"""Passes over a text that are worth nearly as much as new text (Muennighoff et al., arXiv 2305.16264, section 1)."""

OF_VALIDATION = "repeats_validation"
"""Documents that were left out of a validation set, and so are none of those that went into the training text."""


def section(study: RunFolder) -> Section | None:
    """One row a preparation, one a protected set; None where no record says what was prepared."""
    prepared = [record for record in study.of("prepare") if number(record.detail.get("documents_in")) is not None]
    if not prepared:
        return None
    blocks: list[Block] = [_kept(prepared), *_passes(study, prepared)]
    for record in prepared:
        if "decontamination" in record.detail:
            blocks += _decontamination(record)
    return Section(id="text", title="The training text", blocks=tuple(blocks))


def _kept(prepared: list[Record]) -> Table:
    rows: list[Row] = []
    for record in prepared:
        detail, case = record.detail, record.case.id
        dropped = mapping(detail.get("dropped"))
        counted = [
            f"{_grouped(count)} {reason}" for reason, count in sorted(dropped.items()) if reason != OF_VALIDATION
        ]
        aside = f"beside them {_grouped(dropped[OF_VALIDATION])} {OF_VALIDATION}" if dropped.get(OF_VALIDATION) else ""
        name = "all arms" if detail.get("stage") == "corpus" else record.case.arm
        counts = [_count(detail, key, case) for key in ("documents_in", "documents_out", "bytes_out", "tokens")]
        why = words(numbers.listing(counted) or "none", small=aside)
        rows.append(Row(cells=(words(str(detail.get("stage"))), words(name, code=True), *counts, why)))
    return Table(
        id="training-text",
        caption="Documents before and after each preparation, and why documents were dropped.",
        columns=(
            Column(key="stage", label="Stage", numeric=False),
            Column(key="arm", label="For", numeric=False),
            Column(key="documents_in", label="Documents in"),
            Column(key="documents_out", label="Documents out"),
            Column(key="bytes_out", label="Bytes out"),
            Column(key="tokens", label="Tokens"),
            Column(key="dropped", label="Dropped", numeric=False),
        ),
        rows=tuple(rows),
    )


def _passes(study: RunFolder, prepared: list[Record]) -> list[Paragraph]:
    """How often trainings went through their text, at most; a warning where that is more than repeating is worth."""
    parents = {str(case.get("id")): sequence(case.get("parents")) for case in map(mapping, study.plan.get("cases", []))}
    size = {record.case.id: number(record.detail.get("tokens")) for record in prepared}
    most: dict[str, float] = {}
    for record in study.of("train"):
        tokens = number(record.detail.get("tokens"))
        for parent in parents.get(record.case.id, []):
            held = size.get(parent)
            if tokens is not None and held:
                arm = record.case.arm
                most[arm] = max(most.get(arm, 0.0), tokens / held)
    if not most:
        return []
    arm, times = max(most.items(), key=lambda item: item[1])
    text = (
        "Each training takes what it needs of its text and begins again at the end: the longest, of "
        f"\u201c{arm}\u201d, read it {numbers.significant(times, 2)} times."
    )
    if times <= WORTHWHILE_PASSES:
        return [Paragraph(text=text)]
    text += (
        f" Up to {WORTHWHILE_PASSES} times repeated text teaches nearly as much as new text (Muennighoff et al., "
        "2305.16264); beyond, what is compared here is also how well arms put up with too little of it."
    )
    return [Paragraph(text=text, kind="warning")]


def _decontamination(record: Record) -> list[Block]:
    found = record.detail["decontamination"]
    if found is None:
        text = "The training text was not compared with the evaluation: decontamination is switched off in the suite."
        return [Paragraph(text=text, kind="warning")]
    sets, missing = mapping(mapping(found).get("sets")), mapping(mapping(found).get("missing"))
    keys = ("texts", "cuts", "documents_cut", "documents_dropped")
    rows = [
        Row(cells=(words(name), *(_count(mapping(facts), key, record.case.id) for key in keys)))
        for name, facts in sets.items()
    ]
    table = Table(
        id="decontamination",
        caption="What training text shared with validation and evaluation sets, cut out before training.",
        columns=(
            Column(key="set", label="Set", numeric=False),
            Column(key="texts", label="Texts"),
            Column(key="cuts", label="Cuts"),
            Column(key="documents_cut", label="Documents cut"),
            Column(key="documents_dropped", label="Documents dropped"),
        ),
        rows=tuple(rows),
    )
    warnings = [Paragraph(text=f"Not compared with {name}: {why}", kind="warning") for name, why in missing.items()]
    return [table, *warnings]


def _count(facts: dict[str, Any], key: str, case: str) -> Cell:
    value = number(facts.get(key))
    if value is None:
        return absent("nothing is tokenised at this stage" if key == "tokens" else "the record does not hold it")
    return Cell(text=numbers.fixed(value, 0), value=value, sources=(case,))


def _grouped(count: object) -> str:
    """A number of documents as the columns beside it have it."""
    found = number(count)
    return str(count) if found is None else numbers.fixed(found, 0)
