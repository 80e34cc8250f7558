"""Accuracy: non-inferiority against the margin, and task by task against guessing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.record import Record
from bench.report import numbers
from bench.report.cells import outcome_cell, points_cell
from bench.report.outcomes import accuracy, pair, sentence
from bench.report.panels import Dots, Estimate, Forest, Mark, Panel
from bench.report.runfolder import RunFolder, mapping, number, over_seeds, same
from bench.report.sections.savings import level_words
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words

PREFIX = "accuracy/"
FAMILIES = {"lm": "language modelling", "qa": "question answering", "nli": "language inference"}


def section(study: RunFolder) -> Section:
    """Differences with the margin, then accuracies with chance."""
    evaluated = _evaluated(study)
    judged = [(arm, scale) for scale in study.design.scales for arm in study.arms[1:] if study.role(arm) == "claim"]
    title = "Accuracy, and the margin it may lose"
    if not evaluated:
        text = "No model of this study was evaluated on tasks, so accuracy was not measured."
        return Section(id="accuracy", title=title, blocks=(Paragraph(text=text),))
    drop = study.design.hypothesis.accuracy_drop
    margin = numbers.points(drop.less_than, sign=False) if drop.kind == "absolute" else numbers.percent(drop.less_than)
    lead = Paragraph(
        text=f"An arm passes when its whole interval lies right of \u2212{margin}: that it is clearly no worse has to "
        "be shown; the absence of a significant difference shows nothing. A task counts only where the reference "
        "itself is clearly above guessing and above a control trained on less, since a task at chance always passes.",
    )
    panels: list[Panel] = []
    if judged:
        panels.append(_differences(study, judged))
    panels.extend(_tasks(study, scale) for scale in study.design.scales if _evaluated(study, scale=scale))
    figure = Figure(
        id="accuracy-plot",
        caption=f"Left: difference to the reference, {level_words(study)} intervals over items and seeds, and "
        "the margin. Right: accuracy by task; the tick is what guessing scores."
        if judged
        else "Accuracy by task; the tick is what guessing scores.",
        panels=tuple(panels),
    )
    blocks: list[Block] = [lead, figure]
    if judged:
        blocks.append(_verdicts(study, judged))
    blocks.extend(_table(study, scale) for scale in study.design.scales if _evaluated(study, scale=scale))
    return Section(id="accuracy", title=title, blocks=tuple(blocks))


def _evaluated(study: RunFolder, arm: str | None = None, scale: str | None = None) -> list[Record]:
    """Records that hold accuracies: of models as they are, and after fine-tuning."""
    found = [*study.of("evaluate", arm, scale), *study.of("finetune", arm, scale)]
    return sorted(found, key=lambda record: (record.case.horizon or 0.0, record.case.seed or 0))


def _parts(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The families of a judged accuracy, in a fixed order."""
    families = mapping(raw.get("families"))
    for family in (*FAMILIES, *sorted(set(families) - set(FAMILIES))):
        if family in families:
            yield family, mapping(families[family])


