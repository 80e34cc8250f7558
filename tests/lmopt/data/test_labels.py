"""A label for each document from a column: statistics, held-out text and errors by domain."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lmopt.data import corpus, labels, reading, sources, validation
from lmopt.data.cache import SourceError
from lmopt.data.describe import describe
from lmopt.data.labels import Labels
from lmopt.data.spec import CorpusSource, Data, ValidationSource

from .texts import prose


def _written(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format of the file's ending."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [
            ",".join(rows[0]),
            *(",".join(json.dumps("" if v is None else v, ensure_ascii=False) for v in row.values()) for row in rows),
        ]
        path.write_text("\n".join(lines) + "\n")
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def _domains(path: Path, **options: Any) -> list[str]:
    described = {"source": f"file:{path}", "domain_field": "kind", **options}
    found = reading.read(sources.fetch(f"file:{path}"), CorpusSource.model_validate(described))
    return [document.domain for document in found]


FILES = ["a.jsonl", "a.jsonl.gz", "a.parquet", "a.csv"]


@pytest.mark.parametrize("name", FILES)
def test_each_document_has_the_domain_of_its_row(tmp_path: Path, name: str) -> None:
    kinds = ["news", "News", "Science Fiction", "São Tomé", "fan_fic-2.0", None, " "]
    path = _written(tmp_path / name, [{"text": f"text {n}", "kind": kind} for n, kind in enumerate(kinds)])
    named = ["news", "news", "science-fiction", "sao-tome", "fan_fic-2.0"]
    assert _domains(path) == [*named, *["a.jsonl" if name.endswith(".gz") else "a"] * 2]
    assert _domains(path, domain="rest") == [*named, "rest", "rest"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_numbers_are_labels(tmp_path: Path, name: str) -> None:
    assert _domains(_written(tmp_path / name, [{"text": "a", "kind": 3}, {"text": "b", "kind": 0}])) == ["3", "0"]
    rows = [{"text": "a", "kind": True}, {"text": "b", "kind": False}]
    assert _domains(_written(tmp_path / name, rows)) == ["true", "false"]


def test_labels_in_a_dictionary_column(tmp_path: Path) -> None:
    kinds = pa.array(["x", None, "y"]).dictionary_encode()
    pq.write_table(pa.table({"text": ["a", "b", "c"], "kind": kinds}), tmp_path / "a.parquet")
    assert _domains(tmp_path / "a.parquet", domain="rest") == ["x", "rest", "y"]


@pytest.mark.parametrize("name", FILES)
def test_a_column_that_is_not_there_is_said(tmp_path: Path, name: str) -> None:
    path = _written(tmp_path / name, [{"text": "a", "topic": "x"}])
    with pytest.raises(SourceError, match=r"a\.\w+.*'kind'.* got text, topic\nhint: set `domain_field:`"):
        _domains(path)


def test_a_row_without_the_key_is_said_with_its_line(tmp_path: Path) -> None:
    path = _written(tmp_path / "a.jsonl", [{"text": "a", "kind": "x"}, {"text": "b"}])
    with pytest.raises(SourceError, match=r"a.jsonl:2: no key 'kind' for the domain(.|\n)*null stands for"):
        _domains(path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@pytest.mark.parametrize("kind", [["x"], {"a": 1}])
def test_what_is_no_label_is_refused(tmp_path: Path, name: str, kind: Any) -> None:
    with pytest.raises(SourceError, match=r"'kind' holds .*, which is no label\nhint: set `domain_field:`"):
        _domains(_written(tmp_path / name, [{"text": "a", "kind": kind}]))


@pytest.mark.parametrize("label", ["科学", "!!!", "--"])
def test_a_label_of_which_no_name_can_be_made_is_refused(tmp_path: Path, label: str) -> None:
    with pytest.raises(SourceError, match=r"a.jsonl: domain_field 'kind': no name can be made of the label .*\nhint"):
        _domains(_written(tmp_path / "a.jsonl", [{"text": "a", "kind": label}]))


@pytest.mark.parametrize(("one", "other"), [("C", "C++"), ("a b", "a-b"), ("x" * 64, "x" * 65), ("resume", "résumé")])
def test_two_labels_never_become_one_domain(one: str, other: str) -> None:
    found = Labels("s", "kind")
    assert found.name(one)
    with pytest.raises(SourceError, match=r"the labels '.*' and '.*' would both be the domain '.*'\nhint"):
        found.name(other)


def test_case_and_spacing_make_no_other_domain() -> None:
    found = Labels("s", "kind")
    assert {found.name(label) for label in ("Fan Fiction", "fan fiction", " FAN  fiction ")} == {"fan-fiction"}


def test_a_column_of_ids_is_refused(tmp_path: Path) -> None:
    rows = [{"text": f"t {n}", "kind": f"id-{n}"} for n in range(labels.MAX_DOMAINS + 1)]
    with pytest.raises(
        SourceError, match=r"more than 200 different labels \('id-0', 'id-1', .*\)\nhint: .*id or a title"
    ):
        _domains(_written(tmp_path / "a.jsonl", rows))
    assert len(_domains(_written(tmp_path / "a.jsonl", rows[:-1]))) == labels.MAX_DOMAINS


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"source": "file:a.txt"}, "read without columns or keys; use `domain`"),
        ({"source": "file:a.html.gz"}, "read without columns or keys"),
        ({"source": "file:a.jsonl", "reader": "txt"}, "read without columns or keys"),
        ({"source": "stdlib:"}, "read without columns or keys"),
        ({"source": "pypi:evals==3.0.1.post1"}, "read without columns or keys"),
        ({"source": "file:a.jsonl", "field": "kind"}, "must be another than the field of the text"),
    ],
)
def test_a_source_without_columns_has_no_labels(source: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CorpusSource.model_validate({**source, "domain_field": "kind"})


def test_a_description_without_labels_is_what_it_was() -> None:
    described = {"source": "file:a.jsonl", "reader": "auto", "field": "text", "domain": None, "limit": None}
    assert CorpusSource.model_validate({"source": "file:a.jsonl"}).model_dump(mode="json") == described
    held = ValidationSource.model_validate({"source": "file:a.jsonl", "name": "v"}).model_dump(mode="json")
    assert held == {**described, "kind": "source", "name": "v"}
    labelled = CorpusSource.model_validate({"source": "file:a.jsonl", "domain_field": "kind"})
    assert labelled.model_dump(mode="json") == {**described, "domain_field": "kind"}


def test_a_corpus_is_counted_and_held_out_by_its_labels(tmp_path: Path) -> None:
    kinds = ["News", "Fan Fiction", "law"]
    rows = [{"text": f"{prose(n)} number {n}", "kind": kinds[n % 3] if n % 10 else None} for n in range(300)]
    path = _written(tmp_path / "a.jsonl", rows)
    described = {
        "corpus": [{"source": f"file:{path}", "domain_field": "kind", "domain": "other"}],
        "validation": [{"kind": "holdout", "share": 0.1, "domains": {"fan-fiction": 0.3}}],
        "tokenizer": {"vocab": 300},
    }
    list(corpus.build(Data.model_validate(described), tmp_path / "c"))
    facts = describe(tmp_path / "c")
    assert facts["domains"].keys() == {"news", "fan-fiction", "law", "other"}
    assert facts["sources"][f"file:{path}"]["labels"] == {"Fan Fiction": "fan-fiction", "News": "news"}
    held = validation.load(tmp_path / "c", "holdout")
    assert set(held.domains) <= facts["domains"].keys()
    counted = {name: sum(document.domain == name for document in held.documents) for name in held.domains}
    assert counted["fan-fiction"] > counted["law"]


def test_a_hub_set_keeps_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMBENCH_CACHE", str(tmp_path / "cache"))
    rows = [{"text": f"{prose(n)} {n}", "kind": ["News", "law", None][n % 3], "id": n} for n in range(200)]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter(rows)))
    info = SimpleNamespace(sha="abc", card_data=None)
    api = SimpleNamespace(HfApi=lambda: SimpleNamespace(dataset_info=lambda *_, **__: info))
    monkeypatch.setitem(sys.modules, "huggingface_hub", api)
    source = {"source": "hf:a/b", "limit": "1MB"}
    data = {"validation": [{"kind": "holdout", "share": 0.2}], "tokenizer": {"vocab": 300}}
    labelled = {**data, "corpus": [{**source, "domain_field": "kind"}]}
    list(corpus.build(Data.model_validate(labelled), tmp_path / "c"))
    assert describe(tmp_path / "c")["domains"].keys() == {"news", "law", "a-b"}
    list(corpus.build(Data.model_validate({**data, "corpus": [source]}), tmp_path / "plain"))
    assert describe(tmp_path / "plain")["domains"].keys() == {"a-b"}
    with pytest.raises(SourceError, match=r"no field 'genre'; allowed: text, kind, id\nhint: set `domain_field:`"):
        sources.fetch("hf:a/b", limit_bytes=100, domain_field="genre")
