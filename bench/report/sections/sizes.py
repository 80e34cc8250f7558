"""Several sizes of model: the baseline's loss laws, and each arm's saving against compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.report import numbers
from bench.report.cells import outcome_cell, share_cell
from bench.report.outcomes import pair, sentence
from bench.report.panels import Band, Law, Mark, Panel, Series
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.sections.elsewhere import ladder
from bench.report.sections.savings import level_words
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words

GRID_POINTS = 40
"""Of a fitted law's line."""
FEW_TOKENS = 0.1
"""A parameter, below which a training has only begun: a compute-optimal one takes some 20 (arXiv 2203.15556)."""
LAWS = (("params", "N"), ("tokens", "D"), ("flops", "C"))
"""(key in the verdict, variable) of the laws in one variable."""


def section(study: RunFolder) -> Section | None:
    """Loss laws and savings against compute; None where a study of one size claims nothing."""
    found = mapping((study.verdict or {}).get("sizes"))
    if not found:
        claims = any(study.role(arm) == "claim" for arm in study.arms[1:])
        return _one_size(study) if claims and len(study.design.scales) == 1 else None
    arms = {name: mapping(one) for name, one in mapping(found.get("arms")).items()}
    blocks: list[Block] = [Paragraph(text=f"{sentence(str(one['warning']))}", kind="warning")
                           for one in arms.values() if one.get("warning")]  # fmt: skip
    blocks.append(_lead(study, found))
    blocks.append(Figure(id="sizes-savings", caption="Saving of training FLOPs at equal loss against the reference's "
                         "compute; filled: carried to the targets.",
                         panels=tuple(_band(study, name, one) for name, one in arms.items())))  # fmt: skip
    blocks.append(_trend_table(arms, _targets(found)))
    blocks.append(Figure(id="sizes-law", caption="The baseline's final losses with the fitted law, and what it leaves.",
                         panels=(_law(study, found),)))  # fmt: skip
    blocks.append(_law_table(found))
    return Section(id="sizes", title="What several sizes say", blocks=tuple(blocks))


def _one_size(study: RunFolder) -> Section:
    """A claim at one size says nothing of others; one that trained nothing, what others carry here."""
    carried = ladder(study) if study.design.layout == "sample" else None
    if carried is not None:
        return _carried(*carried)
    text = (
        f"Not measured: this study has one size, {study.design.scales[0]}. Whether what holds here holds for larger "
        "models is a question for a suite with several sizes, such as suites/ladder.yaml."
    )
    return Section(id="sizes", title="Other sizes", blocks=(*_undertrained(study), Paragraph(text=text)))


def _undertrained(study: RunFolder) -> tuple[Paragraph, ...]:
    """A warning where the baseline saw so little text that losses are those of a beginning."""
    scale = study.design.scales[0]
    params = number(study.planned(study.design.baseline, scale).get("params_active"))
    trained = study.of("train", study.design.baseline, scale, study.full_horizon())
    tokens = number(trained[0].detail.get("tokens")) if trained else None
    if study.design.layout == "sample" or not params or not tokens or tokens / params >= FEW_TOKENS:
        return ()
    text = (
        f"The baseline saw {numbers.si(tokens)} tokens for its {numbers.si(params)} active parameters, "
        f"{numbers.significant(tokens / params)} a parameter: FLOPs, time, energy and memory are those of its size, "
        "losses are the beginning of a training. A claim about quality needs models that such a budget can train, as "
        "in suites/ladder-gpu.yaml."
    )
    return (Paragraph(text=text, kind="warning"),)


def _carried(folder: Path, arms: dict[str, dict[str, Any]]) -> Section:
    """What another study's sizes say of this one, where no quality was measured."""
    text = (
        f"No saving was measured here. The study `{folder.name}` trained smaller models at several sizes and carries "
        "their savings to this one. Its arms are its own: where one here has the same name, its change may be another. "
        "Nothing was trained at this size: at most \u201cconsistent with\u201d, never supported."
    )
    table = replace(
        _trend_table(arms, []), caption=f"Savings that `{folder.name}` carries to this size, with intervals."
    )
    return Section(id="sizes", title="What smaller sizes say of this one", blocks=(Paragraph(text=text), table))


