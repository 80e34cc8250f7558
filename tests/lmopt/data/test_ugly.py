"""Ugly text through the whole room: nothing breaks, nothing is lost, nothing is counted twice."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmopt.data import corpus, documents, reading, shards, sources, storage, tokenizer, validation
from lmopt.data.cache import SourceError
from lmopt.data.contamination import Protected
from lmopt.data.dedup import exact, near
from lmopt.data.documents import Document, Dropped
from lmopt.data.heldout import HeldOut
from lmopt.data.html import html_text
from lmopt.data.spec import CorpusSource, Data, Decontaminate
from lmopt.recipe import (
    C4,
    ExactDedup,
    FineWeb,
    GopherQuality,
    GopherRepetition,
    Language,
    NearDedup,
    NgramOverlap,
    SubstringDedup,
    builder,
)

from .texts import numbered, prose

UGLY = [
    "\0", "\x00\x01\x02\x1b[31m", "a" * 200_000, "word " * 50_000, "👩\u200d👩\u200d👧 🇵🇹🏴",
    "שלום \u202e olleh \u202c عليكم",
    "\ufeff", "\u2028\u2029\x85", "\ufffd\ufffe\uffff", "Z\u0337\u0357a\u0336o\u0337\u030d", "\n" * 1000 + "x",
    "﷽" * 50,
    '{"text": "\\ud800"}', "<|endoftext|><|endoftext|>", "𝓈𝒸𝓇𝒾𝓅𝓉 ﬁ İı ẞ", "\t \xa0\u3000",
]  # fmt: skip
any_text = st.text(max_size=60) | st.sampled_from([text[:500] for text in UGLY]) | st.text("ab ,\n", max_size=60)


def test_a_corpus_of_ugly_texts_is_built_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "ugly.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in UGLY + [prose(n) for n in range(60)]))
    data = Data.model_validate(
        {"corpus": [f"file:{path}"], "validation": [{"kind": "holdout", "share": 0.2}], "tokenizer": {"vocab": 300}}
    )
    list(corpus.build(data, tmp_path / "c"))
    list(shards.build(tmp_path / "c", (ExactDedup(), NearDedup()), tmp_path / "s"))
    words = tokenizer.load(tmp_path / "c" / corpus.TOKENIZER)
    for document in validation.load(tmp_path / "c", "holdout").documents:
        assert len(words.decode(document.tokens.tolist()).encode()) == document.size_bytes
    facts = shards.open_shards(tmp_path / "s").manifest
    assert facts["documents_out"] + sum(facts["dropped"].values()) == facts["documents_in"]


def test_every_step_takes_every_ugly_text() -> None:
    before = numbered([*UGLY, *UGLY])
    configs = (
        SubstringDedup(words=3), NgramOverlap(ngram=2), GopherQuality(), GopherRepetition(), C4(), FineWeb(),
        Language(),
    )  # fmt: skip
    streams = [builder(config)(config, iter(before)) for config in configs]
    streams.append(Protected(Decontaminate(ngram=2, shortest=1), {"ugly": UGLY}).clean(before))
    for stream in streams:
        items = list(stream)
        assert [(item.document if isinstance(item, Dropped) else item).id for item in items] == [d.id for d in before]
        for item in items:
            (item.document if isinstance(item, Dropped) else item).text.encode()


def test_bytes_that_are_no_text_at_all(tmp_path: Path) -> None:
    options = CorpusSource(source=f"file:{tmp_path / 'a.txt'}")
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(SourceError, match="not UTF-8: 5,160 of the first 10,240 characters"):
        list(reading.read(sources.fetch(options.source), options))


def test_some_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(
        b"A line of text, and what a disk made of it: \xff\xfe\x80\x00.\n" + b"Words. " * 600
    )
    options = CorpusSource(source=f"file:{tmp_path / 'a.txt'}")
    (document,) = reading.read(sources.fetch(options.source), options)
    with storage.DocumentWriter(tmp_path / "d.parquet") as file:
        file.add(document)
    assert list(storage.documents(tmp_path / "d.parquet")) == [document]


def test_an_empty_file_is_said(tmp_path: Path) -> None:
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_bytes(b"")
        options = CorpusSource(source=f"file:{tmp_path / name}")
        with pytest.raises(SourceError, match=f"{name}: no text was found in it\nhint: is it empty"):
            list(reading.read(sources.fetch(options.source), options))


@settings(max_examples=150, deadline=None)
@given(st.lists(any_text, max_size=30))
def test_steps_keep_order_and_lose_nothing(texts: list[str]) -> None:
    before = numbered(texts)
    for step in (lambda d: exact(ExactDedup(), d), lambda d: near(NearDedup(), d)):
        items = list(step(iter(before)))
        seen = [item.document if isinstance(item, Dropped) else item for item in items]
        assert seen == before
        kept = {item.id for item in items if isinstance(item, Document)}
        assert all(item.kept in kept for item in items if isinstance(item, Dropped))


@settings(max_examples=150, deadline=None)
@given(st.lists(any_text, max_size=12), st.lists(any_text, max_size=12))
def test_held_out_texts_never_come_back(validation_texts: list[str], training_texts: list[str]) -> None:
    held = HeldOut()
    dropped = list(held.add_distinct(numbered(validation_texts)))
    assert len(dropped) + len(held.documents) == len(validation_texts)
    fingerprints = {documents.fingerprint(document.text) for document in held.documents}
    for item in held.without_duplicates(numbered(training_texts + validation_texts)):
        if isinstance(item, Document):
            assert documents.fingerprint(item.text) not in fingerprints


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(any_text, max_size=20))
def test_documents_survive_the_disk(texts: list[str]) -> None:
    before = numbered(texts)
    with tempfile.TemporaryDirectory() as folder:
        with storage.DocumentWriter(Path(folder) / "d.parquet") as file:
            for document in before:
                file.add(document)
        assert list(storage.documents(Path(folder) / "d.parquet")) == before


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_cleaning_gives_valid_text_and_is_done_once(text: str) -> None:
    once = numbered([text + "\ud800"])[0].text
    once.encode()
    assert numbered([once])[0].text == once
    assert "\r" not in once


@settings(max_examples=200, deadline=None)
@given(st.text('<>/="&;!-\n p', max_size=120) | st.text(max_size=120))
def test_any_page_is_read(page: str) -> None:
    assert isinstance(html_text(page), str)


def test_a_disk_that_is_full_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.pq.ParquetWriter, "write_table", full)
    writer = storage.DocumentWriter(tmp_path / "d.parquet")
    writer.add(numbered(["x"])[0])
    with pytest.raises(OSError, match="No space"):
        writer.__exit__(None)
    assert list(tmp_path.iterdir()) == []
