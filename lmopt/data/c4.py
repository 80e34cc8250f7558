"""The rules of C4 (Raffel et al., JMLR 21:140, section 2.2): lines are cut out, pages dropped.

Reasons, decisions and the text that is left are those of datatrove's C4QualityFilter.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from lmopt.data.contractions import parts
from lmopt.data.pieces import pieces
from lmopt.data.punctuation import TERMINAL
from lmopt.data.stage import Cut, Verdict, filter_stage
from lmopt.data.words import cut, is_punctuation
from lmopt.techniques.filters import C4

END_PUNCTUATION = (".", "?", "!", '"', "'")
POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SPACES = re.compile(r"(\s+)")
_TERMINAL = frozenset(TERMINAL)
_BOUNDARY = re.compile("e[ep]*w")
_MARKS = frozenset(',.;:!?)"')
"""What is cut off from the end of a word of lower-case letters, whatever the word."""
MAX_RUNS = 1_000_000


def judge(config: C4, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text."""
    return [_verdict(config, text) for text in texts]


def _verdict(config: C4, text: str) -> Verdict:
    folded = text.lower()
    has_lorem = config.lorem_ipsum and "lorem ipsum" in folded
    has_bracket = config.curly_bracket and "{" in text
    is_suspect = (config.javascript and "javascript" in folded) or (config.policy and POLICY.search(folded))
    kept: list[str] = []
    sentences = 0
    for raw in text.splitlines():
        line = _trimmed(config, raw)
        if line is None:
            continue
        if has_lorem and "lorem ipsum" in line.lower():
            return "lorem_ipsum", line[:80]
        if is_suspect and config.javascript and "javascript" in line.lower():
            continue
        if has_bracket and "{" in line:
            return "curly_bracket", line[:80]
        if is_suspect and config.policy and POLICY.search(line.lower()):
            continue
        if config.min_sentences:
            sentences += count_sentences(line)
        kept.append(line)
    if sentences < config.min_sentences:
        return "too_few_sentences", f"{sentences} sentences"
    left = "\n".join(kept).strip()
    return None if left == text else Cut(left)


def _trimmed(config: C4, raw: str) -> str | None:
    """The line without citation marks; None where its form rules it out."""
    line = raw.strip()
    longest, least = config.max_word_length, config.min_words_per_line
    if longest and len(line) > longest and any(len(word) > longest for piece in pieces(line) for word in piece.split()):
        return None
    has_words = not least or len(line.split(None, least)) >= least
    if config.citations and "[" in line:
        line = _CITATION.sub("", line)
    if config.terminal_punctuation and (not line.endswith(END_PUNCTUATION) or line.endswith("...")):
        return None
    return line if has_words else None


# --- sentences -----------------------------------------------------------------------------------


def count_sentences(line: str) -> int:
    """Sentences as spaCy's sentencizer counts them: one ends at terminal punctuation that another word follows."""
    return 1 + len(_BOUNDARY.findall("".join(map(_shapes, pieces(line)))))


def _shapes(line: str) -> str:
    """One letter a word of a line, as `shape` gives them; white space other than one space is a word."""
    kinds = _kinds()
    if "  " in line or not line.isprintable():
        return "".join("w" if part.isspace() else kinds[part] for part in _SPACES.split(line) if part and part != " ")
    return "".join(map(kinds.__getitem__, line.split()))


@functools.cache
def _kinds() -> _Kinds:
    return _Kinds()


class _Kinds(dict[str, str]):
    """Run of non-space -> one letter a word: e(nd of sentence), p(unctuation), w(ord); words in a row may be one w."""

    def __missing__(self, run: str) -> str:
        if len(self) >= MAX_RUNS:
            self.clear()
        found = self[run] = _plain_shape(run) or shape(run)
        return found


def shape(run: str) -> str:
    """One letter a word of a run."""
    return "".join("e" if word in _TERMINAL else "p" if is_punctuation(word) else "w" for word in cut(run))


def _plain_shape(run: str) -> str | None:
    """The shape of the commonest forms, told uncut: letters and digits, perhaps a mark behind."""
    if run.isalnum():
        return "w"
    body, mark = run[:-1], run[-1]
    if mark in _MARKS and body.isascii() and body.isalpha() and body[-1].islower() and run not in parts():
        return "we" if mark in _TERMINAL else "wp"
    return None


c4 = filter_stage(judge)