def _lead(study: RunFolder, found: dict[str, Any]) -> Paragraph:
    targets = _targets(found)
    aim = ""
    if targets:
        aim = (
            f" Carried to {' and '.join(_size(one) for one in targets)}, which nothing here was trained at: at most "
            "\u201cconsistent with\u201d, never supported."
        )
    return Paragraph(
        text="Savings are fitted as ln(multiplier) = c\u2080 + c\u2081 log\u2081\u2080(C), each scale weighted by its "
        f"precision; bands are {level_words(study)} prediction intervals, which three or four scales leave wide.{aim}"
    )


def _targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The sizes that a suite asks to be carried to."""
    return [mapping(one) for one in sequence(found.get("targets"))]


def _size(target: dict[str, Any]) -> str:
    params, tokens = (numbers.si(float(target[name])) for name in ("params", "tokens"))
    return f"{params} parameters and {tokens} tokens"


# --- savings -------------------------------------------------------------------------------------


def _band(study: RunFolder, name: str, one: dict[str, Any]) -> Band:
    points = tuple(_whisker(mapping(point)) for point in sequence(one.get("points")))
    line = tuple(tuple(float(part) for part in point) for point in sequence(one.get("line")))
    targets = tuple(_whisker(mapping(there)) for there in sequence(one.get("at_targets")))
    marks = [Mark(value=0.0, label="0", kind="zero")]
    if study.role(name) == "claim":
        at_least = study.design.hypothesis.saving.at_least
        marks.append(Mark(value=100 * at_least, label=f"claim {100 * at_least:.3g}", kind="limit"))
    why = str(one.get("why") or "nothing was measured")
    return Band(
        id=f"sizes-saving-{name}", title=name, x_label="Training compute of the reference (FLOP)",
        y_label=f"{name}: saving in FLOPs (%)", points=points,
        line=tuple((x, 100 * value, 100 * low, 100 * high) for x, value, low, high in line), targets=targets,
        marks=tuple(marks), style=study.style(name), alt=f"{name}: {why}", missing=None if points else why,
    )  # fmt: skip


def _whisker(point: dict[str, Any]) -> tuple[float, float, float, float]:
    low, high = pair(point.get("bounds")) or (None, None)
    value = 100 * float(point["saving"])
    return (float(point["flops"]), value, value if low is None else 100 * low, value if high is None else 100 * high)


def _trend_table(arms: dict[str, dict[str, Any]], targets: list[dict[str, Any]]) -> Table:
    rows: list[Row] = []
    nowhere = words("; ".join(map(_size, targets))) if targets else absent("no size to carry it to")
    for name, one in arms.items():
        slope, bounds = number(one.get("slope")), pair(one.get("slope_bounds"))
        for there in [mapping(there) for there in sequence(one.get("at_targets"))] or [one]:
            why = str(there.get("why") or "not measured")
            outcome = str(there.get("outcome") or "NOT MEASURED")
            rows.append(
                Row(
                    cells=(
                        words(name, code=True),
                        _decade(slope, bounds, why),
                        words(_size(there)) if there is not one else nowhere,
                        share_cell(number(there.get("saving")), pair(there.get("bounds")), why),
                        absent(why) if outcome == "NOT MEASURED" else outcome_cell(outcome),
                        words(sentence(why)),
                    )
                )
            )
    return Table(
        id="sizes-savings-table", caption="Savings against size.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="slope_ln_per_decade", label="Change a decade", bounded=True,
                   hint="Of the multiplier, with ten times the compute: below zero the saving shrinks."),
            Column(key="target", label="Target", numeric=False),
            Column(key="saving_at_target", label="Saving there", bounded=True),
            Column(key="outcome", label="Outcome", numeric=False),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _decade(slope: float | None, bounds: tuple[float | None, float | None] | None, why: str) -> Cell:
    """exp(slope) - 1: how the multiplier changes with ten times the compute."""
    if slope is None:
        return absent(why)
    low, high = (None if end is None else float(np.expm1(end)) for end in bounds or (None, None))
    small = numbers.interval(low, high, 1) if bounds else ""
    return Cell(text=numbers.percent(float(np.expm1(slope)), sign=True), value=slope, low=low, high=high, small=small)


# --- laws ----------------------------------------------------------------------------------------


def _law(study: RunFolder, found: dict[str, Any]) -> Panel:
    law = mapping(mapping(found.get("laws")).get("chinchilla"))
    fitted = mapping(law.get("parameters"))
    points = [mapping(one) for one in sequence(found.get("trainings"))]
    series: list[Series] = []
    residuals: list[tuple[int, float, float]] = []
    for style, scale in enumerate(study.design.scales if fitted else ()):
        own = [one for one in points if one.get("scale") == scale]
        if not own:
            continue
        n, flops_per_token = float(own[0]["params"]), float(own[0]["flops"]) / float(own[0]["tokens"])
        tokens = [float(one["tokens"]) for one in own]
        grid = np.geomspace(min(tokens), max(tokens), GRID_POINTS)
        line = tuple((float(d * flops_per_token), _loss(fitted, n, float(d))) for d in grid)
        series.append(Series(name=scale, style=style, means=line,
                             ends=tuple((float(one["flops"]), float(one["loss"])) for one in own)))  # fmt: skip
        residuals += [(style, float(one["flops"]),
                       float(one["loss"]) / _loss(fitted, n, float(one["tokens"])) - 1) for one in own]  # fmt: skip
    why = str(law.get("why") or "nothing was fitted")
    return Law(
        id="sizes-law-loss", title="Loss law", x_label="Training compute (FLOP)", series=tuple(series),
        y_label="Validation loss (nats a token)", residuals=tuple(residuals),
        alt=f"Losses of {numbers.count(len(points), 'training')} with the fitted law." if series else why,
        missing=None if series else why,
    )  # fmt: skip


def _loss(fitted: dict[str, Any], n: float, d: float) -> float:
    return float(fitted["E"] + fitted["A"] / n ** fitted["alpha"] + fitted["B"] / d ** fitted["beta"])


def _law_table(found: dict[str, Any]) -> Table:
    laws = mapping(found.get("laws"))
    rows: list[Row] = []
    for key, variable in LAWS:
        one = mapping(laws.get(key))
        value = _number(number(one.get("exponent")), pair(one.get("bounds")), str(one.get("why") or "not fitted"))
        rows.append(Row(cells=(words(f"L = ({variable}\u2080 / {variable})^a"), words("a"), value,
                               words(f"{one.get('points')} trainings"))))  # fmt: skip
    whole = mapping(laws.get("chinchilla"))
    fitted, bounds = mapping(whole.get("parameters")), mapping(whole.get("bounds"))
    why = str(whole.get("why") or "not fitted")
    for name in ("E", "A", "alpha", "B", "beta"):
        value = _number(number(fitted.get(name)), pair(bounds.get(name)), why)
        rows.append(Row(cells=(words("L = E + A/N^alpha + B/D^beta"), words(name), value,
                               words(f"{whole.get('points')} trainings"))))  # fmt: skip
    for there in [mapping(one) for one in sequence(whole.get("at_targets"))]:
        for key, label in (("loss", "loss"), ("optimal_params", "best N at its compute"),
                           ("optimal_tokens", "best D at its compute")):  # fmt: skip
            value = _number(number(there.get(key)), pair(there.get(f"{key}_bounds")), why)
            rows.append(Row(cells=(words(f"at {_size(there)}"), words(label), value, words("C = 6 N D"))))
    return Table(
        id="sizes-laws-table", caption="Loss laws of the baseline, N with embeddings, with bootstrap intervals.",
        columns=(
            Column(key="law", label="Law", numeric=False),
            Column(key="parameter", label="Parameter", numeric=False),
            Column(key="value", label="Fitted", bounded=True),
            Column(key="from", label="From", numeric=False),
        ),
        rows=tuple(rows),
    )  # fmt: skip


def _number(value: float | None, bounds: tuple[float | None, float | None] | None, why: str) -> Cell:
    if value is None:
        return absent(why)
    low, high = bounds or (None, None)
    small = "" if low is None or high is None else f"[{_short(low)}, {_short(high)}]"
    return Cell(text=_short(value), value=value, low=low, high=high, small=small)


def _short(value: float) -> str:
    return numbers.si(value) if abs(value) >= 1e4 else numbers.significant(value)
