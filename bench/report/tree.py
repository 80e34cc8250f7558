"""The page as plain data: sections of paragraphs, tables, figures and code.

Every form of the report (HTML, PDF, Markdown, terminal, CSV, LaTeX) is rendered from this one tree, so that no two
of them can disagree. All text here is plain text: whoever renders it escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["plain", "good", "bad", "open", "none"]
"""good: supported, saves. bad: refuted, costs. open: inconclusive, unclear. none: not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One entry of a table or fact list, for people (`text`) and for programs (`value`, `low`, `high`)."""

    text: str
    value: float | int | str | None = None
    """What CSV files hold and sorting uses, in the column's unit."""
    low: float | None = None
    high: float | None = None
    small: str = ""
    """A second, quieter line: an interval, a standard deviation, a grade."""
    reason: str | None = None
    """Why there is no value; then `text` is shown as 'not measured' with this reason as a note."""
    sources: tuple[str, ...] = ()
    """Ids of the cases that the number comes from."""
    tone: Tone = "plain"
    code: bool = False
    """Set in the fixed-width face: names, ids, versions."""
    anchor: str | None = None
    """Id of this cell as a target of links."""


def absent(reason: str) -> Cell:
    """A cell without a value: it always says why."""
    return Cell(text="not measured", reason=reason, tone="none")


def words(text: str, *, code: bool = False, tone: Tone = "plain", small: str = "") -> Cell:
    """A cell of text."""
    return Cell(text=text, value=text, code=code, tone=tone, small=small)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column. `key` names it in CSV files, with the unit in the name."""

    key: str
    label: str
    numeric: bool = True
    hint: str = ""
    """What it means, in one sentence."""
    bounded: bool = False
    """Cells carry an interval: CSV files get two more columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    cells: tuple[Cell, ...]
    emphasis: bool = False
    anchor: str | None = None
    aside: bool = False
    """Holds no number, and a note under the table says why: only the table for programs has the row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table; `id` names its anchor and its files under tables/."""

    id: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    sortable: bool = False
    wide: bool = False
    """Needs a landscape page in print and cards on a narrow screen."""

    @property
    def shown(self) -> tuple[Row, ...]:
        """The rows for readers."""
        return tuple(row for row in self.rows if not row.aside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Terms with their values."""

    id: str
    items: tuple[tuple[str, Cell], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    text: str
    kind: Literal["lead", "plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    id: str
    caption: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """One arm in a plot. `style` is its number: marker, line and colour follow from it; 0 is the reference."""

    name: str
    style: int
    ends: tuple[tuple[float, float], ...]
    """(cost, final loss) of each finished training."""
    means: tuple[tuple[float, float], ...] = ()
    """Mean over seeds at each horizon, joined by a line where there are several."""
    curves: tuple[tuple[tuple[float, float], ...], ...] = ()
    """Loss while training, one line a seed, drawn faint."""


BEYOND = 3.0
"""Times the lowest end: what ended higher would press all other curves flat, so it lies beyond the plot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """Loss against a cost on a logarithmic axis."""

    id: str
    title: str
    x_label: str
    y_label: str
    unit: str
    series: tuple[Series, ...]
    alt: str
    missing: str | None = None
    """Why there is nothing to draw."""

    @property
    def range(self) -> tuple[float, float]:
        """The lowest end, and the highest that is shown."""
        ends = [y for series in self.series for _, y in series.ends]
        return min(ends), max(y for y in ends if y <= max(BEYOND * min(ends), min(ends)))

    @property
    def beyond(self) -> tuple[str, ...]:
        """Arms of which an end lies above what is shown."""
        return tuple(one.name for one in self.series if any(y > self.range[1] for _, y in one.ends))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical reference line with its label."""

    value: float
    label: str
    kind: Literal["zero", "limit", "aim"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """One row of a forest plot: a point with its interval. An open bound is None."""

    name: str
    text: str
    style: int
    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forest:
    """Estimates with intervals above one shared axis (in percent or percentage points)."""

    id: str
    title: str
    x_label: str
    rows: tuple[Estimate, ...]
    marks: tuple[Mark, ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dots:
    """One row a task: a dot an arm, and a tick where guessing would be."""

    id: str
    title: str
    x_label: str
    rows: tuple[tuple[str, float | None, tuple[tuple[str, int, float], ...]], ...]
    """(task, chance, ((arm, style, value), ...))"""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Roofline:
    """Operators by how many FLOPs they do a byte, under the lines that this machine cannot exceed."""

    id: str
    title: str
    peak_flops_per_s: float
    bytes_per_s: float
    operators: tuple[tuple[str, float, float], ...]
    """(name, FLOPs a byte, FLOP/s), the longest running first."""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A quantity over time."""

    id: str
    title: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float], ...]
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Law:
    """Losses on two logarithmic axes with a fitted law, and below what it leaves."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    """One a size: `ends` are what was measured, `means` the fitted line."""
    residuals: tuple[tuple[int, float, float], ...]
    """(style, cost, measured over fitted - 1)"""
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A saving in percent against compute: points with intervals, a line with its band, and where it is carried to."""

    id: str
    title: str
    x_label: str
    y_label: str
    points: tuple[tuple[float, float, float, float], ...]
    """(cost, saving, low, high) of what was measured."""
    line: tuple[tuple[float, float, float, float], ...]
    """The same of the fitted line."""
    targets: tuple[tuple[float, float, float, float], ...]
    """The same where nothing was trained."""
    marks: tuple[Mark, ...]
    style: int
    alt: str
    missing: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Two quantities on linear axes, one given up for the other."""

    id: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    """One an arm: `means` are its points in order, `ends` those that were chosen."""
    alt: str
    missing: str | None = None


Panel = Curves | Forest | Dots | Roofline | Timeline | Law | Band | Tradeoff


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Small multiples under one caption."""

    id: str
    caption: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """Detail that is closed at first on a screen and open on paper."""

    id: str
    summary: str
    blocks: tuple[Table | Facts | Paragraph | Code, ...]


Block = Table | Facts | Paragraph | Code | Figure | Folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    id: str
    title: str
    blocks: tuple[Block, ...]
    part: str = ""
    """Heading that stands above the first section of each part; the page sets it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim with its outcome."""

    name: str
    outcome: str
    tone: Tone
    statement: str
    why: str
    """Of the whole outcome; empty where the sizes say it all."""
    by_size: tuple[tuple[str, str], ...] = ()
    """(scale, why) where a study has several."""
    conditions: tuple[Cell, ...] = ()
    """What the claim needs; each value is `shown`, `not shown` or `not measured`."""
    next_step: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One large number under the answer."""

    label: str
    cell: Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """The whole report."""

    title: str
    about: str
    suite: str
    run: str
    facts: tuple[tuple[str, Cell], ...]
    """The line under the title: machine, seeds, date."""
    hypothesis: str
    claims: tuple[Claim, ...]
    headlines: tuple[Headline, ...]
    sections: tuple[Section, ...] = field(default=())
