"""The harness on a CUDA device: FLOP counts, scoring, sensors, a whole study. `make test-gpu`."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bench import api, doctor, machine
from bench.evaluate.perplexity import validate
from bench.evaluate.scoring import score
from bench.instruments import flops, gpus
from bench.instruments.nvml import Nvml
from bench.instruments.table import Window
from bench.record import Record, read
from lmopt.arch.transformer import build
from lmopt.data.validation import ValidationDocument, ValidationSet
from lmopt.recipe import Distillation, Fp32, LayerSkip, Moe, Recompute, SwiGlu, builder
from lmopt.step import run_to_end
from tests.bench.evaluate.conftest import tokenizer
from tests.bench.evaluate.test_scoring import _requests
from tests.bench.evaluate.tiny import tiny_model
from tests.bench.instruments.test_flops import KINDS, recipe

__all__ = ["tokenizer"]  # a fixture

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


# --- FLOPs ---------------------------------------------------------------------------------------


def counted(described, teacher=None) -> flops.FlopCounts:
    model = build(described, seed=0, device=DEVICE)
    builder(described.precision)(described.precision, DEVICE).prepare(model)
    return flops.count(model, described, teacher=teacher)


@pytest.mark.parametrize("kind", KINDS)
def test_all_counts_are_equal(kind):
    found = counted(KINDS[kind])
    assert found.disagreement is None
    assert found.forward.closed == found.forward.dispatched == found.forward.fvcore
    assert found.train.closed == found.train.dispatched


@pytest.mark.parametrize("precision", [{}, {"precision": Fp32()}], ids=["bf16", "fp32"])
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("width", [16, 24, 80, 256])
def test_heads_of_any_width_count_alike(width, kv_heads, precision):
    described = recipe(SwiGlu(), width=width, kv_heads=kv_heads, length=64).model_copy(update=precision)
    found = counted(described)
    assert found.forward.closed == found.forward.dispatched == found.forward.fvcore
    assert found.train.closed == found.train.dispatched


@pytest.mark.parametrize("hidden", [8, 12])
@pytest.mark.parametrize("precision", [{}, {"precision": Fp32()}], ids=["bf16", "fp32"])
def test_objectives_and_activations_count_alike(hidden, precision):
    plain = recipe(Moe(experts=4, hidden=hidden), layers=3, length=32).model_copy(update=precision)
    shape = recipe(SwiGlu()).model_dump(mode="json", include={"model", "ffn"})
    teacher = recipe(SwiGlu())
    for change, taught in (
        ({"activations": Recompute()}, None),
        ({"objective": LayerSkip(exits=(1, 2))}, None),
        ({"objective": Distillation(teacher="large", shape=shape)}, build(teacher, seed=0, device=DEVICE)),
    ):
        found = counted(plain.model_copy(update=change), taught)
        assert found.train.closed == found.train.dispatched, change


# --- scoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ffn", [SwiGlu(), Moe(experts=4, hidden=16)], ids=["dense", "moe"])
def test_scores_equal_the_cpu_s(tokenizer, ffn):
    model, requests = tiny_model(tokenizer, ffn=ffn), _requests(60, 70)
    theirs = run_to_end(score(model, requests))
    ours = run_to_end(score(model.to(DEVICE), requests, batch_tokens=500))
    for one, other in zip(ours, theirs, strict=True):
        assert one.log_likelihood == pytest.approx(other.log_likelihood, abs=1e-3)
        assert one.greedy == other.greedy
    forward = builder(recipe(SwiGlu()).precision)(recipe(SwiGlu()).precision, DEVICE).forward
    rough = run_to_end(score(model, requests, forward=forward))
    assert sum(one.log_likelihood for one in rough) == pytest.approx(
        sum(other.log_likelihood for other in theirs), rel=0.02
    )


def test_perplexity_equals_the_cpu_s(tokenizer):
    draw = random.Random(0)
    texts = [" ".join(draw.choices(("the", "old", "man", "sea", "bird", "fish"), k=40)) for _ in range(8)]
    encoded = [tokenizer.encode(text).ids for text in texts]
    documents = tuple(
        ValidationDocument(str(number), "d", len(text), np.array(ids))
        for number, (ids, text) in enumerate(zip(encoded, texts, strict=True))
    )
    found = ValidationSet("held out", documents, end_of_text=0)
    model = tiny_model(tokenizer)
    theirs = validate(model, found)
    ours = validate(model.to(DEVICE), found)
    for name, reading in theirs.items():
        assert ours[name].value == pytest.approx(reading.value, rel=1e-4), name


# --- sensors -------------------------------------------------------------------------------------


def test_a_window_knows_the_device_s_memory_and_waits_for_it():
    window = Window(device="cuda:0")
    window.before_model()
    window.start()
    x = torch.randn(2048, 2048, device=DEVICE)
    for _ in range(20):
        x = (x @ x).clamp_(-1, 1)
    found = window.stop()
    assert found["peak_memory_bytes"].scope == "gpu0"
    assert found["peak_memory_bytes"].grade == "counted"
    assert (found["peak_memory_bytes"].value or 0) >= 2 * x.nbytes
    assert window.duration_s > 0


def test_memory_can_be_asked_for_before_anything_ran_on_the_device():
    """In a process of its own: here the device has been used."""
    program = (
        "from bench.instruments.memory import DeviceMemory\n"
        "sensor = DeviceMemory()\n"
        "assert sensor.probe().available\n"
        "sensor.start()\n"
        "import torch\n"
        "x = torch.ones(2**20, device='cuda')\n"
        "print(sensor.stop()['peak_memory_bytes'].value)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) >= 4 * 2**20


def test_joules_of_the_device_are_counted():
    sensor = Nvml()
    seen = sensor.probe()
    if not seen.available:
        pytest.skip(f"NVML does not work here: {seen.reason}")
    window = Window(device="cuda:0")
    window.start()
    x, end = torch.randn(4096, 4096, device=DEVICE), time.monotonic() + 3
    while time.monotonic() < end:
        x = (x @ x).clamp_(-1, 1)
        torch.cuda.synchronize()
    found = window.stop()["energy_j"]
    assert found.grade in ("counter", "integrated")
    assert found.scope is not None
    assert found.scope.startswith("gpu0")
    assert (found.value or 0) > 0
    assert list(window.findings["nvml"]) == ["gpu0"], "the device of the work and no other"
    readings = window.findings["nvml"]["gpu0"]
    uuid = gpus.running_uuid(0)
    assert uuid is None or readings["device"] == gpus.digest(f"GPU-{uuid}"), "CUDA and NVML mean the same device"
    if "counter_j" in readings:
        assert readings["counter_j"] == pytest.approx(readings["integrated_j"], rel=0.25)


def test_every_kernel_that_the_doctor_runs_works():
    checks = {check["name"]: check for check in doctor._kernels(machine.fingerprint())}
    for name in ("bf16", "int8 _int_mm", "grouped_mm"):
        assert checks[name]["works"], checks[name]["reason"]


# --- a study -------------------------------------------------------------------------------------

SUITE = """
suite: tiny
about: Everything that a device can do, on a planted text.
purpose: selftest
data:
  corpus: [{source: "file:text.jsonl"}]
  validation: [{kind: holdout, share: 0.2}]
  tokenizer: {vocab: 300}
