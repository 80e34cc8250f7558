"""A writer that is killed mid-line: nothing finished is lost, nothing torn is believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.record import CaseKey, Record, RecordError, append, read, reading


def record(number: int) -> Record:
    return Record(
        status="ok",
        case=CaseKey(id=f"{number:016x}", kind="train", arm="dense"),
        metrics={"val_loss": reading(4.0, "nat/token", "counted")},
        detail={"name": "café"},
    )


def test_every_cut_of_the_last_line_keeps_the_first_and_lets_the_next_be_added(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(1))
    first = len(path.read_bytes())
    append(path, record(2))
    whole = path.read_bytes()
    for cut in range(first, len(whole) + 1):
        path.write_bytes(whole[:cut])
        survived = read(path)
        assert [r.case.id for r in survived] == [record(1).case.id] + [record(2).case.id] * (cut >= len(whole) - 1)
        append(path, record(3))
        assert [r.case.id for r in read(path)] == [r.case.id for r in survived] + [record(3).case.id]


def test_a_torn_line_in_the_middle_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    append(path, record(1))
    path.write_bytes(path.read_bytes()[:-20] + b"\n")
    append(path, record(2))
    with pytest.raises(RecordError, match=r"records\.jsonl:1: not a record"):
        read(path)


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecordError, match="not UTF-8"):
        read(path)


def test_a_byte_order_mark_costs_no_record(tmp_path: Path) -> None:
    """What an editor adds would otherwise be mended by removing the first line."""
    path = tmp_path / "records.jsonl"
    append(path, record(1))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with pytest.raises(RecordError, match="byte order mark; hint: save it as UTF-8 without one"):
        read(path)


def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    os.mkfifo(path)
    with pytest.raises(RecordError, match="is no file; hint: put back"):
        read(path)
