"""The gate: exact and noisy rules, precedence, other machines, and that it never fails open."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from ruamel.yaml import YAML

from bench import baseline, cli, mistakes
from bench.design import GateRule
from bench.gate import compare, gate
from bench.gatereport import Check, GateResult
from bench.metrics import find
from bench.record import Record, missing, reading
from tests.bench.synthetic import EXPONENT, FLOOR, LIFT, Planted, Synthetic, make_run, study_of, synthesize, write

EXACT = (GateRule(metric="train_flops_per_token"),)
NOISY = (GateRule(metric="val_loss", floor=0.01),)
TIMED = (GateRule(metric="step_time_ratio", arm="all", floor=0.05),)


def study(gate_rules=EXACT, **planted) -> Synthetic:
    return synthesize(gate=gate_rules, items=0, **planted)


def changed(synthetic: Synthetic, change) -> Synthetic:
    return replace(synthetic, records=tuple(new for old in synthetic.records if (new := change(old)) is not None))


def scale_metric(name: str, factor, arm: str = "all"):
    """A change of one metric of one arm; `factor` may depend on the record."""

    def change(record: Record) -> Record:
        found = record.metrics.get(name)
        if found is None or found.value is None or record.case.arm != arm:
            return record
        by = factor(record) if callable(factor) else factor
        return record.model_copy(
            update={"metrics": {**record.metrics, name: found.model_copy(update={"value": found.value * by})}}
        )

    return change


def gated(before: Synthetic, after: Synthetic, machine: str | None = None) -> GateResult:
    stored = baseline.of(study_of(before))
    if machine:
        stored = stored.model_copy(update={"machine_class": machine})
    return compare(study_of(after), stored)


# --- exact ---------------------------------------------------------------------------------------


def test_the_same_run_passes():
    result = gated(study(), study())
    assert (result.outcome, result.exit_code) == ("pass", 0)
    assert {check.finding for check in result.checks} == {"passed"}


@pytest.mark.parametrize(
    ("factor", "outcome", "finding"), [(1 + 1e-9, "regressed", "regressed"), (1 - 1e-9, "pass", "improved")]
)
def test_exact_means_to_the_last_digit_and_better_is_not_worse(factor, outcome, finding):
    result = gated(study(), changed(study(), scale_metric("train_flops_per_token", factor)))
    assert result.outcome == outcome
    assert any(check.finding == finding for check in result.checks)


def test_a_metric_without_a_direction_may_not_change_at_all():
    rules = (GateRule(metric="params_total"),)
    assert gated(study(rules), changed(study(rules), scale_metric("params_total", 0.5))).outcome == "regressed"


def test_the_claim_point_keeps_its_name_when_its_horizon_moves():
    moved = study(at_least=0.21)
    names = {check.case for check in gated(study(at_least=0.2), moved).checks}
    assert "train all/s at its claim point" in names


# --- noisy ---------------------------------------------------------------------------------------


def test_worse_beyond_floor_and_noise_regresses():
    result = gated(study(NOISY), changed(study(NOISY), scale_metric("val_loss", 1.03)))
    assert result.exit_code == 1


def test_worse_within_the_floor_passes():
    assert gated(study(NOISY), changed(study(NOISY), scale_metric("val_loss", 1.009))).outcome == "pass"


def test_worse_than_the_floor_but_within_the_noise_is_not_a_pass():
    def jumpy(record):
        return 1.1 if record.case.seed == 0 else 1.0

    result = gated(study(NOISY), changed(study(NOISY), scale_metric("val_loss", jumpy)))
    assert (result.outcome, result.exit_code) == ("could not measure", 3)


def test_one_seed_far_off_is_not_a_pass():
    result = gated(study(NOISY, seeds=1), changed(study(NOISY, seeds=1), scale_metric("val_loss", 1.5)))
    assert result.outcome == "could not measure"


def test_better_is_reported():
    result = gated(study(NOISY), changed(study(NOISY), scale_metric("val_loss", 0.9)))
    assert result.outcome == "pass"
    assert any(check.finding == "improved" for check in result.checks)


def aa_study(arms=11, seeds=4, noise=0.05, draw=1) -> Synthetic:
    """Runs that differ by chance alone: SD of ln(compute) 0.05 is one of about 0.0043 in ln(loss)."""
    placebos = tuple(Planted(f"a{n}") for n in range(arms))
    synthetic = synthesize(arms=placebos, seeds=seeds, noise=noise, items=0, draw=draw)
    for placebo in placebos:
        for facts in synthetic.plan["arms"][placebo.name].values():
            facts["change"] = f"model.init_stream: 0 -> {placebo.name[1:]}"
    return synthetic


def gated_with_noise(before: Synthetic, after: Synthetic) -> GateResult:
    floors = baseline.noise_of(study_of(aa_study()), ["val_loss"])
    return compare(study_of(after), baseline.of(study_of(before), floors))


def test_the_noise_of_an_aa_run_is_what_was_planted():
    floor = baseline.noise_of(study_of(aa_study(seeds=30)), ["val_loss"])["val_loss"]
    slope = EXPONENT * LIFT / (FLOOR + LIFT)  # d ln(loss) / d ln(compute) at horizon 1.0
    assert floor.sd == pytest.approx(0.05 * slope, rel=0.1)
    assert floor.df == 30 * 11


def test_an_aa_run_sets_the_floor_of_a_noisy_rule():
    wide = (GateRule(metric="val_loss", floor=0.5),)
    worse = changed(study(wide), scale_metric("val_loss", 1.03))
    assert gated(study(wide), worse).outcome == "pass"
    result = gated_with_noise(study(wide), worse)
    assert result.outcome == "regressed"
    assert any("of chance, after synthetic/" in check.why for check in result.checks)


def test_a_change_within_the_noise_of_an_aa_run_passes_whatever_the_rules_floor():
    strict = (GateRule(metric="val_loss", floor=0.0),)
    worse = changed(study(strict), scale_metric("val_loss", 1.001))
    assert gated(study(strict), worse).outcome == "regressed"
    assert gated_with_noise(study(strict), worse).outcome == "pass"


def test_false_alarms_against_the_noise_of_an_aa_run_are_as_rare_as_alpha():
    rule = (GateRule(metric="val_loss", arm="dense"),)
    floors = baseline.noise_of(study_of(aa_study(seeds=30)), ["val_loss"])
    alarms = compared = 0
    for draw in range(60):
        before = baseline.of(study_of(study(rule, noise=0.05, seed_noise=0.0, draw=2 * draw)), floors)
        for check in compare(study_of(study(rule, noise=0.05, seed_noise=0.0, draw=2 * draw + 1)), before).checks:
            compared += 1
            alarms += check.finding == "regressed"
    assert compared >= 240
    assert alarms <= 0.025 * compared + 4 * (0.025 * compared) ** 0.5
    assert alarms > 0


def test_a_run_without_aa_arms_says_nothing_about_noise(tmp_path):
    run = make_run(tmp_path / "run", items=0, gate=NOISY)
    result = gate(run, tmp_path / "baseline.json", update=True, noise=run)
    assert result.outcome == "could not measure"
    assert "no A/A arm" in result.problems[0]
    assert not (tmp_path / "baseline.json").exists()


def test_noise_is_stored_with_the_baseline(tmp_path):
    aa = write(tmp_path / "aa", aa_study())
    run = make_run(tmp_path / "run", items=0, gate=NOISY)
    assert gate(run, tmp_path / "baseline.json", update=True, noise=aa).outcome == "pass"
    assert baseline.read(tmp_path / "baseline.json").noise["val_loss"].df == 44
    assert gate(run, tmp_path / "baseline.json").outcome == "pass"


@pytest.mark.parametrize(("ratio", "outcome"), [(1.5, "pass"), (2.0, "regressed"), (1.51, "pass")])
def test_step_times_are_compared_block_by_block(ratio, outcome):
    result = gated(study(TIMED, timing_ratio=1.5), study(TIMED, timing_ratio=ratio, draw=9))
    assert result.outcome == outcome


def test_what_a_timing_lacks_is_blocks_and_not_seeds():
    loud = {"timing_noise": 0.3, "draw": 3}
    (check,) = gated(study(TIMED, timing_ratio=1.0, **loud), study(TIMED, timing_ratio=1.2, **loud)).checks
    assert check.finding == "could not measure"
    assert check.why.endswith("within the noise: more blocks are needed")


def test_a_higher_is_better_metric_regresses_downwards():
    rules = (GateRule(metric="accuracy/quartz", arm="all", floor=0.01),)
    before = synthesize(gate=rules, items=100)
    after = changed(before, scale_metric("accuracy/quartz", 0.8))
    assert gated(before, after).outcome == "regressed"


# --- not knowing ---------------------------------------------------------------------------------


def test_a_diverged_case_regresses():
    def diverge(record):
        is_mine = record.case.arm == "all" and record.case.kind == "train" and record.case.seed == 1
        return record.model_copy(update={"status": "diverged", "metrics": {}, "reason": "nan"}) if is_mine else record

    assert gated(study(NOISY), changed(study(NOISY), diverge)).outcome == "regressed"


def test_a_failed_case_could_not_be_measured_and_says_why():
    def fail(record):
        is_mine = record.case.arm == "all" and record.case.kind == "train"
        return record.model_copy(update={"status": "failed", "metrics": {}, "reason": "killed"}) if is_mine else record

    result = gated(study(), changed(study(), fail))
    assert result.exit_code == 3
    assert any("killed" in check.why for check in result.checks)


def test_a_missing_reading_gives_its_reason():
    rules = (GateRule(metric="energy_j", arm="all"),)

    def blind(record):
        if "energy_j" not in record.metrics:
            return record
        return record.model_copy(update={"metrics": {**record.metrics, "energy_j": missing("J", "permission denied")}})

    result = gated(study(rules), changed(study(rules), blind))
    assert result.exit_code == 3
    assert any("permission denied" in check.why for check in result.checks)


def test_regressed_comes_before_could_not_measure_comes_before_pass():
    rule, optional = GateRule(metric="val_loss"), GateRule(metric="val_loss", required=False)
    good, bad, unknown = (Check(rule, "x", finding, "") for finding in ("passed", "regressed", "could not measure"))
    assert GateResult("s", (good, bad, unknown)).outcome == "regressed"
    assert GateResult("s", (good, unknown)).outcome == "could not measure"
    assert GateResult("s", (good, Check(optional, "x", "could not measure", ""))).outcome == "pass"
    assert GateResult("s", (bad,), problems=("p",)).outcome == "regressed"
    assert GateResult("s", (Check(optional, "x", "could not measure", ""),)).outcome == "could not measure"
    assert GateResult("s").outcome == "could not measure"


def test_another_machine_gates_exact_metrics_only():
    result = gated(study(EXACT + NOISY), changed(study(EXACT + NOISY), scale_metric("val_loss", 2)), machine="other")
    assert result.outcome == "pass"
    assert "another machine" in result.to_text()
    assert gated(study(NOISY), study(NOISY), machine="other").outcome == "could not measure"


def test_counts_that_disagree_refuse_flops():
    def disagree(record):
        counts = {"agree": False, "disagreement": "1 != 2"}
        return record.model_copy(update={"detail": {**record.detail, "counts": counts}})

    assert gated(study(), changed(study(), disagree)).outcome == "could not measure"


def test_an_arm_that_is_gone_or_new_is_not_a_pass():
    two, one = study(), study(arms=study().world.arms[1:2])
    assert gated(two, one).outcome == "could not measure"
    assert gated(one, two).outcome == "could not measure"


# --- files ---------------------------------------------------------------------------------------


def test_update_then_gate(tmp_path):
    run = make_run(tmp_path / "run", items=0)
    file = tmp_path / "gate" / "baseline.json"
    assert gate(run, file, update=True).updated
    assert json.loads(file.read_text())["schema"] == 1
    assert [path.name for path in file.parent.iterdir()] == ["baseline.json"]
    result = gate(run, file)
    assert result.exit_code == 0
    assert json.loads(result.to_json())["outcome"] == "pass"


def test_update_refuses_to_store_nothing(tmp_path):
    run = make_run(tmp_path / "run", items=0, gate=(GateRule(metric="decode_tokens_per_s"),))
    result = gate(run, tmp_path / "baseline.json", update=True)
    assert result.exit_code == 3
    assert not (tmp_path / "baseline.json").exists()


NOT_A_NUMBER = '{"schema":1,"suite":"x","run":"","machine_class":"","metrics":{"a":{"b":{"values":{"0":NaN}}}}}'


@pytest.mark.parametrize(
    "content", [None, "", "{", '{"schema": 2}', "[]", NOT_A_NUMBER],
    ids=["missing", "empty", "torn", "other version", "list", "nan"],
)  # fmt: skip
def test_a_broken_baseline_is_never_a_pass(tmp_path, content):
    run = make_run(tmp_path / "run", items=0)
    file = tmp_path / "baseline.json"
    if content is not None:
        file.write_text(content)
    result = gate(run, file)
    assert result.exit_code == 3
    assert "hint" in result.to_text()


def test_broken_records_are_never_a_pass(tmp_path):
    run = make_run(tmp_path / "run", items=0)
    file = tmp_path / "baseline.json"
    gate(run, file, update=True)
    path = run / "records.jsonl"
    text = path.read_text()
    for broken in ("", text.replace('"attempt":1', '"attempt":3', 1), text.replace('"schema":1', '"schema":7', 1)):
        path.write_text(broken)
        assert gate(run, file).exit_code == 3
    path.unlink()
    assert gate(run, file).exit_code == 3


def test_a_baseline_of_another_suite_is_refused(tmp_path):
    run = make_run(tmp_path / "run", items=0)
    file = tmp_path / "baseline.json"
    gate(run, file, update=True)
    file.write_text(file.read_text().replace('"suite": "synthetic"', '"suite": "other"'))
    assert "of suite other" in gate(run, file).to_text()


def test_a_suite_without_rules_is_not_a_pass(tmp_path):
    run = make_run(tmp_path / "run", items=0, gate=())
    assert gate(run, tmp_path / "baseline.json", update=True).exit_code == 3


# --- outputs -------------------------------------------------------------------------------------


def test_junit_tells_failures_from_errors():
    rule = GateRule(metric="val_loss")
    checks = (
        Check(rule, "a", "passed", "fine"), Check(rule, "b", "regressed", "worse <&\x00>"),
        Check(rule, "c", "could not measure", "?"), Check(rule, "d", "skipped", "other machine"),
    )  # fmt: skip
    root = ElementTree.fromstring(GateResult("s", checks).to_junit().partition("\n")[2])
    assert root.attrib | {"name": ""} == {"name": "", "tests": "4", "failures": "1", "errors": "1"}
    assert [child.tag for case in root for child in case] == ["failure", "error", "skipped"]


@pytest.mark.parametrize("result", [GateResult("s"), GateResult("s", problems=("no file",))])
def test_junit_of_nothing_is_an_error(result):
    root = ElementTree.fromstring(result.to_junit().partition("\n")[2])
    assert root.get("errors") == "1"
    assert root.get("tests") == "1"


def test_markdown_escapes_and_puts_the_worst_first():
    rule = GateRule(metric="val_loss")
    text = GateResult("s", (Check(rule, "a", "passed", "a|b"), Check(rule, "b", "regressed", "<b>"))).to_markdown()
    assert text.index("WORSE") < text.index("ok |")
    assert r"a\|b" in text
    assert "<b>" not in text


def test_values_survive_the_file_to_the_last_bit(tmp_path):
    synthetic = study(NOISY)
    stored = baseline.of(study_of(synthetic))
    baseline.write(tmp_path / "b.json", stored)
    assert baseline.read(tmp_path / "b.json") == stored


def test_a_zero_baseline_value_is_compared():
    rules = (GateRule(metric="prepare_flops"),)
    after = changed(
        study(rules),
        lambda record: (
            record.model_copy(update={"metrics": {**record.metrics, "prepare_flops": reading(5, "FLOP", "counted")}})
            if "prepare_flops" in record.metrics
            else record
        ),
    )
    assert gated(study(rules), after).outcome == "regressed"


def test_the_rules_in_the_documents_are_valid():
    page = (Path(__file__).parents[2] / "docs" / "gate.md").read_text()
    block = page.partition("```yaml\n")[2].partition("```")[0]
    rules = [GateRule.model_validate(rule) for rule in YAML(typ="safe").load(block)["gate"]]
    assert [find(rule.metric).exact for rule in rules] == [True, True, False, False]


# --- what must not slip through ------------------------------------------------------------------


@pytest.mark.parametrize("rules", [EXACT, NOISY], ids=["exact", "noisy"])
@pytest.mark.parametrize("lost", ["failed", "never run", "without a value"])
def test_a_seed_that_is_lost_is_not_a_pass(rules, lost):
    def lose(record):
        if (record.case.arm, record.case.kind, record.case.seed) != ("all", "train", 2):
            return record
        if lost == "never run":
            return None
        if lost == "failed":
            return record.model_copy(update={"status": "failed", "metrics": {}, "reason": "killed"})
        gone = {name: missing(found.unit, "no sensor") for name, found in record.metrics.items()}
        return record.model_copy(update={"metrics": gone})

    result = gated(study(rules), changed(study(rules), lose))
    assert result.outcome == "could not measure"
    assert any("seed 2 of the baseline has no value here" in check.why for check in result.checks)


def test_fewer_planned_seeds_are_compared_with_theirs():
    assert gated(study(NOISY), study(NOISY, seeds=(0, 1))).outcome == "pass"


def test_flops_without_a_second_count_are_not_a_pass():
    def uncounted(record):
        return record.model_copy(update={"detail": {k: v for k, v in record.detail.items() if k != "counts"}})

    result = gated(study(), changed(study(), uncounted))
    assert result.outcome == "could not measure"
    assert "not confirmed by a second count" in result.to_text()


@pytest.mark.parametrize("edit", ['"schema": 1, ', '"values": {"0": 1e308, '])
def test_a_baseline_without_a_version_or_with_numbers_past_summing_is_refused(edit, tmp_path):
    file = tmp_path / "baseline.json"
    text = json.dumps(json.loads(baseline.of(study_of(study(NOISY))).model_dump_json(by_alias=True)))
    text = text.replace(edit, "") if "schema" in edit else re.sub(r'"values": \{"0": [0-9.]+, ', edit, text)
    file.write_text(text)
    result = gate(make_run(tmp_path / "run", gate=NOISY, items=0), file)
    assert result.outcome == "could not measure"
    assert "write it again with --update" in result.to_text()


def _timed(cell: str, **content: object) -> str:
    cells = {cell: {"values": {"-": 1.0}, "samples": [1.0, 1.1]} | content}
    return json.dumps(
        {"schema": 1, "suite": "x", "run": "", "machine_class": "m", "metrics": {"step_time_ratio": cells}}
    )


@pytest.mark.parametrize(
    "content",
    [_timed("moe"), _timed("timing moe/s", values={}), _timed("timing moe/s", samples=[0, 0])],
    ids=["no arm", "no value", "no time"],
)
def test_a_baseline_that_no_run_could_have_written_is_refused(content, tmp_path):
    file = tmp_path / "baseline.json"
    file.write_text(content)
    with pytest.raises(baseline.BaselineError, match=r"step_time_ratio.*write it again with --update"):
        baseline.read(file)
    file.write_text(_timed("timing moe/s"))
    baseline.read(file)


@pytest.mark.parametrize("df", [0, -1])
def test_noise_that_no_runs_could_have_told_is_refused(df):
    with pytest.raises(ValueError, match="df"):
        baseline.Floor(sd=0.1, df=df, run="aa")


def test_noise_beyond_all_numbers_is_not_a_pass():
    noisy = {"val_loss": baseline.Floor(sd=1e3, df=1, run="aa/1")}
    stored = baseline.of(study_of(study(NOISY)), noisy)
    result = compare(study_of(study(NOISY)), stored)
    assert result.outcome == "could not measure"
    assert "hides any change" in result.to_text()


def test_a_reader_that_stops_listening_changes_no_exit_code(tmp_path, monkeypatch):
    """`lmbench gate ... | head -1`: what is printed into a closed pipe must not turn a regression into a 0."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as deaf:
        monkeypatch.setattr(sys, "stdout", deaf)
        code = cli.main(["gate", str(tmp_path), "--baseline", str(tmp_path / "none.json")])
    assert code == mistakes.NOTHING
