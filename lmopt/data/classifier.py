"""Filtering by a function that scores texts: a model of your own, or one that another package offers."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import math
from collections.abc import Callable, Sequence

from lmopt.data.stage import Verdict, filter_stage
from lmopt.data.storage import DataError
from lmopt.techniques.filters import Classifier

ENTRY_POINT_GROUP = "lmbench.classifiers"

Scorer = Callable[[Sequence[str]], Sequence[float]]
"""Texts -> one score a text."""


def judge(config: Classifier, texts: Sequence[str]) -> list[Verdict]:
    """A verdict a text.

    Raises:
        DataError: the function cannot be found, or does not give one finite number a text.
    """
    given = list(scorer(config.function)(texts))
    try:
        scores = [float(score) for score in given]
    except (TypeError, ValueError) as error:
        raise DataError(
            f"classifier {config.function}: gave what is no number ({error})\n"
            "hint: it must return one finite number a text"
        ) from error
    if len(scores) != len(texts) or not all(map(math.isfinite, scores)):
        finite = sum(map(math.isfinite, scores))
        raise DataError(
            f"classifier {config.function}: got {len(texts)} texts, gave {len(scores)} scores, {finite} finite\n"
            "hint: it must return one finite number a text"
        )
    return [
        None if score >= config.min_score else ("low_score", f"{config.function} gave {score:.4g}") for score in scores
    ]


@functools.cache
def scorer(name: str) -> Scorer:
    """The function of that name: `module:function`, or an entry point in the group `lmbench.classifiers`.

    Raises:
        DataError: it is not there.
    """
    module, colon, function = name.partition(":")
    try:
        if colon:
            return getattr(importlib.import_module(module), function)
        (entry,) = importlib.metadata.entry_points(group=ENTRY_POINT_GROUP, name=name)
        return entry.load()
    except (ImportError, AttributeError, ValueError) as error:
        known = sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP).names)
        raise DataError(
            f"classifier {name!r} cannot be loaded ({error}); entry points here: {', '.join(known) or 'none'}\n"
            "hint: write it as module:function, importable from where you run"
        ) from error


classifier = filter_stage(judge)
