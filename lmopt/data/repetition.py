"""Gopher's rules against repetition within a document (Rae et al., arXiv 2112.11446, Table A1), many texts at a time.

Reasons and decisions are those of datatrove's GopherRepetitionFilter. N-grams are compared by 64-bit hashes of their
characters, of which an index of W words leaves 64 - log2 W bits. Letters: D texts, W words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lmopt.data.gopher import table
from lmopt.data.hashing import BLOCK, mix, mix_in_place, powers
from lmopt.data.stage import Verdict, filter_stage
from lmopt.techniques.filters import GopherRepetition

_PARAGRAPHS = re.compile(r"\n{2,}")


def judge(config: GopherRepetition, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text: the first rule that it breaks."""
    verdicts = [_by_lines(config, text) for text in texts]
    if not (config.top_ngrams or config.duplicate_ngrams):
        return verdicts
    open_texts = [number for number, verdict in enumerate(verdicts) if verdict is None]
    for number, verdict in zip(open_texts, _by_ngrams(config, [texts[i] for i in open_texts]), strict=True):
        verdicts[number] = verdict
    return verdicts


# --- lines and paragraphs ------------------------------------------------------------------------


def _by_lines(config: GopherRepetition, text: str) -> Verdict:
    if not text:
        return None
    pieces = _PARAGRAPHS.split(text.strip()) if "\n\n" in text else [text]
    if found := _repeated(pieces, len(text), config.paragraphs, config.paragraph_characters, "para"):
        return found
    return _repeated(_lines(text), len(text), config.lines, config.line_characters, "line")


def _lines(text: str) -> list[str]:
    r"""What `re.split(r"\n+", text)` gives, in a third of the time."""
    lines = text.split("\n")
    return [lines[0], *filter(None, lines[1:-1]), lines[-1]] if len(lines) > 1 else lines


def _repeated(
    pieces: list[str], characters: int, most: float | None, most_characters: float | None, what: str
) -> Verdict:
    count, size = duplicates(pieces)
    if most and count / len(pieces) > most:
        return f"dup_{what}_frac", f"{count} of {len(pieces)}"
    if most_characters and size / characters > most_characters:
        return f"dup_{what}_char_frac", f"{size} of {characters} characters"
    return None


def duplicates(pieces: list[str]) -> tuple[int, int]:
    """(pieces that repeat an earlier one, their characters)."""
    distinct = set(pieces)
    if len(distinct) == len(pieces):
        return 0, 0
    return len(pieces) - len(distinct), sum(map(len, pieces)) - sum(map(len, distinct))


# --- n-grams -------------------------------------------------------------------------------------


