"""Gopher's quality rules (Rae et al., arXiv 2112.11446, appendix A.1.1), many texts at a time.

Reasons and decisions are those of datatrove's GopherQualityFilter. Letters: D texts, W words.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.stage import Verdict, filter_stage
from lmopt.data.wordtable import Words, WordTable
from lmopt.techniques.filters import GopherQuality


@functools.cache
def table() -> WordTable:
    """The word table of this process."""
    return WordTable()


def judge(config: GopherQuality, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text: the first rule that it breaks."""
    counts = _count(config, texts, table())
    return [_verdict(config, text, _Counts(*row)) for text, row in zip(texts, zip(*counts, strict=True), strict=True)]


class _Counts(NamedTuple):
    """Of one text, or lists of them of many."""

    words: int
    real: int
    """Words that are not mere punctuation."""
    real_characters: int
    letters: int
    """Words with a letter."""
    stop_words: int
    """Different stop words that occur."""


def _count(config: GopherQuality, texts: Sequence[str], known: WordTable) -> tuple[list[int], ...]:
    found = known.words(texts)
    ids_W, offsets = found
    symbol_W = known.symbol_V[ids_W]
    return (
        np.diff(offsets).tolist(),
        _sums(~symbol_W, offsets),
        _sums(np.where(symbol_W, 0, known.length_V[ids_W]), offsets),
        _sums(known.letter_V[ids_W], offsets),
        _stop_words(config, known, found),
    )


def _sums(values_W: NDArray[np.generic], offsets: NDArray[np.int64]) -> list[int]:
    total = np.concatenate([[0], np.cumsum(values_W, dtype=np.int64)])
    return np.diff(total[offsets]).tolist()


def _stop_words(config: GopherQuality, known: WordTable, found: Words) -> list[int]:
    numbers = [known.vocabulary[word] for word in set(config.stop_words) if word in known.vocabulary]
    count_D = np.zeros(len(found.offsets) - 1, np.int64)
    for number in numbers:
        places = np.flatnonzero(found.ids_W == number)
        count_D[np.unique(np.searchsorted(found.offsets, places, side="right") - 1)] += 1
    return count_D.tolist()


def _verdict(config: GopherQuality, text: str, count: _Counts) -> Verdict:
    return _by_words(config, count) or _by_text(config, text, count.words) or _by_kinds(config, count)


def _by_words(config: GopherQuality, count: _Counts) -> Verdict:
    if config.min_words and count.real < config.min_words:
        return "gopher_short_doc", f"{count.real} words"
    if config.max_words and count.real > config.max_words:
        return "gopher_long_doc", f"{count.real} words"
    mean = count.real_characters / count.real if count.real else 0.0
    if config.min_word_length and mean < config.min_word_length:
        return "gopher_below_avg_threshold", f"mean word length {mean:.2f}"
    if config.max_word_length and mean > config.max_word_length:
        return "gopher_above_avg_threshold", f"mean word length {mean:.2f}"
    return None


def _by_text(config: GopherQuality, text: str, words: int) -> Verdict:
    ellipses = text.count("...") + text.count("…")
    if config.max_symbols and words and text.count("#") / words > config.max_symbols:
        return "gopher_too_many_hashes", f"{text.count('#')} in {words} words"
    if config.max_symbols and words and ellipses / words > config.max_symbols:
        return "gopher_too_many_ellipsis", f"{ellipses} in {words} words"
    if not (ellipses or "-" in text or "•" in text):
        return None
    lines = text.splitlines()
    if config.max_bullets:
        share = sum(line.lstrip()[:1] in ("•", "-") for line in lines) / len(lines)
        if share > config.max_bullets:
            return "gopher_too_many_bullets", f"{share:.0%} of lines"
    if config.max_ellipses and ellipses:
        share = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        if share > config.max_ellipses:
            return "gopher_too_many_end_ellipsis", f"{share:.0%} of lines"
    return None


def _by_kinds(config: GopherQuality, count: _Counts) -> Verdict:
    if config.min_alphabetic and count.words and count.letters / count.words < config.min_alphabetic:
        return "gopher_below_alpha_threshold", f"{count.letters} of {count.words} words have a letter"
    if config.min_stop_words and count.stop_words < config.min_stop_words:
        return "gopher_enough_stop_words", f"{count.stop_words} stop words"
    return None


quality = filter_stage(judge)
