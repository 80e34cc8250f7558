"""The examples of docs/data.md are run, on a small file instead of a download."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ruamel.yaml import YAML

from lmopt.data import corpus
from lmopt.data.documents import Dropped
from lmopt.data.spec import Data

from .texts import edited, numbered, prose, write_jsonl

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text()


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_the_description_is_valid() -> None:
    (text,) = _blocks("yaml")
    data = Data.model_validate(YAML(typ="safe").load(text)["data"])
    assert [entry.name for entry in data.validation] == ["holdout", "wikitext"]


def test_the_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [prose(seed) for seed in range(150)]
    source = write_jsonl(tmp_path / "a.jsonl", texts + [edited(text, 0.01) for text in texts])
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(_blocks("python")[0].replace("pypi:evals==3.0.1.post1", source), found)
    assert len(found["tokens"]) > 1000
    assert found["held_out"].documents


def test_the_step_of_your_own_drops() -> None:
    found: dict[str, Any] = {}
    exec(_blocks("python")[1], found)
    items = list(found["short"](SimpleNamespace(characters=5), numbered(["abc", "abcdef"])))
    assert [isinstance(item, Dropped) for item in items] == [True, False]


def test_the_program_for_many_processes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Data.model_validate({"corpus": [write_jsonl(tmp_path / "a.jsonl", [prose(n) for n in range(60)])]})
    list(corpus.build(data, tmp_path / "corpus"))
    (tmp_path / "program.py").write_text(_blocks("python")[2].replace("processes(8)", "processes(2)"))
    subprocess.run([sys.executable, "program.py"], check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert (tmp_path / "shards" / "manifest.json").exists()
