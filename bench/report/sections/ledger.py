"""The full bill: training, preparation, and when preparation has paid for itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.report import numbers
from bench.report.cells import mean_cell
from bench.report.outcomes import UNJUDGED, at_scale, endpoint
from bench.report.runfolder import RunFolder, mapping, number, over_seeds, sequence
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

COSTS = (("flops", "FLOP", "FLOPs"), ("time", "s", "Time"), ("energy", "J", "Energy"))
"""(key of a charge in the verdict, unit, title)"""


def section(study: RunFolder) -> Section:
    """What each arm's training cost, then what was prepared and for whom."""
    lead = Paragraph(
        text="An arm is charged for everything it needed and its reference did not. Preparation is done once a corpus "
        "and booked in full, so a technique that saves training but costs preparation pays only from a certain number "
        "of training tokens on. What both needed is listed and charged to neither.",
    )
    prepared = tuple(_prepared(study))
    blocks = (lead, _bill(study), prepared[0]) if prepared else (lead, _bill(study))
    return Section(id="ledger", title="The full bill", blocks=blocks)


def _bill(study: RunFolder) -> Table:
    several = len(study.design.scales) > 1
    return Table(
        id="ledger",
        caption=f"What one training at horizon {study.full_horizon():.1f} cost (mean over seeds), and its preparation.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            Column(key="train_flops", label="Training"),
            Column(
                key="train_time_s", label="Training time", hint="Descriptive: machines wander; ratios are timed apart."
            ),
            Column(key="energy_j", label="Training energy"),
            Column(key="own_preparation_s", label="Its own preparation", hint="What its reference did not need."),
            Column(key="spared_preparation_s", label="Spared", hint="What its reference needed and it did not."),
            Column(key="break_even_tokens", label="Pays from", hint="Training tokens from which preparation has paid."),
        ),
        rows=tuple(
            _row(study, arm, scale, several)
            for scale in study.design.scales
            for arm in study.arms
            if study.role(arm) != "timing"
        ),
        wide=True,
    )


def _row(study: RunFolder, arm: str, scale: str, several: bool) -> Row:
    train = study.of("train", arm, scale, study.full_horizon())
    cells = (
        words(arm, code=True),
        *((words(scale, code=True),) if several else ()),
        mean_cell(over_seeds(train, "train_flops"), show_sd=False),
        mean_cell(over_seeds(train, "train_time_s")),
        mean_cell(over_seeds(train, "energy_j")),
        _charged(study, arm, scale, "charged"),
        _charged(study, arm, scale, "charged_to_reference"),
        _break_even(study, arm, scale),
    )
    return Row(cells=cells, emphasis=arm == study.design.baseline)


def _charged(study: RunFolder, arm: str, scale: str, side: str) -> Cell:
    """Seconds of one side of an arm's ledger, for one training: of cases that exist once a seed, the mean."""
    if arm == study.design.baseline:
        return words(numbers.DASH)
    ledger = mapping(at_scale(study, arm, scale).get("ledger"))
    if side not in ledger:
        return absent(UNJUDGED if study.verdict is None else "the verdict holds no ledger of this arm")
    charges = [mapping(one) for one in sequence(ledger[side])]
    unknown = next((one for one in charges if number(one.get("time")) is None), None)
    if unknown is not None:
        return absent(str(mapping(unknown.get("reasons")).get("time") or f"{unknown.get('label')}: not recorded"))
    if not charges:
        return Cell(text="none", value=0.0)
    recorded = {record.case.id: record.case for record in study.records}
    once_a_seed = {key for key, case in recorded.items() if case.seed is not None}
    n_seeds = max(1, len(study.design.seeds))
    total = sum(
        (number(one.get("time")) or 0.0) / (n_seeds if one.get("case") in once_a_seed else 1) for one in charges
    )
    cases = tuple(case for one in charges if (case := str(one.get("case"))) in recorded)
    return Cell(text=numbers.duration(total), value=total, sources=cases)


def _break_even(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    declared = study.declared(arm)
    found = endpoint(study, arm, scale, declared.primary if declared else "flops")
    tokens = number(found.raw.get("break_even_tokens"))
    if tokens is None:
        why = str(found.raw.get("break_even_why") or found.why)
        never, _, because = why.partition(": ")
        return words(never, small=because) if never == "never" else absent(why)
    return Cell(text="the first token" if tokens <= 0 else f"{numbers.si(tokens)} tokens", value=tokens)


def _prepared(study: RunFolder) -> Iterator[Table]:
    """Every case that was charged or shared, with those it was charged to; nothing where no case was."""
    rows: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for scale in study.design.scales:
        for arm in study.arms[1:]:
            ledger = mapping(at_scale(study, arm, scale).get("ledger"))
            sides = (("charged", arm), ("charged_to_reference", study.reference(arm)), ("shared", None))
            for side, payer in sides:
                for charge in map(mapping, sequence(ledger.get(side))):
                    _, payers = rows.setdefault(str(charge.get("case")), (charge, []))
                    if payer is not None and payer not in payers:
                        payers.append(payer)
    if rows:
        yield Table(
            id="prepared",
            caption="What was prepared, and which arm is charged for it.",
            columns=(
                Column(key="case", label="Case", numeric=False),
                Column(key="what", label="What", numeric=False),
                *(Column(key=f"prepare_{key}", label=title) for key, _, title in COSTS),
                Column(key="charged_to", label="Charged to", numeric=False),
            ),
            rows=tuple(_prepared_row(study, charge, payers) for charge, payers in rows.values()),
        )


def _prepared_row(study: RunFolder, charge: dict[str, Any], payers: list[str]) -> Row:
    case = str(charge.get("case"))
    record = next((one for one in study.records if one.case.id == case), None)
    stage = str(record.detail.get("stage") or "") if record else ""
    recorded = (case,) if record else ()
    costs: list[Cell] = []
    for key, unit, title in COSTS:
        value = number(charge.get(key))
        reason = str(mapping(charge.get("reasons")).get(key) or f"{title.lower()} not recorded")
        costs.append(absent(reason) if value is None else
                     Cell(text=numbers.quantity(value, unit), value=value, sources=recorded))  # fmt: skip
    payer = words(numbers.listing(payers) if payers else "nobody: all needed it")
    return Row(cells=(words(case, code=True), words(str(charge.get("label")), small=stage), *costs, payer))
