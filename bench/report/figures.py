"""Panels drawn as SVG by matplotlib: legible in black and white, to the colour-blind, on light and on dark ground.

Equal input gives equal bytes: the hash salt is the panel's id and no date is written. Colours are drawn from a small
palette of known hex values, which HTML turns into CSS variables so that one drawing serves both colour schemes.
"""

from __future__ import annotations

import functools
import io
import re
from html import escape
from typing import Any

from bench.report.axes import INK, MUTED, PAPER, THEME, WIDTH_PX
from bench.report.painters import paint, panel_height
from bench.report.panels import Panel

_DPI = 72.0
"""matplotlib writes SVG in points, 72 an inch: at this resolution one unit is one pixel of the design."""


@functools.lru_cache(maxsize=256)
def draw(panel: Panel, *, themed: bool, text: bool) -> str:
    """The panel as an `<svg>` element; the PDF and the files share one drawing.

    Args:
        themed: colours as CSS variables (HTML) rather than as hex values (PDF, files).
        text: letters as text in the page's own face (HTML) rather than as outlines (PDF, files).
    """
    from matplotlib import rc_context, rcdefaults, rcParams
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "svg.hashsalt": panel.id,
        "svg.fonttype": "none" if text else "path",
        "font.family": "DejaVu Sans",
        "font.size": 10.0,
        "text.parse_math": False,
        "text.usetex": False,
        "text.color": INK,
        "axes.edgecolor": MUTED,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "path.simplify": True,
    }
    with rc_context():
        rcdefaults()  # a reader's own matplotlibrc must not change a report
        rcParams.update(settings)
        figure = Figure(figsize=(WIDTH_PX / _DPI, panel_height(panel) / _DPI), dpi=_DPI)
        figure.patch.set_visible(False)
        FigureCanvasSVG(figure)
        paint(figure, panel)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _tidy(buffer.getvalue(), panel, themed=themed, text=text)


def standalone(panel: Panel) -> str:
    """The panel as a file: fixed colours on a ground of paper, so that it reads on any page it is shown on."""
    drawing = draw(panel, themed=False, text=False)
    ground = f'<rect width="{WIDTH_PX}" height="{panel_height(panel)}" fill="{PAPER}"/>'
    head, title, rest = drawing.partition("</title>")
    return f"{head}{title}{ground}{rest}\n"


# --- from matplotlib's file to an element --------------------------------------------------------


def _tidy(svg: str, panel: Panel, *, themed: bool, text: bool) -> str:
    """An inline element: no prolog, no global style, ids of its own, described for a screen reader."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>\s*", "", svg, count=1, flags=re.S)
    svg = re.sub(r'\b(id|clip-path|xlink:href)="(url\()?#?([^")]+)\)?"', lambda m: _own_id(m, panel.id), svg)
    if text:
        svg = re.sub(r" ?font-family: [^;\"]*;?", "", svg)
        svg = re.sub(r"font: (?:normal )?(bold |\d+ )?([\d.]+px) [^;\"]*", _short_font, svg)
    if themed:
        for known, variable in THEME.items():
            svg = svg.replace(known, f"var({variable})")
    height = panel_height(panel)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="plot" role="img" '
        f'viewBox="0 0 {WIDTH_PX} {height}" width="{WIDTH_PX}" height="{height}" aria-labelledby="{panel.id}-alt" '
        f'stroke-linejoin="round" stroke-linecap="butt"><title id="{panel.id}-alt">{escape(panel.alt)}</title>'
    )
    return head + _compact(svg[svg.index(">") + 1 :])


GEOMETRY = re.compile(r'\b(?:d|x|y|width|height|points|style)="[^"]*"|translate\([^)]*\)')
"""What is measured in pixels: a scale is not, and letters shrink where its digits are cut off."""
LONG_PATH = 250
"""Characters of a path from which on it is a curve."""
DECIMALS = re.compile(r"(\d\.\d\d)\d+")


def _compact(svg: str) -> str:
    """The same drawing in about half the bytes: lines to a tenth of a pixel, the rest to a hundredth, names only where
    something asks for them.
    """
    asked = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in asked else "", svg)
    svg = GEOMETRY.sub(lambda m: DECIMALS.sub(r"\1", " ".join(m[0].split())), svg)
    svg = re.sub(r'\bd="([^"]*)"', lambda m: f'd="{_short_path(m[1])}"', svg)
    svg = re.sub(r"<g/>\s*|<defs>\s*</defs>\s*", "", svg)
    svg = re.sub(r"<g>\s*</g>\s*", "", svg)
    return re.sub(r">\s*\n\s*<", "><", svg).strip()


def _short_path(path: str) -> str:
    """`M 1.52 2.00 L 3 -4 L 5 6` as `M1.5 2L3-4 5 6`: SVG repeats a command until another comes.

    Markers, which are short, keep their hundredths: they are drawn small.
    """
    if len(path) > LONG_PATH:
        path = re.sub(r"\d+\.\d+", lambda m: f"{float(m[0]):.1f}", path)
    path = re.sub(r"\.0+(?!\d)", "", path)
    path = re.sub(r"(\.\d*?[1-9])0+(?!\d)", r"\1", path)
    path = re.sub(r" ?([A-Za-z]) ?", r"\1", path)
    path = re.sub(r"L[^A-Za-z]*(?:L[^A-Za-z]*)+", lambda m: "L" + m[0][1:].replace("L", " "), path)
    return path.replace(" -", "-").strip()


def _short_font(match: re.Match[str]) -> str:
    """matplotlib before 3.11 writes the shorthand `font`, which would name a face of its own."""
    weight, size = match.groups()
    return f"font-size: {size}" + (f"; font-weight: {weight.strip()}" if weight else "")


def _own_id(match: re.Match[str], panel_id: str) -> str:
    attribute, wrapped, name = match.groups()
    if attribute == "id":
        return f'id="{panel_id}-{name}"'
    return f'{attribute}="url(#{panel_id}-{name})"' if wrapped else f'{attribute}="#{panel_id}-{name}"'
