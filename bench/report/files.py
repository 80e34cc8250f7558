"""Every table as CSV for programs and LaTeX for papers."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from bench.report.html import reasons
from bench.report.tree import Block, Cell, Folded, Page, Table

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell of text that begins so is run as a formula by spreadsheet programs (OWASP, CSV injection)."""
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "\"": "''", "\u202f": r"\,", "\u00a0": "~", "\u2212": "$-$", "\u00d7": r"$\times$",
    "\u2013": "--", "\u00b1": r"$\pm$", "\u221e": r"$\infty$", "\u00b7": r"$\cdot$", "\u2026": r"\ldots{}",
    "\u00b5": r"$\mu$", "\u201c": "``", "\u201d": "''", "\u207b": r"$^{-}$",
    "\u2070": "$^{0}$", "\u00b9": "$^{1}$", "\u00b2": "$^{2}$", "\u00b3": "$^{3}$", "\u2074": "$^{4}$",
    "\u2075": "$^{5}$", "\u2076": "$^{6}$", "\u2077": "$^{7}$", "\u2078": "$^{8}$", "\u2079": "$^{9}$",
}  # fmt: skip


def tables(page: Page) -> Iterator[Table]:
    """Every table of the page, folded ones included."""
    for section in page.sections:
        yield from _inside(section.blocks)


def _inside(blocks: tuple[Block, ...]) -> Iterator[Table]:
    for block in blocks:
        if isinstance(block, Table):
            yield block
        elif isinstance(block, Folded):
            yield from _inside(block.blocks)


def to_csv(table: Table) -> str:
    """One line a row, raw values in base units; beside a column its bounds, and the reason where a value is missing."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    missing = [any(row.cells[index].reason is not None for row in table.rows) for index in range(len(table.columns))]
    head: list[str] = []
    for column, some in zip(table.columns, missing, strict=True):
        head.append(column.key)
        head += [f"{column.key}_low", f"{column.key}_high"] if column.bounded else []
        head += [f"{column.key}_missing_because"] if some else []
    writer.writerow([_safe(name) for name in head])
    for row in table.rows:
        line: list[object] = []
        for column, cell, some in zip(table.columns, row.cells, missing, strict=True):
            line.append(_raw(cell))
            line += ["" if end is None else end for end in (cell.low, cell.high)] if column.bounded else []
            line += [_safe(cell.reason or "")] if some else []
        writer.writerow(line)
    return buffer.getvalue()


def _raw(cell: Cell) -> object:
    if cell.reason is not None or cell.value is None:
        return ""
    return _safe(cell.value) if isinstance(cell.value, str) else cell.value


def _safe(text: str) -> str:
    """Text that no spreadsheet takes for a formula."""
    flat = re.sub(r"[\x00-\x1f\x7f]", " ", text)
    return f"'{flat}" if text.startswith(FORMULA_STARTS) else flat


def to_latex(table: Table) -> str:
    """A `tabular` with booktabs rules; reasons for missing values follow as comments a reader of the source sees."""
    notes = reasons(table)
    shape = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = [
        f"% {_comment(table.caption)}",
        rf"\begin{{tabular}}{{{shape}}}",
        r"\toprule",
        " & ".join(latex(column.label) for column in table.columns) + r" \\",
        r"\midrule",
        *(" & ".join(_latex_cell(cell, notes) for cell in row.cells) + r" \\" for row in table.shown),
        r"\bottomrule",
        r"\end{tabular}",
        *(rf"% {number}: not measured: {_comment(reason)}" for reason, number in notes.items()),
        *(f"% {_comment(note)}" for note in table.notes),
    ]
    return "\n".join(lines) + "\n"


def _latex_cell(cell: Cell, notes: dict[str, int]) -> str:
    if cell.reason is not None:
        return rf"n.m.\textsuperscript{{{notes[cell.reason]}}}"
    text = latex(cell.text)
    return (rf"\texttt{{{text}}}" if cell.code else text) + (
        rf" {{\footnotesize {latex(cell.small)}}}" if cell.small else ""
    )


def latex(text: str) -> str:
    """Text with everything that LaTeX would obey made harmless."""
    return "".join(_LATEX.get(letter, letter) for letter in re.sub(r"\s+(?<!\u202f)", " ", text))


def _comment(text: str) -> str:
    return re.sub(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+", " ", text)
