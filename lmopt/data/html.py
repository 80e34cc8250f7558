"""The prose of an HTML page."""

from __future__ import annotations

import re
from html import unescape

PARAGRAPH_CHARACTERS = 80
"""Shorter paragraphs are menus, headings and captions: left out."""
BLOCKS = frozenset({
    "article", "blockquote", "br", "dd", "div", "dl", "dt", "h1", "h2", "h3", "h4", "h5", "h6", "li", "ol", "p",
    "section", "table", "td", "th", "tr", "ul",
})  # fmt: skip
SKIPPED = frozenset({"head", "math", "nav", "pre", "script", "style", "svg"})
"""Elements whose text is no prose; `pre` is code."""
_ATTRIBUTES = r"(?:[^<>=]+|=\s*(?:\"[^\"]*\"|'[^']*')|=)*+>"
"""To the end of a tag; a quote counts behind `=` only."""
_MARKUP = re.compile(
    r"<!--.*?(?:-->|\Z)"
    rf"|<(?P<raw>script|style)(?=[\s>/]){_ATTRIBUTES}(?<!/>).*?(?:</(?P=raw)\s*>|\Z)"
    rf"|<(?P<end>/?)(?P<name>[a-z][^\s/>]*){_ATTRIBUTES}"
    r"|<[!?/][^>]*>",
    re.DOTALL | re.IGNORECASE,
)
"""A comment, a script or style sheet with what is in it, a tag, or a declaration."""


def html_text(page: str) -> str:
    """Paragraphs of 80 characters or more, one empty line between.

    Finds what `html.parser` finds, several times as fast: a page of documentation is mostly tags.
    """
    paragraphs: list[str] = []
    pieces: list[str] = []
    skipping = place = 0
    for markup in _MARKUP.finditer(page):
        if not skipping:
            pieces.append(page[place : markup.start()])
        place = markup.end()
        name = (markup["name"] or "").lower()
        if name in SKIPPED:
            if markup["end"]:
                skipping = max(skipping - 1, 0)
            elif page[place - 2] != "/":
                skipping += 1
        elif name in BLOCKS:
            paragraphs += _paragraph(pieces)
            pieces.clear()
    if not skipping:
        pieces.append(page[place:])
    return "\n\n".join(paragraphs + _paragraph(pieces))


def _paragraph(pieces: list[str]) -> list[str]:
    """The text between two block elements, if it is long enough."""
    if sum(map(len, pieces)) < PARAGRAPH_CHARACTERS:  # no reference is shorter than what it stands for
        return []
    text = " ".join("".join(map(unescape, pieces)).split())
    return [text] if len(text) >= PARAGRAPH_CHARACTERS else []
