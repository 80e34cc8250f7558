"""The setting an arm trains with: chosen by rule from its finished trials, and checked from the records."""

from __future__ import annotations

import pytest

from bench.record import CaseKey, Record, reading
from bench.tuning import Trial, by_setting, choose, trial_of


def trial(lr: float, loss: float | None, seed: int = 7, **more: float) -> Trial:
    return Trial(f"{round(lr * 1e6):016x}", seed, {"lr": lr, **more}, loss)


def test_the_lowest_loss_is_chosen_and_the_whole_grid_is_kept():
    choice = choose([trial(4e-3, 3.2), trial(1e-3, 3.1), trial(2e-3, 3.0)])
    assert choice is not None
    assert choice.setting == {"lr": 2e-3}
    assert choice.loss == 3.0
    assert choice.edges == {}
    kept = choice.to_dict("val_loss")
    assert kept["chosen"] == {"lr": 2e-3}
    assert [one["lr"] for one in kept["trials"]] == [1e-3, 2e-3, 4e-3]


@pytest.mark.parametrize(("losses", "edge"), [((3.0, 3.1, 3.2), "lowest"), ((3.2, 3.1, 3.0), "highest")])
def test_the_end_of_the_grid_is_flagged(losses, edge):
    choice = choose(trial(lr, loss) for lr, loss in zip((1e-3, 2e-3, 4e-3), losses, strict=True))
    assert choice is not None
    assert choice.edges == {"lr": edge}


def test_a_single_value_of_a_knob_is_no_edge():
    choice = choose(
        [trial(1e-3, 3.2, weight_decay=0.1), trial(2e-3, 3.0, weight_decay=0.1), trial(4e-3, 3.1, weight_decay=0.1)]
    )
    assert choice is not None
    assert choice.edges == {}


def test_equal_losses_go_to_the_smaller_numbers_in_any_order():
    tied = [trial(2e-3, 3.0, weight_decay=0.1), trial(1e-3, 3.0, weight_decay=0.2), trial(1e-3, 3.0, weight_decay=0.1)]
    for order in (tied, tied[::-1]):
        choice = choose(order)
        assert choice is not None
        assert choice.setting == {"lr": 1e-3, "weight_decay": 0.1}


def test_a_setting_is_judged_by_the_mean_over_seeds():
    trials = [trial(1e-3, 3.0, 7), trial(1e-3, 3.4, 8), trial(2e-3, 3.1, 7), trial(2e-3, 3.1, 8)]
    choice = choose(trials)
    assert choice is not None
    assert choice.setting == {"lr": 2e-3}


def test_a_setting_at_which_one_seed_diverged_is_worse_than_any_that_held():
    trials = [trial(1e-3, 5.0, 7), trial(1e-3, 5.0, 8), trial(4e-3, 1.0, 7), trial(4e-3, None, 8)]
    choice = choose(trials)
    assert choice is not None
    assert choice.setting == {"lr": 1e-3}
    assert by_setting(trials) == {(("lr", 1e-3),): 5.0, (("lr", 4e-3),): None}


def test_nothing_is_chosen_where_everything_diverged():
    assert choose([trial(1e-3, None), trial(2e-3, None)]) is None
    assert choose([]) is None


def test_a_diverged_trial_has_its_setting_and_no_loss():
    key = CaseKey(id="0" * 16, kind="train", arm="moe", scale="s", seed=7, horizon=0.25)
    metrics = {"val_loss": reading(3.0, "nat/token", "counted")}
    record = Record(status="diverged", reason="loss nan", case=key, metrics=metrics, detail={"trial": {"lr": 0.1}})
    assert trial_of(record, "val_loss") == Trial("0" * 16, 7, {"lr": 0.1}, None)
    assert record.is_trial
