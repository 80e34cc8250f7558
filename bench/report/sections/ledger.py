"""The full bill: training, preparation, and when preparation has paid for itself."""

from __future__ import annotations

from bench.report import numbers
from bench.report.outcomes import endpoint
from bench.report.runfolder import RunFolder, mapping, number, over_seeds, sequence
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words


def section(study: RunFolder) -> Section:
    """One row an arm and scale that was trained."""
    rows: list[Row] = []
    several = len(study.design.scales) > 1
    for scale in study.design.scales:
        for arm in study.arms:
            if study.role(arm) == "timing":
                continue
            rows.append(_row(study, arm, scale, several))
    table = Table(
        id="ledger",
        caption=f"What one training at horizon {study.full_horizon():.1f} cost in full, mean over seeds.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            Column(key="train_flops", label="Training"),
            Column(
                key="train_time_s", label="Training time", hint="Descriptive: machines wander; ratios are timed apart."
            ),
            Column(key="energy_j", label="Training energy"),
            Column(key="prepare_time_s", label="Preparation", hint="Once a corpus and recipe, at the claimed budget."),
            Column(key="prepare_flops", label="Preparation FLOPs"),
            Column(key="break_even_tokens", label="Pays from", hint="Training tokens from which preparation has paid."),
        ),
        rows=tuple(rows),
        wide=True,
    )
    lead = Paragraph(
        text="An arm is charged for everything it needed. Preparation is done once a corpus and booked in full, so a "
        "technique that saves training but costs preparation pays only from a certain number of training tokens on.",
    )
    return Section(id="ledger", title="The full bill", blocks=(lead, table))


def _row(study: RunFolder, arm: str, scale: str, several: bool) -> Row:
    from bench.report.cells import mean_cell

    train = study.of("train", arm, scale, study.full_horizon())
    cells = (
        words(arm, code=True),
        *((words(scale, code=True),) if several else ()),
        mean_cell(over_seeds(train, "train_flops"), show_sd=False),
        mean_cell(over_seeds(train, "train_time_s")),
        mean_cell(over_seeds(train, "energy_j")),
        _preparation(study, arm, scale, "prepare_time_s"),
        _preparation(study, arm, scale, "prepare_flops"),
        _break_even(study, arm, scale),
    )
    return Row(cells=cells, emphasis=arm == study.design.baseline)


def _preparation(study: RunFolder, arm: str, scale: str, metric: str) -> Cell:
    """The sum over the preparing cases that the arm's trainings name as what they needed."""
    train = study.of("train", arm, scale)
    wanted = {str(case) for record in train for case in sequence(record.detail.get("prepare_parents"))}
    wanted |= {parent for record in train for parent in _parents(study, record.case.id)}
    found = [record for record in study.of("prepare") if record.case.id in wanted]
    if not found:
        return absent("no preparing case of this arm is recorded")
    known = [record for record in found if record.value(metric) is not None]
    if not known:
        return absent(over_seeds(found, metric).reason or "not recorded")
    total = sum(record.value(metric) or 0.0 for record in known)
    unit = known[0].metrics[metric].unit
    return Cell(text=numbers.quantity(total, unit), value=total, sources=tuple(record.case.id for record in known))


def _parents(study: RunFolder, case_id: str) -> list[str]:
    for planned in sequence(study.plan.get("cases")):
        case = mapping(planned)
        if case.get("id") == case_id:
            return [str(parent) for parent in sequence(case.get("parents"))]
    return []


def _break_even(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    declared = study.declared(arm)
    found = endpoint(study, arm, scale, declared.primary if declared else "flops")
    tokens = number(found.raw.get("break_even_tokens"))
    if tokens is None:
        return absent(str(found.raw.get("break_even_why") or "the verdict gives no break-even point"))
    return Cell(text=numbers.si(tokens) + " tokens" if tokens > 0 else "at once", value=tokens)
