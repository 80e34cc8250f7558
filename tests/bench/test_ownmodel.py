"""A suite whose model is a checkpoint: what follows from it, what is wrong with it, and a run without any training."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench import source, writers
from bench.api import run
from bench.estimate import Machine
from bench.plan import Plan, make_plan
from bench.problems import SuiteError
from bench.record import Record, read
from bench.schema import schema
from bench.suite import check, load_suite
from lmopt.data import tokenizer
from tests.bench import checkpoints
from tests.bench.small_suite import ROOT

SUITE = """\
suite: own
data: {corpus: ["file:text.jsonl"]}
inference:
  model: {hf: model}
  prompts: 8
  prompt_tokens: 12
  new_tokens: 12
  quality_texts: 16
  calibration_texts: 16
  arms:
    - {name: exit, decoding: {kind: early_exit, exits: [1], risk: 0.3}}
    - {name: lookup, decoding: {kind: speculative, draft: {kind: lookup}}}
    - {name: drafted, decoding: {kind: speculative, draft: {kind: model, hf: small}}}
    - {name: int8, decoding: {kind: one_by_one, weights: int8}}
"""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("originals")
    checkpoints.write_text(folder)
    checkpoints.write(folder / "model")
    checkpoints.write(folder / "small", layers=1, width=16, heads=1)
    return folder


@pytest.fixture
def place(originals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(originals, tmp_path, dirs_exist_ok=True))


def written(place: Path, *changes: tuple[str, str]) -> Path:
    text = SUITE
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (place / "own.yaml").write_text(text)
    return place / "own.yaml"


def planned(path: Path) -> Plan:
    return make_plan(load_suite(path), Machine(machine_class="test"))


# --- what follows from a checkpoint --------------------------------------------------------------


def test_data_and_inference_are_a_whole_suite_and_nothing_is_trained(place: Path) -> None:
    assert check(written(place)) == []
    plan = planned(place / "own.yaml")
    assert [case.kind for case in plan.cases] == ["prepare"] + 4 * ["generate"]
    corpus, *cases = plan.cases
    assert {case.parents for case in cases} == {(corpus.id,)}
    assert {(case.scale, case.seed) for case in cases} == {("own", 0)}
    assert plan.design.baseline == "model"
    assert not plan.design.trains
    params = sum(tensor.numel() for tensor in load_file(place / "model" / "model.safetensors").values())
    assert plan.arms["model"]["own"].params_total == params
    for case in cases:
        assert case.estimate.generate_flops
        assert case.estimate.train_flops is None
        assert (case.estimate.peak_memory_bytes or 0) > 4 * params


def test_the_example_of_the_page_is_one(place: Path) -> None:
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```yaml own\n(.*?)```", page, re.DOTALL)
    (place / "path" / "to").mkdir(parents=True)
    checkpoints.write(place / "path" / "to" / "checkpoint", context=128)
    checkpoints.write(place / "path" / "to" / "smaller", context=128, layers=1)
    (place / "text.jsonl").rename(place / "texts.jsonl")
    (place / "own.yaml").write_text(example)
    assert check(place / "own.yaml") == []
    assert [case.arm for case in planned(place / "own.yaml").cases] == ["checkpoint", "lookup", "drafted", "int8"]


def test_an_editor_knows_that_a_checkpoint_needs_nothing_of_training() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(schema())
    own = source.parse_text(SUITE, "s").data()
    assert list(validator.iter_errors(own)) == []
    own["inference"]["model"] = "arm"
    assert {error.message for error in validator.iter_errors(own)} == {
        f"'{key}' is a required property" for key in ("baseline", "arms", "over")
    }


def test_checking_reads_no_weights_and_imports_no_torch(place: Path) -> None:
    written(place)
    program = (
        "import sys; from bench.suite import check; from bench.problems import format_problem\n"
        "print([format_problem(one) for one in check('own.yaml')], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_the_resolved_suite_is_the_same_study(place: Path) -> None:
    suite = load_suite(written(place))
    (place / "own.yaml").write_text(suite.resolved_yaml())
    assert load_suite(place / "own.yaml") == suite
    assert planned(place / "own.yaml").run == make_plan(suite, Machine(machine_class="test")).run


def reweighted(place: Path, name: str = "model") -> None:
    path = place / name / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 1
    save_file(tensors, path)


def reworded(place: Path) -> None:
    checkpoints.tokenizer(60).save(str(place / "model" / "tokenizer.json"))


@pytest.mark.parametrize(
    ("change", "new"),
    [
        (reweighted, {"exit", "lookup", "drafted", "int8"}),
        (lambda place: reweighted(place, "small"), {"drafted"}),
        (reworded, {"model", "exit", "lookup", "int8", "drafted"}),
    ],
    ids=["weights", "weights of the draft", "tokenizer"],
)
def test_another_content_is_another_case(place: Path, change: Callable[[Path], None], new: set[str]) -> None:
    before = planned(written(place, ("{kind: model, hf: small}", "{kind: model, hf: small}, weights: fp32")))
    if change is reworded:  # a draft brings the same tokens
        (place / "small" / "tokenizer.json").unlink()
    change(place)
    after = planned(place / "own.yaml")
    assert after.run != before.run
    known = {case.id for case in before.cases}
    assert {case.arm for case in after.cases if case.id not in known} == new


def test_a_suite_may_say_which_content_it_means(place: Path) -> None:
    inference = load_suite(written(place)).inference
    assert inference is not None
    assert inference.own is not None
    load_suite(written(place, ("hf: model}", f"hf: model, sha256: {inference.own.sha256}}}")))
    reweighted(place)
    with pytest.raises(SuiteError, match="model holds another checkpoint: its SHA-256 is") as caught:
        load_suite(place / "own.yaml")
    assert caught.value.problems[0].line == 4


def test_a_checkpoint_that_changed_since_it_was_planned_does_not_generate(place: Path) -> None:
    case = planned(written(place)).cases[-1]
    writers.own_models(case.spec)
    reweighted(place)
    with pytest.raises(writers.OtherCheckpoint, match="run the suite again"):
        writers.own_models(case.spec)


def test_prompts_begin_as_the_model_is_used_to(place: Path) -> None:
    words = tokenizer.load(place / "model" / "tokenizer.json")
    assert tokenizer.opening(words) == [0]
    corpus, *_ = planned(written(place)).cases
    from bench import workloads

    for _ in workloads.prepare(corpus.spec, {}, place / "corpus"):
        pass
    spec = {"validation": None, "prompt_tokens": 12, "new_tokens": 12, "quality_texts": 40, "calibration_texts": 9,
            "decoding": {"kind": "early_exit"}}  # fmt: skip
    found = writers.texts(place / "corpus", spec)
    assert found.judged.shape == (40, 24)
    assert bool((found.judged[:, 0] == 0).all())
    assert not (found.judged[:, 1:] == 0).any()
    first = next(iter(writers.validation.documents(place / "corpus", "holdout"))).text
    held = writers.validation.tokenised(place / "corpus", "holdout", words)
    assert held[0].tokens.tolist() == words.encode(first, add_special_tokens=False).ids


# --- what is wrong -------------------------------------------------------------------------------


def edit(place: Path, name: str = "config.json", **values: object) -> None:
    path = place / "model" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def tensors(place: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = place / "model" / "model.safetensors"
    found = load_file(path)
    change(found)
    save_file(found, path)


def pickled(place: Path) -> None:
    (place / "model" / "model.safetensors").rename(place / "model" / "pytorch_model.bin")


KEY = "model.layers.1.mlp.up_proj.weight"
BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda place: (place / "model").rename(place / "m"), "model: no such folder"),
    "no configuration": (lambda place: (place / "model" / "config.json").unlink(), "config.json: cannot be read"),
    "architecture": (lambda place: edit(place, model_type="gpt2"), "model_type is 'gpt2', allowed: llama, mixtral"),
    "own code": (lambda place: edit(place, auto_map={"AutoModel": "x.Y"}), "code of the checkpoint's own, which is"),
    "pickled": (pickled, "holds pickled weights (*.bin), which are never read: reading them runs what they hold"),
    "no weights": (lambda place: (place / "model" / "model.safetensors").unlink(), "no weights there"),
    "shape": (
        lambda place: tensors(place, lambda found: found.update({KEY: torch.zeros(48, 31)})),
        f"{KEY} has shape (48, 31), expected (48, 32)",
    ),
    "type": (
        lambda place: tensors(place, lambda found: found.update({KEY: torch.zeros(48, 32, dtype=torch.int8)})),
        f"{KEY} has type I8, allowed: F64, F32, F16, BF16",
    ),
    "key": (lambda place: tensors(place, lambda found: found.pop(KEY)), f"1 missing [{KEY}]"),
    "no tokenizer": (lambda place: (place / "model" / "tokenizer.json").unlink(), "tokenizer.json: not there"),
    "tokenizer": (lambda place: (place / "model" / "tokenizer.json").write_text('{"model": {}}'), "not a tokenizer"),
    "kind of tokenizer": (
        lambda place: edit(place, "tokenizer.json", model={"type": "Other", "vocab": {"a": 0}}),
        "tokenizer.json: not a tokenizer (data did not match",
    ),
    "ids": (lambda place: checkpoints.write(place / "model", vocab=50), "ids up to 82, and the model knows 50 tokens"),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_bad_checkpoint_is_named_where_the_suite_names_it(place: Path, broken: str) -> None:
    change, message = BROKEN[broken]
    change(place)
    (problem,) = check(written(place))
    assert message in problem.message
    assert (problem.line, problem.column) == (4, 15)


AROUND: list[tuple[tuple[str, str], str, int]] = [
    (("exits: [1]", "exits: [2]"), "exit 2 of a model of 2 layers", 11),
    (("new_tokens: 12", "new_tokens: 60"), "12 tokens of prompt and 60 new ones exceed the context of 64", 7),
    (("{kind: lookup}", "{kind: exit, layer: 2}"), "drafts of layer 2 of 2", 12),
    (("hf: small", "arm: small"), "`small` would have to be trained", 13),
    (("hf: small", "hf: smal"), "smal: no such folder", 13),
    (("{kind: model, hf: small}", "{kind: model}"), "one `arm`, or one checkpoint (`hf`)", 13),
    (("name: int8", "name: model"), "name 'model' is given twice", 14),
    (("suite: own", "suite: own\narms: [{name: x, change: {tokens: 2k}}]"), "`arms` is about training", 2),
    (("suite: own", "suite: own\nevaluate: {tasks: [quartz]}"), "`evaluate.tasks` is about training", 2),
    (("suite: own", "suite: own\ntune: {lr: [1e-3, 1e-2]}"), "`tune` is about training", 2),
    (("suite: own", "suite: own\nlayout: full"), "layouts are of trainings", 2),
    (("suite: own", "suite: own\nover: {seed: [0, 1]}"), "one model has one seed", 2),
    (("suite: own", "suite: own\nbaseline: {recipe: {model: {qk_norm: true}}}"), "qk_norm: off -> on", 2),
    (('jsonl"]', 'jsonl"], tokenizer: {vocab: 512}'), "the tokenizer is the checkpoint's own", 2),
]


@pytest.mark.parametrize(("change", "message", "line"), AROUND)
def test_a_mistake_around_it_is_shown_at_its_line(
    place: Path, change: tuple[str, str], message: str, line: int
) -> None:
    problems = check(written(place, change))
    assert [problem.line for problem in problems if message in problem.message] == [line], problems


def test_every_mistake_is_shown_at_once_and_nothing_that_follows_from_one(place: Path) -> None:
    path = written(place, ("{hf: model}", "{hf: nowhere}"), ("{kind: lookup}", "{kind: lokup}"))
    assert [(problem.line, problem.message[:21]) for problem in check(path)] == [
        (4, "nowhere: no such fold"),
        (12, "unknown kind 'lokup'"),
    ]
    (problem,) = check(written(place, ("{hf: model}", "{hf: 3}")))
    assert (problem.line, problem.message) == (4, "expected text, got 3")


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"vocab": 130}, "the draft knows 130 tokens, the model 128"),
        ({"context": 16}, "the draft's context is 16, and prompt and new tokens are 24"),
        ({"tokens": checkpoints.tokenizer(60)}, "the draft's tokenizer has other tokens"),
    ],
    ids=["vocabulary", "context", "tokens"],
)
def test_a_draft_that_does_not_fit(place: Path, shape: dict[str, object], message: str) -> None:
    checkpoints.write(place / "small", **shape)  # pyright: ignore[reportArgumentType]
    (problem,) = check(written(place))
    assert message in problem.message
    assert problem.line == 13


def test_a_model_that_is_trained_takes_neither_tokenizer_nor_draft_of_a_checkpoint(place: Path) -> None:
    text = """\
