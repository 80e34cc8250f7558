"""Decontamination: GPT-3's rule on tiny texts, against comparing all n-grams, and in a corpus."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmopt.data import corpus, shards, stage, storage
from lmopt.data.contamination import Protected
from lmopt.data.documents import SYNTHETIC, Document, Dropped
from lmopt.data.shingles import words
from lmopt.data.spec import Data, Decontaminate
from lmopt.data.storage import DataError

from .texts import document, numbered, prose, write_jsonl

BARE = {"side": 0, "shortest_piece": 0}


def _clean(config: Decontaminate, sets: dict[str, list[str]], *texts: str) -> list[str | None]:
    items = list(Protected(config, sets).clean(numbered(list(texts))))
    return [None if isinstance(item, Dropped) else item.text for item in items]


def test_a_match_is_cut_with_two_hundred_characters_on_either_side() -> None:
    secret = "this is the only sentence of all that must never ever be seen in training"
    text = f"{'a' * 400} {'b' * 199} {secret} {'c' * 199} {'d' * 400}"
    assert _clean(Decontaminate(), {"set": [f"Well, {secret.upper()}!"]}, text, prose(0)) == [
        f"{'a' * 400}\n\n{'d' * 400}", prose(0),
    ]  # fmt: skip
    assert _clean(Decontaminate(shortest_piece=401), {"set": [secret]}, text) == [None]


def test_over_ten_cuts_the_document_goes() -> None:
    secret = prose(0, 13)
    far = prose(1, 120)
    eleven = f" {far} ".join([secret] * 12)
    assert _clean(Decontaminate(), {"set": [secret]}, eleven) == [None]
    ten = f" {far} ".join([secret] * 10)
    (left,) = _clean(Decontaminate(), {"set": [secret]}, ten)
    assert left is not None
    assert secret not in left


def test_short_texts_are_protected_whole() -> None:
    eight = "one two three four five six seven eight"
    seven = "one two three four five six seven"
    text = f"Count: {eight}, and so on."
    assert _clean(Decontaminate(**BARE), {"set": [eight]}, text) == ["Count:\n\n, and so on."]
    assert _clean(Decontaminate(**BARE), {"set": [seven]}, text) == [text]
    assert _clean(Decontaminate(**BARE, shortest=7), {"set": [seven]}, text) == ["Count:\n\neight, and so on."]
    assert _clean(Decontaminate(**BARE), {"set": [eight]}, eight, seven) == [None, seven], "a text of nothing else goes"


def test_offsets_are_right_where_case_folding_changes_lengths() -> None:
    secret = "straße und weg und " * 4
    text = f"Groß. {secret.upper()}İ ﬁn ß ende"
    assert _clean(Decontaminate(**BARE), {"s": [secret]}, text) == ["Groß.\n\nİ ﬁn ß ende"]


few = st.lists(st.sampled_from(["a", "b", "c", "É"]), max_size=14).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(few, max_size=3), st.lists(few, max_size=4), st.integers(1, 4))
def test_what_is_left_is_what_no_protected_ngram_covers(protected: list[str], texts: list[str], n: int) -> None:
    config = Decontaminate(ngram=n, shortest=1, most_cuts=1000, **BARE)
    grams: set[tuple[bytes, ...]] = set()
    for text in protected:
        found = words(text)
        m = min(n, len(found))
        grams |= {tuple(found[i : i + m]) for i in range(len(found) - m + 1) if m}
    for text, left in zip(texts, _clean(config, {"set": protected}, *texts), strict=True):
        found = words(text)
        gone = [False] * len(found)
        for m in {len(gram) for gram in grams}:
            for i in range(len(found) - m + 1):
                if tuple(found[i : i + m]) in grams:
                    gone[i : i + m] = [True] * m
        assert words(left or "") == [word for word, cut in zip(found, gone, strict=True) if not cut]


def test_cuts_are_counted_by_set_and_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = prose(0, 30), prose(1, 30)
    texts = [f"{prose(n, 90)} {one if n % 3 == 0 else two if n % 3 == 1 else ''} {prose(n + 50, 90)}" for n in range(9)]
    outcomes = []
    for size in (512, 2):
        monkeypatch.setattr(stage, "BATCH_DOCUMENTS", size)
        protected = Protected(Decontaminate(), {"first": [one], "second": [two, one], "third": ["unseen " * 13]})
        outcomes.append((list(protected.clean(numbered(texts))), protected.facts()))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1] == {
        "first": {"texts": 1, "cuts": 3, "documents_cut": 3, "documents_dropped": 0},
        "second": {"texts": 2, "cuts": 3, "documents_cut": 3, "documents_dropped": 0},
        "third": {"texts": 1, "cuts": 0, "documents_cut": 0, "documents_dropped": 0},
    }


TEXTS = [prose(seed, 150) for seed in range(60)]


def _build(
    tmp_path: Path, name: str, protected: dict[str, list[str]], **changes: object
) -> tuple[dict, list[Document]]:
    data = Data.model_validate(
        {"corpus": [write_jsonl(tmp_path / "a.jsonl", TEXTS)], "validation": [{"kind": "holdout", "share": 0.2}],
         "tokenizer": {"vocab": 300}, **changes}
    )  # fmt: skip
    list(corpus.build(data, tmp_path / name, protected=protected, unprotected={"other": "not here"}))
    facts = json.loads((tmp_path / name / "manifest.json").read_text())
    return facts, list(storage.documents(tmp_path / name / corpus.DOCUMENTS))


def test_it_is_on_by_default_and_recorded(tmp_path: Path) -> None:
    before, plain = _build(tmp_path, "plain", {})
    question = " ".join(plain[3].text.split()[40:60])
    facts, documents = _build(tmp_path, "clean", {"quiz": [question]})
    assert facts["decontamination"]["sets"]["quiz"]["cuts"] == 1
    assert (
        facts["decontamination"]["sets"]["validation: holdout"]["texts"] == facts["validation"]["holdout"]["documents"]
    )
    assert facts["decontamination"]["missing"] == {"other": "not here"}
    assert facts["identity"] != before["identity"], "other protected texts make another corpus"
    assert question not in "".join(document.text for document in documents)
    assert [d.id for d in documents] == [d.id for d in plain]
    assert facts["bytes_out"] < before["bytes_out"]
    off, untouched = _build(tmp_path, "off", {"quiz": [question]}, decontaminate=None)
    assert off["decontamination"] is None
    assert untouched == plain


def test_text_that_a_step_makes_is_held_to_it_too(tmp_path: Path) -> None:
    question = prose(900, 30)
    text = f"{prose(901, 80)} {question} {prose(902, 80)}"
    made = Document("m", text, "web", "file:a.jsonl", f"{SYNTHETIC}test")
    real = replace(made, id="r", provenance="file:a.jsonl")
    _build(tmp_path, "c", {"quiz": [question]})
    whole, cut = shards._protected(tmp_path / "c", [real, made])
    assert whole == real, "it was cleaned when the corpus was built"
    assert cut.id == "m"
    assert question not in cut.text
    assert cut.text.startswith(prose(901, 80)[:100])
    (tmp_path / "c" / corpus.PROTECTED).write_bytes(b"another file")
    with pytest.raises(DataError, match="not what the corpus was built with"):
        list(shards._protected(tmp_path / "c", [made]))
    _build(tmp_path, "off", {"quiz": [question]}, decontaminate=None)
    assert list(shards._protected(tmp_path / "off", [made])) == [made]


def test_what_is_protected_is_read_as_it_was_written(tmp_path: Path) -> None:
    config = Decontaminate(ngram=5, shortest=3, side=0, shortest_piece=0)
    sets = {"long": [prose(1, 40), prose(2, 4)], "short": [prose(3, 3)], "nothing": []}
    protected = Protected(config, sets)
    again = Protected.load(tmp_path / "p", protected.save(tmp_path / "p"))
    documents = [document(f"{prose(9, 20)} {prose(seed, count)} {prose(8, 20)}") for seed, count in ((1, 30), (3, 3))]
    assert list(again.clean(documents)) == list(protected.clean(documents)) != documents
    assert again.names == protected.names
    assert again.cuts == protected.cuts


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.pq.ParquetWriter, "write_table", full)
    with pytest.raises(DataError, match=r"no space left on the disk(.|\n)*hint: free some"):
        _build(tmp_path, "c", {})
    assert [path.name for path in (tmp_path / "c").rglob("*") if path.is_file()] == []
