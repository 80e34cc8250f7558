"""A training that was resumed has the loss curve of one that was not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from bench.trainlog import TrainLog
from lmopt.step import Step

STEPS, TOKENS = 400, 7


def log(folder: Path) -> TrainLog:
    made = TrainLog(folder)
    made.begin(total_tokens=STEPS * TOKENS, flops_per_token={8: 2.0}, full_length=8)
    return made


def trained(made: TrainLog, first: int, last: int) -> None:
    for index in range(first, last):
        made.add(Step(index + 1, TOKENS, random.Random(index).random() if index % 5 else None), 0.5)


@pytest.mark.parametrize("lost", [0, 1, 13], ids=["none", "a step", "a checkpoint"])
def test_a_resumed_training_has_the_same_curve_to_the_last_digit(lost: int, tmp_path: Path) -> None:
    """`lost`: steps trained beyond the checkpoint that it continues from, the newest or the one before."""
    whole = log(tmp_path / "whole")
    trained(whole, 0, STEPS)
    made = log(tmp_path)
    done = 0
    for ends in range(13, STEPS, 13):
        trained(made, done, ends)
        made.save()
        done = ends - lost
        made = log(tmp_path)
        made.restore({8: done * TOKENS})
        if lost == 13:  # one in two is damaged: the next is saved before it is read
            trained(made, done, ends)
            made.save()
            done = ends
    trained(made, done, STEPS)
    assert made.points
    assert [{**point, "seconds": 0} for point in made.points] == [{**point, "seconds": 0} for point in whole.points]


def test_what_no_resumed_training_will_ask_for_is_not_kept(tmp_path: Path) -> None:
    made = log(tmp_path)
    sizes: list[int] = []
    for ends in range(20, STEPS, 20):
        trained(made, ends - 20, ends)
        made.save()
        sizes.append(len((tmp_path / "harness.json").read_text().split('"losses"')[1]))
    assert max(sizes[3:]) < 3 * sizes[0]
