"""Per-item rows on disk."""

from __future__ import annotations

import pytest

from bench.evaluate.items import BadItems, ItemRow, read, sha256, write

ROWS = [
    ItemRow("quartz", "17", None, 0.5, 1.0, 2.25),
    ItemRow("corr2cause", "3", "p1", 1.0, 1.0, 1.5),
    ItemRow("corr2cause", "2", "p1", 0.0, 0.0, None),
]


def test_rows_come_back_sorted(tmp_path):
    path = tmp_path / "items.parquet"
    digest = write(path, ROWS)
    assert read(path, expect_sha256=digest) == [ROWS[2], ROWS[1], ROWS[0]]
    assert digest == sha256(path)


def test_the_hash_depends_on_the_content_alone(tmp_path):
    first, second = write(tmp_path / "a", ROWS), write(tmp_path / "b", reversed(ROWS))
    other = write(tmp_path / "c", ROWS[:2])
    assert first == second != other


def test_a_file_without_rows(tmp_path):
    write(tmp_path / "none", [])
    assert read(tmp_path / "none") == []


def test_an_edited_file_is_noticed(tmp_path):
    path = tmp_path / "items.parquet"
    digest = write(path, ROWS)
    write(path, ROWS[:2])
    with pytest.raises(BadItems, match=r"does not match(?s:.*)remove the case's line"):
        read(path, expect_sha256=digest)


@pytest.mark.parametrize("content", [b"", b"PAR1 but not really"])
def test_a_damaged_or_missing_file(tmp_path, content):
    path = tmp_path / "items.parquet"
    with pytest.raises(BadItems, match="cannot be read"):
        read(path)
    path.write_bytes(content)
    with pytest.raises(BadItems, match="cannot be read"):
        read(path)


def test_repetitions_and_impossible_numbers_are_refused(tmp_path):
    with pytest.raises(BadItems, match="occurs twice"):
        write(tmp_path / "x", [*ROWS, ROWS[0]])
    with pytest.raises(BadItems, match="not a finite number"):
        write(tmp_path / "x", [ItemRow("t", "1", None, float("nan"), 0.0, 1.0)])
