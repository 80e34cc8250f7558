"""The page as plain data: sections of paragraphs, tables, figures and code.

Every form of the report (HTML, PDF, Markdown, terminal, CSV, LaTeX) is rendered from this one tree, so that no two
of them can disagree. All text here is plain text: whoever renders it escapes it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bench.report.panels import Panel, Tone


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
