"""Numbers as people read them."""

from __future__ import annotations

import pytest

from lmopt.quantities import (
    human_bytes,
    human_count,
    parse_bytes,
    parse_count,
    parse_duration_s,
    possible,
    written_bytes,
)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (3_500_000_000, "3.26 GiB"),
        (999.4 * 2**20, "999 MiB"),
        (1020 * 2**20, "1020 MiB"),  # no exponent between 1,000 and 1,024
        (2**30, "1 GiB"),
    ],
)
def test_bytes(number: float, text: str) -> None:
    assert human_bytes(number) == text


@pytest.mark.parametrize("text", ["1B", "999B", "200kB", "500MB", "64MiB", "1KiB", "8GB", "1TiB", "1500B"])
def test_bytes_as_they_were_written(text: str) -> None:
    assert parse_bytes(written_bytes(parse_bytes(text))) == parse_bytes(text)
    assert written_bytes(parse_bytes(text)) == text


@pytest.mark.parametrize(
    ("number", "text"), [(999, "999"), (1_234_567, "1.23M"), (999_400, "999k"), (999_900, "1M"), (2e13, "20T")]
)
def test_counts(number: float, text: str) -> None:
    assert human_count(number) == text


@pytest.mark.parametrize(
    ("first", "last", "text"),
    [(1, 3, "1 to 3 are possible"), (1, 1, "1 is possible"), (1, 0, "none is possible")],
)
def test_what_a_message_offers(first: int, last: int, text: str) -> None:
    assert possible(first, last) == text


@pytest.mark.parametrize("parse", [parse_bytes, parse_count, parse_duration_s])
@pytest.mark.parametrize("text", ["1e999", "9" * 400])
def test_a_number_beyond_all_bounds_is_refused_in_words(parse, text: str) -> None:
    with pytest.raises(ValueError, match="too large a number"):
        parse(text)
