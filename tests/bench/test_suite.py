"""The typed suite: what it means, what it expands to, and that it survives being written out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import source
from bench.problems import SuiteError
from bench.suite import Arm, Suite, check, load_suite
from lmopt.recipe import Bf16, Moe, SwiGlu
from tests.bench.small_suite import MOE, SUITES, VALID, loaded, written


def test_the_valid_suite_is_valid(tmp_path: Path) -> None:
    assert check(written(tmp_path, VALID)) == []


def test_an_arm_is_the_baseline_with_its_change(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    dense, moe = suite.resolve("dense", "m"), suite.resolve("moe", "m")
    assert dense.ffn == SwiGlu()
    assert moe.ffn == Moe(experts=8, top_k=2)
    assert moe.model_copy(update={"ffn": dense.ffn}) == dense
    assert (dense.model.layers, dense.model.width, dense.tokens) == (4, 128, 1_000_000)
    assert (dense.model.vocab, dense.batching.sequences, dense.precision) == (512, 8, Bf16())


def test_the_same_kind_merges_and_another_kind_replaces(tmp_path: Path) -> None:
    recipe = "  recipe:\n    ffn: {kind: moe, experts: 16, z_loss: 0.5}\n"
    suite = loaded(
        tmp_path,
        ("  recipe:\n", recipe),
        (MOE, "change: {ffn: {top_k: 3}}"),
        ("      ffn: {kind: moe, experts: 4}\n", "      ffn: {kind: relu2}\n"),
        ("      precision: {kind: fp32}\n", "      ffn: {kind: moe, experts: 32}\n"),
    )
    assert suite.resolve("moe", "s").ffn == Moe(experts=16, top_k=3, z_loss=0.5)
    assert suite.resolve("fp32", "s").ffn == Moe(experts=32, z_loss=0.5)
    assert suite.resolve("all", "s").ffn.kind == "relu2"


def test_lists_replace(tmp_path: Path) -> None:
    suite = loaded(tmp_path, ("  recipe:\n", "  recipe:\n    data: [{kind: near_dedup, bands: 20}]\n"))
    assert [step.kind for step in suite.resolve("dense", "s").data] == ["near_dedup"]
    assert [step.kind for step in suite.resolve("all", "s").data] == ["exact_dedup"]


def test_a_change_wins_over_the_scale_and_the_scale_over_nothing_else(tmp_path: Path) -> None:
    suite = loaded(tmp_path, (MOE, "change: {model: {width: 32}}"))
    assert suite.resolve("moe", "m").model.width == 32
    assert suite.resolve("dense", "m").model.width == 128


def test_a_scale_sets_whatever_it_names(tmp_path: Path) -> None:
    suite = loaded(
        tmp_path,
        (
            "    - {name: m, layers: 4, width: 128, heads: 4, tokens: 1M}\n",
            "",
        ),
        ("    batching: {sequences: 8, length: 64}\n", "    compile: false\n"),
        (
            "heads: 2, tokens: 100k}",
            "heads: 2, kv_heads: 1, context: 32, hidden: 96, tokens: 100k, lr: 1e-2, sequences: 4, "
            "micro_sequences: 2, length: 32}",
        ),
    )
    recipe = suite.resolve("dense", "s")
    assert (recipe.model.kv_heads, recipe.model.context, recipe.ffn.hidden) == (1, 32, 96)
    assert recipe.optimizer.lr == 1e-2
    assert (recipe.batching.sequences, recipe.batching.micro_sequences, recipe.batching.length) == (4, 2, 32)
    assert suite.resolve("moe", "s").ffn.hidden is None


def test_quantities_mean_what_a_person_thinks(tmp_path: Path) -> None:
    suite = loaded(
        tmp_path,
        ("tokens: 100k}", "tokens: 1_000_000}"),
        ("tokens: 1M}", "tokens: 2B}"),
        (
            "evaluate: {tasks: [quartz]}",
            "evaluate: {tasks: [quartz], limit: 1e3}\nlimits: {case_time: 30min, case_memory: 8GiB}",
        ),
        ("{sequences: 8, length: 64}", "{sequences: 8, length: 64}\n    optimizer: {lr: 3e-4}"),
        ("arms:\n", "hypothesis: {budget: 1.5B}\nbudget: 2h\narms:\n"),
    )
    assert [scale.tokens for scale in suite.over.scale] == [1_000_000, 2_000_000_000]
    assert (suite.limits.case_time, suite.limits.case_memory) == (1800.0, 8 * 2**30)
    assert (suite.evaluate.limit, suite.hypothesis.budget) == (1000, 1_500_000_000)
    assert suite.resolve("dense", "s").optimizer.lr == 3e-4


def test_the_design_is_what_judging_needs(tmp_path: Path) -> None:
    design = loaded(tmp_path).design()
    assert [arm.name for arm in design.arms] == ["moe", "fp32", "all"]
    assert (design.baseline, design.scales, design.seeds, design.horizons) == ("dense", ("s", "m"), (0, 1), (0.5, 1.0))
    assert design.controls == {"truncated": "dense", "half": "dense"}
    assert design.claim_points == {}
    assert type(design.hypothesis).__module__ == "bench.design"


def test_controls_without_a_claim_are_none(tmp_path: Path) -> None:
    assert loaded(tmp_path, ("role: claim", "role: component")).design().controls == {}
    off = ("evaluate:", "controls: {truncated: false}\nevaluate:")
    assert loaded(tmp_path, off).design().controls == {"half": "dense"}


def test_changes_in_words(tmp_path: Path) -> None:
    suite = loaded(tmp_path, ("    role: claim\n", "    role: claim\n    against: moe\n"))
    assert suite.describe_change("dense") == "no change"
    assert suite.describe_change("fp32") == "precision: bf16 -> fp32"
    assert suite.describe_change("all") == "ffn.experts: 8 -> 4; data: none -> exact_dedup"
    assert suite.describe_change("moe").startswith("ffn: swiglu -> moe (experts 8, top_k 2")
    unclipped = loaded(tmp_path, ("      precision: {kind: fp32}\n", "      optimizer: {clip: null}\n"))
    assert unclipped.describe_change("fp32") == "optimizer.clip: 1 -> none"  # null switches it off
    other = ("      precision: {kind: fp32}\n", "      batching: {kind: batch_ramp, length: 64}\n")
    words = loaded(tmp_path, other).describe_change("fp32")  # a default that is not what it was is told
    assert words == "batching: fixed (sequences 8, length 64) -> batch_ramp (sequences 16, length 64)"


def test_sizes_in_bytes_and_parts_without_a_kind_are_told_as_a_suite_writes_them(tmp_path: Path) -> None:
    adaptive = "      batching: {kind: adaptive, sequences: 8, length: 64, memory: 500MB}\n"
    words = loaded(tmp_path, ("      precision: {kind: fp32}\n", adaptive)).describe_change("fp32")
    assert words.endswith("-> adaptive (sequences 8, length 64, memory 500MB)")
    overlap = "      data: [{kind: ngram_overlap, table: 32MiB}]\n"
    words = loaded(tmp_path, ("      precision: {kind: fp32}\n", overlap)).describe_change("fp32")
    assert words == "data: none -> ngram_overlap (table 32MiB)"
    switched = "      data: [{kind: ngram_overlap, max_repeated: null}]\n"  # a rule that is off is no default
    words = loaded(tmp_path, ("      precision: {kind: fp32}\n", switched)).describe_change("fp32")
    assert words == "data: none -> ngram_overlap (max_repeated none)"
    difficulty = "      data: [{kind: difficulty, by: loss, reference: {vocab: 300}}]\n"
    words = loaded(tmp_path, ("      precision: {kind: fp32}\n", difficulty)).describe_change("fp32")
    assert words == "data: none -> difficulty (by loss, reference (vocab 300))"
    difficulty = "      data: [{kind: difficulty, by: loss, reference: {}}]\n"
    words = loaded(tmp_path, ("      precision: {kind: fp32}\n", difficulty)).describe_change("fp32")
    assert words == "data: none -> difficulty (by loss, reference default)"


def test_what_holds_at_one_scale_stays_there(tmp_path: Path) -> None:
    shaped = (
        "arms:\n",
        "arms:\n"
        "  - {name: square, change: {ffn: {kind: relu2}}, at: {s: {hidden: 96}}}\n"
        "  - {name: flat, change: {model: {layers: 3, qk_norm: true}}, at: {s: {layers: 1}}}\n",
    )
    suite = loaded(tmp_path, shaped)
    assert [suite.resolve("square", scale).ffn.hidden for scale in "sm"] == [96, None]
    assert [suite.resolve("flat", scale).model.layers for scale in "sm"] == [1, 3]
    assert suite.describe_change("square") == "ffn: swiglu -> relu2 (hidden 96)"
    assert suite.describe_change("square", "m") == "ffn: swiglu -> relu2"


def test_unknown_names_are_a_user_mistake(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    with pytest.raises(SuiteError, match="no arm is named 'mo'") as caught:
        suite.resolve("mo", "s")
    assert caught.value.problems[0].hint == "did you mean `moe`?"
    with pytest.raises(SuiteError, match="no scale is named 'xl'"):
        suite.resolve("moe", "xl")


# --- the resolved form ---------------------------------------------------------------------------


@pytest.mark.parametrize("path", SUITES, ids=lambda path: path.stem)
def test_the_resolved_suite_loads_back_equal(path: Path, tmp_path: Path) -> None:
    suite = load_suite(path)
    resolved = suite.resolved_yaml()
    again = load_suite(written(tmp_path, resolved))
    assert again == suite
    assert again.resolved_yaml() == resolved
    for arm in suite.all_arms():
        for scale in suite.over.scale:
            assert again.resolve(arm.name, scale.name) == suite.resolve(arm.name, scale.name)


def test_the_resolved_suite_spells_out_every_default(tmp_path: Path) -> None:
    data = source.parse_text(loaded(tmp_path).resolved_yaml(), "r").data()
    assert data["baseline"]["recipe"]["optimizer"]["betas"] == [0.9, 0.95]
    assert data["arms"][0]["change"]["ffn"]["routing"] == {"kind": "dropless"}
    assert data["timing"] == {"blocks": 8, "steps": 20, "warmup": 3}
    assert "layers" not in data["baseline"]["recipe"]["model"]


@pytest.mark.parametrize(
    "about", ["1e3", "on", "null", "1_000", "~", "yes: no", "- a", "0x1f", "é ☃", " lead", "#x", "'", '"']
)
def test_texts_survive_the_resolved_form(about: str, tmp_path: Path) -> None:
    data = source.parse_text(VALID, "s").data() | {"about": about}
    suite = Suite.model_validate(data)
    assert load_suite(written(tmp_path, suite.resolved_yaml())).about == about


def test_ways_of_writing_a_number_make_equal_suites(tmp_path: Path) -> None:
    plain = loaded(tmp_path)
    other = loaded(tmp_path, ("tokens: 100k}", "tokens: 100_000}"), ("experts: 8, top_k: 2", "experts: '8'"))
    assert other == plain


def test_a_suite_built_in_python_is_checked_too(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    assert Suite(**dict(suite)) == suite
    twice = dict(suite) | {"arms": (Arm(name="a", change={"compile": True}), Arm(name="a", change={"tokens": 50_000}))}
    with pytest.raises(ValueError, match="name 'a' is given twice"):
        Suite(**twice)


def test_other_axes_make_the_same_study_smaller(tmp_path: Path) -> None:
    suite = loaded(tmp_path)
    assert suite.with_over(seed=(0,)).over.seed == (0,)
    assert suite.over.seed == (0, 1)
