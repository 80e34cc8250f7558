"""Where the time of a step goes, for the arms that `lmbench profile --run` looked at."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.report import numbers
from bench.report.panels import Roofline, Timeline
from bench.report.runfolder import RunFolder, mapping, number, sequence
from bench.report.tree import Block, Cell, Column, Facts, Figure, Paragraph, Row, Section, Table, absent, words

SHOWN_OPERATORS = 12
MS, MIB, GIGA = 1e3, 2**20, 1e9
NOT_MEASURED = "the peak of this machine was not measured"
DISTURBED = (
    "This machine was measured beside other work: the roofs of {arm} are higher than drawn, and shares of them lower."
)


def section(study: RunFolder) -> Section | None:
    """Facts, figure and operators of each profile; None where there is none."""
    blocks: list[Block] = []
    for path in sorted((study.run / "profiles").glob("*.profile.json")):
        blocks.extend(_profile(path))
    if not blocks:
        return None
    lead = Paragraph(
        text="A few steps on random tokens under a profiler, which slows them: a picture, not evidence. An operator's "
        "roof is the time that its products at the measured peak, or its tensors at the measured bandwidth, would take."
    )
    return Section(id="profiles", title="Where the time of a step goes", blocks=(lead, *blocks))


def _profile(path: Path) -> list[Block]:
    try:
        found = mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        return [Paragraph(text=f"{path.name} cannot be read ({error}).", kind="warning")]
    if found.get("schema") != 1:
        return [Paragraph(text=f"{path.name} was written by another version of this program.", kind="warning")]
    arm = str(found.get("arm"))
    note = [Paragraph(text=DISTURBED.format(arm=arm), kind="warning")] if found.get("disturbed") else []
    return [_facts(arm, found), *note, _figure(arm, found), _operators(arm, found)]


def _facts(arm: str, found: dict[str, Any]) -> Facts:
    step_s, tokens = number(found.get("step_s")), number(found.get("tokens_per_s"))
    mfu, held = number(found.get("mfu")), number(found.get("peak_tensor_bytes"))
    missing = absent("it was not noted")
    return Facts(
        id=f"profile-{arm}-facts",
        items=(
            ("Arm", words(arm, code=True)),
            ("Scale", words(str(found.get("scale")), code=True)),
            ("Step, not profiled", missing if step_s is None else Cell(text=f"{MS * step_s:.1f} ms", value=step_s)),
            ("Tokens a second", missing if tokens is None else Cell(text=numbers.fixed(tokens, 0), value=tokens)),
            ("Share of the measured peak", absent(NOT_MEASURED) if mfu is None else
                                           Cell(text=numbers.percent(mfu, decimals=0), value=mfu)),
            ("Tensors at the peak, beyond what was held before", absent("no allocation was seen") if held is None else
                                                                 Cell(text=numbers.size(held), value=held)),
        ),
    )  # fmt: skip


def _figure(arm: str, found: dict[str, Any]) -> Figure:
    return Figure(
        id=f"profile-{arm}",
        caption=f"{arm}: operators under this machine's roofline; memory of tensors over the profiled steps.",
        panels=(_roofline(arm, found), _memory(arm, found)),
    )


def _roofline(arm: str, found: dict[str, Any]) -> Roofline:
    peak, bandwidth = number(found.get("peak_flops_per_s")), number(found.get("bytes_per_s"))
    points = tuple(
        (str(one.get("name")), flops / size, flops / seconds)
        for one in map(mapping, sequence(found.get("operators")))
        if (flops := number(one.get("flops")))
        and (size := number(one.get("bytes")))
        and (seconds := number(one.get("seconds")))
    )
    missing = NOT_MEASURED if not peak or not bandwidth else None if points else "no product was dispatched by itself"
    shown = f"{points[0][0]} reaches {numbers.fixed(points[0][2] / GIGA, 0)} GFLOP/s" if points else "nothing to show"
    return Roofline(
        id=f"profile-{arm}-roofline", title="Roofline", peak_flops_per_s=peak or 1.0, bytes_per_s=bandwidth or 1.0,
        operators=points, alt=f"Roofline of {arm}: {shown}.", missing=missing,
    )  # fmt: skip


def _memory(arm: str, found: dict[str, Any]) -> Timeline:
    pairs = [[number(part) for part in sequence(point)] for point in sequence(found.get("memory"))]
    points = tuple(
        (x, y / MIB) for x, y in (pair for pair in pairs if len(pair) == 2) if x is not None and y is not None
    )
    highest = f"at most {numbers.fixed(max(y for _, y in points), 0)} MiB" if points else "nothing to show"
    return Timeline(
        id=f"profile-{arm}-memory", title="Memory", x_label="Time (ms)", y_label="Tensors (MiB)", points=points,
        alt=f"Memory of {arm}'s tensors: {highest}.", missing=None if points else "no allocation was seen",
    )  # fmt: skip


def _operators(arm: str, found: dict[str, Any]) -> Table:
    operators = [mapping(one) for one in sequence(found.get("operators"))]
    total_s = sum(number(one.get("seconds")) or 0.0 for one in operators) or 1.0
    return Table(
        id=f"profile-{arm}-operators",
        caption=f"Operators of {arm} by time in one profiled step.",
        columns=(
            Column(key="operator", label="Operator", numeric=False),
            Column(key="ms", label="ms"),
            Column(key="share", label="Share"),
            Column(key="calls", label="Calls"),
            Column(key="gflop", label="GFLOP"),
            Column(key="mb", label="MB"),
            Column(key="bound", label="Bound by", numeric=False),
            Column(key="roof_share", label="Of its roof"),
        ),
        rows=tuple(_operator(one, total_s) for one in operators[:SHOWN_OPERATORS]),
        wide=True,
    )


def _operator(one: dict[str, Any], total_s: float) -> Row:
    seconds, calls = number(one.get("seconds")) or 0.0, number(one.get("calls")) or 0.0
    flops, size, roof = number(one.get("flops")), number(one.get("bytes")), number(one.get("roof_share"))
    none = absent("it was not dispatched as an operator of its own")
    return Row(
        cells=(
            words(str(one.get("name")), code=True),
            Cell(text=f"{MS * seconds:.2f}", value=MS * seconds),
            Cell(text=numbers.percent(seconds / total_s), value=seconds / total_s),
            Cell(text=f"{calls:.0f}", value=calls),
            Cell(text=f"{flops / GIGA:.2f}", value=flops / GIGA) if flops else words(numbers.DASH),
            Cell(text=f"{size / 1e6:.0f}", value=size / 1e6) if size else none,
            words(str(one.get("bound") or numbers.DASH)),
            none if roof is None else Cell(text=numbers.percent(roof, decimals=0), value=roof),
        )
    )
