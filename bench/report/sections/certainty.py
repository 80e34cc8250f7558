"""How sure: seeds, spread, intervals, and what this study could have found at all."""

from __future__ import annotations

from bench.report import numbers
from bench.report.cells import loss_cell
from bench.report.outcomes import conditions, endpoint, sentence
from bench.report.runfolder import RunFolder, mapping, number, over_seeds
from bench.report.sections.savings import level_words
from bench.report.tree import Block, Cell, Column, Facts, Paragraph, Row, Section, Table, absent, words


def section(study: RunFolder) -> Section:
    """Facts of the design, then the spread of each arm."""
    design = study.design
    hypothesis = design.hypothesis
    look = mapping((study.verdict or {}).get("look"))
    alpha = number(look.get("alpha")) or hypothesis.alpha
    halved = "" if alpha == hypothesis.alpha else f"of {hypothesis.alpha:g}: earlier looks spent the rest"
    items = (
        ("Purpose", words(design.purpose, small="" if design.purpose != "confirm" else "fixed before the first run")),
        ("Design", words(design.layout)),
        ("Seeds", words(", ".join(str(seed) for seed in design.seeds) or "none")),
        ("Horizons", words(", ".join(f"{horizon:g}" for horizon in design.horizons) or "none")),
        ("Scales", words(", ".join(design.scales) or "none")),
        ("One-sided error of each test", words(f"{alpha:g}", small=halved)),
        ("Printed intervals", words(f"{level_words(study)}, two-sided")),
        ("Tuning", words(_tuning(study))),
        ("Looks at the data", words(str(len(study.looks)) if study.looks else "none recorded")),
        ("Preparation is charged against", words("the largest horizon" if hypothesis.budget is None else
                                                 numbers.si(hypothesis.budget) + " tokens")),
    )  # fmt: skip
    blocks: list[Block] = [Facts(id="design-facts", items=items), _spread(study)]
    if len(design.seeds) < 2:
        text = "With one seed there is no spread to judge by: no interval can be given, and nothing here is settled."
        blocks.insert(0, Paragraph(text=text, kind="warning"))
    if rested := _conditions(study):
        blocks.append(rested)
    return Section(id="certainty", title="How sure is this?", blocks=tuple(blocks))


def _tuning(study: RunFolder) -> str:
    """Whether the arms were tuned alike, as the verdict read it from the records."""
    found = [mapping(one) for one in mapping((study.verdict or {}).get("tuning")).values()]
    if len(found) == len(study.design.scales) and found and all(one.get("equal") is True for one in found):
        return "the same number of trials for every arm"
    unequal = next((str(one.get("why")) for one in found if one.get("equal") is not True), "no arm had trials")
    return f"arms were not tuned with equal effort ({unequal}): a confirming study would settle nothing"


def _conditions(study: RunFolder) -> Table | None:
    """What each claim needs, and whether it was shown; None without judged claims."""
    several = len(study.design.scales) > 1
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms[1:]:
            for one in conditions(study, arm, scale):
                met = words("shown", tone="good") if one.met else words("not shown", tone="open")
                rows.append(
                    Row(
                        cells=(
                            words(arm, code=True),
                            *((words(scale, code=True),) if several else ()),
                            words(one.label),
                            absent(one.why or "the verdict does not say why") if one.met is None else met,
                            words(sentence(one.why) or numbers.DASH),
                        )
                    )
                )
    if not rows:
        return None
    return Table(
        id="conditions",
        caption="What each claim needs. SUPPORTED needs all of it.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            Column(key="condition", label="Needs", numeric=False),
            Column(key="met", label="Was it shown", numeric=False),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
    )


def _spread(study: RunFolder) -> Table:
    several = len(study.design.scales) > 1
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms:
            if study.role(arm) == "timing":
                continue
            records = study.of("train", arm, scale, study.full_horizon())
            loss = over_seeds(records, "val_loss")
            diverged = sum(
                one.status == "diverged" and one.case.arm == arm and not one.is_trial for one in study.records
            )
            rows.append(
                Row(
                    cells=(
                        words(arm, code=True),
                        *((words(scale, code=True),) if several else ()),
                        Cell(text=str(loss.n), value=loss.n, sources=loss.sources),
                        Cell(text=str(diverged), value=diverged),
                        loss_cell(loss),
                        _spread_cell(loss.sd, loss.n),
                        _noise(study, arm, scale),
                        _detectable(study, arm, scale),
                    )
                )
            )
    return Table(
        id="spread",
        caption=f"Spread over seeds at horizon {study.full_horizon():.1f}, and the smallest saving it can find.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            Column(key="seeds", label="Seeds"),
            Column(key="diverged", label="Diverged"),
            Column(key="val_loss", label="Loss"),
            Column(key="val_loss_sd", label="SD of loss"),
            Column(
                key="saving_sd", label="SD of saving", hint="Of the logarithm of the paired cost ratio, over seeds."
            ),
            Column(key="detectable_saving", label="Could have found", hint="With 80% power."),
        ),
        rows=tuple(rows),
    )


def _spread_cell(sd: float | None, n: int) -> Cell:
    if sd is None:
        return absent("fewer than two seeds have finished" if n < 2 else "not recorded")
    return Cell(text=numbers.significant(sd, 2), value=sd)


def _noise(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    found = endpoint(study, arm, scale, _primary(study, arm))
    sd = number(found.raw.get("sd"))
    return absent(found.why) if sd is None else Cell(text=numbers.significant(sd, 2), value=sd)


def _detectable(study: RunFolder, arm: str, scale: str) -> Cell:
    if arm == study.design.baseline:
        return words(numbers.DASH)
    found = endpoint(study, arm, scale, _primary(study, arm))
    share = number(found.raw.get("detectable_saving"))
    return absent("the verdict gives none") if share is None else Cell(text=numbers.percent(share), value=share)


def _primary(study: RunFolder, arm: str) -> str:
    declared = study.declared(arm)
    return declared.primary if declared else "flops"
