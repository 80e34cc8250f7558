"""CSV that no spreadsheet runs, LaTeX that obeys nobody, Markdown that stays text."""

from __future__ import annotations

import csv
import io

import pytest

from bench.report.files import latex, to_csv, to_latex
from bench.report.markdown import escape
from bench.report.tree import Cell, Column, Row, Table, absent, words


def table(*cells: Cell) -> Table:
    columns = tuple(Column(key=f"c{k}", label=f"C{k}", numeric=False) for k in range(len(cells)))
    return Table(id="t", caption="A % caption\nover lines", columns=columns, rows=(Row(cells=cells),))


@pytest.mark.parametrize("text", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\uff1d1"])
def test_text_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    row = list(csv.reader(io.StringIO(to_csv(table(words(text), absent(text)))), strict=True))[1]
    assert row[0] == row[2] == "'" + text.replace("\t", " ").replace("\r", " ")


def test_negative_numbers_stay_numbers() -> None:
    assert to_csv(table(Cell(text="−1.5", value=-1.5))).splitlines()[1] == "-1.5"


def test_bounds_and_reasons_get_columns() -> None:
    cells = (Cell(text="1", value=1.0, low=0.5, high=None), absent("no sensor"))
    columns = (Column(key="a", label="A", bounded=True), Column(key="b", label="B"))
    text = to_csv(Table(id="t", caption="", columns=columns, rows=(Row(cells=cells),)))
    assert text == "a,a_low,a_high,b,b_missing_because\n1.0,0.5,,,no sensor\n"


def test_latex_obeys_nothing_in_text() -> None:
    assert latex(r"\input{x} 5% & $a_b^c$ #1 ~") == (
        r"\textbackslash{}input\{x\} 5\% \& \$a\_b\textasciicircum{}c\$ \#1 \textasciitilde{}"
    )


def test_latex_comments_cannot_be_left() -> None:
    text = to_latex(table(absent("why\n\\input{evil}\x0bmore")))
    assert all(line.startswith("%") for line in text.splitlines() if "input" in line or "over lines" in line)
    assert r"n.m.\textsuperscript{1}" in text


def test_latex_is_ascii_where_the_page_is_typographic() -> None:
    assert latex("−23.4\u202f% ± 1×10⁻³ µ∞").isascii()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<b>&amp;", r"&lt;b&gt;&amp;amp;"), ("[a](b)", r"\[a\](b)"), ("a|b", r"a\|b"), ("# head", r"\# head"),
     ("- item", r"\- item"), ("1. item", r"\1. item"), ("see https://x.y", "see https&#58;//x.y"), ("a\n\nb", "a b"),
     ("@user", "&#64;user"), ("*x*_y_`z`", r"\*x\*\_y\_\`z\`"), ("$x$", r"\$x\$"), ("", "")],
)  # fmt: skip
def test_markdown_text_stays_text(text: str, expected: str) -> None:
    assert escape(text) == expected