def _differences(study: RunFolder, judged: list[tuple[str, str]]) -> Forest:
    rows: list[Estimate] = []
    for arm, scale in judged:
        found = accuracy(study, arm, scale)
        label = f"{arm} \u00b7 {scale}: " if len(study.design.scales) > 1 else f"{arm}: " if len(judged) > 1 else ""
        rows.append(_estimate(study, arm, f"{label}mean of families", found.raw, found.why))
        for family, part in _parts(found.raw):
            why = str(part.get("why") or "no task of this family counted")
            rows.append(_estimate(study, arm, f"{label}{FAMILIES.get(family, family)}", part, why))
        control = mapping(found.raw.get("truncated_control"))
        if number(control.get("difference")) is not None:
            rows.append(_estimate(study, arm, f"{label}{study.reference(arm)} stopped early", control, "", style=0))
    drop = study.design.hypothesis.accuracy_drop
    margins = [number(accuracy(study, arm, scale).raw.get("margin")) for arm, scale in judged]
    margin = next((abs(one) for one in margins if one is not None), drop.less_than if drop.kind == "absolute" else None)
    marks = [Mark(value=0.0, label="no change", kind="zero")]
    if margin is not None:
        marks.append(Mark(value=-100 * margin, label="margin", kind="limit"))
    known = [row for row in rows if row.value is not None]
    told = "; ".join(f"{row.name} {numbers.plain(row.text)}" for row in known)
    return Forest(
        id="accuracy-differences", title="Difference to the reference", x_label="Difference (percentage points)",
        rows=tuple(rows), marks=tuple(marks),
        alt=f"Accuracy difference to the reference: {told}." if known else "Accuracy difference: not measured.",
        missing=None if known else rows[0].reason or "not judged",
    )  # fmt: skip


def _estimate(
    study: RunFolder, arm: str, name: str, raw: dict[str, Any], why: str, style: int | None = None
) -> Estimate:
    style = study.style(arm) if style is None else style
    value, bounds = number(raw.get("difference")), pair(raw.get("bounds"))
    if value is None:
        return Estimate(name=name, text="", style=style, value=None, low=None, high=None, reason=why)
    low, high = bounds or (value, value)
    text = numbers.fixed(100 * value, 2, sign=True) + (f" {numbers.interval(low, high, 1)}" if bounds else "")
    return Estimate(
        name=name, text=text, style=style, value=100 * value,
        low=None if low is None else 100 * low, high=None if high is None else 100 * high,
    )  # fmt: skip


def _verdicts(study: RunFolder, judged: list[tuple[str, str]]) -> Table:
    rows: list[Row] = []
    for arm, scale in judged:
        found = accuracy(study, arm, scale)
        cases = tuple(record.case.id for record in _evaluated(study, arm, scale))
        label = f"{arm} \u00b7 {scale}" if len(study.design.scales) > 1 else arm
        shown = points_cell(found.value, found.bounds, found.why, cases)
        power = number(found.raw.get("detectable_margin"))
        rows.append(
            Row(
                cells=(
                    words(label, code=True),
                    outcome_cell(found.outcome) if found.outcome else absent(found.why),
                    shown,
                    absent("the verdict does not say") if power is None else
                    Cell(text=numbers.points(power, sign=False), value=power),
                    words(sentence(found.why)),
                )
            )
        )  # fmt: skip
    return Table(
        id="accuracy-verdicts",
        caption="Non-inferiority at the claim point.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="outcome", label="Outcome", numeric=False),
            Column(key="difference", label="Difference", bounded=True),
            Column(key="detectable_margin", label="Could have shown", hint="Smallest margin this study could show."),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
    )


def _groups(study: RunFolder, scale: str) -> list[tuple[str, int, list[Record]]]:
    """(label, style, records) for each arm and horizon that was evaluated; a horizon short of the full one is named."""
    groups: list[tuple[str, int, list[Record]]] = []
    full = study.full_horizon()
    for arm in study.arms:
        records = _evaluated(study, arm, scale)
        for horizon in dict.fromkeys(record.case.horizon for record in records):
            label = arm if same(horizon, full) or horizon is None else f"{arm} at {horizon:.3g}"
            some = [record for record in records if record.case.horizon == horizon]
            groups.append((label, study.style(arm), some))
    return groups


def _task_names(records: list[Record]) -> list[str]:
    return sorted({name.removeprefix(PREFIX) for one in records for name in one.metrics if name.startswith(PREFIX)})


def _fact(records: list[Record], task: str, key: str) -> Any:
    found = (mapping(mapping(record.detail.get("tasks")).get(task)).get(key) for record in records)
    return next((value for value in found if value is not None), None)


