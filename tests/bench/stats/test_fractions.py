"""Designs against the published tables, and what they promise about their columns."""

from __future__ import annotations

import itertools

import pytest

from bench.stats.fractions import GENERATORS, Fraction, fraction, full, named, sign

RESOLUTIONS = {
    (3, 1): 3, (4, 1): 4, (5, 1): 5, (5, 2): 3, (6, 1): 6, (6, 2): 4, (6, 3): 3, (7, 1): 7, (7, 2): 4, (7, 3): 4,
    (7, 4): 3, (8, 2): 5, (8, 3): 4, (8, 4): 4,
}  # fmt: skip
"""Montgomery, 8th ed., table 8.14."""


def letters(effect):
    return "".join(sorted("ABCDEFGH"[factor] for factor in effect))


@pytest.mark.parametrize("key", GENERATORS)
def test_the_table_has_the_published_resolutions_and_orthogonal_columns(key):
    design = Fraction(key[0], GENERATORS[key])
    assert design.resolution == RESOLUTIONS[key]
    assert len(set(design.runs)) == len(design.runs) == 2 ** (key[0] - key[1])
    for one, two in itertools.combinations(range(key[0]), 2):
        assert sum(sign(run, frozenset({one})) * sign(run, frozenset({two})) for run in design.runs) == 0
    for run in design.runs:
        assert {sign(run, word) for word in design.words} == {1}


def test_a_full_design_is_every_combination_in_standard_order():
    assert [letters(run).lower() or "(1)" for run in full(3).runs] == ["(1)", "a", "b", "ab", "c", "ac", "bc", "abc"]
    assert full(3).resolution is None
    assert full(3).aliases(frozenset({0})) == ()


def test_the_half_fraction_of_four_factors_has_montgomerys_aliases():
    """Example 8.1: I = ABCD, so [A] -> A + BCD and [AB] -> AB + CD."""
    half = fraction(4, 4)
    assert [letters(run).lower() or "(1)" for run in half.runs] == ["(1)", "ad", "bd", "ab", "cd", "ac", "bc", "abcd"]
    assert [letters(word) for word in half.words] == ["ABCD"]
    assert [letters(other) for other in half.aliases(frozenset({0}))] == ["BCD"]
    assert [letters(other) for other in half.aliases(frozenset({0, 1}))] == ["CD"]
    groups = ["+".join(letters(one) for one in group) for group in half.effects()]
    assert groups == ["A", "B", "C", "D", "AB+CD", "AC+BD", "AD+BC"]


@pytest.mark.parametrize(
    ("factors", "resolution", "runs"), [(2, 5, 4), (3, 3, 4), (3, 4, 8), (5, 3, 8), (5, 4, 16), (6, 4, 16), (8, 5, 64)]
)
def test_the_smallest_fraction_of_a_resolution(factors, resolution, runs):
    assert len(fraction(factors, resolution).runs) == runs


def test_beyond_the_table_there_is_none():
    assert fraction(9, 3) is None


def test_effects_are_named_by_their_factors():
    assert named(frozenset({2, 0}), ("clean", "moe", "lr")) == "clean \u00d7 lr"
