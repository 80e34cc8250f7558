"""A combined change taken apart: what each factor saves, and whether savings multiply."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.report import numbers
from bench.report.cells import interval_decimals, share_cell
from bench.report.outcomes import pair, sentence
from bench.report.panels import Estimate, Forest, Mark
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.sections.savings import level_words
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words

PLACES = (("alone", "alone"), ("within", "in the whole"), ("average", "on average"))
"""(key in the verdict, in words): what a factor is added to."""
UNREAD = "the verdict holds no reading of it"


def section(study: RunFolder) -> Section | None:
    """Factors, pairs and cells at each scale; None where the study has no ablation."""
    found = mapping((study.verdict or {}).get("ablation"))
    if not found:
        return None
    blocks: list[Block] = [_lead(study, found)]
    for scale in study.design.scales:
        at_scale = mapping(mapping(found.get("scales")).get(scale))
        suffix = f"-{scale}" if len(study.design.scales) > 1 else ""
        where = f" at scale {scale}" if suffix else ""
        blocks.append(_answer(at_scale, where))
        blocks.append(_figure(at_scale, suffix, where))
        blocks.append(_factor_table(at_scale, suffix, where))
        if at_scale.get("interactions"):
            blocks.append(_pair_table(at_scale, suffix, where))
        blocks.append(_cell_table(at_scale, suffix, where))
    title = f"What each part of \u201c{found.get('of')}\u201d is worth"
    return Section(id="ablation", title=title, blocks=tuple(blocks))


def _lead(study: RunFolder, found: dict[str, Any]) -> Paragraph:
    kinds = {"add_one": "each factor alone", "leave_one_out": "the whole without each factor"}
    designs = [kinds.get(str(one), _factorial_words(found)) for one in sequence(found.get("designs"))]
    return Paragraph(
        text=f"Trained: {numbers.listing(designs)}. A factor is worth what it saves of the training FLOPs at equal "
        "loss (preparation left out), read on the baseline's curve: alone, in the whole (the whole against the whole "
        "without it) and, where there is a factorial, on average over the combinations of the others. Right of zero "
        f"it saves. Lines are {level_words(study)} intervals over seeds as blocks, not adjusted for their number.",
    )


def _factorial_words(found: dict[str, Any]) -> str:
    factors = len(mapping(found.get("factors")))
    generators = sequence(found.get("generators"))
    if not generators:
        return f"all combinations of {factors} factors"
    letters = ", ".join(f"{chr(ord('A') + n)} {name}" for n, name in enumerate(mapping(found.get("factors"))))
    return f"a fraction 2^({factors}\u2212{len(generators)}) with {' and '.join(map(str, generators))} ({letters})"


def _answer(at_scale: dict[str, Any], where: str) -> Paragraph:
    said = mapping(at_scale.get("multiply"))
    outcome = str(said.get("outcome") or "NOT MEASURED").lower()
    by = f" (by {said['by']})" if said.get("by") else ""
    why = sentence(str(said.get("why") or UNREAD))
    return Paragraph(text=f"Do savings multiply{where}? {outcome.capitalize()}{by}. {why}", kind="lead")


# --- figure --------------------------------------------------------------------------------------


def _figure(at_scale: dict[str, Any], suffix: str, where: str) -> Figure:
    factors = mapping(at_scale.get("factors"))
    rows = tuple(
        _estimate(f"{name}, {label}", mapping(mapping(factor).get(key)), "saving", "bounds", style)
        for style, (name, factor) in enumerate(factors.items(), 1)
        for key, label in PLACES
        if mapping(factor).get(key) is not None
    )
    departures = tuple(_departures(at_scale))
    panels = (
        _forest(f"ablation-factors{suffix}", "What each factor saves", "Saving in FLOPs (%)", rows),
        _forest(f"ablation-departures{suffix}", "Departure from multiplying", "Cost above the product (%)", departures),
    )
    caption = (
        f"Factors{where}: savings at equal loss, and how far combinations cost more than their savings multiplied."
    )
    return Figure(id=f"ablation-plot{suffix}", caption=caption, panels=panels)


def _departures(at_scale: dict[str, Any]) -> Iterator[Estimate]:
    whole = mapping(at_scale.get("multiply"))
    yield _estimate("all factors", whole, "departure", "departure_bounds", 0)
    for style, one in enumerate(map(mapping, sequence(at_scale.get("interactions"))), 1):
        name = " \u00d7 ".join(map(str, sequence(one.get("factors"))))
        yield _estimate(name, one, "departure", "departure_bounds", style)


def _forest(name: str, title: str, x_label: str, rows: tuple[Estimate, ...]) -> Forest:
    known = [row for row in rows if row.reason is None]
    told = "; ".join(f"{row.name} {numbers.plain(row.text)}" for row in known)
    return Forest(
        id=name, title=title, x_label=x_label, rows=rows, marks=(Mark(value=0.0, label="0", kind="zero"),),
        alt=f"{title}: {told}." if known else f"{title}: not measured.",
        missing=None if known else (rows[0].reason if rows else UNREAD),
    )  # fmt: skip


def _estimate(name: str, found: dict[str, Any], key: str, bounds: str, style: int) -> Estimate:
    value, ends = number(found.get(key)), pair(found.get(bounds))
    low, high = ends or (value, value)
    text = ""
    if value is not None:
        text = numbers.percent(value) + (f" {numbers.interval(low, high, 0)}" if ends else "")
    return Estimate(
        name=name, text=text, style=style, value=_percent(value), low=_percent(low), high=_percent(high),
        reason=None if text else str(found.get("why") or UNREAD),
    )  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


# --- tables --------------------------------------------------------------------------------------


def _factor_table(at_scale: dict[str, Any], suffix: str, where: str) -> Table:
    """A column for each place that the design has arms for."""
    factors = {name: mapping(one) for name, one in mapping(at_scale.get("factors")).items()}
    has = {key: any(one.get(key) is not None for one in factors.values()) for key, _ in PLACES}
    columns = [Column(key="factor", label="Factor", numeric=False)]
    if has["alone"]:
        columns.append(Column(key="saving_alone", label="Alone", hint="Added to the baseline.", bounded=True))
    if has["within"]:
        hint = "The whole against the whole without it."
        columns.append(Column(key="saving_within", label="In the whole", hint=hint, bounded=True))
        hint = "How much more the whole then costs."
        columns.append(Column(key="cost_without", label="Without it", hint=hint, bounded=True))
    if has["average"]:
        hint = "Main effect over all combinations of the others."
        columns.append(Column(key="saving_average", label="On average", hint=hint, bounded=True))
        columns.append(Column(key="aliases", label="Mixed with", numeric=False, hint="Cannot be told from these."))
    rows: list[Row] = []
    for name, one in factors.items():
        cells = [words(name, code=True, small=str(one.get("change") or ""))]
        cells += [_saving(one, "alone")] if has["alone"] else []
        cells += [_saving(one, "within"), _cost_without(mapping(one.get("within")))] if has["within"] else []
        cells += [_saving(one, "average"), _aliases(mapping(one.get("average")))] if has["average"] else []
        rows.append(Row(cells=tuple(cells)))
    return Table(
        id=f"ablation-factors-table{suffix}", caption=f"What each factor saves of the training FLOPs{where}.",
        columns=tuple(columns), rows=tuple(rows), wide=len(columns) > 5,
    )  # fmt: skip


def _saving(factor: dict[str, Any], key: str) -> Cell:
    found = mapping(factor.get(key))
    return share_cell(number(found.get("saving")), pair(found.get("bounds")), str(found.get("why") or UNREAD))


def _cost_without(within: dict[str, Any]) -> Cell:
    value, bounds = number(within.get("cost_without")), pair(within.get("cost_without_bounds"))
    return _signed(value, bounds, str(within.get("why") or UNREAD))


def _signed(value: float | None, bounds: tuple[float | None, float | None] | None, why: str) -> Cell:
    """A share that may lie on either side of zero, with its sign."""
    if value is None:
        return absent(why)
    low, high = bounds or (None, None)
    small = numbers.interval(low, high, interval_decimals(low, high)) if bounds else ""
    return Cell(text=numbers.percent(value, sign=True), value=value, low=low, high=high, small=small)


def _aliases(found: dict[str, Any]) -> Cell:
    return words(", ".join(map(str, sequence(found.get("aliases")))) or "nothing up to three factors")


def _pair_table(at_scale: dict[str, Any], suffix: str, where: str) -> Table:
    rows: list[Row] = []
    for one in map(mapping, sequence(at_scale.get("interactions"))):
        value, why = number(one.get("effect")), str(one.get("why") or UNREAD)
        low, high = pair(one.get("bounds")) or (None, None)
        effect = absent(why)
        if value is not None:
            small = "" if low is None and high is None else numbers.interval(low, high, 3, scale=1.0)
            effect = Cell(text=numbers.fixed(value, 3, sign=True), value=value, low=low, high=high, small=small)
        departure = _signed(number(one.get("departure")), pair(one.get("departure_bounds")), why)
        outcome = str(one.get("outcome") or "")
        rows.append(
            Row(
                cells=(
                    words(" \u00d7 ".join(map(str, sequence(one.get("factors")))), code=True),
                    effect,
                    departure,
                    words(outcome.lower()) if value is not None else absent(why),
                    _aliases(one),
                )
            )
        )
    return Table(
        id=f"ablation-pairs-table{suffix}",
        caption=f"Interactions of pairs{where}: below zero two factors save more together than multiplying says.",
        columns=(
            Column(key="pair", label="Pair", numeric=False),
            Column(key="interaction_ln", label="Interaction", hint="Of ln cost, in units of nats.", bounded=True),
            Column(key="departure", label="Cost above the product", bounded=True),
            Column(key="outcome", label="Outcome", numeric=False),
            Column(key="aliases", label="Mixed with", numeric=False, hint="Cannot be told from these."),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _cell_table(at_scale: dict[str, Any], suffix: str, where: str) -> Table:
    rows = tuple(
        Row(
            cells=(
                words(str(one.get("arm")), code=True),
                words(", ".join(map(str, sequence(one.get("factors")))) or numbers.DASH),
                share_cell(number(one.get("saving")), pair(one.get("bounds")), str(one.get("why") or UNREAD)),
            )
        )
        for one in map(mapping, sequence(at_scale.get("cells")))
    )
    sd, seeds = number(at_scale.get("sd")), at_scale.get("n_seeds")
    note = (
        f"Noise of one cell and seed: SD {numbers.percent(sd)} of the cost ({seeds} seeds)." if sd is not None else ""
    )
    dropped = mapping(at_scale.get("dropped_seeds"))
    notes = [note] if note else []
    notes += [f"Seed {seed} is left out: {why}" for seed, why in dropped.items()]
    return Table(
        id=f"ablation-cells-table{suffix}", caption=f"Every combination that was trained{where}, against the baseline.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="factors", label="Factors on", numeric=False),
            Column(key="saving", label="Saving", hint="Of training FLOPs at equal loss.", bounded=True),
        ),
        rows=rows, notes=tuple(notes),
    )  # fmt: skip
