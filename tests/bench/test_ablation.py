"""From one line to arms: which factors, which arms, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.plan import Machine, make_plan
from bench.suite import check, load_suite
from tests.bench.small_suite import written

MACHINE = Machine(machine_class="test")
SUITE = """\
suite: apart
data: {corpus: ["pypi:evals==3.0.1.post1"], tokenizer: {vocab: 512}}
baseline: {name: dense, recipe: {batching: {sequences: 8, length: 64}}}
arms:
  - name: all
    change:
      data: [{kind: exact_dedup}, {kind: near_dedup}]
      ffn: {kind: moe, experts: 4}
      optimizer: {lr: 1e-3}
  - {name: sparse, change: {ffn: {kind: moe, experts: 4}}}
  - {name: fp32, role: timing, change: {precision: {kind: fp32}}}
ablation: ABLATION
over:
  scale: [{name: s, layers: 2, width: 64, heads: 2, tokens: 100k}]
  seed: [0, 1]
  horizon: [0.5, 1.0]
"""


def suite(folder: Path, ablation: str, *changes: tuple[str, str]):
    text = SUITE.replace("ABLATION", ablation)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return written(folder, text)


def test_the_default_is_one_at_a_time_from_both_ends(tmp_path):
    design = load_suite(suite(tmp_path, "{of: all}")).design().ablation
    assert design.designs == ("add_one", "leave_one_out")
    assert list(design.factors) == ["exact_dedup", "near_dedup", "moe", "optimizer"]
    assert design.cells["sparse"] == ("moe",), "a declared arm that is the cell is not made again"
    made = [arm for arm in design.cells if arm.startswith(("only-", "without-"))]
    assert made == ["only-exact_dedup", "only-near_dedup", "only-optimizer", "without-exact_dedup",
                    "without-near_dedup", "without-moe", "without-optimizer"]  # fmt: skip
    assert design.generators is None
    assert design.factors["optimizer"] == "optimizer.lr: 0.003 -> 0.001"


def test_groups_switch_together_and_a_full_factorial_has_every_cell(tmp_path):
    loaded = load_suite(suite(tmp_path, "{of: all, design: [factorial], factors: {clean: [exact_dedup, near_dedup]}}"))
    design = loaded.design().ablation
    assert design.generators == ()
    assert sorted(map(len, design.cells.values())) == [0, 1, 1, 1, 2, 2, 2, 3]
    both = loaded.resolve("without-moe", "s")
    assert [step.kind for step in both.data] == ["exact_dedup", "near_dedup"]
    assert (both.ffn.kind, both.optimizer.lr) == ("swiglu", 1e-3)
    assert loaded.resolve("only-optimizer", "s").data == ()


def test_a_fraction_is_the_smallest_of_its_resolution(tmp_path):
    design = load_suite(suite(tmp_path, "{of: all, design: [factorial], resolution: 4}")).design().ablation
    assert design.generators == ("D=ABC",)
    assert len(design.cells) == 8


def test_steps_of_the_baseline_stay_where_they_are(tmp_path):
    base = ("{batching:", "{data: [{kind: exact_dedup}], batching:")
    loaded = load_suite(suite(tmp_path, "{of: all}", base))
    assert list(loaded.design().ablation.factors) == ["near_dedup", "moe", "optimizer"]
    assert [step.kind for step in loaded.resolve("only-near_dedup", "s").data] == ["exact_dedup", "near_dedup"]
    assert [step.kind for step in loaded.resolve("without-near_dedup", "s").data] == ["exact_dedup"]


def test_made_arms_are_in_the_plan_without_timing_and_survive_a_round_trip(tmp_path):
    loaded = load_suite(suite(tmp_path, "{of: all}"))
    plan = make_plan(loaded, MACHINE)
    of_made = [case for case in plan.cases if case.arm == "without-moe"]
    assert [(case.kind, case.horizon) for case in of_made if case.kind != "prepare"] == [("train", 1.0)] * 2
    timed = make_plan(load_suite(suite(tmp_path, "{of: all, timed: true}")), MACHINE)
    assert any(case.kind == "timing" and case.arm == "without-moe" for case in timed.cases)
    resolved = written(tmp_path, loaded.resolved_yaml())
    assert load_suite(resolved) == loaded
    assert check(resolved) == []


FACTORIAL = "{of: all, design: [factorial]"
BAD = {
    "{of: al}": ("", "", "al", "no arm is named 'al'", "`all`"),
    "{of: fp32}": ("", "", "fp32", "is a timing arm", "another role"),
    "{of: sparse}": ("", "", "sparse", "has 1 factor (`moe`): it cannot be taken apart", "two changes"),
    "{of: sparse, timed: false}": (
        "{name: sparse,", "{name: sparse, against: all,", "sparse", "starts from the baseline", "leave `against` out",
    ),
    "{of: all, factors: {clean: [near_dup]}}": ("", "", "near_dup", "has no change 'near_dup'", "`near_dedup`"),
    "{of: all, factors: {a: [moe], b: [moe]}}": ("", "", "moe", "'moe' is in group `a` already", "once"),
    "{of: all, factors: {moe: [optimizer]}}": ("", "", "moe", "is the name of a change", "otherwise"),
    FACTORIAL + "}": ("seed: [0, 1]", "seed: [0]", "[0]", "two seeds or more", "add a seed"),
    FACTORIAL + ", resolution: 6}": ("", "", "6", "is not allowed here", ""),
    "{of: all, design: [one]}": ("", "", "one", "'one' is not allowed here", "add_one"),
    "{of: all, timed: true}": (
        "- {name: sparse, change: {ffn: {kind: moe, experts: 4}}}",
        "- {name: without-moe, change: {ffn: {kind: relu2}}}", "ablation",
        "makes an arm `without-moe`, and the suite has another", "rename",
    ),
    "{of: all, design: [add_one]}": (
        "ffn: {kind: moe, experts: 4}\n", "model: {context: 32}\n      batching: {length: 32}\n", "ablation",
        "makes an arm `only-model` that is impossible: batching.length", "together in `factors`",
    ),
}  # fmt: skip
"""ablation -> (what is replaced in the suite, by what, the text that is marked, message, hint)"""


@pytest.mark.parametrize("ablation", BAD)
def test_bad_ones_are_refused_with_line_and_hint(tmp_path, ablation):
    old, new, marked, message, hint = BAD[ablation]
    problems = check(suite(tmp_path, ablation, *([(old, new)] if old else [])))
    first = problems[0]
    line = "  seed:" if marked == "[0]" else "ablation:"
    assert (first.text or "").startswith(line)
    assert first.text[first.column - 1 :].startswith(marked)
    assert message in first.message
    assert hint in (first.hint or "")
