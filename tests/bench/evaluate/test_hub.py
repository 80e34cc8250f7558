"""The harness's own tasks by name, with made-up data in place of the hub's."""

from __future__ import annotations

import socket

import datasets
import pytest

from bench.evaluate import hub, protected
from bench.evaluate.harness import evaluate
from tests.bench.evaluate.tiny import tiny_model

ROWS = {
    "winogrande": {"sentence": "The sea beat the boat because the _ was small.", "option1": "sea", "option2": "boat"},
    "rte": {"sentence1": "The man was old.", "sentence2": "The man was young.", "label": 1},
    "boolq": {"passage": "The old man went.", "question": "did he go", "label": 1},
    "lambada_openai": {"text": "The old man went down to the sea in the morning"},
    "triviaqa": {"question": "Who went?", "answer": {"value": "man", "aliases": ["man", "old man"]}},
    "wikitext": {"page": "The old man went down to the sea."},
}


@pytest.fixture
def fake_hub(monkeypatch):
    """Two rows for every split of whatever is asked for."""

    def load_dataset(path, name=None, **_settings):
        task = next(task for task in ROWS if task.removesuffix("_openai") in f"{path}/{name}".lower().replace("_", ""))
        first = ROWS[task] | ({"answer": "2"} if task == "winogrande" else {})
        second = first | ({"sentence": "The boat beat the sea and _ won."} if task == "winogrande" else {})
        rows = datasets.Dataset.from_list([first, second])
        return dict.fromkeys(("train", "validation", "test"), rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "reachable", lambda: True)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_hub")
def test_every_kind_of_task(tokenizer):
    """Choices in the context, labels, shared passages, exact continuation, generation; one cannot be judged."""
    names = [f"hub:{name}" for name in ROWS]
    results = evaluate(tiny_model(tokenizer, context=300), tokenizer, names)
    detail = results.detail()
    assert set(detail) == {f"hub:{name}" for name in ROWS if name != "wikitext"}
    assert "judges no single item" in results.missing["hub:wikitext"]
    assert detail["hub:winogrande"]["chance"] == 0.5
    assert detail["hub:rte"]["family"] == "nli"
    assert detail["hub:rte"]["chance"] == 1.0  # both made-up items have the same answer
    assert detail["hub:lambada_openai"]["correct_choice_bits_per_byte"] is None
    assert detail["hub:triviaqa"]["chance"] == 0.0
    first, second = results.tasks["hub:boolq"].rows
    assert first.passage == second.passage is not None
    assert all(row.score == row.score_lm_eval for row in results.rows)


@pytest.mark.slow
@pytest.mark.usefixtures("fake_hub")
@pytest.mark.parametrize("where", ["build_all_requests", "process_results"])
def test_a_task_whose_own_code_fails_is_lost_alone(tokenizer, where, monkeypatch):
    load = hub.load

    def broken(*_args, **_settings):
        raise KeyError("answerKey")

    def loaded(name):
        tasks = load(name)
        for task in tasks if name == "rte" else ():
            setattr(task, where, broken)
        return tasks

    monkeypatch.setattr(hub, "load", loaded)
    results = evaluate(tiny_model(tokenizer), tokenizer, ["hub:rte", "hub:winogrande"])
    assert set(results.tasks) == {"hub:winogrande"}
    assert results.missing == {"hub:rte": "hub:rte: its own code failed (KeyError: 'answerKey')"}


@pytest.mark.slow
@pytest.mark.usefixtures("fake_hub")
def test_their_texts_are_protected_with_every_answer():
    found, missing = protected.texts(["hub:winogrande", "hub:rte", "hub:triviaqa", "hub:no_such_task"])
    assert "The sea beat the boat because the boat was small." in found["hub:winogrande"]
    (question,) = {text.rsplit(" ", 1)[0] for text in found["hub:rte"]}
    assert question.startswith("The man was old.")
    assert {text.rsplit(" ", 1)[1] for text in found["hub:rte"]} == {"True", "False"}
    assert "Who went?" in found["hub:triviaqa"][0]
    assert "no task 'no_such_task'" in missing["hub:no_such_task"]


@pytest.mark.slow
@pytest.mark.usefixtures("fake_hub")
def test_an_unknown_name_gets_a_hint(model, tokenizer):
    missing = evaluate(model, tokenizer, ["hub:winogrand"]).missing
    assert "did you mean hub:winogrande" in missing["hub:winogrand"]


def _no_network(*_arguments, **_settings):
    raise OSError("no route")


def test_without_a_network_only_the_cache_is_looked_at(monkeypatch):
    import datasets.config
    import huggingface_hub.constants

    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "LMBENCH_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket, "create_connection", _no_network)
    assert not hub.reachable()
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    assert hub.reachable()
    monkeypatch.setenv("LMBENCH_OFFLINE", "1")
    assert not hub.reachable()
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    with hub.cache_only():
        assert datasets.config.HF_HUB_OFFLINE
        assert huggingface_hub.constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE


@pytest.mark.slow
@pytest.mark.usefixtures("fake_hub")
def test_a_task_that_cannot_be_answered_is_lost_alone(model, tokenizer, monkeypatch):
    """A task that samples, found out before anything is computed; one that only names a temperature is greedy."""
    load = hub.load

    def sampling(name):
        tasks = load("triviaqa")
        for task in tasks:
            temperature = {"do_sample": name == "sampled", "temperature": 1}
            task.set_config(key="generation_kwargs", value={"until": ["\n"], "max_gen_toks": 8} | temperature)
            if name == "long":
                task.set_config(key="generation_kwargs", value={"until": ["\n"]})
        return tasks

    monkeypatch.setattr(hub, "load", sampling)
    results = evaluate(model, tokenizer, ["hub:sampled", "hub:greedy"])
    assert set(results.tasks) == {"hub:greedy"}
    assert "hub:sampled: asks for sampling" in results.missing["hub:sampled"]
    (long,) = evaluate(model, tokenizer, ["hub:long"]).missing.values()
    assert "256 new tokens, and the model's context of 48" in long
