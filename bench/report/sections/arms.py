"""The arms side by side: what each is, what it cost, what it reached."""

from __future__ import annotations

from collections.abc import Iterator

from bench.report import numbers
from bench.report.cells import loss_cell, mean_cell, outcome_cell, share_cell
from bench.report.outcomes import arm_outcome, at_scale, endpoint, pair
from bench.report.runfolder import Mean, RunFolder, mapping, number, over_seeds
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

COLUMNS = (
    Column(key="arm", label="Arm", numeric=False),
    Column(key="outcome", label="Outcome", numeric=False),
    Column(key="params_total", label="Parameters", hint="All parameters; those active for one token beneath."),
    Column(key="train_flops_per_token", label="FLOPs a token", hint="Executed in training, forward and backward."),
    Column(key="tokens", label="Tokens", hint="Training tokens at the compared horizon."),
    Column(key="val_loss", label="Loss", hint="Validation cross-entropy at the end, nats a token, mean over seeds."),
    Column(key="bits_per_byte", label="Bits a byte", hint="Validation bits per byte of text, mean over seeds."),
    Column(
        key="saving_per_token",
        label="Saved a token",
        hint="1 - FLOPs a token of the arm / of its reference. Says nothing about quality.",
    ),
    Column(
        key="saving_at_equal_loss",
        label="Saved at equal loss",
        hint="1 - training FLOPs of the arm / of its reference to reach the same loss, preparation included.",
        bounded=True,
    ),
    Column(
        key="step_time_ratio",
        label="Step time",
        hint="Seconds a step, arm / reference, interleaved blocks.",
        bounded=True,
    ),
    Column(key="energy_j", label="Energy", hint="Joules of a whole training, gross."),
    Column(key="peak_memory_bytes", label="Memory", hint="Peak memory of training."),
)


def section(study: RunFolder) -> Section:
    """The table of arms, one row an arm and scale."""
    several = len(study.design.scales) > 1
    scale_column = (Column(key="scale", label="Scale", numeric=False),) if several else ()
    rows = tuple(_row(study, arm, scale, several) for scale in study.design.scales for arm in study.arms)
    horizon = study.full_horizon()
    table = Table(
        id="arms",
        caption=f"Every arm at horizon {horizon:.1f}; means over seeds, spread or interval beneath.",
        columns=COLUMNS[:1] + scale_column + COLUMNS[1:],
        rows=rows,
        sortable=True,
        wide=True,
    )
    changes = [(arm, _change(study, arm)) for arm in study.arms[1:]]
    told = Table(
        id="changes",
        caption="What each arm changes, and against which arm it is compared.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            Column(key="role", label="Role", numeric=False),
            Column(key="against", label="Against", numeric=False),
            Column(key="change", label="Change", numeric=False),
        ),
        rows=tuple(
            Row(
                cells=(
                    words(arm, code=True),
                    words(study.role(arm)),
                    words(study.reference(arm), code=True),
                    words(change) if change else absent("the plan does not describe it"),
                )
            )
            for arm, change in changes
        ),
    )
    if not changes:
        return Section(
            id="arms",
            title="The arms side by side",
            blocks=(Paragraph(text="This study declares no arm beside its baseline."), table),
        )
    return Section(id="arms", title="The arms side by side", blocks=(table, told, *_twins(study)))


def _twins(study: RunFolder) -> Iterator[Paragraph]:
    """Arms that learned the same as an earlier one: what sets them apart had nothing to do here."""
    losses = {arm: _losses(study, arm) for arm in study.arms}
    for place, arm in enumerate(study.arms):
        for other in study.arms[:place]:
            shared = losses[arm].keys() & losses[other].keys()
            if shared and all(losses[arm][run] == losses[other][run] for run in shared):
                yield Paragraph(
                    text=f"\u201c{arm}\u201d ended with the losses of \u201c{other}\u201d to the last digit: what sets "
                    "them apart changed nothing that was learned here, and how they differ at equal loss is noise.",
                    kind="note",
                )
                break


def _losses(study: RunFolder, arm: str) -> dict[tuple[str | None, int | None, float | None], float]:
    """Each training's last validation loss, by scale, seed and horizon."""
    return {
        (record.case.scale, record.case.seed, record.case.horizon): loss
        for record in study.of("train", arm)
        if (loss := record.value("val_loss")) is not None
    }


def _change(study: RunFolder, arm: str) -> str:
    """What an arm changes: each scale by itself where they differ, and then what they have in common."""
    said = {scale: str(study.planned(arm, scale).get("change") or "").split("; ") for scale in study.design.scales}
    common: list[str] = []
    while all(said.values()) and len({parts[-1] for parts in said.values()}) == 1:
        common.insert(0, next(iter([parts.pop() for parts in said.values()])))
    return "; ".join([*(f"at {scale}: {'; '.join(parts)}" for scale, parts in said.items() if parts), *common])


