"""A text as sentences and what stands between them, so that a translated text keeps its paragraphs and lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_SENTENCE = 400
"""Characters. Longer ones (lists, tables, text without stops) are cut at a space: translation models are trained on
sentences, and take quadratic time."""
_END = re.compile(r"""(?<=[.!?])["')\]]*\s+(?=["'(\[]?[A-Z0-9])|\s*\n\s*""")


def split(text: str) -> tuple[list[str], list[str]]:
    """(sentences, gaps): the text is gap 0, sentence 0, gap 1, sentence 1, ... and one gap more at the end."""
    sentences: list[str] = []
    gaps: list[str] = [""]
    start = 0
    for end, resume in [*((found.start(), found.end()) for found in _END.finditer(text)), (len(text), len(text))]:
        gap = text[end:resume]
        body = text[start:end] + gap[: len(gap) - len(gap.lstrip("\"')]"))]
        for piece in _cut(body):
            stripped = piece.strip()
            lead, _, tail = piece.partition(stripped) if stripped else (piece, "", "")
            gaps[-1] += lead
            if stripped:
                sentences.append(stripped)
                gaps.append(tail)
        gaps[-1] += gap[len(gap) - len(gap.lstrip("\"')]")) :]
        start = resume
    return sentences, gaps


def _cut(text: str) -> list[str]:
    """Pieces of at most LONGEST_SENTENCE characters, cut behind a space where there is one."""
    pieces: list[str] = []
    while len(text) > LONGEST_SENTENCE:
        place = text.rfind(" ", LONGEST_SENTENCE // 2, LONGEST_SENTENCE) + 1 or LONGEST_SENTENCE
        pieces.append(text[:place])
        text = text[place:]
    return [*pieces, text]


def join(sentences: Sequence[str], gaps: Sequence[str]) -> str:
    """The text again, with other sentences in the places of the old ones."""
    return gaps[0] + "".join(sentence + gap for sentence, gap in zip(sentences, gaps[1:], strict=True))


def excerpt(text: str, most: int) -> str:
    """The beginning of a text, at most so many characters, up to the end of a sentence where one ends in it."""
    return text if len(text) <= most else within(text, most) or text[:most].rstrip()


def within(text: str, most: int) -> str:
    """The whole sentences of a longer text's beginning, at most so many characters; empty where the first is longer."""
    ends = [found.start() for found in _END.finditer(text, 0, most)]
    return text[: ends[-1]].rstrip() if ends else ""
