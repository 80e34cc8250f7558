"""The answer in a terminal: within 100 columns, or fewer where it is narrower, and whole without colour."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from bench.report.html import reasons
from bench.report.numbers import plain
from bench.report.tree import Cell, Page, Table

WIDTH = 100
COLUMNS = ("arm", "scale", "outcome", "saving_at_equal_loss", "val_loss", "step_time_ratio",
           "bits_per_byte", "train_flops_per_token", "energy_j")  # fmt: skip
"""Columns of the table of arms by key, the most telling first: what does not fit is left off from the end."""
DECODING_COLUMNS = ("arm", "outcome", "saving_time", "kept", "decode_tokens_per_s", "saving_flops", "tokens_per_call",
                    "mean_exit_layer", "time_to_first_token_s", "decode_j_per_token")  # fmt: skip
"""The same of the table of ways of decoding."""
SAMPLE_COLUMNS = ("arm", "scale", "train_flops_per_token", "s_per_token", "peak_memory_bytes", "energy_j_per_token")
"""The same of the table of steps at true size, which stands for the table of arms where nothing was trained."""
MAX_WORD, MAX_SMALL = 22, 27
"""Letters of a cell, and of what stands beneath it."""
LEAST_WIDTH, LEAST_COLUMNS = 40, 2
"""Columns of letters of the narrowest terminal that is written for, and columns of a table that are never left off."""


def render(page: Page, width: int = WIDTH) -> str:
    """Hypothesis, outcomes with reasons, and the table of arms or of their steps.

    Args:
        width: letters a line; more than 100 are not used, and at least 40 are.
    """
    letters = max(LEAST_WIDTH, min(WIDTH, width))
    return "\n".join(line.rstrip() for line in _lines(page, letters)) + "\n"


def _lines(page: Page, width: int) -> Iterator[str]:
    yield f"{clean(page.title)}  (run {clean(page.run)})"
    yield ""
    yield from _wrapped(page.hypothesis, width)
    for claim in page.claims:
        yield ""
        yield from _wrapped(f"{claim.outcome}: {claim.name}. {claim.statement} {claim.why}".rstrip(), width)
        for scale, why in claim.by_size:
            yield from _wrapped(f"{scale}: {why}", width, indent="  ")
        for cell in claim.conditions:
            yield f"  - {clean(cell.text)}: {cell.value}"
        if claim.next_step:
            yield from _wrapped(f"What would change it: {claim.next_step}", width, indent="  ")
    blocks = (block for section in page.sections for block in section.blocks)
    tables = {block.id: block for block in blocks if isinstance(block, Table) and block.rows}
    shown = {"sample": SAMPLE_COLUMNS} if "sample" in tables else {"arms": COLUMNS}
    shown |= {"inference": DECODING_COLUMNS}
    for table in tables.values():
        if table.id in shown:
            yield ""
            yield from _table(table, shown[table.id], width)


def clean(text: str) -> str:
    """No control characters: a name must not move the cursor or colour the screen."""
    return "".join(letter if letter.isprintable() else " " for letter in plain(text))


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(clean(text), width, initial_indent=indent, subsequent_indent=indent, break_long_words=True)


def _table(table: Table, keys: Sequence[str], width: int) -> Iterator[str]:
    """Aligned columns; each row's second line holds intervals and spreads. Columns are left off from the right."""
    notes = reasons(table)
    chosen = [index for key in keys for index, column in enumerate(table.columns) if column.key == key]
    while True:
        cells = [[_cell(row.cells[index], notes) for index in chosen] for row in table.shown]
        heads = [[table.columns[index].label] for index in chosen]
        widths = [
            max(len(line) for lines in [head, *(row[place] for row in cells)] for line in lines)
            for place, head in enumerate(heads)
        ]
        if sum(widths) + 2 * (len(widths) - 1) <= width or len(chosen) <= LEAST_COLUMNS:
            break
        chosen.pop()
    right = [table.columns[index].numeric for index in chosen]
    yield _line([head[0] for head in heads], widths, right, width)
    yield "  ".join("-" * each for each in widths)[:width]
    shown: set[str] = set()
    for row, lines in zip(table.shown, cells, strict=True):
        for depth in range(max(len(part) for part in lines)):
            yield _line([part[depth] if depth < len(part) else "" for part in lines], widths, right, width)
        shown |= {reason for index in chosen if (reason := row.cells[index].reason) is not None}
    for reason, number in notes.items():
        if reason in shown:
            yield from textwrap.wrap(
                clean(f"[{number}] not measured: {reason}"), width, subsequent_indent="    ", break_long_words=True
            )


def _line(parts: list[str], widths: list[int], right: list[bool], most: int) -> str:
    padded = (
        part.rjust(width) if flush else part.ljust(width)
        for part, width, flush in zip(parts, widths, right, strict=True)
    )
    return "  ".join(padded)[:most]


def _cell(cell: Cell, notes: dict[str, int]) -> list[str]:
    if cell.reason is not None:
        return [f"missing [{notes[cell.reason]}]"]
    return [_cut(text, most) for text, most in ((cell.text, MAX_WORD), (cell.small, MAX_SMALL)) if text]


def _cut(text: str, most: int) -> str:
    flat = clean(text)
    if len(flat) <= most:
        return flat
    return f"{flat[: most // 2 - 1]}..{flat[-(most // 2 - 1) :]}"
