"""Numbers as people read them."""

from __future__ import annotations

import pytest

from bench import words
from bench.report import numbers
from bench.report.numbers import THIN


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, "0"), (0.012345, "0.0123"), (4.5678, "4.57"), (-4.5678, "−4.57"), (12345.6, f"12{THIN}346"), (99.96, "100"),
     (9.999, "10.0"), (1.5e7, "1.50×10⁷"), (-2.5e-7, "−2.50×10⁻⁷")],
)  # fmt: skip
def test_three_significant_digits(value: float, expected: str) -> None:
    assert numbers.significant(value) == expected


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [(1.24e15, "FLOP", f"1.24{THIN}PFLOP"), (999.9e9, "", f"1.00{THIN}T"), (4_190_000, "", f"4.19{THIN}M"),
     (0.0031, "J", f"3.10{THIN}mJ"), (12.5, "W", f"12.5{THIN}W"), (0, "J", f"0{THIN}J")],
)  # fmt: skip
def test_si_prefixes(value: float, unit: str, expected: str) -> None:
    assert numbers.si(value, unit) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.00831, f"8.31{THIN}ms"), (12.3, f"12.3{THIN}s"), (200, f"3{THIN}min 20{THIN}s"), (7500, f"2{THIN}h 5{THIN}min"),
     (3600, f"1{THIN}h"), (59.999, f"60.0{THIN}s")],
)  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    assert numbers.duration(seconds) == expected


def test_a_rounded_zero_has_no_sign() -> None:
    assert numbers.fixed(-0.0004, 2) == "0.00"
    assert numbers.fixed(0.0004, 2, sign=True) == "0.00"


def test_percentages_and_points() -> None:
    assert numbers.percent(0.2341) == "23.4%"
    assert numbers.percent(-0.07) == "−7.0%"
    assert numbers.percent(0.0002) == "0.02%"
    assert numbers.points(-0.004) == f"−0.40{THIN}pp"


def test_an_open_bound_reads_as_infinite() -> None:
    assert numbers.interval(None, 0.25) == "[−∞, 25.0]"
    assert numbers.interval(-0.1, None) == "[−10.0, ∞]"


def test_a_bound_that_says_nothing_is_not_written_in_forty_digits() -> None:
    assert numbers.interval(-9.196e37, 1.0) == "[−9.2×10³⁹, 100.0]"
    assert words.interval((-9.196e37, 1.0)) == "[−9.2e39, 100.0]"
    assert words.interval((-23_456.7, 3e4)) == "[−2.3e6, 3.0e6]"
    assert words.interval((-2345.67, None)) == "[−234567.0, ∞]"


def test_units_choose_the_form() -> None:
    assert numbers.quantity(412 * 2**20, "B") == f"412{THIN}MiB"
    assert numbers.quantity(93, "s") == f"1{THIN}min 33{THIN}s"
    assert numbers.quantity(1_200_000, "1") == f"1.20{THIN}M"
    assert numbers.quantity(2.437, "bit/byte", 4) == f"2.437{THIN}bit/byte"


def test_listing() -> None:
    assert [numbers.listing(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "",
        "a",
        "a and b",
        "a, b and c",
    ]
