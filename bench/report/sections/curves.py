"""Loss against what it cost: FLOPs, seconds, joules."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence

from bench.record import Record
from bench.report.numbers import count, listing
from bench.report.panels import Curves, Series
from bench.report.runfolder import RunFolder, mapping, number, over_seeds, sequence
from bench.report.tree import Figure, Paragraph, Section

COSTS = (
    ("flops", "train_flops", "train_flops", "Training compute (FLOP)", "FLOP"),
    ("seconds", "train_time_s", "seconds", "Training time (s)", "s"),
    ("joules", "energy_j", "joules", "Training energy (J)", "J"),
)
"""(name, metric of the record, key in a curve's points, axis label, unit)"""
CURVE_POINTS = (12, 60)
"""Of one faint line, at least and at most. All points of all trainings were two thirds of a large study's page, and
nobody could see them."""
PANEL_POINTS = 3000
"""Of all faint lines of a panel together, if `CURVE_POINTS` allows: many lines need not be drawn finely to be seen."""


def section(study: RunFolder) -> Section:
    """Three small multiples a scale."""
    figures = tuple(_figure(study, scale) for scale in study.design.scales)
    lead = Paragraph(
        text="Lower and further left is better. Outlined marks are mean end losses of fully annealed runs, small marks "
        "single seeds; a line joins an arm's horizons; faint lines are losses on the way and are not compared.",
    )
    return Section(id="loss", title="Loss against what it cost", blocks=(lead, *figures))


def _figure(study: RunFolder, scale: str) -> Figure:
    panels = tuple(_panel(study, scale, *cost) for cost in COSTS)
    suffix = f" at scale {scale}" if len(study.design.scales) > 1 else ""
    drawn = listing([panel.title.lower() for panel in panels if panel.missing is None])
    caption = f"Validation loss against training {drawn}{suffix}." if drawn else f"No training has finished{suffix}."
    beyond = sorted({name for panel in panels if panel.missing is None for name in panel.beyond})
    caption += f" Ends of {listing(beyond)} lie far above what is shown." if beyond else ""
    return Figure(id=f"loss-{scale}", caption=caption, panels=panels)


def _panel(study: RunFolder, scale: str, name: str, metric: str, key: str, label: str, unit: str) -> Curves:
    least, most = CURVE_POINTS
    fine = min(most, max(least, PANEL_POINTS // max(1, len(study.of("train", scale=scale)))))
    series = tuple(one for arm in study.arms if (one := _series(study, arm, scale, metric, key, fine)) is not None)
    title = {"flops": "Compute", "seconds": "Time", "joules": "Energy"}[name]
    ends = [f"{one.name} {min(y for _, y in one.ends):.3f}" for one in series]
    missing = None if series else over_seeds(study.of("train", scale=scale), metric).reason or "nothing was recorded"
    alt = f"{title}: best end loss in nats a token of {listing(ends)}." if ends else f"{title}: not measured."
    if any(record.metrics[metric].grade == "modelled" for record in study.of("train", scale=scale)
           if metric in record.metrics):  # fmt: skip
        label += ", modelled"
    return Curves(
        id=f"loss-{scale}-{name}", title=title, x_label=label, y_label="Validation loss (nats a token)", unit=unit,
        series=series, alt=f"{alt} {count(len(series), 'arm')} shown." if series else alt, missing=missing,
    )  # fmt: skip


def _series(study: RunFolder, arm: str, scale: str, metric: str, key: str, fine: int) -> Series | None:
    by_horizon: dict[float, list[tuple[float, float]]] = defaultdict(list)
    curves: list[tuple[tuple[float, float], ...]] = []
    for record in study.of("train", arm, scale):
        cost, loss = record.value(metric), record.value("val_loss")
        if cost is None or loss is None or cost <= 0:
            continue
        by_horizon[record.case.horizon or 0.0].append((cost, loss))
        if curve := _thinned(list(_curve(record, key)), fine):
            curves.append(curve)
    if not by_horizon:
        return None
    means = tuple(
        (statistics.fmean(x for x, _ in ends), statistics.fmean(y for _, y in ends))
        for _, ends in sorted(by_horizon.items())
    )
    ends = tuple(end for _, ends in sorted(by_horizon.items()) for end in ends)
    return Series(name=arm, style=study.style(arm), ends=ends, means=means, curves=tuple(curves))


def _curve(record: Record, key: str) -> Iterator[tuple[float, float]]:
    """(cost, loss) while training; the validation loss where it was taken, else the training loss."""
    points = [mapping(point) for point in sequence(record.detail.get("curve"))]
    measure = "val_loss" if sum(number(point.get("val_loss")) is not None for point in points) > 2 else "loss"
    for point in points:
        cost, loss = number(point.get(key)), number(point.get(measure))
        if cost is not None and loss is not None and cost > 0:
            yield cost, loss


def _thinned(curve: Sequence[tuple[float, float]], most: int) -> tuple[tuple[float, float], ...]:
    """At most so many points of a line, evenly spaced in the logarithm of cost; the first and the last stay."""
    if len(curve) <= most:
        return tuple(curve)
    low, high = math.log(curve[0][0]), math.log(curve[-1][0])
    width = (high - low) / (most - 2) or 1.0
    kept = {int((math.log(cost) - low) / width): (cost, loss) for cost, loss in curve[1:]}
    return (curve[0], *kept.values())
