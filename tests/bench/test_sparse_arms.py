"""Every kind of routing, and an upcycled arm, through a whole study on a text of their own."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from bench import ledger
from bench.api import run
from bench.record import read
from bench.study import load as load_study

pytestmark = pytest.mark.slow

SUITE = """
suite: sparse
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.1}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 4, length: 32}}}
arms:
  - {name: dropless, change: {ffn: {kind: moe, experts: 4, top_k: 2}}}
  - {name: noisy, change: {ffn: {kind: moe, experts: 4, top_k: 2, routing: {kind: noisy}}}}
  - {name: switch, change: {ffn: {kind: moe, experts: 4, top_k: 1, routing: {kind: switch}}}}
  - {name: loss-free, change: {ffn: {kind: moe, experts: 4, top_k: 2, routing: {kind: loss_free}}}}
  - {name: fine, change: {ffn: {kind: moe, experts: 15, top_k: 3, shared: 1}}}
  - name: upcycled
    change: {ffn: {kind: moe, experts: 4, split: 1}, start: {kind: upcycled, horizon: 0.5}}
over:
  scale: [{name: xs, layers: 2, width: 32, heads: 2, tokens: 3000, context: 32}]
  seed: [0]
  horizon: [0.5, 1.0]
"""


def test_all_arms_run_count_alike_and_pay_for_what_they_started_from(tmp_path: Path, monkeypatch) -> None:
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    draw = random.Random(0)
    lines = (json.dumps({"text": " ".join(draw.choices(words, k=60)) + "."}) for _ in range(400))
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    (tmp_path / "sparse.yaml").write_text(SUITE)
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "sparse.yaml", out=tmp_path / "run")

    records = read(tmp_path / "run" / "records.jsonl")
    assert [record.reason for record in records if record.status != "ok"] == []
    trained = {(r.case.arm, r.case.horizon): r for r in records if r.case.kind == "train"}
    for record in trained.values():
        assert record.detail["counts"]["agree"], record.detail["counts"]["disagreement"]
    router = trained["switch", 1.0].detail["router"]
    assert 0 <= router["layer0/drop_rate"] < 1
    metrics = trained["switch", 1.0].metrics
    assert metrics["drop_rate"].value == (router["layer0/drop_rate"] + router["layer1/drop_rate"]) / 2
    assert metrics["expert_load_max"].value == max(router["layer0/load_max"], router["layer1/load_max"])
    assert 0 < (metrics["router_entropy"].value or 0) <= math.log(4)
    assert "router_entropy" not in trained["dense", 1.0].metrics
    assert sum(router[f"layer1/load/{expert}"] for expert in range(4)) == pytest.approx(1)

    # the first loss of the upcycled arm is about where the dense training ended, far below a random start
    curves = {arm: trained[arm, 1.0].detail["curve"] for arm in ("dropless", "upcycled")}
    assert curves["upcycled"][0]["loss"] < curves["dropless"][0]["loss"] - 0.5

    study = load_study(tmp_path / "run")
    (charge,) = ledger.charges(study, "upcycled", "dense", "xs")
    assert charge.costs["flops"].value == trained["dense", 0.5].value("train_flops")
    assert ledger.charges(study, "dropless", "dense", "xs") == []
    assert "Experts and routers" in (tmp_path / "run" / "report.md").read_text()
