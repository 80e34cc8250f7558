"""A run that trains, generates in several ways and judges them, on real processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import writers
from bench.record import Record, read
from bench.report import terminal
from tests.bench.test_end_to_end import finish, start

SUITE = """
suite: tiny
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.2}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms:
  - {name: skip, role: control, timed: false, change: {objective: {kind: layer_skip, exits: [1]}}}
  - {name: small, role: control, timed: false, change: {model: {width: 16}}}
inference:
  model: skip
  prompts: 8
  prompt_tokens: 12
  new_tokens: 12
  quality_texts: 16
  calibration_texts: 16
  arms:
    - {name: exit, decoding: {kind: early_exit, exits: [1], risk: 0.3}}
    - {name: drafted, decoding: {kind: speculative, draft: {kind: model, arm: small}}}
    - {name: looked-up, decoding: {kind: speculative, draft: {kind: lookup, corpus: 100kB}}}
    - {name: int8, decoding: {kind: one_by_one, weights: int8}}
over:
  scale: [{name: xs, layers: 2, width: 32, heads: 2, tokens: TOKENS, context: 32}]
  seed: [0]
  horizon: [1.0]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import random

    place = tmp_path_factory.mktemp("generation")
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + "."}) for _ in range(400))
    (place / "text.jsonl").write_text("\n".join(lines))
    finish(start(place, "run", 3000, suite=SUITE))
    return place / "run"


def generated(folder: Path) -> dict[str, Record]:
    return {r.case.arm: r for r in read(folder / "records.jsonl") if r.case.kind == "generate"}


def test_every_way_of_decoding_leaves_what_its_kind_has(folder: Path) -> None:
    found = generated(folder)
    assert set(found) == {"exit", "drafted", "looked-up", "int8"}
    for record in found.values():
        assert record.status == "ok"
        assert record.detail["counts"]["agree"] is True
        assert len(record.detail["prompts"]) == 8
        assert {one["block"] for one in record.detail["prompts"]} == set(range(8))
        for metric in ("decode_tokens_per_s", "time_to_first_token_s", "decode_time_ratio", "decode_flops_per_token"):
            assert (record.value(metric) or 0) > 0
    assert found["drafted"].detail["exact"]["is_exact"] is True
    assert found["drafted"].detail["exact"]["float32"]["sampled_distance"] < 1e-4
    assert found["looked-up"].detail["exact"]["is_exact"] is True
    assert found["looked-up"].detail["store"]["tokens"] > 1000
    assert (found["looked-up"].value("acceptance_rate") or 0) > 0
    assert 0 <= (found["drafted"].value("acceptance_rate") or 0) <= 1
    assert (found["drafted"].value("tokens_per_call") or 0) >= 1
    assert "quality" not in found["drafted"].detail
    assert found["exit"].detail["calibration"]["texts"] == 16
    assert 1 <= (found["exit"].value("mean_exit_layer") or 0) <= 2
    assert [point["threshold"] for point in found["exit"].detail["curve"]] == list(writers.THRESHOLDS)
    assert found["int8"].detail["weights_bytes"]["arm"] < 0.6 * found["int8"].detail["weights_bytes"]["reference"]


def test_int8_and_early_exit_are_judged_on_words_that_both_sides_read(folder: Path) -> None:
    for arm in ("exit", "int8"):
        quality = generated(folder)[arm].detail["quality"]
        assert len(quality["document"]) == 16
        assert quality["tokens"] == 11
        assert all(number % writers.CALIBRATION_EVERY for number in quality["document"])


def test_the_verdict_and_the_report_hold_them_apart_from_training(folder: Path) -> None:
    verdict = json.loads((folder / "verdict.json").read_text())
    assert set(verdict["arms"]) == {"skip", "small"}
    assert set(verdict["inference"]["arms"]) == {"exit", "drafted", "looked-up", "int8"}
    page = (folder / "report.md").read_text()
    assert "Ways of decoding" in page
    assert "Quality against depth" in page or "Early exit at every threshold" in page
    assert (folder / "tables" / "inference.csv").exists()
    assert (folder / "figures" / "depth-xs.svg").exists()
    shown = terminal(folder)
    assert "drafted" in shown
    assert "int8. " in shown, "without a claim or a component, ways of decoding are the answer"
    assert "8 of 8" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())


def test_too_few_texts_say_how_many_there_are(folder: Path) -> None:
    corpus = next(path.parent for path in folder.glob("cases/*/data/tokenizer.json"))
    spec = {
        "validation": None, "prompt_tokens": 12, "new_tokens": 12, "quality_texts": 10_000, "calibration_texts": 4,
        "decoding": {"kind": "speculative"},
    }  # fmt: skip
    with pytest.raises(writers.TooFewTexts, match=r"holds \d+ texts of 24 tokens for quality_texts, 10000 are asked"):
        writers.texts(corpus, spec)
    spec |= {"quality_texts": 8, "calibration_texts": 10_000}
    assert len(writers.texts(corpus, spec).judged) == 8  # nothing is calibrated
    with pytest.raises(writers.TooFewTexts, match="for calibration_texts, 10000 are asked"):
        writers.texts(corpus, spec | {"decoding": {"kind": "early_exit"}})
    given = {"kind": "early_exit", "exits": [1], "threshold": 0.5}
    assert len(writers.texts(corpus, spec | {"decoding": given}).judged) == 8  # a threshold that is given needs none


def test_no_document_is_both_calibrated_on_and_judged(folder: Path) -> None:
    corpus = next(path.parent for path in folder.glob("cases/*/data/tokenizer.json"))
    spec = {"validation": None, "prompt_tokens": 12, "new_tokens": 12, "quality_texts": 40, "calibration_texts": 30,
            "decoding": {"kind": "early_exit"}}  # fmt: skip
    found = writers.texts(corpus, spec)
    assert found.judged.shape == (40, 24)
    assert found.calibration.shape == (30, 24)
    assert all(number % writers.CALIBRATION_EVERY for number in found.documents)
    assert len(found.calibration_documents) == 30
    assert not any(number % writers.CALIBRATION_EVERY for number in found.calibration_documents)
    assert not (found.judged[:, None] == found.calibration[None]).all(-1).any()
    assert torch.equal(found.judged, writers.texts(corpus, spec).judged)
