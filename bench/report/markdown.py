"""The page as Markdown: for a repository, a pull request, a mail."""

from __future__ import annotations

import re
from collections.abc import Iterator

from bench.report.html import reasons
from bench.report.tree import Block, Cell, Code, Facts, Figure, Folded, Page, Paragraph, Table

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~$!])")
_LINE_START = re.compile(r"^(\s*)([-+=]|\d+[.)])(\s|$)")
MAX_ROWS = 60
"""Longer tables are cut: they are whole in tables/ and in the HTML."""


def render(page: Page, figure_folder: str = "figures") -> str:
    """The page as Markdown; plots are linked from `figure_folder`."""
    return "\n\n".join(part for part in _parts(page, figure_folder) if part) + "\n"


def escape(text: str) -> str:
    """Text that Markdown (and the HTML inside it) cannot take for markup."""
    flat = re.sub(r"[^\S\u202f\u00a0]+", " ", text).strip(" ").replace("&", "&amp;")
    flat = _SPECIAL.sub(r"\\\1", flat).replace("\\<", "&lt;").replace("\\>", "&gt;")
    flat = _LINE_START.sub(r"\1\\\2\3", flat)
    return re.sub(r"(?i)(https?|ftp|mailto):", r"\1&#58;", flat).replace("@", "&#64;")


def _parts(page: Page, folder: str) -> Iterator[str]:
    yield f"# {escape(page.title)}"
    yield f"*{escape(page.about)}*" if page.about else ""
    yield " \u00b7 ".join(f"{term}: {_entry(cell, {})}" for term, cell in page.facts)
    yield f"## The answer\n\n> {escape(page.hypothesis)}"
    for claim in page.claims:
        said = f"{claim.statement} {claim.why}".rstrip()
        yield f"**{escape(claim.outcome)}** \u2013 {_code(claim.name)}: {escape(said)}"
        yield "\n".join(f"- {_code(scale)}: {escape(why)}" for scale, why in claim.by_size)
        yield "\n".join(f"- {escape(cell.text)}: {cell.value}" for cell in claim.conditions)
        yield f"**What would change it.** {escape(claim.next_step)}" if claim.next_step else ""
    yield "\n".join(f"- {escape(one.label)}: **{_entry(one.cell, {})}**" for one in page.headlines)
    part = ""
    for section in page.sections:
        if section.part != part:
            part = section.part
            yield f"## {escape(part)}"
        yield f"### {escape(section.title)}"
        for block in section.blocks:
            yield from _block(block, folder)


def _block(block: Block, folder: str) -> Iterator[str]:
    match block:
        case Paragraph():
            yield ("> **Note:** " if block.kind == "warning" else "") + escape(block.text)
        case Facts():
            yield "\n".join(f"- {escape(term)}: {_entry(cell, {})}" for term, cell in block.items)
        case Code():
            yield escape(block.caption)
            yield _fenced(block.text)
        case Folded():
            yield f"<details><summary>{escape(block.summary)}</summary>"
            for inner in block.blocks:
                yield from _block(inner, folder)
            yield "</details>"
        case Figure():
            yield from (
                f"**{escape(panel.title)}:** not measured: {escape(panel.missing)}"
                if panel.missing is not None
                else f"![{escape(panel.alt)}]({folder}/{panel.id}.svg)"
                for panel in block.panels
            )
            yield f"*{escape(block.caption)}*"
        case Table():
            yield _table(block)


def _table(table: Table) -> str:
    notes = reasons(table)
    lines = [
        "| " + " | ".join(escape(column.label) for column in table.columns) + " |",
        "|" + "|".join("---:" if column.numeric else "---" for column in table.columns) + "|",
    ]
    lines += ["| " + " | ".join(_entry(cell, notes) for cell in row.cells) + " |" for row in table.shown[:MAX_ROWS]]
    after = [f"<sup>{number}</sup> not measured: {escape(reason)}  " for reason, number in notes.items()]
    after += [escape(note) + "  " for note in table.notes]
    if len(table.shown) > MAX_ROWS:
        after.append(f"The first {MAX_ROWS} of {len(table.shown)} rows; all are in tables/{table.id}.csv.")
    return f"{escape(table.caption)}\n\n" + "\n".join(lines) + ("\n\n" + "\n".join(after) if after else "")


def _entry(cell: Cell, notes: dict[str, int]) -> str:
    if cell.reason is not None:
        mark = notes.get(cell.reason)
        text = f"not measured<sup>{mark}</sup>" if mark else f"not measured: {escape(cell.reason)}"
    elif cell.code:
        text = _code(cell.text)
    elif cell.tone in ("good", "bad", "open"):
        text = f"**{escape(cell.text)}**"
    else:
        text = escape(cell.text)
    return text + (f" ({escape(cell.small)})" if cell.small else "")


def _code(text: str) -> str:
    """Code in a line: a fence longer than any inside; bars would end a table's cell."""
    flat = re.sub(r"\s+", " ", text).replace("|", "\u2223")
    ticks = "`" * (1 + max((len(run) for run in re.findall(r"`+", flat)), default=0))
    space = " " if flat.startswith("`") or flat.endswith("`") else ""
    return f"{ticks}{space}{flat}{space}{ticks}"


def _fenced(text: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}\n{text.rstrip()}\n{fence}"
