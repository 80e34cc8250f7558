"""The page as a PDF, through WeasyPrint where it and its system libraries are there."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from bench.report import html
from bench.report.tree import Page

INSTALL = (
    "report.pdf was not written: {why}\n"
    "hint: `pip install 'lmbench-suite[pdf]'`, and the system library Pango: `apt-get install libpango-1.0-0 "
    "libpangoft2-1.0-0 libharfbuzz-subset0` (Debian, Ubuntu), `dnf install pango` (Fedora), `brew install pango` "
    "(macOS). Everything else was written."
)


class PdfUnavailable(RuntimeError):
    """WeasyPrint or a library it needs is not there: the message says what to install."""


def write(page: Page, path: Path) -> None:
    """Write the PDF.

    Raises:
        PdfUnavailable: WeasyPrint cannot be imported.
    """
    document = _open(html.render(page, paper=True))
    path.write_bytes(document.write_pdf(pdf_identifier=page.run.encode(), pdf_tags=True))


def _open(text: str) -> Any:
    try:
        with warnings.catch_warnings():
            # It announces at import that a later version will need one more library; what it writes today does not.
            warnings.filterwarnings("ignore", "HarfBuzz-Subset", DeprecationWarning)
            from weasyprint import HTML
    except (ImportError, OSError) as error:
        raise PdfUnavailable(INSTALL.format(why=str(error).splitlines()[0])) from error
    return HTML(string=text, url_fetcher=_refuse)


def _refuse(url: str, *_: Any, **__: Any) -> Any:
    """The page needs nothing from outside; what asks for something does not get it."""
    raise ValueError(f"a report fetches nothing, and was asked for {url}")
