"""The index agrees with the task files, and needs nothing heavy."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from bench.evaluate import index
from bench.evaluate.index import DERIVED, TASKS, UnknownTask, family_of, find
from bench.evaluate.sets import READERS


def _task_files():
    from bench.evaluate.asking import TASK_FILES

    return [path for path in TASK_FILES.glob("*.yaml") if not path.name.startswith("_")]


def test_every_task_has_a_file_and_every_file_a_task():
    assert {path.stem for path in _task_files()} == set(TASKS)


def test_files_and_index_agree():
    for path in _task_files():
        text = path.read_text().replace("!function ", "")
        declared = YAML(typ="safe").load(text)
        assert declared["task"] == declared["dataset_kwargs"]["name"] == path.stem
        assert declared["tag"] == TASKS[path.stem].family


def test_every_task_is_read_or_derived():
    assert {name for name, facts in TASKS.items() if facts.source != DERIVED} == set(READERS)
    assert {facts.family for facts in TASKS.values()} == {"lm", "qa", "nli"}


def test_nothing_heavy_is_imported():
    heavy = ["torch", "lm_eval", "datasets", "pandas", "pyarrow", "matplotlib", "numpy"]
    code = f"import sys, bench.evaluate.index; print([m for m in {heavy!r} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_names():
    assert find("quartz") is TASKS["quartz"]
    assert find("hub:hellaswag") is None
    with pytest.raises(UnknownTask, match=r"did you mean 'quartz'\?"):
        find("quarz")
    with pytest.raises(UnknownTask, match="write hub:boolq for"):
        find("boolq")
    with pytest.raises(UnknownTask):
        find(index.HUB_PREFIX)


def test_families():
    assert family_of("corr2cause") == "nli"
    assert family_of("hub:rte") == family_of("hub:anli_r1") == "nli"
    assert family_of("hub:blimp") == family_of("hub:lambada_openai") == "lm"
    assert family_of("hub:arc_easy") == family_of("hub:cbx") == "qa"
    with pytest.raises(UnknownTask):
        family_of("rte")
