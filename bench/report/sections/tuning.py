"""How hard each arm was tuned: every setting tried, the loss it reached, the one that was chosen, what it took."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bench.report import numbers
from bench.report.panels import Curves, Series
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words

KNOBS = {"lr": "learning rate", "weight_decay": "weight decay"}


def section(study: RunFolder) -> Section | None:
    """The grids of all arms; None where nothing was tuned."""
    tuned = {scale: mapping(mapping((study.verdict or {}).get("tuning")).get(scale)) for scale in study.design.scales}
    tuned = {scale: found for scale, found in tuned.items() if found}
    if not tuned:
        return None
    lead = Paragraph(
        text="Every arm was tried at the same number of settings, in short trainings of their own seeds, and trained "
        "at the one with the lowest validation loss. What the trials took is shown here and charged to no arm: it is "
        "the cost of the study, not of a technique.",
    )
    blocks: list[Block] = [lead]
    blocks += [Paragraph(text=text, kind="warning") for text in _warnings(tuned)]
    blocks += [_figure(study, scale, mapping(found.get("arms"))) for scale, found in tuned.items()]
    blocks += [_chosen(study, tuned), _grid(study, tuned)]
    return Section(id="tuning", title="How hard each arm was tuned", blocks=tuple(blocks))


def _warnings(tuned: dict[str, dict[str, Any]]) -> Iterator[str]:
    for scale, found in tuned.items():
        if found.get("equal") is not True:
            yield f"At scale {scale} the arms were not tuned alike: {found.get('why')}."
        arms, ends = mapping(found.get("arms")), defaultdict[tuple[str, str, str], list[str]](list)
        for arm, one in arms.items():
            for knob, edge in mapping(mapping(one).get("edges")).items():
                value = number(mapping(mapping(one).get("chosen")).get(knob))
                ends[knob, str(edge), "" if value is None else f" ({value:g})"].append(arm)
        for (knob, edge, value), names in ends.items():
            every = len(arms) > 1 and len(names) == len(arms)
            whom = f"all {len(arms)} arms" if every else numbers.listing(names)
            yield (
                f"The best {KNOBS.get(knob, knob)} of {whom} at scale {scale} is the {edge} that was tried{value}: "
                "the grid may be too narrow."
            )


# --- figure --------------------------------------------------------------------------------------


def _figure(study: RunFolder, scale: str, arms: dict[str, Any]) -> Figure:
    series = tuple(one for arm in study.arms if (one := _series(study, arm, mapping(arms.get(arm)))) is not None)
    best = [f"{one.name} {min(one.means, key=lambda point: point[1])[0]:g}" for one in series]
    suffix = f" at scale {scale}" if len(study.design.scales) > 1 else ""
    alt = f"Best learning rate{suffix}: {numbers.listing(best)}." if best else "Every trial diverged."
    panel = Curves(
        id=f"tuning-{scale}-lr", title="Trials", x_label="Peak learning rate", y_label="Validation loss (nats a token)",
        unit="", series=series, alt=alt, missing=None if series else "every trial diverged",
    )  # fmt: skip
    caption = f"Loss of the tuning trials against learning rate{suffix}; the line joins the best of each rate."
    return Figure(id=f"tuning-{scale}", caption=caption, panels=(panel,))


def _series(study: RunFolder, arm: str, found: dict[str, Any]) -> Series | None:
    ends = tuple(
        (lr, loss)
        for trial in map(mapping, sequence(found.get("trials")))
        if (lr := number(trial.get("lr"))) is not None and (loss := number(trial.get("loss"))) is not None
    )
    best: dict[float, float] = {}
    for point in map(mapping, sequence(found.get("grid"))):
        lr, loss = number(point.get("lr")), number(point.get("loss"))
        if lr is not None and loss is not None:
            best[lr] = min(loss, best.get(lr, loss))
    if not best:
        return None
    return Series(name=arm, style=study.style(arm), ends=ends, means=tuple(sorted(best.items())))


# --- tables --------------------------------------------------------------------------------------


def _places(study: RunFolder, tuned: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for scale, found in tuned.items():
        for arm in study.arms:
            if one := mapping(mapping(found.get("arms")).get(arm)):
                yield scale, arm, one


def _knobs(tuned: dict[str, dict[str, Any]]) -> list[str]:
    settings = [mapping(trial) for found in tuned.values() for one in mapping(found.get("arms")).values()
                for trial in sequence(mapping(one).get("grid"))]  # fmt: skip
    return [knob for knob in KNOBS if any(knob in setting for setting in settings)]


def _chosen(study: RunFolder, tuned: dict[str, dict[str, Any]]) -> Table:
    knobs = _knobs(tuned)
    rows: list[Row] = []
    for scale, arm, one in _places(study, tuned):
        cost = mapping(one.get("cost"))
        recorded = {record.case.id for record in study.records}
        cases = tuple(
            case for trial in sequence(one.get("trials")) if (case := str(mapping(trial).get("case"))) in recorded
        )
        rows.append(
            Row(
                cells=(
                    words(arm, code=True),
                    words(scale, code=True),
                    Cell(text=str(one.get("finished")), value=number(one.get("finished")), sources=cases),
                    *(_setting(one, knob) for knob in knobs),
                    _loss(number(one.get("loss")), "every trial diverged"),
                    _amount(number(cost.get("flops")), "FLOP"),
                    _amount(number(cost.get("time")), "s"),
                    _amount(number(cost.get("energy")), "J"),
                ),
                emphasis=arm == study.design.baseline,
            )
        )
    return Table(
        id="tuning",
        caption="The setting that each arm trains with, and what its trials cost in all, with what they start or learn "
        "from (charged to no arm).",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="scale", label="Scale", numeric=False),
            Column(key="trials", label="Trials"),
            *(Column(key=knob, label=KNOBS[knob].capitalize()) for knob in knobs),
            Column(key="val_loss", label="Loss", hint="Of its trials, which are short: not comparable with trainings."),
            Column(key="train_flops", label="Compute"),
            Column(key="train_time_s", label="Time"),
            Column(key="energy_j", label="Energy"),
        ),
        rows=tuple(rows),
        wide=True,
    )


def _grid(study: RunFolder, tuned: dict[str, dict[str, Any]]) -> Table:
    knobs = _knobs(tuned)
    rows: list[Row] = []
    for scale, arm, one in _places(study, tuned):
        chosen = mapping(one.get("chosen"))
        for setting in map(mapping, sequence(one.get("grid"))):
            is_best = bool(chosen) and all(setting.get(knob) == chosen.get(knob) for knob in chosen)
            rows.append(
                Row(
                    cells=(
                        words(arm, code=True),
                        words(scale, code=True),
                        *(_value(number(setting.get(knob))) for knob in knobs),
                        _loss(number(setting.get("loss")), "a trial diverged at this setting"),
                        words("yes" if is_best else "", tone="good" if is_best else "plain"),
                    ),
                    emphasis=is_best,
                )
            )
    return Table(
        id="tuning-grid",
        caption="Every setting that was tried, with its mean loss over the trials' seeds.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="scale", label="Scale", numeric=False),
            *(Column(key=knob, label=KNOBS[knob].capitalize()) for knob in knobs),
            Column(key="val_loss", label="Loss"),
            Column(key="chosen", label="Chosen", numeric=False),
        ),
        rows=tuple(rows),
        sortable=True,
    )


def _setting(found: dict[str, Any], knob: str) -> Cell:
    value = number(mapping(found.get("chosen")).get(knob))
    if value is None:
        return absent("every trial diverged")
    edge = mapping(found.get("edges")).get(knob)
    return Cell(text=f"{value:g}", value=value, small=f"the {edge} tried" if edge else "")


def _value(value: float | None) -> Cell:
    return absent("not tried") if value is None else Cell(text=f"{value:g}", value=value)


def _loss(value: float | None, why: str) -> Cell:
    return absent(why) if value is None else Cell(text=numbers.fixed(value, 4), value=value)


def _amount(value: float | None, unit: str) -> Cell:
    return (
        absent("not every trial has a reading that counts")
        if value is None
        else Cell(text=numbers.quantity(value, unit), value=value)
    )
