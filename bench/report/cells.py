"""From means, shares and intervals to cells: the one place where a reading becomes words."""

from __future__ import annotations

from collections.abc import Sequence

from bench.report import numbers
from bench.report.panels import Tone
from bench.report.runfolder import Mean
from bench.report.tree import Cell, absent
from bench.words import NEAR_ALL, TENFOLD

OUTCOME_TONES: dict[str, Tone] = {
    "SUPPORTED": "good", "SAVES": "good", "NON-INFERIOR": "good", "PASSED": "good", "BETTER": "good",
    "REFUTED": "bad", "COSTS": "bad", "INFERIOR": "bad", "FAILED": "bad", "WORSE": "bad",
    "INCONCLUSIVE": "open", "UNCLEAR": "open",
}  # fmt: skip


def tone_of(outcome: str) -> Tone:
    """The tone of an outcome's word; an unknown one is not coloured."""
    return OUTCOME_TONES.get(outcome.upper().replace("_", "-"), "none")


def mean_cell(mean: Mean, *, show_sd: bool = True) -> Cell:
    """A mean over seeds with its standard deviation beneath, or the reason why there is none."""
    if mean.value is None:
        return absent(mean.reason or "not recorded")
    text = numbers.quantity(mean.value, mean.unit)
    notes: list[str] = []
    if show_sd and mean.sd:
        notes.append(f"SD{numbers.THIN}{numbers.significant(100 * mean.sd / abs(mean.value), 2)}%"
                     if mean.value else f"SD{numbers.THIN}{numbers.significant(mean.sd, 2)}")  # fmt: skip
    if "modelled" in mean.grades:
        notes.append("modelled")
    return Cell(text=text, value=mean.value, small=" \u00b7 ".join(notes), sources=mean.sources)


def loss_cell(mean: Mean) -> Cell:
    """A loss or bits per byte: four digits, its standard deviation in the same unit."""
    if mean.value is None:
        return absent(mean.reason or "not recorded")
    decimals = numbers.decimals_for(mean.value, 4)
    small = f"\u00b1{numbers.THIN}{numbers.fixed(mean.sd, decimals)}" if mean.sd is not None else ""
    return Cell(text=numbers.fixed(mean.value, decimals), value=mean.value, small=small, sources=mean.sources)


def share_cell(
    value: float | None, bounds: tuple[float | None, float | None] | None, why: str, sources: Sequence[str] = ()
) -> Cell:
    """A saving as a percentage with its interval beneath."""
    low, high = bounds or (None, None)
    if value is None:
        text = one_sided(low, high)
        return Cell(text=text, low=low, high=high, sources=tuple(sources)) if text else absent(why)
    small = numbers.interval(low, high, interval_decimals(low, high)) if bounds else ""
    return Cell(
        text=numbers.percent(value, sign=False), value=value, low=low, high=high, small=small, sources=tuple(sources)
    )


def one_sided(low: float | None, high: float | None) -> str:
    """What is known where only a bound is: `≥ 1.4%`. Empty where nothing is."""
    if low is not None and low > TENFOLD:
        return f"\u2265{numbers.THIN}{numbers.percent(low)}"
    return "" if high is None or high >= NEAR_ALL else f"\u2264{numbers.THIN}{numbers.percent(high)}"


def interval_decimals(low: float | None, high: float | None) -> int:
    """Decimals of bounds printed in percent: fewer the wider the interval."""
    if low is None or high is None:
        return 1
    half_width = 100 * abs(high - low) / 2
    return 0 if half_width >= 10 else 1 if half_width >= 0.1 else 2


def points_cell(
    value: float | None, bounds: tuple[float | None, float | None] | None, why: str, sources: Sequence[str] = ()
) -> Cell:
    """A difference of accuracies in percentage points with its interval beneath."""
    if value is None:
        return absent(why)
    low, high = bounds or (None, None)
    small = numbers.interval(low, high, 2) if bounds else ""
    return Cell(text=numbers.points(value), value=value, low=low, high=high, small=small, sources=tuple(sources))


def outcome_cell(outcome: str) -> Cell:
    """An outcome as a badge."""
    return Cell(text=outcome.replace("_", " "), value=outcome, tone=tone_of(outcome))
