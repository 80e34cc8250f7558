"""What models were fine-tuned on before accuracy was measured: the budget, the rates chosen, what it took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench.report import numbers
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.tree import Block, Cell, Column, Paragraph, Row, Section, Table, absent, words


def section(study: RunFolder) -> Section | None:
    """Choices and costs of every arm; None where nothing was fine-tuned."""
    held = mapping((study.verdict or {}).get("finetuning"))
    found = {scale: one for scale in study.design.scales if (one := mapping(held.get(scale)))}
    if not found:
        return None
    lead = Paragraph(
        text="Small models are at chance on most questions until they are fine-tuned. Every model learnt from the same "
        "questions for the same number of tokens, once at each learning rate; the rate that answered best on "
        "questions kept back was tested on others again. No tested question shares thirteen words in a row with one "
        "that was learnt from. What this took is the cost of measuring, shown here and charged to no arm.",
    )
    blocks: list[Block] = [lead]
    blocks += [
        Paragraph(text=f"At scale {scale} not all models were fine-tuned alike: {one.get('why')}.", kind="warning")
        for scale, one in found.items()
        if one.get("equal") is not True
    ]
    blocks += [_choices(study, found), _costs(study, found)]
    return Section(id="finetuning", title="What models were fine-tuned on", blocks=tuple(blocks))


def _arms(study: RunFolder, found: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for scale, one in found.items():
        arms = mapping(one.get("arms"))
        yield from ((scale, arm, mapping(arms[arm])) for arm in study.arms if arm in arms)


def _choices(study: RunFolder, found: dict[str, dict[str, Any]]) -> Table:
    rows: list[Row] = []
    for scale, arm, one in _arms(study, found):
        for task, listed in mapping(one.get("tasks")).items():
            models = [mapping(model) for model in sequence(listed)]
            questions = mapping(models[0].get("questions"))
            rows.append(
                Row(
                    cells=(
                        words(arm, code=True),
                        words(scale, code=True),
                        words(task, code=True),
                        Cell(text=str(len(models)), value=len(models),
                             sources=tuple(str(model.get("case")) for model in models)),
                        _count(questions.get("learnt_from")),
                        _count(questions.get("contaminated")),
                        _count(questions.get("tested")),
                        _passes(number(models[0].get("passes"))),
                        words(_rates(models)),
                    ),
                    emphasis=arm == study.design.baseline,
                )
            )  # fmt: skip
    return Table(
        id="finetuning",
        caption="Questions, and the learning rates that were tested, with how many models chose each.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="scale", label="Scale", numeric=False),
            Column(key="task", label="Set", numeric=False),
            Column(key="models", label="Models"),
            Column(key="learnt_from", label="Learnt from", hint="Questions."),
            Column(key="contaminated", label="Left out", hint="They share 13 words in a row with a tested question."),
            Column(key="tested", label="Tested", hint="Before any limit."),
            Column(key="passes", label="Passes", hint="How often each question was seen, about."),
            Column(key="rates", label="Rates chosen", numeric=False),
        ),
        rows=tuple(rows),
        wide=True,
    )


def _rates(models: list[dict[str, Any]]) -> str:
    chosen = Counter(number(model.get("chosen")) for model in models)
    tried = sorted({lr for model in models for trial in sequence(model.get("trials"))
                    if (lr := number(mapping(trial).get("lr"))) is not None})  # fmt: skip
    shown = [f"{lr:g}: {chosen[lr]} of {len(models)}" for lr in tried]
    return ", ".join(shown + ([f"every trial diverged: {chosen[None]}"] if chosen[None] else []))


def _costs(study: RunFolder, found: dict[str, dict[str, Any]]) -> Table:
    rows: list[Row] = []
    for scale, arm, one in _arms(study, found):
        cost = mapping(one.get("cost"))
        amounts = (
            _amount(number(cost.get(key)), unit) for key, unit in (("flops", "FLOP"), ("time", "s"), ("energy", "J"))
        )
        cells = (words(arm, code=True), words(scale, code=True), _count(one.get("finished")), *amounts)
        rows.append(Row(cells=cells, emphasis=arm == study.design.baseline))
    return Table(
        id="finetuning-cost",
        caption="What fine-tuning took in all, every trial included (charged to no arm).",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="scale", label="Scale", numeric=False),
            Column(key="models", label="Models"),
            Column(key="train_flops", label="Compute"),
            Column(key="train_time_s", label="Time"),
            Column(key="energy_j", label="Energy"),
        ),
        rows=tuple(rows),
    )


def _count(value: Any) -> Cell:
    known = number(value)
    return absent("the record does not say") if known is None else Cell(text=numbers.fixed(known, 0), value=known)


def _passes(value: float | None) -> Cell:
    return absent("the record does not say") if value is None else Cell(text=numbers.fixed(value, 1), value=value)


def _amount(value: float | None, unit: str) -> Cell:
    return (
        absent("not every model has a reading that counts")
        if value is None
        else Cell(text=numbers.quantity(value, unit), value=value)
    )
