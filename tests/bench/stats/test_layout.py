"""Factorial effects on published examples, and coverage of planted ones."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.stats.fractions import fraction, full, sign
from bench.stats.layout import Layout, product_weights

FILTRATION = (45, 71, 48, 65, 68, 60, 80, 65, 43, 100, 45, 104, 75, 86, 70, 96)
"""Montgomery, Design and Analysis of Experiments (8th ed.), example 6.2: filtration rate, 2^4, standard order."""
ETCH = ((550, 604), (669, 650), (633, 601), (642, 635), (1037, 1052), (749, 868), (1075, 1063), (729, 860))
"""Example 6.1: plasma etch rate, 2^3, two replicates."""


def cells(design, values):
    runs = {f"cell{n}": run for n, run in enumerate(design.runs)}
    return runs, Layout.of(dict(zip(runs, values, strict=True)))


def of(text):
    return frozenset("ABCD".index(letter) for letter in text)


@pytest.mark.parametrize(
    ("effect", "value", "squares"),
    [
        ("A", 21.625, 1870.56), ("B", 3.125, 39.0625), ("C", 9.875, 390.062), ("D", 14.625, 855.563),
        ("AB", 0.125, 0.0625), ("AC", -18.125, 1314.06), ("AD", 16.625, 1105.56), ("BC", 2.375, 22.5625),
        ("BD", -0.375, 0.5625), ("CD", -1.125, 5.0625), ("ABC", 1.875, 14.0625), ("ABD", 4.125, 68.0625),
        ("ABCD", 1.375, 7.5625),
    ],
)  # fmt: skip
def test_filtration_rate(effect, value, squares):
    runs, layout = cells(full(4), [{0: rate} for rate in FILTRATION])
    found = layout.effect(of(effect), runs)
    assert found.value == pytest.approx(value)
    assert found.se is None
    assert layout.squares(of(effect), runs) == pytest.approx(squares, rel=1e-5)


@pytest.mark.parametrize(
    ("effect", "value"), [("A", 19.0), ("B", 1.5), ("C", 14.0), ("D", 16.5), ("AB", -1.0), ("AC", -18.5), ("AD", 19.0)]
)
def test_half_of_the_filtration_rate(effect, value):
    """Example 8.1: the runs with I = ABCD."""
    half = fraction(4, 4)
    rate = dict(zip(full(4).runs, FILTRATION, strict=True))
    runs, layout = cells(half, [{0: rate[run]} for run in half.runs])
    assert layout.effect(of(effect), runs).value == pytest.approx(value)


def test_plasma_etch_with_its_replicates_as_blocks():
    """Table 6.5, with the replicates' sum of squares (249^2 / 16) taken out of the error's."""
    runs, layout = cells(full(3), [dict(enumerate(pair)) for pair in ETCH])
    published = {"A": (-101.625, 41310.5625), "B": (7.375, 217.5625), "C": (306.125, 374850.0625),
                 "AB": (-24.875, 2475.0625), "AC": (-153.625, 94402.5625), "BC": (-2.125, 18.0625),
                 "ABC": (5.625, 126.5625)}  # fmt: skip
    for effect, (value, squares) in published.items():
        assert layout.effect(of(effect), runs).value == pytest.approx(value)
        assert layout.squares(of(effect), runs) == pytest.approx(squares)
    assert layout.residual_squares == pytest.approx(18020.5 - 249**2 / 16)
    assert layout.df == 7
    a = layout.effect(of("A"), runs)
    assert (a.df, a.n) == (7, 2)
    assert a.se == pytest.approx(math.sqrt(layout.residual_squares / 7 / 4))


def test_savings_that_multiply_leave_nothing_and_a_planted_departure_is_read_exactly():
    y = {"base": 0.0, "a": -0.1, "b": -0.2, "c": 0.05, "all": -0.25 + 0.03}
    layout = Layout.of({cell: {0: value, 1: value + 1} for cell, value in y.items()})
    assert layout.contrast(product_weights("all", ["a", "b", "c"], "base")).value == pytest.approx(0.03)


def test_blocks_that_a_cell_lacks_are_left_out():
    layout = Layout.of({"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.0, 2: 4.0}})
    assert (layout.blocks, layout.df) == (2, 1)
    assert Layout.of({"a": {0: 1.0}, "b": {1: 1.0}}).blocks == 0


def test_twice_the_sum_of_pairs_is_the_departure_of_the_whole_from_the_product():
    random = np.random.default_rng(3)
    pairs = {pair: random.standard_normal() for pair in (frozenset({a, b}) for a in range(4) for b in range(a))}
    mains = {frozenset({a}): random.standard_normal() for a in range(4)}

    def y(run):
        return sum(sign(run, effect) * value / 2 for effect, value in (mains | pairs).items())

    everything, nothing = frozenset(range(4)), frozenset()
    singles = sum(y(frozenset({a})) - y(nothing) for a in range(4))
    departure = y(everything) - y(nothing) - singles
    half = fraction(4, 4)
    runs, layout = cells(half, [{0: y(run)} for run in half.runs])
    groups = [group for group in half.effects() if len(group[0]) == 2]
    assert 2 * sum(layout.effect(group[0], runs).value for group in groups) == pytest.approx(departure)


@pytest.mark.parametrize("blocks", [2, 4])
@pytest.mark.parametrize("spread", [(1, 1, 1, 1), (1, 3, 1, 3)])
def test_intervals_of_planted_effects_cover(blocks, spread):
    """1,500 tables of a 2^2 design, equal noise and one factor that triples it: 95% intervals hold the truth."""
    random = np.random.default_rng(blocks)
    design = full(2)
    runs = {f"cell{n}": run for n, run in enumerate(design.runs)}
    truth = {frozenset({0}): -0.1, frozenset({1}): -0.2, frozenset({0, 1}): 0.05}
    mean = np.array([sum(sign(run, effect) * value / 2 for effect, value in truth.items()) for run in design.runs])
    covered = dict.fromkeys(truth, 0)
    studies = 1500
    for _ in range(studies):
        y = (
            mean[:, None]
            + random.standard_normal(blocks)
            + 0.1 * np.array(spread)[:, None] * random.standard_normal((4, blocks))
        )
        layout = Layout(tuple(runs), y)
        for effect, value in truth.items():
            found = layout.effect(effect, runs)
            covered[effect] += found.lower(0.025) <= value <= found.upper(0.025)
    low = 0.93 if len(set(spread)) == 1 else 0.90
    assert all(low <= count / studies <= 0.97 for count in covered.values()), covered
