"""Ways of decoding, judged: what decides, that it is right about its own uncertainty, and what it says."""

from __future__ import annotations

from typing import Any

import pytest

from bench.explain import explain_study
from bench.verdict import judge_study
from tests.bench.decoded import EXACT, generated

ALPHA = 0.025


def judged(**world: Any) -> dict[str, Any]:
    """The verdict on the one arm at the first scale."""
    found = judge_study(generated(**world))["inference"]["arms"]["fast"]["scales"]
    return next(iter(found.values()))


def test_a_study_without_ways_of_decoding_has_no_such_verdict() -> None:
    study = generated()
    without = study.design.model_copy(update={"inference": None})
    object.__setattr__(study, "design", without)
    assert judge_study(study)["inference"] is None


def test_a_saving_with_kept_quality_saves() -> None:
    found = judged()
    assert found["outcome"] == "SAVES"
    time, flops = found["endpoints"]["time"], found["endpoints"]["flops"]
    assert time["bounds"][0] < 0.3 < time["bounds"][1]
    assert flops["saving"] == pytest.approx(0.15)
    assert found["endpoints"]["energy"]["why"] == "no RAPL in this VM"
    assert "a token takes 29.8%" in found["why"]
    assert "(3 seeds x 16 prompts)" in found["why"]
    assert "the drop is below the margin" in found["why"]
    assert found["next"] == []


@pytest.mark.parametrize(
    ("world", "outcome", "words"),
    [
        ({"saving": -0.2}, "COSTS", "more time than with plain"),
        ({"saving": 0.0}, "UNCLEAR", "the interval holds zero"),
        ({"drop": 0.06}, "INFERIOR", "the drop is above the margin"),
        ({"drop": 0.01}, "UNCLEAR", "on both sides of the margin"),
        ({"lossless": True}, "SAVES", "48 of 48 greedy texts are the reference's token for token in float32"),
        ({"without": (1,)}, "NOT MEASURED", "the study is not finished: generate fast/s seed 1"),
        ({"segments": 2}, "NOT MEASURED", "was resumed"),
        ({"primary": "energy"}, "NOT MEASURED", "no RAPL in this VM"),
        ({"status": "failed", "reason": "out of memory"}, "NOT MEASURED", "out of memory"),
    ],
)
def test_what_decides(world: dict[str, Any], outcome: str, words: str) -> None:
    found = judged(**world)
    assert found["outcome"] == outcome
    assert words in found["why"]


def test_text_that_is_not_the_references_is_inferior_however_fast() -> None:
    broken = EXACT | {"timed": {"texts": 16, "identical": 14, "tied": 1, "wrong": 1}, "is_exact": False}
    found = judged(lossless=True, change={"exact": broken})
    assert found["outcome"] == "INFERIOR"
    assert "it does not write what the reference writes" in found["why"]


def test_a_check_that_drafted_nothing_is_no_check() -> None:
    for drafted, words in ((0, "sampled text was not put to the test"), (5, "3e-08 from the model's own distribution")):
        high = {**EXACT["float32"], "sampled_drafted": drafted}
        found = judged(lossless=True, change={"exact": EXACT | {"float32": high}})
        assert words in found["why"]
        assert found["outcome"] == "SAVES"


def test_flops_that_no_second_count_confirms_decide_nothing() -> None:
    apart = {"counts": {"agree": False, "disagreement": "arm: closed 1, dispatched 2 FLOPs a text"}}
    assert judged(primary="flops")["outcome"] == "SAVES"
    found = judged(primary="flops", change=apart)
    assert found["outcome"] == "NOT MEASURED"
    assert "closed 1, dispatched 2" in found["why"]


def curve(first: float, full: float) -> dict[str, Any]:
    return {"curve": [{"threshold": 1.0, "accuracy": full}, {"threshold": 0.0, "accuracy": first}]}


def test_quality_that_could_not_have_failed_shows_nothing() -> None:
    assert judged(change=curve(0.30, 0.40))["outcome"] == "SAVES"
    found = judged(change=curve(0.399, 0.40))
    assert found["outcome"] == "UNCLEAR"
    assert "quality could not have failed" in found["why"]
    assert any("earlier exit" in step for step in found["next"])


def test_a_reference_at_chance_has_nothing_to_lose() -> None:
    detail = next(iter(generated().records.values())).detail
    found = judged(change={"quality": detail["quality"] | {"chance": 0.37}})
    assert found["outcome"] == "UNCLEAR"
    assert "nothing could be lost" in found["why"]


def test_one_model_says_that_it_is_one() -> None:
    found = judged(seeds=(0,), lossless=True)
    assert found["outcome"] == "SAVES"
    assert "(16 prompts, one trained model)" in found["why"]


def test_scales_that_differ_are_not_one_answer() -> None:
    study = generated(scales=("s", "m"))
    verdict = judge_study(study)["inference"]["arms"]["fast"]
    assert verdict["outcome"] == "SAVES"
    assert verdict["why"].startswith("at s: ")


def test_intervals_cover_the_truth() -> None:
    """Three seeds err to the wide side (Graybill & Wang): never below 93%, and no false SAVES beyond alpha + 2 SE."""
    draws, saved, covered = 200, 0, 0
    for draw in range(draws):
        bounds = judged(saving=0.0, draw=draw, lossless=True)["endpoints"]["time"]["bounds"]
        covered += bounds[0] <= 0 <= bounds[1]
        saved += bounds[0] > 0
    assert covered / draws >= 0.93
    assert saved / draws <= ALPHA + 2 * (ALPHA * (1 - ALPHA) / draws) ** 0.5


def test_explain_says_what_decided_and_what_else_was_measured() -> None:
    text = explain_study(generated(lossless=True), "fast")
    assert text.startswith("fast (decoding, lossless, primary time, against plain): SAVES")
    assert "[met] exact: 48 of 48" in text
    assert "energy: not measured (no RAPL in this VM)" in text
    unclear = explain_study(generated(saving=0.002, seeds=(0,)), "fast")
    assert "add seeds" in unclear