def _tasks(study: RunFolder, scale: str) -> Dots:
    groups = [group for group in _groups(study, scale) if _is_compared(study, group)]
    records = _evaluated(study, scale=scale)
    rows: list[tuple[str, float | None, tuple[tuple[str, int, float], ...]]] = []
    for task in _task_names(records):
        chance = number(_fact(records, task, "chance"))
        found = [(label, style, over_seeds(some, PREFIX + task).value) for label, style, some in groups]
        dots = tuple((label, style, 100 * value) for label, style, value in found if value is not None)
        if dots:
            rows.append((task, None if chance is None else 100 * chance, dots))
    suffix = f" \u00b7 {scale}" if len(study.design.scales) > 1 else ""
    told = "; ".join(
        f"{task} {', '.join(f'{label} {value:.1f}' for label, _, value in dots)}"
        + (f", chance {chance:.1f}" if chance is not None else "")
        for task, chance, dots in rows
    )
    return Dots(
        id=f"accuracy-tasks-{scale}", title=f"Accuracy by task{suffix}", x_label="Accuracy (%); tick: chance",
        rows=tuple(rows), alt=f"Accuracy in percent by task: {told}.",
        missing=None if rows else "no task has a value",
    )  # fmt: skip


def _is_compared(study: RunFolder, group: tuple[str, int, list[Record]]) -> bool:
    """The reference at full horizon, and of each arm what was evaluated: a control's dots would only clutter."""
    label, style, _ = group
    return style != 0 or label == study.design.baseline


def _table(study: RunFolder, scale: str) -> Table:
    groups = _groups(study, scale)
    records = _evaluated(study, scale=scale)
    rows: list[Row] = []
    for task in _task_names(records):
        family, chance, n = (_fact(records, task, key) for key in ("family", "chance", "n"))
        level = number(chance)
        rows.append(
            Row(
                cells=(
                    words(task, code=True),
                    words(FAMILIES.get(str(family), str(family))) if family else absent("the record does not say"),
                    absent("the record does not say") if number(n) is None else
                    Cell(text=numbers.fixed(float(n), 0), value=int(n)),
                    absent("the record does not say") if level is None else
                    Cell(text=numbers.percent(level), value=level),
                    _counted(study, scale, task),
                    *(_score(some, task) for _, _, some in groups),
                )
            )
        )  # fmt: skip
    suffix = f" at scale {scale}" if len(study.design.scales) > 1 else ""
    return Table(
        id=f"accuracy-tasks-table-{scale}",
        caption=f"Accuracy by task{suffix}, mean and standard deviation over seeds (a tie among m choices scores 1/m).",
        columns=(
            Column(key="task", label="Task", numeric=False),
            Column(key="family", label="Family", numeric=False),
            Column(key="items", label="Items"),
            Column(key="chance", label="Chance"),
            Column(key="counted", label="Counts", numeric=False, hint="Whether the task can tell models apart here."),
            *(Column(key=f"accuracy_{label.replace(' ', '_')}", label=label) for label, _, _ in groups),
        ),
        rows=tuple(rows),
        wide=len(groups) > 2,
        sortable=True,
    )


def _counted(study: RunFolder, scale: str, task: str) -> Cell:
    """Whether the verdict counts a task, and why not."""
    for arm in study.arms[1:]:
        fact = mapping(mapping(accuracy(study, arm, scale).raw.get("tasks")).get(task))
        if "counted" in fact:
            return words("yes") if fact["counted"] else words("no", small=str(fact.get("why") or ""))
    return absent("no claim was judged on it")


def _score(records: list[Record], task: str) -> Cell:
    mean = over_seeds(records, PREFIX + task)
    if mean.value is None:
        return absent(mean.reason or "not evaluated")
    small = "" if mean.sd is None else f"\u00b1{numbers.THIN}{numbers.fixed(100 * mean.sd, 1)}"
    return Cell(text=numbers.percent(mean.value), value=mean.value, small=small, sources=mean.sources)
