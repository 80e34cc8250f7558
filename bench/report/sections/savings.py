"""What each arm saved: at equal loss, in FLOPs, seconds and joules side by side."""

from __future__ import annotations

from bench.report import numbers
from bench.report.cells import outcome_cell, share_cell
from bench.report.outcomes import ENDPOINTS, UNJUDGED, endpoint
from bench.report.runfolder import RunFolder, over_seeds
from bench.report.tree import (
    Block,
    Cell,
    Column,
    Estimate,
    Figure,
    Forest,
    Mark,
    Paragraph,
    Row,
    Section,
    Table,
    absent,
    words,
)


def section(study: RunFolder) -> Section:
    """A forest plot a currency, and the same as a table."""
    arms = [arm for arm in study.arms[1:] if study.role(arm) in ("claim", "component", "control")]
    if not arms:
        text = "No arm of this study is trained against the baseline, so there is no saving to show."
        return Section(id="savings", title="What was saved at equal loss", blocks=(Paragraph(text=text),))
    saving = study.design.hypothesis.saving
    lead = Paragraph(
        text="The share of the reference's cost that an arm did not need to reach the same loss, preparation of its "
        "data included. Right of zero it saves, left of zero it costs more. Lines are "
        f"{level_words(study)} intervals over seeds"
        + (f"; a claim is held against {numbers.percent(saving.at_least, decimals=0)}." if _claims(study) else "."),
    )
    panels = tuple(_panel(study, arms, *one) for one in ENDPOINTS)
    figure = Figure(id="savings-plot", caption="Savings at equal loss, all-in, one panel a currency.", panels=panels)
    blocks: list[Block] = [lead, *_disagreements(study, arms), figure, _table(study, arms)]
    return Section(id="savings", title="What was saved at equal loss", blocks=tuple(blocks))


def _claims(study: RunFolder) -> bool:
    return any(arm.role == "claim" for arm in study.design.arms)


def level_words(study: RunFolder) -> str:
    """`95 %`: the two-sided level of printed intervals."""
    return numbers.percent(1 - 2 * study.design.hypothesis.alpha, decimals=0)


def _label(study: RunFolder, arm: str, scale: str) -> str:
    return f"{arm} \u00b7 {scale}" if len(study.design.scales) > 1 else arm


def _panel(study: RunFolder, arms: list[str], name: str, title: str, unit: str) -> Forest:
    rows: list[Estimate] = []
    for scale in study.design.scales:
        for arm in arms:
            found = endpoint(study, arm, scale, name)
            low, high = found.bounds or (None, None)
            text = ""
            if found.value is not None:
                inside = f" {numbers.interval(low, high, 0)}" if found.bounds else ""
                text = numbers.percent(found.value, decimals=1) + inside
            rows.append(
                Estimate(
                    name=_label(study, arm, scale), text=text, style=study.style(arm), value=_percent(found.value),
                    low=_percent(low if found.bounds else found.value),
                    high=_percent(high if found.bounds else found.value),
                    reason=None if found.value is not None else found.why,
                )
            )  # fmt: skip
    known = [row for row in rows if row.value is not None]
    missing = None if known else (rows[0].reason or UNJUDGED)
    told = "; ".join(f"{row.name} {numbers.plain(row.text)}" for row in known)
    return Forest(
        id=f"savings-{name}", title=title, x_label=f"Saving in {unit} (%)", rows=tuple(rows), marks=_marks(study),
        alt=f"Saving in {unit} at equal loss: {told}." if known else f"Saving in {unit}: not measured.",
        missing=missing,
    )  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _marks(study: RunFolder) -> tuple[Mark, ...]:
    zero = Mark(value=0.0, label="0", kind="zero")
    if not _claims(study):
        return (zero,)
    saving = study.design.hypothesis.saving
    marks = [zero, Mark(value=100 * saving.at_least, label=f"claim {100 * saving.at_least:.3g}", kind="limit")]
    if saving.target > saving.at_least:
        marks.append(Mark(value=100 * saving.target, label=f"target {100 * saving.target:.3g}", kind="aim"))
    return tuple(marks)


def _disagreements(study: RunFolder, arms: list[str]) -> list[Paragraph]:
    """A warning for each arm whose saving has another sign in another currency."""
    warnings: list[Paragraph] = []
    for scale in study.design.scales:
        for arm in arms:
            found = [(unit, endpoint(study, arm, scale, name).value) for name, _, unit in ENDPOINTS]
            saved = [unit for unit, value in found if value is not None and value > 0]
            lost = [unit for unit, value in found if value is not None and value < 0]
            if saved and lost:
                gain, price = numbers.listing(saved), numbers.listing(lost)
                text = f"{_label(study, arm, scale)} saves {gain}, but costs more {price}."
                warnings.append(Paragraph(text=text, kind="warning"))
    return warnings


def _table(study: RunFolder, arms: list[str]) -> Table:
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in arms:
            for name, _, unit in ENDPOINTS:
                found = endpoint(study, arm, scale, name)
                training = endpoint(study, arm, scale, name, "saving_training")
                cases = sources(study, arm, scale)
                rows.append(
                    Row(
                        cells=(
                            words(_label(study, arm, scale), code=True),
                            words(unit, small="primary" if _primary(study, arm) == name else ""),
                            outcome_cell(found.outcome) if found.outcome else absent(found.why),
                            share_cell(training.value, None, training.why, cases),
                            share_cell(found.value, found.bounds, found.why, cases),
                            _adjusted(found.raw.get("bounds_adjusted"), found.why),
                            words(found.why) if found.outcome else absent(found.why),
                        )
                    )
                )
    return Table(
        id="savings-table",
        caption="Savings at equal loss with the reason for each outcome.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="endpoint", label="In", numeric=False),
            Column(key="outcome", label="Outcome", numeric=False),
            Column(key="saving_training", label="Training alone", bounded=False),
            Column(key="saving_all_in", label="All-in", hint="Preparation included: this decides.", bounded=True),
            Column(key="bounds_adjusted", label="Adjusted interval", hint="Adjusted for several claims (Holm).",
                   bounded=True),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
        wide=True,
    )  # fmt: skip


def _primary(study: RunFolder, arm: str) -> str | None:
    declared = study.declared(arm)
    return declared.primary if declared else None


def _adjusted(value: object, why: str) -> Cell:
    from bench.report.cells import interval_decimals
    from bench.report.outcomes import pair

    bounds = pair(value)
    if bounds is None:
        return absent(why)
    low, high = bounds
    text = numbers.interval(low, high, interval_decimals(low, high)) + numbers.THIN + "%"
    return Cell(text=text, low=low, high=high)


def sources(study: RunFolder, arm: str, scale: str) -> tuple[str, ...]:
    """The trainings that a saving is read off: the arm's and its reference's."""
    own = over_seeds(study.of("train", arm, scale), "val_loss").sources
    return own + over_seeds(study.of("train", study.reference(arm), scale), "val_loss").sources
