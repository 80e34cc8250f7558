"""Metrics by name."""

import pytest

from bench.metrics import METRICS, UnknownMetric, find
from bench.record import reading
from tests.bench.synthetic import synthesize
from tests.bench.test_record import record

NAMES = [
    "train_flops", "train_model_flops", "train_flops_per_token", "infer_flops_per_token", "train_time_s",
    "step_time_s", "tokens_per_s", "prepare_time_s", "prepare_flops", "compile_time_s", "energy_j",
    "energy_net_j", "energy_j_per_token", "idle_power_w", "peak_memory_bytes", "params_total", "params_active",
    "mfu", "val_loss", "perplexity", "bits_per_byte", "decode_tokens_per_s", "time_to_first_token_s",
    "acceptance_rate", "mean_exit_layer", "step_time_ratio", "decode_time_ratio", "decode_flops_per_token",
    "decode_j_per_token", "tokens_per_call", "exit_threshold", "token_accuracy", "token_agreement", "decode_loss",
    "router_entropy", "expert_load_max", "drop_rate",
]  # fmt: skip


def test_every_name_of_the_contract_is_there():
    assert set(NAMES) == set(METRICS)


@pytest.mark.parametrize("name", ["accuracy/quartz", "bits_per_byte/wiki"])
def test_families_are_open_ended(name):
    assert find(name).of(record(metrics={name: reading(0.5, "1", "counted")})) == 0.5


@pytest.mark.parametrize("name", ["val_los", "accuracy/", "nonsense", ""])
def test_an_unknown_name_is_refused_with_a_hint(name):
    with pytest.raises(UnknownMetric, match="hint"):
        find(name)


def test_units_are_those_that_records_hold():
    for one in synthesize(items=50).records:
        for name, found in one.metrics.items():
            assert find(name).unit == found.unit, name


@pytest.mark.parametrize(
    ("name", "before", "after", "worse"),
    [
        ("val_loss", 4.0, 4.4, 0.1),
        ("tokens_per_s", 10.0, 9.0, 0.1),
        ("params_total", 10, 9, 0.1),
        ("val_loss", 4, 2, -0.5),
    ],
)
def test_worsening_follows_the_direction(name, before, after, worse):
    assert find(name).worsening(before, after) == pytest.approx(worse)