suite: trained
data: {corpus: ["file:text.jsonl"], tokenizer: {kind: given, file: model/tokenizer.json, vocab: 128, sha256: "HASH"}}
baseline: {}
arms: [{name: wide, change: {model: {qk_norm: true}}}]
inference:
  arms: [{name: drafted, decoding: {kind: speculative, draft: {kind: model, hf: small}}}]
over: {scale: [{name: s, layers: 2, width: 32, heads: 2, tokens: 100k}]}
"""
    (place / "own.yaml").write_text(text.replace("HASH", 64 * "0"))
    first, second = check(place / "own.yaml")
    assert "a given tokenizer is that of a checkpoint" in first.message
    assert "a checkpoint drafts for a checkpoint" in second.message


def test_only_a_checkpoint_needs_no_arms(place: Path) -> None:
    over = "over: {scale: [{name: s, layers: 2, width: 32, heads: 2, tokens: 100k}]}\n"
    (place / "own.yaml").write_text(
        f'suite: x\ndata: {{corpus: ["file:text.jsonl"]}}\narms: []\nbaseline: {{}}\n{over}'
    )
    (problem,) = check(place / "own.yaml")
    assert problem.message == "needs at least 1 item, got 0"


# --- the whole way -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on checkpoints that transformers wrote."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("own")
    checkpoints.write_text(place)
    for name, layers, width in (("model", 3, 48), ("small", 1, 16)):
        shape = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": 2 * width}
        config = transformers.LlamaConfig(
            vocab_size=128, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, **shape
        )
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            transformers.LlamaForCausalLM(config).save_pretrained(place / name)
        checkpoints.tokenizer().save(str(place / name / "tokenizer.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        run(written(place, ("{kind: lookup}", "{kind: lookup, corpus: 50kB}")), out=place / "run")
    return place / "run"


@pytest.mark.slow
def test_every_way_of_decoding_is_measured_and_judged(folder: Path) -> None:
    records = read(folder / "records.jsonl")
    assert [record.reason for record in records if record.status != "ok"] == []
    found: dict[str, Record] = {record.case.arm: record for record in records if record.case.kind == "generate"}
    assert set(found) == {"exit", "lookup", "drafted", "int8"}
    for record in found.values():
        assert record.detail["counts"]["agree"] is True, record.detail["counts"]
        assert len(record.detail["prompts"]) == 8
    assert found["lookup"].detail["store"]["tokens"] > 1000, "the half of the corpus that is not held out"
    for arm in ("lookup", "drafted"):
        assert found[arm].detail["exact"]["is_exact"] is True
        assert found[arm].detail["exact"]["float32"]["sampled_distance"] < 1e-4
    assert len(found["int8"].detail["quality"]["document"]) == 16
    verdict = json.loads((folder / "verdict.json").read_text())
    assert verdict["arms"] == {}
    judged = verdict["inference"]["arms"]
    assert "this model alone" in judged["int8"]["scales"]["own"]["endpoints"]["flops"]["why"]
    assert not any("seed" in str(arm["next"]) for arm in judged.values())


@pytest.mark.slow
def test_the_report_is_about_decoding_alone(folder: Path) -> None:
    page = (folder / "report.md").read_text()
    assert "This study trains nothing" in page
    assert "Ways of decoding" in page
    for title in ("What was saved at equal loss", "The full bill", "Loss against what it cost", "The training text"):
        assert title not in page
