"""The page as one HTML file that needs nothing else: no network, no font, no script to be readable."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

from bench.report import figures
from bench.report.axes import THEME, colour, marker
from bench.report.labels import LABEL_CHARACTERS
from bench.report.numbers import count
from bench.report.panels import Band, Curves, Dots, Forest, Law, Panel, Roofline, Timeline, Tradeoff
from bench.report.tree import Cell, Column, Figure, Page, Row, Table

MAX_TRAIL = 6
"""Case ids named in a tooltip; the rest are counted."""


def render(page: Page, *, paper: bool = False) -> str:
    """The page as HTML.

    Args:
        paper: for the PDF: nothing folded, no script, plots with fixed colours and letters as outlines.
    """
    from jinja2 import Environment, StrictUndefined, select_autoescape
    from markupsafe import Markup

    folder = files("bench.report")
    environment = Environment(
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def plot(panel: Panel) -> Markup:
        return Markup(figures.draw(panel, themed=not paper, text=not paper))

    def keys(figure: Figure) -> list[tuple[str, Markup]]:
        found = dict.fromkeys(key for panel in figure.panels for key in _keys(panel))
        return [(name, Markup(_swatch(style, not paper))) for name, style in found]

    helpers: dict[str, Any] = {
        "trail": trail,
        "reasons": reasons,
        "columns": _pairs,
        "sort_key": _sort_key,
        "keys": keys,
        "plot": plot,
    }
    template = environment.from_string((folder / "page.html.j2").read_text(encoding="utf-8"), globals=helpers)
    script = (folder / "page.js").read_text(encoding="utf-8")
    return (
        template.render(
            page=page,
            paper=paper,
            policy=_policy(script),
            css=Markup((folder / "page.css").read_text(encoding="utf-8")),
            script=Markup(script),
        )
        + "\n"
    )


def _policy(script: str) -> str:
    """What a browser may do with the page: run this one script, known by its hash, and load nothing from anywhere."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def trail(cell: Cell) -> str:
    """Which records a number comes from, for a tooltip."""
    named = ", ".join(cell.sources[:MAX_TRAIL])
    more = len(cell.sources) - MAX_TRAIL
    return f"From {count(len(cell.sources), 'record')}: {named}" + (f" and {more} more" if more > 0 else "")


def reasons(table: Table) -> dict[str, int]:
    """Why cells of this table are empty: each reason once, with the number of its note."""
    found = dict.fromkeys(cell.reason for row in table.shown for cell in row.cells if cell.reason is not None)
    return {reason: number for number, reason in enumerate(found, 1)}


def _pairs(table: Table, row: Row) -> Iterator[tuple[Column, Cell]]:
    return zip(table.columns, row.cells, strict=True)


def _sort_key(cell: Cell) -> str | None:
    if isinstance(cell.value, int | float) and not isinstance(cell.value, bool):
        return json.dumps(cell.value)
    return None


def _keys(panel: Panel) -> list[tuple[str, int]]:
    """Names that the plot itself has to shorten or cannot write: one entry an arm."""
    match panel:
        case Curves() if any(len(one.name) > LABEL_CHARACTERS for one in panel.series):
            return [(one.name, one.style) for one in panel.series]
        case Dots():
            return list(dict.fromkeys((arm, style) for _, _, dots in panel.rows for arm, style, _ in dots))
        case Curves() | Forest() | Roofline() | Timeline() | Law() | Band() | Tradeoff():
            return []


def _swatch(style: int, themed: bool) -> str:
    """The arm's marker as a tiny drawing."""
    ink = colour(style)
    tint = f"var({THEME[ink]})" if themed else ink
    shape = {
        "o": '<circle cx="8" cy="8" r="5"/>', "s": '<rect x="3" y="3" width="10" height="10"/>',
        "^": '<path d="M8 2.5 13.5 13h-11z"/>', "D": '<path d="m8 2 6 6-6 6-6-6z"/>',
        "v": '<path d="M8 13.5 2.5 3h11z"/>', "p": '<path d="m8 2 6 4.5-2.3 7H4.3L2 6.5z"/>',
        "*": '<path d="m8 1.5 2 4.3 4.6.5-3.4 3.2.9 4.7L8 11.9l-4.1 2.3.9-4.7L1.4 6.3 6 5.8z"/>',
        "X": '<path d="M5 2.5 8 5.5l3-3L13.5 5l-3 3 3 3-2.500 2.500-3-3-3 3L2.500 11l3-3-3-3z"/>',
    }[marker(style)]  # fmt: skip
    return f'<svg viewBox="0 0 16 16" aria-hidden="true" fill="none" stroke="{tint}" stroke-width="2">{shape}</svg>'
