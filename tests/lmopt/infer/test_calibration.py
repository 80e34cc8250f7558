"""Thresholds by Learn-then-Test: bounds by hand, the stated risk kept in simulation."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from lmopt.infer.calibration import FULL_DEPTH, by_document, calibrate, disagreement, hoeffding_bentkus


class TestPValue:
    def test_without_a_loss_it_is_hoeffdings_all_texts_are_right(self):
        # no error in n texts: both bounds are (1 - d)^n, Bentkus' times e
        assert hoeffding_bentkus(0.0, 50, 0.1) == pytest.approx(0.9**50)

    def test_is_the_smaller_of_the_two_bounds(self):
        n, mean, risk = 200, 0.05, 0.1
        hoeffding = math.exp(-n * (mean * math.log(mean / risk) + (1 - mean) * math.log((1 - mean) / (1 - risk))))
        bentkus = math.e * binom.cdf(10, n, risk)
        assert hoeffding_bentkus(mean, n, risk) == pytest.approx(min(hoeffding, bentkus))

    @pytest.mark.parametrize("mean", [0.1, 0.3, 1.0])
    def test_a_loss_at_or_above_the_risk_says_nothing(self, mean):
        assert hoeffding_bentkus(mean, 100, 0.1) == 1.0

    def test_falls_with_more_texts(self):
        assert hoeffding_bentkus(0.02, 400, 0.05) < hoeffding_bentkus(0.02, 100, 0.05)


LOSSES = {0.9: [0.0] * 100, 0.7: [0.0] * 99 + [1.0], 0.5: [0.0] * 80 + [1.0] * 20, 0.3: [0.0] * 100}


class TestCalibrate:
    def test_takes_the_lowest_threshold_before_the_first_that_fails(self):
        found = calibrate(LOSSES, risk=0.1, level=0.05)
        assert found.threshold == 0.7
        assert [test.threshold for test in found.tested] == [0.9, 0.7, 0.5]  # 0.3 is never looked at
        assert [test.rejected for test in found.tested] == [True, True, False]
        assert found.texts == 100

    def test_is_full_depth_where_nothing_passes(self):
        assert calibrate({0.9: [0.5] * 20}, risk=0.1).threshold == FULL_DEPTH
        assert calibrate({0.9: [0.0] * 3}, risk=0.1).threshold == FULL_DEPTH  # too few texts to know

    def test_the_risk_is_exceeded_no_more_often_than_stated(self):
        """Draws of calibration texts whose true losses are known: P(chosen threshold is a bad one) <= level."""
        rng, level, risk = np.random.default_rng(0), 0.1, 0.1
        true_loss = {0.9: 0.02, 0.8: 0.06, 0.7: 0.101, 0.6: 0.2}
        trials, exceeded = 400, 0
        for _ in range(trials):
            uniform = rng.random(150)
            losses = {threshold: (uniform < loss).astype(float).tolist() for threshold, loss in true_loss.items()}
            chosen = calibrate(losses, risk=risk, level=level).threshold
            exceeded += true_loss.get(chosen, 0.0) > risk
        assert exceeded / trials <= level + 2 * math.sqrt(level * (1 - level) / trials)

    def test_texts_of_few_documents_do_not_count_as_many(self):
        """Sixteen texts each of eight documents: one by one, a bad threshold passes twice as often as stated."""
        rng, level, risk = np.random.default_rng(0), 0.05, 0.1
        trials, exceeded = 1000, {"texts": 0, "documents": 0}
        for _ in range(trials):
            rate_D1 = rng.beta(2 * 0.12, 2 * 0.88, size=(8, 1)).clip(1e-6, 1 - 1e-6)  # 0.12 on average: too much
            losses = rng.beta(30 * rate_D1, 30 * (1 - rate_D1), size=(8, 16)).flatten().tolist()
            grouped = by_document(losses, [number // 16 for number in range(128)])
            for name, counted in (("texts", losses), ("documents", grouped)):
                exceeded[name] += calibrate({0.5: counted}, risk=risk, level=level).threshold < FULL_DEPTH
        assert exceeded["texts"] / trials > 1.5 * level
        assert exceeded["documents"] / trials <= level

    @pytest.mark.parametrize(
        ("losses", "options", "words"),
        [
            ({0.5: [0.0], 0.6: [0.0, 0.0]}, {"risk": 0.1}, "same texts"),
            ({}, {"risk": 0.1}, "same texts"),
            ({0.5: [1.2]}, {"risk": 0.1}, "losses must lie"),
            ({0.5: [0.2]}, {"risk": 0.0}, "risk 0.0"),
            ({0.5: [0.2]}, {"risk": 0.1, "level": 1.0}, "level 1.0"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, losses, options, words):
        with pytest.raises(ValueError, match=words):
            calibrate(losses, **options)


def test_a_document_counts_once():
    assert by_document([0.0, 1.0, 0.5, 0.2], [4, 1, 4, 1]) == [0.25, 0.6]


def test_disagreement_is_the_share_of_positions():
    assert disagreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.25
    assert disagreement([1, 2], [1, 2, 3, 4]) == 0.5
    with pytest.raises(ValueError, match="nothing to compare"):
        disagreement([], [])
