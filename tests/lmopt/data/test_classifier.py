"""Functions that score texts: whatever is wrong with one is said with its name, the text and what to do."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmopt.data import classifier as module
from lmopt.data import corpus, documents, needs, shards, workers
from lmopt.data.documents import Document, Dropped
from lmopt.data.spec import Data
from lmopt.data.storage import DataError
from lmopt.recipe import Classifier, ExactDedup

from .texts import prose

BAD = 17
"""The document that the functions below stumble over; there is none like it among the texts of a rehearsal."""


def fine(texts: list[str]) -> list[float]:
    return [float("document 3 " in text) for text in texts]


def raises(texts: list[str]) -> list[float]:
    if any(f"document {BAD} " in text for text in texts):
        raise KeyError("unknown word")
    return [1.0] * len(texts)


def raises_together(texts: list[str]) -> list[float]:
    if len(texts) > 5:
        raise MemoryError
    return [1.0] * len(texts)


def gives_nan(texts: list[str]) -> list[float]:
    return [math.nan if f"document {BAD} " in text else 1.0 for text in texts]


def breaks_while_giving(texts: list[str]) -> Iterator[float]:
    for text in texts:
        if f"document {BAD} " in text:
            raise ZeroDivisionError("no words")
        yield 1.0


def exits(texts: list[str]) -> list[float]:
    if any(f"document {BAD} " in text for text in texts):
        sys.exit(3)
    return [1.0] * len(texts)


def arrays(texts: list[str]) -> Any:
    return np.ones(len(texts), np.float32)


def rows(texts: list[str]) -> Any:
    return np.ones((len(texts), 2))


def one(texts: list[str]) -> float:
    return 1.0


def nothing(texts: list[str]) -> None:
    pass


def words(texts: list[str]) -> list[str]:
    return ["0.9"] * len(texts)


def fewer(texts: list[str]) -> list[float]:
    return [1.0] * (len(texts) - 1)


def no_argument() -> list[float]:
    return []


VALUE = 3


@pytest.fixture(autouse=True)
def _fresh() -> None:
    module.scorer.cache_clear()


def _documents(count: int = 40) -> list[Document]:
    return [
        documents.make(f"document {n} says {prose(n)}", domain="d", source="s", provenance=f"a.txt:{n}")
        for n in range(count)
    ]


def _through(function: str, **knobs: Any) -> list[Document | Dropped]:
    config = Classifier.model_validate({"function": f"{__name__}:{function}", "min_score": 0.5, **knobs})
    return list(module.classifier(config, _documents()))


def test_a_score_below_the_threshold_drops_the_text() -> None:
    found = _through("fine")
    assert [item.provenance for item in found if isinstance(item, Document)] == ["a.txt:3"]
    assert all(item.reason == "low_score" for item in found if isinstance(item, Dropped))
    assert len(_through("arrays")) == 40


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", r"raised KeyError \(test_classifier.py, line \d+\): 'unknown word'"),
        ("breaks_while_giving", r"raised ZeroDivisionError \(test_classifier.py, line \d+\): no words"),
        ("exits", r"raised SystemExit \(test_classifier.py, line \d+\): 3"),
        ("gives_nan", r"gave nan \(float\)"),
    ],
)
def test_the_text_that_it_stumbles_over_is_named(function: str, said: str) -> None:
    bad = _documents()[BAD]
    with pytest.raises(DataError) as caught:
        _through(function)
    message = str(caught.value)
    assert re.search(said, message)
    assert message.startswith(f"data step classifier: the function {__name__}:{function} ")
    assert f"document {bad.id} (s, a.txt:{BAD}), which begins 'document {BAD} says" in message
    assert "\nhint: " in message


def test_what_only_many_texts_together_bring_about_is_said_so() -> None:
    with pytest.raises(DataError, match=r"raised MemoryError \(.*\)\nfor 40 texts together, the first of document"):
        _through("raises_together")


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("one", r"gave 1.0 \(float\) for 40 texts\nhint: it takes a list"),
        ("nothing", r"gave None \(NoneType\) for 40 texts\nhint"),
        ("words", r"gave '0.9' \(str\) for document .*\nhint"),
        ("rows", r"gave array\(\[1., 1.\]\) \(ndarray\) for document .*\nhint"),
        ("fewer", r"got 40 texts, gave 39 scores \(the first text: document \w+\)\nhint"),
        ("no_argument", r"raised TypeError .*takes 0 positional arguments"),
        ("VALUE", r"is no function, but 3 \(int\)\nhint"),
        ("absent", r"is not in .*test_classifier.py\nhint: is its name right"),
    ],
)
def test_another_answer_than_a_number_a_text_is_refused(function: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        _through(function)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"ModuleNotFoundError: No module named 'hook_\w+'\nhint: .*importable from where you run"),
        ("def score(texts)\n", r"cannot be imported: SyntaxError: .*\nhint: it has to be imported without an error"),
        ("import no_such_module\n", r"No module named 'no_such_module'\nhint: it has to be imported without an error"),
        ("raise RuntimeError('no weights')\n", r"RuntimeError: no weights\nhint"),
        ("raise SystemExit\n", r"cannot be imported: SystemExit: \nhint"),
    ],
)
def test_a_module_that_cannot_be_imported_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, said: str
) -> None:
    name = f"hook_{abs(hash(content))}"
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=said):
        module.scorer(f"{name}:score")


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hook_here.py").write_text("def score(texts):\n    return [0.25] * len(texts)\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    assert module.scorer("hook_here:score")(["a"]) == [0.25]
    config = Classifier.model_validate({"function": "hook_here:score", "min_score": 0})
    assert needs.of_step(config) is None


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("classified")
    folder = home / "texts"
    folder.mkdir()
    for n in range(60):
        (folder / f"{n:02}.txt").write_text(f"document {n} says {prose(n)}")
    data = {
        "corpus": [f"file:{folder}"],
        "validation": [{"kind": "holdout", "share": 0.2}],
        "tokenizer": {"vocab": 300},
    }
    list(corpus.build(Data.model_validate(data), home / "c"))
    return home / "c"


@pytest.mark.parametrize("function", ["nothing", "fewer", "absent"])
def test_it_is_tried_before_the_first_document_is_read(built: Path, tmp_path: Path, function: str) -> None:
    steps = (ExactDedup(), Classifier(function=f"{__name__}:{function}", min_score=0.5))
    with pytest.raises(DataError, match=f"data step classifier: the function {__name__}:{function}"):
        next(shards.build(built, steps, tmp_path / "s"))
    assert not (tmp_path / "s").exists(), "nothing was begun"


def test_it_is_tried_where_the_looking_is_done() -> None:
    with workers.processes(1) as mapper, pytest.raises(DataError, match="gave 1 scores"):
        shards.rehearse((Classifier(function=f"{__name__}:fewer", min_score=0.5),), mapper)
    with workers.processes(1) as mapper, pytest.raises(DataError, match="raised KeyError"):
        list(module.classifier(Classifier(function=f"{__name__}:raises", min_score=0), _documents(), mapper))


@pytest.mark.slow
def test_a_cluster_says_the_same() -> None:
    pytest.importorskip("ray")
    with workers.ray_cluster(workers=1) as mapper, pytest.raises(DataError, match="gave 1 scores") as caught:
        shards.rehearse((Classifier(function=f"{__name__}:fewer", min_score=0.5),), mapper)
    assert type(caught.value) is DataError
