"""FineWeb's own rules (Penedo et al., arXiv 2406.17557, section 3.6), many texts at a time.

Reasons and decisions are those of datatrove's FineWebQualityFilter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmopt.data.gopher import table
from lmopt.data.punctuation import TERMINAL
from lmopt.data.repetition import duplicates
from lmopt.data.stage import Verdict, filter_stage
from lmopt.techniques.filters import FineWeb

_TERMINAL = frozenset(TERMINAL)


def judge(config: FineWeb, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text: the first rule that it breaks."""
    verdicts = [_by_lines(config, text) for text in texts]
    limit = config.max_newlines
    many = [i for i, text in enumerate(texts) if verdicts[i] is None and limit and "\n" in text]
    words = np.diff(table().words(texts[i] for i in many).offsets).tolist()
    for number, count in zip(many, words, strict=True):
        newlines = texts[number].count("\n")
        if count and limit and newlines / count > limit:
            verdicts[number] = ("list_ratio", f"{newlines} line feeds in {count} words")
    return verdicts


def _by_lines(config: FineWeb, text: str) -> Verdict:
    lines = [line for line in text.split("\n") if line and not line.isspace()]
    if not lines:
        return "empty", "no line with text"
    if config.min_punctuated_lines:
        share = sum(line[-1] in _TERMINAL for line in lines) / len(lines)
        if share < config.min_punctuated_lines:
            return "line_punct_ratio", f"{share:.0%} of lines"
    if config.max_short_lines is not None:
        share = sum(len(line) <= config.short_line for line in lines) / len(lines)
        if share > config.max_short_lines:
            return "short_line_ratio", f"{share:.0%} of lines"
    if config.max_duplicate_characters is not None:
        share = duplicates(lines)[1] / (len(text) - text.count("\n"))
        if share > config.max_duplicate_characters:
            return "char_dup_ratio", f"{share:.0%} of characters"
    return None


fineweb = filter_stage(judge)
