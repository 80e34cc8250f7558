"""Bits per byte by domain: a planted change is found where it was planted and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from bench.verdict import judge_study
from tests.bench.synthetic import Planted, Synthetic, study_of, synthesize

SAME = (Planted("same"), Planted("other"))


def planted(synthetic: Synthetic, arm: str, domain: str, factor: float) -> Synthetic:
    """The study with an arm's bits a byte on one domain multiplied."""
    name = f"bits_per_byte/{domain}"

    def change(record):
        found = record.metrics.get(name)
        if record.case.arm != arm or found is None:
            return record
        changed = found.model_copy(update={"value": found.value * factor})
        return record.model_copy(update={"metrics": {**record.metrics, name: changed}})

    return replace(synthetic, records=tuple(map(change, synthetic.records)))


def domains_of(synthetic: Synthetic, arm: str) -> dict:
    verdict = judge_study(study_of(synthetic))
    json.dumps(verdict, allow_nan=False)
    return verdict["arms"][arm]["scales"]["s"]["domains"]


@pytest.mark.parametrize(("factor", "outcome"), [(0.94, "BETTER"), (1.06, "WORSE")])
def test_a_change_of_one_domain_is_found_there_alone(factor, outcome):
    found = domains_of(planted(synthesize(arms=SAME, seeds=4, items=0), "same", "code", factor), "same")
    assert set(found) == {"bits_per_byte", "code", "web", "wiki"}
    assert found["code"]["outcome"] == outcome
    assert found["code"]["change"] == pytest.approx(factor - 1, abs=0.01)
    low, high = found["code"]["bounds"]
    assert low < factor - 1 < high
    assert [found[domain]["outcome"] for domain in ("web", "wiki")] == ["UNCLEAR", "UNCLEAR"]


def test_arms_without_a_difference_ring_no_more_often_than_stated():
    studies = [domains_of(synthesize(arms=SAME, seeds=3, items=0, draw=draw), "same") for draw in range(200)]
    rang = sum(any(one["outcome"] != "UNCLEAR" for key, one in found.items() if "_" not in key) for found in studies)
    assert rang <= 200 * 0.05 + 2 * (200 * 0.05 * 0.95) ** 0.5


def test_one_seed_decides_nothing():
    found = domains_of(planted(synthesize(arms=SAME[:1], seeds=1, items=0), "same", "code", 0.5), "same")
    assert found["code"]["outcome"] == "UNCLEAR"
    assert found["code"]["bounds"] == [None, None]


def test_a_seed_that_diverged_is_left_out():
    arms = (Planted("same", diverged=(1,)), Planted("other"))
    found = domains_of(synthesize(arms=arms, seeds=3, items=0), "same")
    assert found["code"]["n_seeds"] == 2


def test_an_unfinished_study_shows_no_outcome():
    whole = synthesize(arms=SAME, seeds=3, items=0)
    last = next(
        record for record in reversed(whole.records) if record.case.kind == "train" and record.case.arm == "same"
    )
    rest = tuple(record for record in whole.records if record is not last)
    assert domains_of(replace(whole, records=rest), "same") == {}
