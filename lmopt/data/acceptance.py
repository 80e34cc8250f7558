"""Whether a synthetic text is worth adding: neither a copy of what it was made from nor something else altogether."""

from __future__ import annotations

from collections.abc import Sequence

from lmopt.data.shingles import words
from lmopt.techniques.augmentation import Augmentation

COPY_NGRAM = 3
"""Words: single words repeat in every honest paraphrase, trigrams only where the wording does."""


def rejection(original: str, made: str, config: Augmentation) -> tuple[str, str] | None:
    """(reason, what was measured) of a text that shall not be added; None where it may."""
    before, after = words(original), words(made)
    if not after:
        return "synthetic_empty", "no word in it"
    ratio = len(after) / max(len(before), 1)
    if not config.length_from <= ratio <= config.length_to:
        return "synthetic_length", f"{ratio:.2f} times the words of the original"
    copied = overlap(after, before, COPY_NGRAM)
    if copied > config.copy_above:
        return "synthetic_near_copy", f"{copied:.0%} of its word trigrams stand in the original"
    shared = overlap(after, before, 1)
    if shared < config.drift_below:
        return "synthetic_drift", f"{shared:.0%} of its words stand in the original"
    return None


def overlap(made: Sequence[bytes], original: Sequence[bytes], n: int) -> float:
    """Share of the distinct n-grams of `made` that `original` has too; a shorter text is one n-gram."""
    ours, theirs = _ngrams(made, n), _ngrams(original, n)
    return len(ours & theirs) / len(ours) if ours else 0.0


def _ngrams(found: Sequence[bytes], n: int) -> set[tuple[bytes, ...]]:
    return {tuple(found[start : start + n]) for start in range(max(len(found) - n + 1, min(len(found), 1)))}
