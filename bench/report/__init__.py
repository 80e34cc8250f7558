"""The report of a study: one tree of plain data, rendered as HTML, PDF, Markdown, CSV, LaTeX and for a terminal.

Made from the run folder's records, plan, verdict, environment and suite alone, so that any laptop can make it again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bench.report.publication import left_out, publish

if TYPE_CHECKING:
    from bench.report.tree import Page

__all__ = ["build", "left_out", "publish", "terminal"]


def build(run: Path) -> list[Path]:
    """Write report.html, report.md, report.pdf, tables/ and figures/ into the run folder; returns what was written.

    Where a PDF cannot be made, the reason goes to stderr with what to install, and everything else is written.

    Raises:
        StudyError: the folder holds nothing to report.
        RecordError: its records cannot be trusted.
    """
    from bench.report import files, html, markdown, pdf
    from bench.report.page import compose
    from bench.report.runfolder import load
    from bench.report.sections.appendix import readings

    study = load(run)
    page = compose(study)
    written = [_write(run / "report.html", html.render(page)), _write(run / "report.md", markdown.render(page))]
    for folder in ("tables", "figures"):
        shutil.rmtree(run / folder, ignore_errors=True)  # what an earlier report left must not pass for this one's
    for table in files.tables(page):
        written.append(_write(run / "tables" / f"{table.id}.csv", files.to_csv(table)))
        written.append(_write(run / "tables" / f"{table.id}.tex", files.to_latex(table)))
    written.append(_write(run / "tables" / "readings.csv", files.to_csv(readings(study))))
    written.extend(_write(run / "figures" / f"{name}.svg", drawing) for name, drawing in _drawings(page))
    try:
        pdf.write(page, run / "report.pdf")
        written.insert(1, run / "report.pdf")
    except pdf.PdfUnavailable as error:
        (run / "report.pdf").unlink(missing_ok=True)
        print(error, file=sys.stderr)
    return written


def terminal(run: Path, width: int = 100) -> str:
    """The answer and the table of arms as plain text, within `width` letters a line (40 to 100).

    Raises:
        StudyError, RecordError: as `build`.
    """
    from bench.report import screen
    from bench.report.page import compose
    from bench.report.runfolder import load

    return screen.render(compose(load(run)), width)


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _drawings(page: Page) -> list[tuple[str, str]]:
    """Every drawn panel as a file of its own, for Markdown."""
    from bench.report import figures, tree

    blocks = [block for section in page.sections for block in section.blocks if isinstance(block, tree.Figure)]
    panels = [panel for block in blocks for panel in block.panels if panel.missing is None]
    return [(panel.id, figures.standalone(panel)) for panel in panels]
