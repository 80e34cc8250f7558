"""What an endpoint's sentence says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from bench.endpoints import _without, unmeasured
from bench.savings import Found, Readings, Saving


@pytest.mark.parametrize(
    ("training", "value", "said"),
    [
        (0.31, 0.27, "31.0%"),
        (-0.27, -0.31, "27.0% more"),
        (0.434, -0.035, "it saves 43.4%"),
        (-0.035, 0.02, "it costs 3.5% more"),
    ],
)
def test_a_saving_that_preparation_turns_into_a_cost_is_called_a_saving(
    training: float, value: float, said: str
) -> None:
    assert _without(training, value) == said


@pytest.mark.parametrize(
    ("dropped", "words"),
    [
        ({}, "no timing"),
        ({0: "no timing", 1: "no timing"}, "no timing"),
        ({0: "too short"}, "no timing (too short)"),
        ({0: "too short", 1: "too short", 2: "too short"}, "no timing (too short)"),
        ({0: "too short", 1: "failed", 2: "too short"}, "no timing (seeds 0, 2: too short; seed 1: failed)"),
        (
            {0: "train all/s seed 0: failed", 1: "train all/s seed 1: failed"},
            "no timing (train all/s seed 0: failed; train all/s seed 1: failed)",
        ),
    ],
)
def test_a_reason_that_seeds_share_is_said_once(dropped: dict[int, str], words: str) -> None:
    saving = cast("Saving", SimpleNamespace(found=Found(None, "no timing")))
    assert unmeasured(saving, Readings({}, dropped)) == words