def _row(study: RunFolder, arm: str, scale: str, several: bool) -> Row:
    train = study.of("train", arm, scale, study.full_horizon())
    only_timed = study.role(arm) == "timing"
    untrained = "a timing arm is not trained" if only_timed else None
    if study.design.layout == "sample":
        untrained = "a few steps of every arm are no training: what they cost stands under Steps at true size"
    name = Cell(text=arm, value=arm, small=study.role(arm), code=True)
    scale_cell = (words(scale, code=True),) if several else ()
    cells = (
        name,
        *scale_cell,
        _outcome(study, arm, scale),
        _parameters(study, arm, scale),
        _planned(study, arm, scale, "train_flops_per_token"),
        _tokens(study, arm, scale, untrained),
        _known(untrained) or loss_cell(over_seeds(train, "val_loss")),
        _known(untrained) or loss_cell(over_seeds(train, "bits_per_byte")),
        _per_token(study, arm, scale),
        _equal_loss(study, arm, scale),
        _step_ratio(study, arm, scale),
        _known(untrained) or mean_cell(over_seeds(train, "energy_j")),
        _known(untrained) or mean_cell(over_seeds(train, "peak_memory_bytes"), show_sd=False),
    )
    return Row(cells=cells, emphasis=arm == study.design.baseline, anchor=f"arm-{arm}-{scale}")


def _known(reason: str | None) -> Cell | None:
    return absent(reason) if reason else None


def _outcome(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words("reference")
    outcome = arm_outcome(study, arm, scale)
    return outcome_cell(outcome) if outcome else absent("the study has not been judged")


def _both(study: RunFolder, arm: str, scale: str, metric: str) -> Mean:
    """A metric from the arm's records, or where it has none from its plan (which counted it exactly)."""
    records = study.of("train", arm, scale, study.full_horizon()) or study.of("timing", arm, scale)
    found = over_seeds(records, metric)
    planned = number(study.planned(arm, scale).get(metric))
    if found.value is None and planned is not None:
        return Mean(planned, None, 0, "FLOP" if "flops" in metric else "1", (), ("counted",))
    return found


def _parameters(study: RunFolder, arm: str, scale: str) -> Cell:
    total, active = _both(study, arm, scale, "params_total"), _both(study, arm, scale, "params_active")
    if total.value is None:
        return absent(total.reason or "not recorded")
    small = "" if active.value is None else f"{numbers.si(active.value)} active"
    return Cell(text=numbers.si(total.value), value=total.value, small=small, sources=total.sources)


def _planned(study: RunFolder, arm: str, scale: str, metric: str) -> Cell:
    found = _both(study, arm, scale, metric)
    if found.value is None:
        return absent(found.reason or "not recorded")
    infer = _both(study, arm, scale, "infer_flops_per_token").value
    small = "" if infer is None else f"{numbers.si(infer)} to infer"
    return Cell(text=numbers.si(found.value), value=found.value, small=small, sources=found.sources)


def _tokens(study: RunFolder, arm: str, scale: str, untrained: str | None) -> Cell:
    records = study.of("train", arm, scale, study.full_horizon())
    counts = [(record, number(record.detail.get("tokens"))) for record in records]
    known = [(record, count) for record, count in counts if count is not None]
    if untrained or not known:
        return absent(untrained or "no case of this arm has ended well")
    return Cell(text=numbers.si(known[0][1]), value=known[0][1], sources=tuple(record.case.id for record, _ in known))


def _per_token(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    own = _both(study, arm, scale, "train_flops_per_token")
    theirs = _both(study, study.reference(arm), scale, "train_flops_per_token")
    if own.value is None or not theirs.value:
        return absent("FLOPs a token of the arm or its reference are not known")
    saving = 1 - own.value / theirs.value
    infer = _both(study, arm, scale, "infer_flops_per_token").value
    infer_reference = _both(study, study.reference(arm), scale, "infer_flops_per_token").value
    small = f"{numbers.percent(1 - infer / infer_reference)} to infer" if infer and infer_reference else ""
    return Cell(text=numbers.percent(saving), value=saving, small=small, sources=own.sources[:1] + theirs.sources[:1])


def _equal_loss(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    if study.role(arm) == "timing":
        return absent("a timing arm is not trained")
    found = endpoint(study, arm, scale, "flops")
    return share_cell(found.value, found.bounds, found.why)


def _step_ratio(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    timed = study.of("timing", arm, scale)
    if not timed:
        judged = mapping(mapping(at_scale(study, arm, scale).get("endpoints")).get("time"))
        return absent(str(judged.get("why") or "no timing case of this arm has finished"))
    ratio = over_seeds(timed, "step_time_ratio")
    if ratio.value is None:
        return absent(ratio.reason or "not timed")
    step = over_seeds(study.of("timing", arm, scale), "step_time_s")
    bounds = pair(mapping(at_scale(study, arm, scale).get("per_token")).get("time_bounds"))
    low, high = (None if bounds is None or one is None else 1 - one for one in reversed(bounds or (None, None)))
    small = numbers.interval(low, high, 2, scale=1.0) if bounds else ""
    if not small and step.value is not None:
        small = f"{numbers.duration(step.value)} a step"
    return Cell(
        text=f"{numbers.fixed(ratio.value, 2)}{numbers.THIN}{numbers.TIMES}",
        value=ratio.value, low=low, high=high, small=small, sources=ratio.sources,
    )  # fmt: skip
