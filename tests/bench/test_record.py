"""Records: hashed lines, torn ends, and nothing that cannot be trusted."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.record import CaseKey, Reading, Record, RecordError, append, from_line, missing, read, reading, to_line

ID = "0123456789abcdef"


def record(**fields) -> Record:
    case = CaseKey(id=fields.pop("id", ID), kind="train", arm="dense", scale="s", seed=0, horizon=1.0)
    return Record.model_validate({"schema": 1, "status": "ok", "case": case, **fields})


@given(st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4))
def test_a_line_reads_back_as_it_was_written(values):
    before = record(metrics={name: reading(value, "1", "counted") for name, value in values.items()})
    after = from_line(to_line(before), "x:1")
    assert after.metrics == before.metrics
    assert to_line(after) == to_line(before)


def test_any_changed_character_is_noticed():
    line = to_line(record(metrics={"val_loss": reading(4.25, "nat/token", "counted")}))
    with pytest.raises(RecordError, match=r"edited by hand or damaged.*hint: remove the line and run again"):
        from_line(line.replace("4.25", "4.15"), "x:1")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "not a record"), ("[1]", "expected an object"), ('{"schema": 3}', "schema version 3"),
        ("[" * 100_000, "not a record"), ('{"schema": 1, "x": NaN}', "NaN is not a number"),
        ('{"schema": 1, "x": 1e999}', "not a record"),
    ],
    ids=["empty", "list", "version", "deep", "nan", "beyond"],
)  # fmt: skip
def test_a_line_that_is_no_record_is_refused(line, words):
    with pytest.raises(RecordError, match=words):
        from_line(line, "x:1")


def test_a_missing_value_needs_a_reason_and_a_value_a_grade():
    with pytest.raises(ValueError, match="needs a reason"):
        Reading(value=None, unit="J")
    with pytest.raises(ValueError, match="needs a grade"):
        Reading(value=1.0, unit="J")
    assert reading(float("nan"), "J", "counter") == missing("J", "not a finite number (nan)")


def test_a_torn_last_line_is_a_case_that_did_not_finish(tmp_path):
    path = tmp_path / "records.jsonl"
    append(path, record())
    with path.open("a") as file:
        file.write(to_line(record(id="f" * 16))[:50])
    assert [one.case.id for one in read(path)] == [ID]
    append(path, record(id="a" * 16))
    assert [one.case.id for one in read(path)] == [ID, "a" * 16]


def test_two_finished_records_of_a_case_contradict_each_other(tmp_path):
    path = tmp_path / "records.jsonl"
    append(path, record(status="failed", reason="killed"))
    append(path, record(attempt=2))
    assert len(read(path)) == 2
    append(path, record(attempt=3))
    with pytest.raises(RecordError, match="two finished records"):
        read(path)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "records.jsonl"
    with pytest.raises(RecordError, match="cannot be read"):
        read(path)
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(RecordError, match="not UTF-8"):
        read(path)


def test_hashes_do_not_depend_on_the_order_of_keys():
    one = to_line(record(detail={"a": 1, "b": 2}))
    two = to_line(record(detail={"b": 2, "a": 1}))
    assert json.loads(one)["sha256"] == json.loads(two)["sha256"]
