"""Which confidence is enough to leave early, with a stated risk: Learn-then-Test. No torch here.

Angelopoulos et al. (arXiv 2110.01052), as CALM (2207.07061, section 4.2) uses it. For a risk d and a level e the
threshold found satisfies P(expected loss at the threshold > d) <= e over the draw of the calibration texts, which
must be apart from those the result is judged on. Losses lie in [0, 1], one a text. They must be independent: texts
of one document are alike, and count as one (`by_document`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import binom

FULL_DEPTH = 1.0
"""The threshold at which no token leaves early."""


@dataclass(frozen=True, slots=True)
class Tested:
    """One threshold: the hypothesis that its expected loss exceeds the risk."""

    threshold: float
    mean_loss: float
    p_value: float
    rejected: bool


@dataclass(frozen=True, slots=True)
class Calibration:
    """The threshold to use, and how it was found."""

    threshold: float
    """The lowest that passed; `FULL_DEPTH` where none did."""
    risk: float
    level: float
    texts: int
    tested: tuple[Tested, ...]
    """From the highest threshold down to the first that did not pass."""


def calibrate(losses: Mapping[float, Sequence[float]], *, risk: float, level: float = 0.05) -> Calibration:
    """Test thresholds from the highest (safest) down and stop at the first that may exceed the risk.

    In this fixed order no correction is needed (fixed sequence testing): a wrong threshold is
    used only if the first wrong one passes, which happens with probability at most `level`.

    Args:
        losses: threshold -> loss of each calibration text; the same texts for all.
        risk: largest expected loss that is tolerated.
        level: probability that it is exceeded all the same.

    Raises:
        ValueError: texts differ in number, a loss lies outside [0, 1], or risk or level outside (0, 1).
    """
    if not (0 < risk < 1 and 0 < level < 1):
        raise ValueError(f"risk {risk} and level {level} must lie between 0 and 1")
    sizes = {len(found) for found in losses.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"every threshold needs the losses of the same texts, got {sorted(sizes)} of them")
    if not all(0 <= loss <= 1 for found in losses.values() for loss in found):
        raise ValueError("losses must lie in [0, 1]")
    tested: list[Tested] = []
    for threshold in sorted(losses, reverse=True):
        found = losses[threshold]
        p_value = hoeffding_bentkus(math.fsum(found) / len(found), len(found), risk)
        tested.append(Tested(threshold, math.fsum(found) / len(found), p_value, p_value <= level))
        if not tested[-1].rejected:
            break
    passed = [test.threshold for test in tested if test.rejected]
    return Calibration(passed[-1] if passed else FULL_DEPTH, risk, level, sizes.pop(), tuple(tested))


def hoeffding_bentkus(mean_loss: float, texts: int, risk: float) -> float:
    """p-value of "the expected loss exceeds `risk`" after a mean of `mean_loss` (Hoeffding-Bentkus, 2110.01052)."""
    below = min(mean_loss, risk)
    hoeffding = math.exp(-texts * _divergence(below, risk))
    # a mean of losses is a sum of floats: 0.1 x 30 must not count as 4 texts
    bentkus = math.e * float(binom.cdf(math.ceil(texts * mean_loss - 1e-9), texts, risk))
    return min(1.0, hoeffding, bentkus)


def _divergence(a: float, b: float) -> float:
    """Kullback-Leibler divergence of two coins, h1(a, b)."""
    first = a * math.log(a / b) if a > 0 else 0.0
    second = (1 - a) * math.log((1 - a) / (1 - b)) if a < 1 else 0.0
    return first + second


def by_document(losses: Sequence[float], documents: Sequence[int]) -> list[float]:
    """Mean loss of each document's texts.

    Args:
        documents: the number of each text's document.
    """
    found: dict[int, list[float]] = {}
    for loss, document in zip(losses, documents, strict=True):
        found.setdefault(document, []).append(loss)
    return [math.fsum(own) / len(own) for own in found.values()]


def disagreement(text: Sequence[int], full: Sequence[int]) -> float:
    """Share of positions at which a text differs from the full model's: the loss of leaving early, in [0, 1]."""
    longest = max(len(text), len(full))
    if not longest:
        raise ValueError("two empty texts: nothing to compare")
    same = sum(a == b for a, b in zip(text, full, strict=False))
    return 1 - same / longest
