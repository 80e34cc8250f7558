"""What an endpoint's sentence says."""

from __future__ import annotations

import pytest

from bench.endpoints import _without


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