class _Windows(NamedTuple):
    """All windows of n words within one text, equal ones of a text side by side."""

    place_G: NDArray[np.int64]
    """First word of each window: by group of equal ones, within a group in the order of the text."""
    start: NDArray[np.int64]
    """Where each group starts in `place_G`, and the end of the last."""

    def repeated(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(places, numbers of their groups) of all windows whose group has several."""
        size_G = np.diff(self.start)
        several = np.flatnonzero(size_G > 1)
        size_G, start_G = size_G[several], self.start[several]
        within = np.arange(size_G.sum()) - np.repeat(np.cumsum(size_G) - size_G, size_G)
        return self.place_G[np.repeat(start_G, size_G) + within], np.repeat(np.arange(len(several)), size_G)


class _Batch(NamedTuple):
    """The words of a batch of texts."""

    text_W: NDArray[np.int32]
    hash_W: NDArray[np.uint64]
    end_W: NDArray[np.int64]
    """Characters of the words before each, and of all."""
    gap: int
    """Characters between two words of an n-gram."""

    def characters(self, place: NDArray[np.int64], n: int) -> NDArray[np.int64]:
        """Characters of the windows of n words that start at these places, and the gap behind each word."""
        return self.end_W[place + n] - self.end_W[place] + n * self.gap


def _by_ngrams(config: GopherRepetition, texts: list[str]) -> list[Verdict]:
    joined, sizes = _words(texts), list(map(len, texts))
    verdicts: list[Verdict] = [None] * len(texts)
    top, duplicate = dict(config.top_ngrams), dict(config.duplicate_ngrams)
    spaced = joined._replace(gap=1)
    for n, windows in _windows(spaced, top):
        for number, characters in _top(windows, spaced, n):
            if verdicts[number] is None and characters / sizes[number] > top[n]:
                verdicts[number] = (f"top_{n}_gram", f"{characters} of {sizes[number]} characters")
    for n, windows in _windows(joined, duplicate):
        for number, characters in _duplicated(windows, joined, n, duplicate[n], sizes, verdicts):
            if characters / sizes[number] > duplicate[n]:
                verdicts[number] = (f"duplicated_{n}_n_grams", f"{characters} of {sizes[number]} characters")
    return verdicts


def _words(texts: list[str]) -> _Batch:
    known = table()
    ids_W, offsets = known.words(texts)
    end_W = np.zeros(len(ids_W) + 1, np.int64)
    np.cumsum(known.length_V[ids_W], out=end_W[1:])
    text_W = np.repeat(np.arange(len(texts), dtype=np.int32), np.diff(offsets))
    return _Batch(text_W, known.hash_V[ids_W], end_W, gap=0)


def _windows(batch: _Batch, wanted: Mapping[int, float]) -> Iterator[tuple[int, _Windows]]:
    """(n, windows of n words) for each n that is wanted; hash_n(i) = hash_(n-1)(i) + hash(w_(i+n-1)) BASE^offset."""
    text_W, hash_W = batch.text_W, batch.hash_W
    total_W = hash_W.copy()
    power = powers(1)
    # A number for each text that is no short polynomial in BASE: 'on the' of one text must not be 'of the' of another.
    apart_D = mix(np.arange(1, text_W[-1] + 2, dtype=np.uint64)) if len(text_W) else hash_W
    for n in range(1, max(wanted, default=0) + 1):
        if n > len(hash_W):
            return
        total_W = total_W[: len(hash_W) - n + 1]
        for part in _blocks(len(total_W)) if n > 1 else ():
            last = slice(part.start + n - 1, part.stop + n - 1)
            offset_W = batch.end_W[last] - batch.end_W[part] + (n - 1) * batch.gap
            if len(power) <= (longest := int(offset_W.max())):
                power = powers(2 * longest + 2)
            total_W[part] += hash_W[last] * power[offset_W]
        if n in wanted:
            yield n, _grouped(total_W, text_W, apart_D, n)


def _blocks(count: int) -> Iterator[slice]:
    """Parts of so many numbers: what is worked out for them takes little room beside the numbers themselves."""
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _grouped(total_W: NDArray[np.uint64], text_W: NDArray[np.int32], apart_D: NDArray[np.uint64], n: int) -> _Windows:
    """Windows sorted by hash and, within equal ones, by place: place is packed into the low bits of the hash."""
    place_G = np.flatnonzero(text_W[: len(total_W)] == text_W[n - 1 :])  # those within one text
    if not len(place_G):
        return _Windows(place_G, np.zeros(1, np.int64))
    bits = np.uint64(int(place_G[-1]).bit_length())
    packed = total_W[place_G]
    for part in _blocks(len(packed)):
        packed[part] += apart_D[text_W[place_G[part]]]
        mix_in_place(packed[part])
        packed[part] = (packed[part] >> bits << bits) | place_G[part].astype(np.uint64)
    del place_G
    packed.sort()
    is_first = np.ones(len(packed) + 1, np.bool_)
    for part in _blocks(len(packed) - 1):
        following = packed[part.start + 1 : part.stop + 1]
        is_first[part.start + 1 : part.stop + 1] = following >> bits != packed[part] >> bits
    packed &= (np.uint64(1) << bits) - np.uint64(1)
    return _Windows(packed.view(np.int64), np.flatnonzero(is_first))


def _top(windows: _Windows, batch: _Batch, n: int) -> Iterator[tuple[int, int]]:
    """(text, characters of its commonest window times its count); of equally common ones the first counts."""
    if not len(windows.place_G):
        return
    behind = len(batch.text_W)
    score_D = np.zeros(int(batch.text_W[-1]) + 1, np.int64)
    for part in _blocks(len(windows.start) - 1):
        first_G = windows.place_G[windows.start[part]]
        count_G = windows.start[part.start + 1 : part.stop + 1] - windows.start[part]
        np.maximum.at(score_D, batch.text_W[first_G], count_G * (behind + 1) + (behind - first_G))
    number = np.flatnonzero(score_D)
    count, first = score_D[number] // (behind + 1), behind - score_D[number] % (behind + 1)
    yield from zip(number.tolist(), (count * (batch.characters(first, n) - 1)).tolist(), strict=True)


def _duplicated(
    windows: _Windows, batch: _Batch, n: int, most: float, sizes: list[int], verdicts: list[Verdict]
) -> Iterator[tuple[int, int]]:
    """(text, characters in windows that repeat an earlier one), of texts that may have too many.

    Every window that is not the first of its group is an upper bound; where it is over the limit the windows are
    counted one after the other, as a repeated one is jumped over and counts once.
    """
    place, group = windows.repeated()
    again = np.flatnonzero(group[1:] == group[:-1]) + 1
    bound_D = np.bincount(batch.text_W[place[again]], batch.characters(place[again], n), len(sizes))
    order = np.argsort(place)
    place, group = place[order], group[order]
    text = batch.text_W[place]
    for number in np.flatnonzero(bound_D > most * np.array(sizes)).tolist():
        if verdicts[number] is None:
            here = slice(*np.searchsorted(text, [number, number + 1]))
            counted = _counted(place[here].tolist(), group[here].tolist(), n)
            yield number, int(batch.characters(np.array(counted, np.int64), n).sum())


def _counted(places: list[int], groups: list[int], n: int) -> list[int]:
    """Places of the windows that count: seen before, and not begun within one that counted."""
    seen: set[int] = set()
    counted: list[int] = []
    free = 0
    for place, group in zip(places, groups, strict=True):
        if place < free:
            continue
        if group in seen:
            counted.append(place)
            free = place + n
        else:
            seen.add(group)
    return counted


repetition = filter_stage(judge)
