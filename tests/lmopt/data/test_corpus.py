"""From sources to a corpus: held-out text is protected, everything is counted, nothing depends on chance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from lmopt.data import corpus, describe, storage, validation
from lmopt.data.documents import Document, Dropped
from lmopt.data.heldout import HeldOut, is_held_out
from lmopt.data.spec import Data
from lmopt.data.storage import DataError

from .texts import edited, numbered, prose, write_jsonl

TEXTS = [prose(seed, 150) for seed in range(200)]


def _data(source: str, **changes: object) -> Data:
    return Data.model_validate(
        {"corpus": [source], "validation": [{"kind": "holdout", "share": 0.2}], "tokenizer": {"vocab": 300}, **changes}
    )


def _build(data: Data, out: Path) -> dict:
    steps = list(corpus.build(data, out))
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    return json.loads((out / "manifest.json").read_text())


def _tree(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_training_and_validation_share_nothing(tmp_path: Path) -> None:
    texts = [*TEXTS, *(edited(text, 0.02) for text in TEXTS), *(text.upper() for text in TEXTS[:50])]
    facts = _build(_data(write_jsonl(tmp_path / "a.jsonl", texts)), tmp_path / "c")
    held = list(validation.documents(tmp_path / "c", "holdout"))
    train = list(storage.documents(tmp_path / "c" / corpus.DOCUMENTS))
    assert held
    assert train
    index = HeldOut()
    assert not list(index.add_distinct(held)), "validation documents do not repeat each other"
    assert all(isinstance(item, Document) for item in index.without_duplicates(train))
    assert facts["dropped"]["duplicates_validation"] > 20
    total = len(held) + len(train) + sum(facts["dropped"].values())
    assert total == len(texts), "every document is somewhere"
    assert facts["documents_in"] == len(train) + facts["dropped"]["duplicates_validation"]
    assert facts["documents_out"] == len(train)
    assert facts["bytes_out"] == sum(len(document.text.encode()) for document in train)


def test_dropped_documents_name_the_validation_document(tmp_path: Path) -> None:
    _build(_data(write_jsonl(tmp_path / "a.jsonl", TEXTS + [edited(t, 0.02) for t in TEXTS])), tmp_path / "c")
    held = {document.id for document in validation.documents(tmp_path / "c", "holdout")}
    dropped = list(describe.documents(tmp_path / "c", dropped=True))
    assert dropped
    assert all(row["kept"] in held and "5-grams" in row["detail"] for row in dropped)
    found = describe.describe(tmp_path / "c", samples=2)
    assert found["dropped"]["duplicates_validation"]["documents"] >= 2
    assert len(found["dropped"]["duplicates_validation"]["samples"]) == 2


def test_a_build_is_the_same_wherever_it_is_made(tmp_path: Path) -> None:
    data = _data(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    _build(data, tmp_path / "c")
    _build(data, tmp_path / "d")
    assert _tree(tmp_path / "c") == _tree(tmp_path / "d")


def test_a_finished_build_is_not_made_again(tmp_path: Path) -> None:
    data = _data(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    _build(data, tmp_path / "c")
    before = (tmp_path / "c" / corpus.DOCUMENTS).stat().st_mtime_ns
    _build(data, tmp_path / "c")
    assert (tmp_path / "c" / corpus.DOCUMENTS).stat().st_mtime_ns == before


@pytest.mark.parametrize("changed", ["source", "description"])
def test_another_source_or_description_is_built_again(tmp_path: Path, changed: str) -> None:
    data = _data(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    before = _build(data, tmp_path / "c")
    if changed == "source":
        write_jsonl(tmp_path / "a.jsonl", TEXTS[:150])
    else:
        data = data.model_copy(update={"validation": _data("stdlib:", validation=[{"kind": "holdout"}]).validation})
    after = _build(data, tmp_path / "c")
    assert after["identity"] != before["identity"]
    assert after["documents_out"] != before["documents_out"]


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_build_that_was_killed_starts_over(tmp_path: Path, stop: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "STEP_DOCUMENTS", 20)
    data = _data(write_jsonl(tmp_path / "a.jsonl", TEXTS))
    running = corpus.build(data, tmp_path / "c")
    for _ in range(stop):
        next(running)
    with pytest.raises(DataError, match="not a finished corpus"):
        validation.names(tmp_path / "c")
    (tmp_path / "c").mkdir(exist_ok=True)
    (tmp_path / "c" / "documents.parquet.part").write_bytes(b"half a file")
    running.close()
    _build(data, tmp_path / "c")
    _build(data, tmp_path / "d")
    assert _tree(tmp_path / "c") == _tree(tmp_path / "d")


def test_the_held_out_share_is_about_right_and_stable() -> None:
    documents = numbered([prose(seed, 20) for seed in range(2000)])
    held = [document.id for document in documents if is_held_out(document, 0.1)]
    assert 150 < len(held) < 250
    wider = {document.id for document in documents if is_held_out(document, 0.2)}
    assert set(held) < wider, "a larger share holds the smaller one"


def test_a_small_domain_may_hold_out_more(tmp_path: Path) -> None:
    web = {"source": write_jsonl(tmp_path / "web.jsonl", TEXTS), "domain": "web"}
    letters = {
        "source": write_jsonl(tmp_path / "letters.jsonl", [prose(900 + n, 150) for n in range(60)]),
        "domain": "letters",
    }
    entry = {"kind": "holdout", "share": 0.05, "domains": {"letters": 0.4}}
    facts = _build(_data("stdlib:", corpus=[web, letters], validation=[entry]), tmp_path / "c")
    held = [document.domain for document in validation.documents(tmp_path / "c", "holdout")]
    assert 2 <= held.count("web") <= 20
    assert 14 <= held.count("letters") <= 34
    assert facts["domains"]["letters"]["documents"] == 60 - held.count("letters")
    entry["domains"] = {"lettres": 0.4}
    with pytest.raises(DataError, match=r"no document of domain lettres\nhint: its domains are letters, web"):
        _build(_data("stdlib:", corpus=[web, letters], validation=[entry]), tmp_path / "d")


def test_a_corpus_of_one_document_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(TEXTS))
    with pytest.raises(DataError, match=r"none of 1 in the corpus falls into its share\nhint: .*cut it into many"):
        _build(_data(f"file:{tmp_path}/book.txt"), tmp_path / "c")


def test_a_corpus_that_is_its_own_validation_says_where_it_went(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS[:20])
    entry = {"kind": "source", "name": "same", "source": source}
    with pytest.raises(DataError, match=r"of 20 all were dropped \(duplicates_validation 20\)\nhint: .*the same text"):
        _build(_data(source, validation=[entry]), tmp_path / "c")


def test_a_holdout_without_shares_of_its_own_is_written_as_before() -> None:
    plain, own = ({"kind": "holdout", "share": 0.1, **more} for more in ({}, {"domains": {"web": 0.2}}))
    for entry, keys in ((plain, {"kind", "name", "share"}), (own, {"kind", "name", "share", "domains"})):
        written = Data.model_validate({"corpus": ["stdlib:"], "validation": [entry]}).model_dump(mode="json")
        assert set(written["validation"][0]) == keys
        assert Data.model_validate(written).validation[0].share_of("web") == entry.get("domains", {}).get("web", 0.1)


@pytest.mark.parametrize(
    ("make", "out"),
    [
        (lambda text: text.upper().replace(" ", "  "), True),
        (lambda text: edited(text, 0.05), True),
        (lambda text: " ".join(reversed([s + "." for s in text.split(". ")])), True),
        (lambda text: prose(998, 600) + " " + text + " " + prose(999, 600), True),
        (lambda text: text[: len(text) // 3], True),
        (lambda text: edited(text, 0.6), False),
        (lambda text: prose(997, 150) + " " + " ".join(text.split()[:15]), False),
    ],
    ids=["spacing", "edits", "shuffled", "inside", "part", "rewritten", "quoted"],
)
def test_what_counts_as_repeating_a_validation_document(make: Callable[[str], str], out: bool) -> None:
    held = HeldOut()
    assert not list(held.add_distinct(numbered([prose(0, 150)])))
    (item,) = held.without_duplicates(numbered([make(prose(0, 150))]))
    assert isinstance(item, Dropped) == out


def test_a_short_validation_text_does_not_forbid_its_phrases() -> None:
    held = HeldOut()
    assert not list(held.add_distinct(numbered(["it was one of the best films"])))
    items = list(
        held.without_duplicates(numbered([prose(1) + " it was one of the best films", "It was one of the best films!"]))
    )
    assert [isinstance(item, Dropped) for item in items] == [False, True]


def test_validation_from_its_own_source_is_protected_too(tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "v.jsonl", [TEXTS[3], prose(900), prose(900)])
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    sets = [{"kind": "source", "name": "other", "source": other}, {"kind": "holdout", "name": "mine", "share": 0.1}]
    facts = _build(_data(source, validation=sets), tmp_path / "c")
    assert validation.names(tmp_path / "c") == ("other", "mine")
    assert facts["validation"]["other"]["documents"] == 2
    assert facts["dropped"]["repeats_validation"] >= 1
    assert TEXTS[3] not in [document.text for document in storage.documents(tmp_path / "c" / corpus.DOCUMENTS)]


def test_the_tokenizer_sees_training_text_only(tmp_path: Path) -> None:
    marker = "zyzzyva " * 40
    sets = [{"kind": "source", "name": "v", "source": write_jsonl(tmp_path / "v.jsonl", [marker])}]
    _build(_data(write_jsonl(tmp_path / "a.jsonl", TEXTS), validation=sets), tmp_path / "c")
    assert "zyz" not in (tmp_path / "c" / corpus.TOKENIZER).read_text()


def test_domains_are_counted_apart(tmp_path: Path) -> None:
    sources = [
        {"source": write_jsonl(tmp_path / "a.jsonl", TEXTS[:120]), "domain": "web"},
        {"source": write_jsonl(tmp_path / "b.jsonl", TEXTS[120:]), "domain": "books"},
    ]
    facts = _build(_data("stdlib:", corpus=sources), tmp_path / "c")
    assert list(facts["domains"]) == ["books", "web"]
    assert sum(domain["documents"] for domain in facts["domains"].values()) == facts["documents_out"]
    assert "tokens" not in facts, "training text is tokenised later: nothing is claimed here"
    loaded = validation.load(tmp_path / "c", "holdout")
    assert loaded.domains == ("books", "web")
    assert loaded.size_bytes == facts["validation"]["holdout"]["bytes"]
    assert sum(len(document.tokens) for document in loaded.documents) == facts["validation"]["holdout"]["tokens"]


def test_nothing_left_is_said(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS[:1])
    with pytest.raises(DataError, match=r"no (training )?document is left.*\nhint"):
        _build(_data(source), tmp_path / "c")


def test_an_unknown_validation_set_is_said(tmp_path: Path) -> None:
    _build(_data(write_jsonl(tmp_path / "a.jsonl", TEXTS)), tmp_path / "c")
    with pytest.raises(DataError, match="no validation set 'x'; it has holdout"):
        validation.load(tmp_path / "c", "x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"corpus": []}, "at least 1"),
        ({"corpus": ["nonsense"]}, "not a source"),
        ({"corpus": ["hf:a/b"]}, "needs a `limit`"),
        ({"corpus": ["pypi:x==1"]}, "no reader is known"),
        ({"corpus": [{"source": "stdlib:", "domain": "No Good"}]}, "pattern"),
        ({"validation": []}, "at least 1"),
        ({"validation": [{"kind": "holdout", "share": 0}]}, "greater than 0"),
        ({"validation": [{"kind": "holdout", "share": 0.9}]}, "less than or equal to 0.5"),
        ({"validation": [{"kind": "holdout"}, {"kind": "holdout", "name": "b"}]}, "at most one"),
        (
            {"validation": [{"kind": "holdout"}, {"kind": "source", "name": "holdout", "source": "stdlib:"}]},
            "different",
        ),
        ({"tokenizer": {"kind": "bpe", "vocab": 256}}, "257"),
        ({"tokenizer": {"kind": "wordpiece"}}, "bpe"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Data.model_validate({"corpus": ["stdlib:"], **change})


def test_a_bare_string_stands_for_a_source_in_the_schema_too() -> None:
    assert Data.model_validate({"corpus": ["stdlib:"]}).corpus[0].source == "stdlib:"
    name, listed = Data.model_json_schema()["properties"]["corpus"]["anyOf"]
    assert name == {"enum": ["broad", "mixed"]}
    assert {"type": "string"} in listed["items"]["anyOf"]
