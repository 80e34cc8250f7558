"""Ways of decoding: what a generated token costs against the reference, whether the text is kept, how deep it goes."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from bench.design import InferenceArmDesign
from bench.record import Record
from bench.report import numbers
from bench.report.cells import mean_cell, outcome_cell, points_cell, share_cell
from bench.report.outcomes import UNJUDGED, pair, sentence
from bench.report.panels import Estimate, Forest, Mark, Series, Tradeoff
from bench.report.runfolder import RunFolder, mapping, number, over_seeds, sequence
from bench.report.sections.savings import level_words
from bench.report.tree import Block, Cell, Column, Figure, Paragraph, Row, Section, Table, absent, words

ENDPOINTS = (("time", "Time", "seconds"), ("flops", "Compute", "FLOPs"), ("energy", "Energy", "joules"))
READINGS = (
    ("decode_tokens_per_s", "Tokens a second", "Of one text, behind its first token."),
    ("time_to_first_token_s", "First token", "Seconds to read the prompt and write one token."),
    ("decode_flops_per_token", "FLOPs a token", "Executed, drafts and exits included."),
    ("decode_j_per_token", "Energy a token", "Gross joules."),
    ("acceptance_rate", "Drafts kept", "Share of drafted tokens that were kept."),
    ("tokens_per_call", "Tokens a call", "That a pass of the checking model adds."),
    ("mean_exit_layer", "Mean exit layer", "Behind which tokens were left, prompts excluded."),
)
"""(metric, label, hint)"""


def section(study: RunFolder) -> Section | None:
    """None where the study compares no ways of decoding."""
    design = study.design.inference
    if design is None:
        return None
    judged = mapping((study.verdict or {}).get("inference"))
    models = "the models of" if design.trains else "the checkpoint"
    lines = f"Lines are {level_words(study)} intervals over prompts"
    about = (
        f"{lines} and seeds. This is about inference, and says nothing of the hypothesis on training."
        if design.trains
        else f"{lines}: they are about this one model."
    )
    lead = Paragraph(
        text=f"Each way of decoding writes behind the same held-out prompts as \u201c{design.reference}\u201d, with "
        f"{models} \u201c{design.model}\u201d, in interleaved blocks. It saves where a generated token costs less "
        "and nothing is lost: what is lossless must write the same text, what is not must guess as many held-out "
        f"tokens. {about}"
    )
    blocks: list[Block] = [lead, *_warnings(study, judged)]
    panels = tuple(_panel(study, judged, *one) for one in ENDPOINTS)
    blocks.append(Figure(id="inference-plot", caption="Saved a generated token, one panel a currency.", panels=panels))
    blocks.append(_table(study, judged))
    blocks.append(_whys(study, judged))
    blocks += _curves(study)
    return Section(id="inference", title="Ways of decoding", blocks=tuple(blocks))


def _at(judged: dict[str, Any], arm: str, scale: str) -> dict[str, Any]:
    return mapping(mapping(mapping(mapping(judged.get("arms")).get(arm)).get("scales")).get(scale))


def _label(study: RunFolder, arm: str, scale: str) -> str:
    return f"{arm} \u00b7 {scale}" if len(study.design.scales) > 1 else arm


def _names(study: RunFolder) -> list[str]:
    assert study.design.inference is not None
    return [arm.name for arm in study.design.inference.arms]


def _warnings(study: RunFolder, judged: dict[str, Any]) -> list[Paragraph]:
    """What claims to be lossless and is not; and text that repeats itself, which flatters lookup."""
    found: list[Paragraph] = []
    for scale in study.design.scales:
        for arm in _names(study):
            quality = mapping(_at(judged, arm, scale).get("quality"))
            if quality.get("kind") == "exact" and quality.get("kept") is False:
                found.append(Paragraph(text=f"{_label(study, arm, scale)}: {quality.get('why')}.", kind="warning"))
    shares = [
        value for record in study.of("generate") if (value := number(record.detail.get("repeated_share"))) is not None
    ]
    if shares and max(shares) > 0.5:
        text = f"{numbers.percent(fmean(shares), decimals=0)} of the 4-grams of the texts written had occurred before: "
        found.append(Paragraph(text=f"{text}a model that repeats itself is easy to draft for.", kind="note"))
    return found


# --- savings -------------------------------------------------------------------------------------


def _panel(study: RunFolder, judged: dict[str, Any], name: str, title: str, unit: str) -> Forest:
    rows = tuple(
        _estimate(study, _at(judged, arm, scale), arm, scale, name, style)
        for scale in study.design.scales
        for style, arm in enumerate(_names(study), 1)
    )
    known = [row for row in rows if row.reason is None]
    told = "; ".join(f"{row.name} {numbers.plain(row.text)}" for row in known)
    return Forest(
        id=f"inference-{name}", title=title, x_label=f"Saved a generated token in {unit} (%)", rows=rows,
        marks=(Mark(value=0.0, label="0", kind="zero"),),
        alt=f"Saved a generated token in {unit}: {told}." if known else f"Saved in {unit}: not measured.",
        missing=None if known else (rows[0].reason or UNJUDGED),
    )  # fmt: skip


def _estimate(study: RunFolder, found: dict[str, Any], arm: str, scale: str, name: str, style: int) -> Estimate:
    one = mapping(mapping(found.get("endpoints")).get(name))
    value, bounds = number(one.get("saving")), pair(one.get("bounds"))
    low, high = bounds or (value, value)
    text = "" if value is None else numbers.percent(value) + (f" {numbers.interval(low, high, 0)}" if bounds else "")
    return Estimate(
        name=_label(study, arm, scale), text=text, style=style, value=_percent(value), low=_percent(low),
        high=_percent(high), reason=None if text else str(one.get("why") or UNJUDGED),
    )  # fmt: skip


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _table(study: RunFolder, judged: dict[str, Any]) -> Table:
    rows = [_row(study, judged, arm, scale) for scale in study.design.scales for arm in _names(study)]
    return Table(
        id="inference",
        caption="Ways of decoding: saved a generated token, what became of the text, and the readings behind it.",
        columns=(
            Column(key="arm", label="Decoding", numeric=False),
            Column(key="outcome", label="Outcome", numeric=False),
            *(Column(key=f"saving_{name}", label=f"{title} saved", bounded=True) for name, title, _ in ENDPOINTS),
            Column(
                key="kept", label="Text kept", hint="Identical texts, or held-out tokens guessed against the reference."
            ),
            *(Column(key=key, label=label, hint=hint) for key, label, hint in READINGS),
        ),
        rows=tuple(rows),
        wide=True,
    )


def _row(study: RunFolder, judged: dict[str, Any], arm: str, scale: str) -> Row:
    found = _at(judged, arm, scale)
    records = study.of("generate", arm, scale)
    outcome, why = found.get("outcome"), str(found.get("why") or UNJUDGED)
    cases = tuple(record.case.id for record in records)
    savings: list[Cell] = []
    for name, _, _ in ENDPOINTS:
        one = mapping(mapping(found.get("endpoints")).get(name))
        cell = share_cell(number(one.get("saving")), pair(one.get("bounds")), str(one.get("why") or UNJUDGED), cases)
        savings.append(cell)
    return Row(
        cells=(
            words(_label(study, arm, scale), code=True),
            outcome_cell(str(outcome)) if outcome else absent(why),
            *savings,
            _kept(mapping(found.get("quality")), cases),
            *(_reading(records, key) for key, _, _ in READINGS),
        )
    )


def _kept(quality: dict[str, Any], cases: tuple[str, ...]) -> Cell:
    why = str(quality.get("why") or UNJUDGED)
    if quality.get("kind") == "exact":
        high = mapping(quality.get("float32"))
        same, texts = number(high.get("identical")), number(high.get("texts"))
        if same is None or not texts:
            return absent(why)
        tone = "good" if quality.get("kept") else "bad"
        return Cell(text=f"{same:.0f} of {texts:.0f}", value=same / texts, small="identical", tone=tone, sources=cases)
    return points_cell(number(quality.get("difference")), pair(quality.get("bounds")), why, cases)


def _reading(records: list[Record], metric: str) -> Cell:
    if records and not any(metric in record.metrics for record in records):
        return words(numbers.DASH)
    return mean_cell(over_seeds(records, metric), show_sd=False)


def _whys(study: RunFolder, judged: dict[str, Any]) -> Table:
    assert study.design.inference is not None
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.design.inference.arms:
            found = _at(judged, arm.name, scale)
            why = found.get("why")
            rows.append(
                Row(
                    cells=(
                        words(_label(study, arm.name, scale), code=True),
                        words(arm.decoding, small=_small(study, arm, scale)),
                        words(sentence(str(why))) if why else absent(UNJUDGED),
                    )
                )
            )
    return Table(
        id="inference-why",
        caption=f"How each decodes, against \u201c{study.design.inference.reference}\u201d, and why its outcome.",
        columns=(
            Column(key="arm", label="Decoding", numeric=False),
            Column(key="how", label="How", numeric=False),
            Column(key="why", label="Why", numeric=False),
        ),
        rows=tuple(rows),
        wide=True,
    )


def _small(study: RunFolder, arm: InferenceArmDesign, scale: str) -> str:
    """What must be known beside the knobs: that nothing may be lost, and what a store of texts takes."""
    found = ["lossless"] if arm.lossless else []
    stores = [one for record in study.of("generate", arm.name, scale) if (one := mapping(record.detail.get("store")))]
    if stores:
        tokens, held, taken_s = (
            fmean(number(one.get(key)) or 0.0 for one in stores) for key in ("tokens", "bytes", "build_s")
        )
        found.append(
            f"store of {numbers.si(tokens, '')} tokens: {numbers.size(held)}, built in {numbers.duration(taken_s)}"
        )
    return ", ".join(found)


# --- depth ---------------------------------------------------------------------------------------


def _curves(study: RunFolder) -> list[Block]:
    """Quality against mean exit layer, at every threshold that was tried; none without early exit."""
    blocks: list[Block] = []
    for scale in study.design.scales:
        found = {arm: points for arm in _names(study) if (points := _mean_curve(study.of("generate", arm, scale)))}
        if not found:
            continue
        suffix = f" at scale {scale}" if len(study.design.scales) > 1 else ""
        series = tuple(
            Series(
                name=arm,
                style=1 + _names(study).index(arm),
                means=tuple((one["mean_exit_layer"], 100 * one["accuracy"]) for one in points),
                ends=tuple((one["mean_exit_layer"], 100 * one["accuracy"]) for one in points if one["chosen"]),
            )
            for arm, points in found.items()
        )
        full = max(x for one in series for x, _ in one.means)
        told = "; ".join(
            f"{one.name} {min(x for x, _ in one.means):.1f} to {full:.1f} layers, "
            f"{min(y for _, y in one.means):.1f} to {max(y for _, y in one.means):.1f}% right"
            for one in series
        )
        panel = Tradeoff(
            id=f"depth-{scale}", title="Quality against depth", x_label="Mean exit layer",
            y_label="Held-out tokens guessed (%)", series=series, alt=f"Quality against mean exit layer: {told}.",
        )  # fmt: skip
        caption = (
            f"Early exit at every threshold{suffix}: how deep tokens go, and how many held-out tokens are guessed. "
        )
        blocks.append(Figure(id=f"depth-{scale}", caption=f"{caption}Filled: the threshold chosen.", panels=(panel,)))
        blocks.append(_curve_table(study, found, scale))
    return blocks


def _mean_curve(records: list[Record]) -> list[dict[str, Any]]:
    """The curve's points, mean over seeds; `chosen` where any seed's threshold was this one."""
    by_threshold: dict[float, list[dict[str, Any]]] = {}
    chosen = {number(mapping(record.detail.get("calibration")).get("threshold")) for record in records}
    for record in records:
        for point in map(mapping, sequence(record.detail.get("curve"))):
            by_threshold.setdefault(float(point["threshold"]), []).append(point)
    keys = ("mean_exit_layer", "accuracy", "nats", "agreement", "flops_per_token")
    return [
        {"threshold": threshold, "chosen": threshold in chosen,
         **{key: fmean(float(point[key]) for point in points) for key in keys}}
        for threshold, points in sorted(by_threshold.items())
    ]  # fmt: skip


def _curve_table(study: RunFolder, found: dict[str, list[dict[str, Any]]], scale: str) -> Table:
    rows = [
        Row(
            cells=(
                words(_label(study, arm, scale), code=True),
                Cell(
                    text=numbers.fixed(one["threshold"], 2),
                    value=one["threshold"],
                    small="chosen" if one["chosen"] else "",
                ),
                Cell(text=numbers.fixed(one["mean_exit_layer"], 2), value=one["mean_exit_layer"]),
                Cell(text=numbers.percent(one["accuracy"], decimals=2), value=one["accuracy"]),
                Cell(text=numbers.percent(one["agreement"], decimals=2), value=one["agreement"]),
                Cell(text=numbers.fixed(one["nats"], 4), value=one["nats"]),
                Cell(text=numbers.si(one["flops_per_token"], ""), value=one["flops_per_token"]),
            ),
            emphasis=bool(one["chosen"]),
        )
        for arm, points in found.items()
        for one in points
    ]
    return Table(
        id=f"early-exit-{scale}",
        caption="Early exit at every threshold, on the held-out texts that quality is judged on; means over seeds.",
        columns=(
            Column(key="arm", label="Decoding", numeric=False),
            Column(
                key="threshold", label="Threshold", hint="Confidence at and above which a token leaves; 1: full depth."
            ),
            Column(key="mean_exit_layer", label="Mean exit layer"),
            Column(key="token_accuracy", label="Tokens guessed"),
            Column(key="token_agreement", label="As at full depth", hint="Same choice as the full model's."),
            Column(key="decode_loss_nats", label="Loss", hint="Nats a token."),
            Column(key="flops_per_token", label="FLOPs a token"),
        ),
        rows=tuple(rows),
    )
