"""The prose of an HTML page."""

from __future__ import annotations

import re
from html.parser import HTMLParser

PARAGRAPH_CHARACTERS = 80
"""Shorter paragraphs are menus, headings and captions: left out."""
BLOCKS = frozenset({
    "article", "blockquote", "br", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p",
    "section", "table", "td", "th", "tr", "ul",
})  # fmt: skip
SKIPPED = frozenset({"head", "math", "nav", "pre", "script", "style", "svg"})
"""Elements whose text is no prose; `pre` is code."""


def html_text(page: str) -> str:
    """Paragraphs of 80 characters or more, one empty line between."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    parser.end_paragraph()
    return "\n\n".join(parser.paragraphs)


class _Prose(HTMLParser):
    """Collects the text of block elements."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.paragraphs: list[str] = []
        self._open: list[str] = []
        self._skipping = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self._skipping += tag in SKIPPED
        if tag in BLOCKS:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if tag in SKIPPED:
            self._skipping = max(0, self._skipping - 1)
        if tag in BLOCKS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self._skipping:
            self._open.append(data)

    def end_paragraph(self) -> None:
        """Close the paragraph that is open."""
        text = re.sub(r"\s+", " ", "".join(self._open)).strip()
        self._open.clear()
        if len(text) >= PARAGRAPH_CHARACTERS:
            self.paragraphs.append(text)
