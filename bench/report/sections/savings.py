"""What each arm saved: at equal loss, in FLOPs, seconds and joules side by side."""

from __future__ import annotations

from typing import Any

from bench.report import numbers
from bench.report.cells import interval_decimals, one_sided, outcome_cell, share_cell
from bench.report.outcomes import ENDPOINTS, UNJUDGED, Found, at_scale, endpoint, pair, sentence
from bench.report.panels import Estimate, Forest, Mark
from bench.report.runfolder import RunFolder, mapping, number, over_seeds
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words


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
    if points := _claim_points(study, arms):
        blocks.append(points)
    return Section(id="savings", title="What was saved at equal loss", blocks=tuple(blocks))


def _claims(study: RunFolder) -> bool:
    return any(arm.role == "claim" for arm in study.design.arms)


def level_words(study: RunFolder) -> str:
    """`95%`: the two-sided level of printed intervals."""
    return numbers.percent(1 - 2 * study.design.hypothesis.alpha, decimals=0)


def _label(study: RunFolder, arm: str, scale: str) -> str:
    return f"{arm} \u00b7 {scale}" if len(study.design.scales) > 1 else arm


def _panel(study: RunFolder, arms: list[str], name: str, title: str, unit: str) -> Forest:
    rows = tuple(_estimate(study, arm, scale, name) for scale in study.design.scales for arm in arms)
    known = [row for row in rows if row.reason is None]
    told = "; ".join(f"{row.name} {numbers.plain(row.text)}" for row in known)
    return Forest(
        id=f"savings-{name}", title=title, x_label=f"Saving in {unit} (%)", rows=rows, marks=_marks(study),
        alt=f"Saving in {unit} at equal loss: {told}." if known else f"Saving in {unit}: not measured.",
        missing=None if known else (rows[0].reason or UNJUDGED),
    )  # fmt: skip


