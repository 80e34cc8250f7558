"""Mistakes in a suite's `inference`, each at its place; the cases that a sound one plans."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.estimate import Machine
from bench.plan import Plan, make_plan
from bench.suite import check, load_suite
from tests.bench.small_suite import VALID, written

STANZA = """\
inference:
  model: moe
  prompt_tokens: 32
  new_tokens: 32
  arms:
    - {name: exit, decoding: {kind: early_exit, exits: [1]}}
    - {name: draft, decoding: {kind: speculative, draft: {kind: model, arm: all}}}
    - {name: int8, primary: energy, decoding: {kind: one_by_one, weights: int8}}
"""


def suite_text(*changes: tuple[str, str]) -> str:
    text = STANZA
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return VALID + text


def test_a_sound_one_is_sound(tmp_path: Path) -> None:
    assert check(written(tmp_path, suite_text())) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("model: moe", "model: mo"), "no arm is named 'mo'"),
        (("model: moe", "model: fp32"), "`fp32` is a timing arm"),
        (("arm: all", "arm: al"), "no arm is named 'al'"),
        (("name: exit", "name: moe"), "name 'moe' is given twice"),
        (("name: int8", "name: draft"), "name 'draft' is given twice"),
        (("exits: [1]", "exits: [1, 2]"), "exit 2 of a model of 2 layers: 1 is possible"),
        (("exits: [1]", "exits: [2, 1]"), "must ascend"),
        (("exits: [1]", "exits: [1], threshold: 0.9, risk: 0.2"), "risk is that of a calibrated threshold"),
        (("{kind: model, arm: all}", "{kind: exit, layer: 2}"), "drafts of layer 2 of 2"),
        (("new_tokens: 32", "new_tokens: 32\n  sampling: {top_k: 5}"), "top_k changes nothing at temperature 0"),
        (("new_tokens: 32", "new_tokens: 300"), "exceed the context of 256"),
        (("model: moe", "model: moe\n  validation: wiki"), "no validation set is named 'wiki'"),
        (("model: moe", "model: moe\n  blocks: 64"), "blocks (64) must not exceed prompts (32)"),
        (("model: moe", "model: moe\n  quality_texts: 9"), "quality_texts (9) must not be fewer than prompts (32)"),
    ],
)
def test_a_mistake_is_shown_at_its_line(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    text = suite_text(change)
    (problem,) = check(written(tmp_path, text))
    assert message in problem.message
    assert problem.line > VALID.count("\n")


def test_a_draft_must_take_the_text_to_its_end(tmp_path: Path) -> None:
    """It would fall silent on the way, and the arm would time plain decoding."""
    short = VALID.replace("ffn: {kind: moe, experts: 4}", "ffn: {kind: moe, experts: 4}\n      model: {context: 64}")
    assert check(written(tmp_path, short + STANZA)) == []
    (problem,) = check(written(tmp_path, short + STANZA.replace("new_tokens: 32", "new_tokens: 33")))
    assert "`all` drafts with a context of 64; prompt and new tokens are 65" in problem.message


def test_a_sample_trains_no_model_that_could_generate(tmp_path: Path) -> None:
    (problem,) = check(written(tmp_path, suite_text().replace("data:\n", "layout: sample\ndata:\n", 1)))
    assert "no model is trained" in problem.message


def test_a_gate_may_be_about_a_way_of_decoding(tmp_path: Path) -> None:
    text = suite_text().replace("gate:\n", "gate:\n  - {metric: decode_time_ratio, arm: int8}\n")
    assert check(written(tmp_path, text)) == []


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    suite = load_suite(written(tmp_path_factory.mktemp("suite"), suite_text()))
    return make_plan(suite, Machine(machine_class="test"))


def test_every_arm_generates_once_a_scale_and_seed_behind_what_it_needs(plan: Plan) -> None:
    cases = [case for case in plan.cases if case.kind == "generate"]
    assert len(cases) == 3 * 2 * 2
    by_id = {case.id: case for case in plan.cases}
    place = {case.id: number for number, case in enumerate(plan.cases)}
    for case in cases:
        assert all(place[parent] < place[case.id] for parent in case.parents)
        source, *draft, corpus = (by_id[parent] for parent in case.parents)
        assert (source.kind, source.arm, source.horizon, source.seed) == ("train", "moe", 1.0, case.seed)
        assert [one.arm for one in draft] == (["all"] if case.arm == "draft" else [])
        assert corpus.purpose == "corpus"


def test_what_must_be_lossless_is_known(plan: Plan) -> None:
    assert plan.design.inference is not None
    assert {arm.name: arm.lossless for arm in plan.design.inference.arms} == {
        "exit": False, "draft": True, "int8": False,
    }  # fmt: skip


def test_another_draft_is_another_case(tmp_path: Path, plan: Plan) -> None:
    changed = load_suite(written(tmp_path, suite_text(("arm: all}", "arm: all}, draft_tokens: 2"))))
    other = make_plan(changed, Machine(machine_class="test"))
    ids, others = ({case.id for case in one.cases if case.kind == "generate"} for one in (plan, other))
    assert len(ids & others) == 2 * 2 * 2
