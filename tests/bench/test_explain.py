"""Explaining names the condition that decided and a next step that can be taken."""

import re
from dataclasses import replace

import pytest

from bench.explain import UnknownArm, explain, explain_study
from bench.record import Record
from bench.study import StudyError
from bench.words import saved
from tests.bench.decoded import generated
from tests.bench.dissected import taken_apart
from tests.bench.synthetic import Planted, make_run, study_of, synthesize


def test_seeds_are_counted_for_an_undecided_saving():
    text = explain_study(study_of(synthesize(saving=0.25, seeds=3, noise=0.05, items=0, draw=1)), "all")
    assert "INCONCLUSIVE" in text
    assert "decided by: saving:" in text
    assert "more seed" in text
    assert "of training here" in text


def test_the_baseline_has_no_outcome():
    assert "is the baseline" in explain_study(study_of(synthesize(items=0)), "dense")


def test_an_unknown_arm_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(StudyError, match="one of dense, fp32"):
        explain(make_run(tmp_path, items=0), "nosuch")


def test_a_way_of_decoding_is_among_the_known_ones():
    with pytest.raises(UnknownArm, match="no arm 'nosuch'; hint: one of dense, fast"):
        explain_study(generated(), "nosuch")


def test_a_timing_arm_is_explained_by_its_seconds():
    text = explain_study(study_of(synthesize(items=0)), "fp32")
    assert text.startswith("fp32 (timing, primary time, against dense): COSTS")
    assert "decided by: a token takes" in text
    assert "other endpoints" not in text
    assert "nothing is needed" in text


def test_a_timing_arm_that_is_unclear_needs_blocks():
    arms = (Planted("fp32", role="timing", step_ratio=0.97),)
    synthetic = synthesize(arms=arms, items=0, draw=1, timing_noise=0.1)
    text = explain_study(study_of(synthetic), "fp32")
    assert ": UNCLEAR" in text
    assert re.search(r"1\. (add blocks: `timing: \{blocks: \d+\}`|no number of blocks up to \d+) would part", text)
    assert "nothing is needed" not in text


def test_a_decided_arm_needs_nothing():
    text = explain_study(study_of(synthesize(saving=0.02, seeds=5, items=0)), "all")
    assert "nothing is needed" in text


def test_a_confirming_study_says_what_it_lacks():
    text = explain_study(study_of(synthesize(saving=0.02, seeds=5, items=0, purpose="confirm", tuned=False)), "all")
    assert "make it so that every arm had had the same number of tuning trials" in text


def test_what_the_study_could_have_shown_is_said():
    text = explain_study(study_of(synthesize(saving=0.25, seeds=3, noise=0.05, items=0, draw=1)), "all")
    assert "with 80% power this study shows a true saving of" in text


def test_a_whole_that_was_taken_apart_is_explained_by_its_factors():
    synthetic = taken_apart({"clean": 0.06, "moe": 0.12}, seeds=2, noise=0.03)
    text = explain_study(study_of(synthetic), "all")
    assert "taken apart:" in text
    assert "  moe: " in text
    assert "do savings multiply: no departure shown" in text
    assert "would tell a departure of 5% from none" in text
    assert "taken apart" not in explain_study(study_of(synthetic), "only-moe")


def test_what_costs_more_is_no_negative_saving():
    text = explain_study(study_of(taken_apart({"clean": 0.06, "moe": -0.12}, seeds=2, noise=0.003)), "all")
    moe = next(line for line in text.splitlines() if line.startswith("  moe: "))
    assert re.match(r"  moe: costs 1\d\.\d% more \[\d.*\], COSTS; alone costs 1\d", moe)
    assert re.search(r"the single changes multiply to a cost of \d\.\d%, the whole costs \d\.\d% more: ", text)
    assert "saves \u2212" not in text


@pytest.mark.parametrize(
    ("saving", "bounds", "text"),
    [
        (0.271, (0.22, 0.313), "saves 27.1% [22.0, 31.3]"),
        (-0.121, (-0.202, -0.04), "costs 12.1% more [4.0, 20.2]"),
        (-0.121, (None, 0.04), "costs 12.1% more [\u22124.0, \u221e]"),
        (0.1, (None, None), "saves 10.0%"),
    ],
)
def test_a_saving_in_words(saving, bounds, text):
    assert saved(saving, bounds) == text


def test_a_study_that_shows_nothing_says_so():
    arms = (Planted("all", role="claim", saving=-9.0, noise=1.0),)
    text = explain_study(study_of(synthesize(arms=arms, seeds=2, items=0, layout="economical")), "all")
    assert "with 80% power this study shows no saving, however large" in text
    assert "decided by: saving: 2 seeds ended above the reference's whole curve; the interval is open" in text


def test_what_does_not_apply_here_is_to_be_run_elsewhere():
    synthetic = synthesize(arms=(Planted("bound", saving=0.1),), items=0)
    gone = {"status": "not_applicable", "reason": "not applicable here: one NUMA node", "metrics": {}}
    records = tuple(
        record.model_copy(update=gone) if record.case.arm == "bound" else record for record in synthetic.records
    )
    text = explain_study(study_of(replace(synthetic, records=records)), "bound")
    assert "run it on another machine: here, one NUMA node" in text
    assert "measure what is missing" not in text


def test_a_claim_whose_preparation_costs_more_than_it_may_shows_no_saving():
    synthetic = synthesize(arms=(Planted("all", role="claim", saving=0.5, own_preparation_s=9.0),), items=0)
    records: list[Record] = []
    for record in synthetic.records:
        found = record.metrics.get("prepare_flops")
        if found is not None and record.case.arm == "all":
            metrics = {**record.metrics, "prepare_flops": found.model_copy(update={"value": 1e21})}
            record = record.model_copy(update={"metrics": metrics})
        records.append(record)
    text = explain_study(study_of(replace(synthetic, records=tuple(records))), "all")
    assert "with 80% power this study shows no saving, however large" in text