baseline: {name: dense, recipe: {batching: {sequences: 8, length: 32}}}
arms:
  - {name: moe, change: {ffn: {kind: moe, experts: 4, top_k: 2}}}
  - {name: int8, change: {precision: {kind: int8}}}
  - {name: fp32, role: timing, change: {precision: {kind: fp32}}}
  - {name: skip, role: control, timed: false, change: {objective: {kind: layer_skip, exits: [1]}}}
evaluate: {tasks: [heldout_cloze]}
inference:
  model: skip
  prompts: 8
  prompt_tokens: 12
  new_tokens: 12
  quality_texts: 8
  calibration_texts: 8
  arms:
    - {name: exit, decoding: {kind: early_exit, exits: [1], risk: 0.3}}
    - {name: lookup, decoding: {kind: speculative, draft: {kind: lookup}}}
    - {name: bytes, decoding: {kind: one_by_one, weights: int8}}
over:
  scale: [{name: xs, layers: 2, width: 64, heads: 2, tokens: 20k, context: 32}]
  seed: [0]
  horizon: [1.0]
"""


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    place = tmp_path_factory.mktemp("on_gpu")
    words = ("the", "a", "cat", "dog", "sees", "hears", "walks", "under", "near", "house", "tree", "river", "slowly")
    draw = random.Random(0)
    lines = (json.dumps({"text": ". ".join(" ".join(draw.choices(words, k=12)) for _ in range(6))}) for _ in range(400))
    (place / "text.jsonl").write_text("\n".join(lines))
    (place / "tiny.yaml").write_text(SUITE.replace("file:text", f"file:{place}/text"))
    found = api.run(place / "tiny.yaml", out=place / "run")
    assert found.failed == ()
    return read(place / "run" / "records.jsonl")


def test_every_case_of_a_study_is_done(records: list[Record]):
    assert {record.status for record in records} == {"ok"}
    kinds = {(record.case.kind, record.case.arm) for record in records}
    assert {("train", arm) for arm in ("dense", "moe", "int8", "skip")} <= kinds
    assert {("timing", "fp32"), ("generate", "exit"), ("generate", "lookup"), ("generate", "bytes")} <= kinds
    assert ("evaluate", "dense") in kinds


def test_a_study_s_counts_agree_and_its_memory_is_the_device_s(records: list[Record]):
    for record in records:
        counts = record.detail.get("counts")
        assert counts is None or counts["agree"] is True, counts
        if record.case.kind == "train":
            memory = record.metrics["peak_memory_bytes"]
            assert memory.scope == "gpu0"
            assert (memory.value or 0) > 0
            assert record.value("val_loss") is not None
    lookup = next(record for record in records if record.case.arm == "lookup")
    assert lookup.detail["exact"]["is_exact"] is True
