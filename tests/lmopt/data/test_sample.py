"""An even part of a corpus in tokens."""

import numpy as np
import pytest

from lmopt.data import corpus, sample, storage, tokenizer
from lmopt.data.spec import Data
from tests.lmopt.data.texts import prose, write_jsonl


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Two domains one behind the other, of documents that differ in length."""
    home = tmp_path_factory.mktemp("sample")
    for name in ("first", "second"):
        write_jsonl(home / f"{name}.jsonl", [f"{name} {prose(i, 20 + i % 50)}" for i in range(300)])
    data = {
        "corpus": [{"source": f"file:{home / name}.jsonl"} for name in ("first", "second")],
        "validation": [{"kind": "holdout", "share": 0.1}],
        "tokenizer": {"vocab": 300},
    }
    list(corpus.build(Data.model_validate(data), home / "c"))
    return home / "c"


def texts(built, most_bytes):
    """The documents of a sample."""
    words = tokenizer.load(built / corpus.TOKENIZER)
    ids = sample.tokens(built, most_bytes=most_bytes)
    assert ids.dtype == np.uint16
    ends = np.flatnonzero(ids == tokenizer.end_of_text(words)).tolist()
    assert ends[-1] == len(ids) - 1
    return [words.decode(part.tolist()) for part in np.split(ids, np.array(ends) + 1) if len(part)]


def held(built):
    return [document.text for document in storage.documents(built / corpus.DOCUMENTS)]


def test_a_small_corpus_is_taken_whole(built):
    found = [text.removesuffix("<|endoftext|>") for text in texts(built, 10**9)]
    assert found == held(built)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_of_a_large_one_documents_from_all_over_it(built, share):
    every = held(built)
    total = sum(map(len, every))
    found = texts(built, int(share * total))
    assert sum(map(len, found)) == pytest.approx(share * total, abs=2 * max(map(len, every)))
    second = sum(text.startswith("second") for text in found) / len(found)
    assert second == pytest.approx(0.5, abs=0.1)
    assert found == texts(built, int(share * total)), "the same every time"
    places = [every.index(text) for text in found]
    assert places == sorted(set(places))