def _estimate(study: RunFolder, arm: str, scale: str, name: str) -> Estimate:
    found = endpoint(study, arm, scale, name)
    low, high = found.bounds or (found.value, found.value)
    text = one_sided(low, high)
    if found.value is None and not text:
        low = high = None
    if found.value is not None:
        text = numbers.percent(found.value) + (f" {numbers.interval(low, high, 0)}" if found.bounds else "")
    return Estimate(
        name=_label(study, arm, scale), text=text, style=study.style(arm), value=_percent(found.value),
        low=_percent(low), high=_percent(high), reason=None if text else found.why,
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
    found = [
        (_label(study, arm, scale), at_scale(study, arm, scale).get("sign_disagreement"))
        for scale in study.design.scales
        for arm in arms
    ]
    return [Paragraph(text=f"\u201c{label}\u201d {text}.", kind="warning") for label, text in found if text]


def _table(study: RunFolder, arms: list[str]) -> Table:
    rows: list[Row] = []
    untold: dict[tuple[str, str], list[str]] = {}
    for scale in study.design.scales:
        for arm in arms:
            for name, _, unit in ENDPOINTS:
                found = endpoint(study, arm, scale, name)
                training = endpoint(study, arm, scale, name, "saving_training")
                cases = sources(study, arm, scale)
                aside = _primary(study, arm) != name and _without_numbers(study, arm, scale, name)
                if aside:
                    untold.setdefault((unit, found.why), []).append(_label(study, arm, scale))
                rows.append(
                    Row(
                        cells=(
                            words(_label(study, arm, scale), code=True),
                            words(unit, small="primary" if _primary(study, arm) == name else ""),
                            outcome_cell(found.outcome) if found.outcome else absent(found.why),
                            _per_token(study, arm, scale, name),
                            _training_alone(training, cases),
                            share_cell(found.value, found.bounds, found.why, cases),
                            _adjusted(found.raw.get("bounds_adjusted"), found.why),
                            words(sentence(found.why)) if found.outcome else absent(found.why),
                        ),
                        aside=aside,
                    )
                )
    return Table(
        id="savings-table",
        caption="Savings at equal loss with the reason for each outcome.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="endpoint", label="In", numeric=False),
            Column(key="outcome", label="Outcome", numeric=False),
            Column(key="saving_per_token", label="A token", hint="Without regard to the loss reached.", bounded=True),
            Column(key="saving_training", label="Training alone", hint="At equal loss, without preparation."),
            Column(key="saving_all_in", label="All-in", hint="Preparation included: this decides.", bounded=True),
            Column(key="bounds_adjusted", label="Adjusted interval", hint="Adjusted for several claims (Holm).",
                   bounded=True),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
        notes=tuple(
            f"not measured in {unit}: {numbers.listing(labels)} ({why})" for (unit, why), labels in untold.items()
        ),
        wide=True,
    )  # fmt: skip


def _without_numbers(study: RunFolder, arm: str, scale: str, name: str) -> bool:
    """Whether nothing at all is known of an arm in a currency: no saving, no bound, no cost of a token."""
    found = endpoint(study, arm, scale, name)
    told = found.value, found.bounds, pair(found.raw.get("bounds_training")), number(found.raw.get("saving_training"))
    per_token = number(mapping(at_scale(study, arm, scale).get("per_token")).get(name))
    return all(one is None for one in (*told, per_token))


def _training_alone(found: Found, cases: tuple[str, ...]) -> Cell:
    bounds = pair(found.raw.get("bounds_training")) if found.value is None else None
    return share_cell(found.value, bounds, found.why, cases)


def _per_token(study: RunFolder, arm: str, scale: str, name: str) -> Cell:
    found = mapping(at_scale(study, arm, scale).get("per_token"))
    value = number(found.get(name))
    return share_cell(value, pair(found.get(f"{name}_bounds")), "what a token takes was not measured")


def _primary(study: RunFolder, arm: str) -> str | None:
    declared = study.declared(arm)
    return declared.primary if declared else None


def _adjusted(value: object, why: str) -> Cell:
    bounds = pair(value)
    if bounds is None:
        return absent(why)
    low, high = bounds
    text = numbers.interval(low, high, interval_decimals(low, high)) + "%"
    return Cell(text=text, low=low, high=high)


TESTS = (
    ("direct_test", "Loss", "the reference at horizon 1.0"),
    ("truncated", "Loss", "the reference stopped at the same compute"),
    ("bits_per_byte", "Bits a byte", "the reference at horizon 1.0"),
)
"""What is compared at the claim point: (key in the verdict, quantity, compared with)."""


def _claim_points(study: RunFolder, arms: list[str]) -> Table | None:
    """The direct test, which needs no curve: the arm at its claim point against the reference. None without claims."""
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in arms:
            said = at_scale(study, arm, scale)
            point = mapping(said.get("claim_point"))
            horizon, ratio = number(point.get("horizon")), number(point.get("cost_ratio"))
            for key, quantity, against in TESTS:
                test = mapping(said.get(key))
                if test:
                    where = "" if horizon is None else f"horizon {horizon:.3g}"
                    cost = "" if ratio is None else f"{numbers.percent(ratio)} of the cost"
                    name = Cell(text=_label(study, arm, scale), value=_label(study, arm, scale), code=True, small=where)
                    rows.append(Row(cells=(name, words(quantity, small=cost), words(against), *_test(test))))
    if not rows:
        return None
    return Table(
        id="claim-point",
        caption="At the claim point, where an arm has spent no more than the claim allows. Below zero it is better.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="quantity", label="Quantity", numeric=False),
            Column(key="against", label="Against", numeric=False),
            Column(key="difference", label="Difference", bounded=True),
            Column(key="shown", label="No worse", numeric=False),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
    )


def _test(test: dict[str, Any]) -> tuple[Cell, Cell, Cell]:
    """Difference, whether it was shown to be no worse, and why."""
    value, bounds, why = number(test.get("difference")), pair(test.get("bounds")), str(test.get("why") or "")
    met = test.get("met")
    shown = words("shown", tone="good") if met else words("not shown", tone="open")
    low, high = bounds or (None, None)
    if value is None and not test.get("n_seeds"):
        reason = why or "nothing to compare has finished"
        return absent(reason), absent(reason), absent(reason)
    said = words(numbers.DASH) if met is None else shown, words(sentence(why) or numbers.DASH)
    if value is None:  # a training diverged: the difference has a bound at most
        return Cell(text=_open(low, high), low=low, high=high), *said
    small = numbers.interval(low, high, 4, scale=1.0) if bounds else ""
    difference = Cell(text=numbers.fixed(value, 4, sign=True), value=value, low=low, high=high, small=small)
    return difference, *said


def _open(low: float | None, high: float | None) -> str:
    """What is known of a difference without a value: `≥ +0.0312`, `≤ −0.0454`, or that it may be anything."""
    if low is not None:
        return f"\u2265{numbers.THIN}{numbers.fixed(low, 4, sign=True)}"
    return "any" if high is None else f"\u2264{numbers.THIN}{numbers.fixed(high, 4, sign=True)}"


def sources(study: RunFolder, arm: str, scale: str) -> tuple[str, ...]:
    """The trainings that a saving is read off: the arm's and its reference's."""
    own = over_seeds(study.of("train", arm, scale), "val_loss").sources
    return own + over_seeds(study.of("train", study.reference(arm), scale), "val_loss").sources
