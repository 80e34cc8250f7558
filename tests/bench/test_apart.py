"""Steps in a child: the same values, its errors told, its death noticed."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from bench.apart import StepsApart
from lmopt.step import Step

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")


def counting() -> Iterator[Step]:
    for number in itertools.count(1):
        yield Step(number, 8, loss=1 / number, notes={"pid": os.getpid()})


def test_steps_come_from_another_process_in_order() -> None:
    steps = StepsApart(counting)
    found = list(itertools.islice(steps, 3))
    steps.close()
    assert [step.index for step in found] == [1, 2, 3]
    assert found[0].notes["pid"] != os.getpid()


def test_an_error_is_told() -> None:
    def broken() -> Iterator[Step]:
        yield Step(1, 8)
        raise ValueError("no more")

    steps = StepsApart(broken)
    next(steps)
    with pytest.raises(RuntimeError, match="ValueError: no more"):
        next(steps)


def test_a_death_is_noticed() -> None:
    def dying() -> Iterator[Step]:
        os._exit(1)
        yield Step(1, 8)

    with pytest.raises(RuntimeError, match="died"):
        next(StepsApart(dying))
