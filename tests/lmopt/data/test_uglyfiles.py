"""Ugly files: nothing is lost in silence, nothing hangs, and every refusal says where, what and how to mend it."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmopt.data import cache, corpus, reading, sources
from lmopt.data.cache import SourceError
from lmopt.data.describe import describe
from lmopt.data.spec import CorpusSource, Data

from .texts import prose

ROWS = "".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(5)).encode()


def _texts(path: Path, **options: Any) -> list[str]:
    described = CorpusSource.model_validate({"source": f"file:{path}", **options})
    return [document.text for document in reading.read(sources.fetch(described.source), described)]


def _of(folder: Path, name: str, content: bytes) -> list[str]:
    (folder / name).write_bytes(content)
    return _texts(folder / name)


@pytest.mark.parametrize("name", ["A.JSONL", "a.jsonl.GZ", "A.Jsonl.Gz"])
def test_large_letters_in_an_ending_change_nothing(tmp_path: Path, name: str) -> None:
    content = gzip.compress(ROWS) if name.lower().endswith(".gz") else ROWS
    assert len(_of(tmp_path, name, content)) == 5
    assert len(_texts(tmp_path)) == 5, "nor in a folder"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            json.dumps([{"text": "a"}]).encode(),
            r"a.jsonl:1: a list, no object with a key 'text'\nhint: .*jq",
        ),
        ("a.jsonl", ROWS + b'{\n "text": "a"\n}', r"a.jsonl:6: not JSON (.|\n)*hint: jsonl has one object a line"),
        ("a.jsonl", ROWS[:-5], r"a.jsonl:5: not JSON \(Unterminated"),
        ("a.jsonl", b'{"text": {"body": "a"}}', r"a.jsonl:1: no text under 'text', but dict\nhint: .*nested"),
        ("a.jsonl", ROWS + b'{"text": NaN}', r"a.jsonl:6: no text under 'text', but float"),
        ("a.jsonl", ROWS.decode().encode("utf-16"), r"a.jsonl: not UTF-8: (.|\n)*hint: iconv -f UTF-16 "),
        ("a.jsonl", "é à ü ".encode("latin1") * 50, r"a.jsonl: not UTF-8: (.|\n)*hint: iconv -f LATIN1 "),
        ("a.json", b"[]", r"no reader for the ending '.json'(.|\n)*hint: one object a line is jsonl: jq"),
        ("a.zip", b"PK", r"no reader for the ending '.zip'(.|\n)*hint: unpack it"),
        ("a.csv", b"", r"a.csv: no text was found in it"),
        ("a.csv", b"id;text\n1;a", r"no column 'text'; got id;text\nhint: .*not by semicolons"),
        ("a.csv", b"id, text\n1, a", r"no column 'text'; got id, ' text'\nhint"),
        ("a.csv", b"x" * 5000 + b",y\n", r"no column 'text'; got x{200}\.\.\.\nhint"),
        ("a.csv", b"text,text\na,b", r"2 columns are named 'text'\nhint: rename"),
        (
            "a.csv",
            b"id,text\n1,one\n2,two, and more\n",
            r"a.csv:2: 3 fields in the row, 2 in the header\nhint: .*comma",
        ),
        ("a.csv", b"id,text\n1,one\n2\n", r"a.csv:2: 1 fields in the row, 2 in the header"),
        ("a.csv", b'id,text\n1,"one\n2,"two\n', r"row 1, which ends in line 3: not CSV (.|\n)*hint: .*doubled"),
        ("a.csv", b'id,text\n1,"one\n2,two\n', r"row 1, which ends in line 3: not CSV \(unexpected end"),
        ("a.csv", b'id,text\n1,"say \\"hi\\", now"\n', r"row 1, which ends in line 2: not CSV"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        _of(tmp_path, name, content)


def test_a_row_of_csv_may_end_behind_its_text(tmp_path: Path) -> None:
    assert _of(tmp_path, "a.csv", b"id,text,note\n1,one\n\n2,two,x\n") == ["one", "two"]


def test_null_is_no_text_in_every_format(tmp_path: Path) -> None:
    assert _of(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": null}\n{"text": "b"}\n') == ["a", "b"]
    pq.write_table(pa.table({"text": ["a", None, "b"]}), tmp_path / "a.parquet")
    assert _texts(tmp_path / "a.parquet") == ["a", "b"]


def test_parquet_that_is_not_utf8_is_read_as_other_text_is(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"text": text}), tmp_path / "a.parquet")
    assert _texts(tmp_path / "a.parquet") == ["one", "caf\ufffd"]


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    os.symlink("/dev/zero", tmp_path / "b.txt")
    for name in ("a.txt", "b.txt"):
        with pytest.raises(SourceError, match=r"neither a file nor a folder, but a pipe or a device\nhint: .*cat "):
            sources.fetch(f"file:{tmp_path / name}")
    (tmp_path / "c.txt").write_text("text")
    assert _texts(tmp_path) == ["text"], "in a folder it is no text"


def test_links_are_followed_once(tmp_path: Path) -> None:
    home, other = tmp_path / "home", tmp_path / "other"
    (home / "inside").mkdir(parents=True)
    other.mkdir()
    (home / "inside" / "a.txt").write_text("a")
    (other / "b.txt").write_text("b")
    (home / "to_other").symlink_to(other)
    (home / "to_other_again").symlink_to(other)
    (home / "to_inside").symlink_to("inside")
    (home / "self").symlink_to(".")
    (other / "back").symlink_to(home)
    (home / "gone.txt").symlink_to("nowhere")
    (home / "round.txt").symlink_to("round.txt")
    assert sorted(_texts(home)) == ["a", "b"]
    assert len(cache.files_of(home)) == 1, "not followed unless it is asked for"


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    (tmp_path / "a.txt").write_text("a")
    real = os.scandir

    def closed(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(SourceError, match=r"closed: cannot be read \(Permission denied\)\nhint: is it yours to read"):
        sources.fetch(f"file:{tmp_path}")


def test_files_that_nobody_reads_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for n in range(60):
        (folder / f"{n}.txt").write_text(f"{prose(n)} {n}")
    data = {
        "corpus": [f"file:{folder}"],
        "validation": [{"kind": "holdout", "share": 0.2}],
        "tokenizer": {"vocab": 300},
    }
    described = Data.model_validate(data)
    list(corpus.build(described, tmp_path / "all"))
    assert "left_out" not in describe(tmp_path / "all")["sources"][f"file:{folder}"]
    for name in ("a.pdf", "b.pdf", "c.json", "README"):
        (folder / name).write_text("x")
    list(corpus.build(described, tmp_path / "some"))
    found = describe(tmp_path / "some")["sources"][f"file:{folder}"]["left_out"]
    assert found == {".json": 1, ".pdf": 2, "no ending": 1}


def test_a_folder_of_other_files_says_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "a.docx").write_text("x")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(SourceError, match=r"only files that are not read: 1 .docx, 1 .json\nhint: read are .txt"):
        _texts(tmp_path)
