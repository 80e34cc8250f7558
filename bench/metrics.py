"""Every metric by name: its unit, which way is better, whether it is exact, and how it is read off a record.

A metric is one entry of `METRICS`. Two families are open-ended, `accuracy/<task>` and `bits_per_byte/<domain>`:
`find` makes the entry of a member.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from bench.record import Record

Direction = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One thing that a record may hold."""

    name: str
    unit: str
    direction: Direction | None
    """Which way is better; None where neither is."""
    exact: bool
    """The same case gives the same number on any machine, to the last digit."""
    about: str
    """One line for people."""
    of: Callable[[Record], float | None]
    """The value in a record, or None where it is missing."""

    def worsening(self, before: float, after: float) -> float:
        """Relative change towards the worse side: positive is worse. Without a direction any change is worse."""
        scale = abs(before) or 1.0
        change = (after - before) / scale
        if self.direction is None:
            return abs(change)
        return change if self.direction == "lower" else -change


class UnknownMetric(LookupError):
    """No metric has that name: says which one was perhaps meant."""


def _read(name: str) -> Callable[[Record], float | None]:
    def of(record: Record) -> float | None:
        return record.value(name)

    return of


def _metric(name: str, unit: str, direction: Direction | None, exact: bool, about: str) -> Metric:
    return Metric(name, unit, direction, exact, about, _read(name))


_ALL = (
    _metric("train_flops", "FLOP", "lower", True, "FLOPs of the whole training as executed; decides"),
    _metric("train_model_flops", "FLOP", "lower", True, "FLOPs that the mathematics of the training needs"),
    _metric("train_flops_per_token", "FLOP/token", "lower", True, "Training FLOPs a token, as executed"),
    _metric("infer_flops_per_token", "FLOP/token", "lower", True, "FLOPs a generated or scored token"),
    _metric("prepare_flops", "FLOP", "lower", True, "FLOPs of models that prepared the data"),
    _metric("params_total", "1", None, True, "All parameters"),
    _metric("params_active", "1", None, True, "Parameters that one token uses"),
    _metric("train_time_s", "s", "lower", False, "Seconds of a training; descriptive, machines wander"),
    _metric("step_time_s", "s", "lower", False, "Seconds an optimizer step"),
    _metric("step_time_ratio", "1", "lower", False, "Seconds a step over the reference's, in interleaved blocks"),
    _metric("tokens_per_s", "token/s", "higher", False, "Training tokens a second"),
    _metric("prepare_time_s", "s", "lower", False, "Seconds of preparing the data"),
    _metric("compile_time_s", "s", "lower", False, "Seconds of compiling, outside the window"),
    _metric("energy_j", "J", "lower", False, "Gross energy of the window; decides"),
    _metric("energy_net_j", "J", "lower", False, "Energy less the idle power"),
    _metric("energy_j_per_token", "J/token", "lower", False, "Gross energy a training token"),
    _metric("idle_power_w", "W", None, False, "Power before the run"),
    _metric("peak_memory_bytes", "B", "lower", False, "Peak memory of the case"),
    _metric("mfu", "1", "higher", False, "Share of the peak FLOP/s that the training reached"),
    _metric("val_loss", "nat/token", "lower", False, "Cross-entropy on the validation text"),
    _metric("perplexity", "1", "lower", False, "exp of the validation loss"),
    _metric(
        "bits_per_byte", "bit/byte", "lower", False, "Bits a byte of validation text, independent of the tokenizer"
    ),
    _metric("router_entropy", "nat/token", None, False, "Entropy of a sparse arm's routers, mean over layers"),
    _metric("expert_load_max", "1", "lower", False, "Slots of the busiest expert of any layer over an even share"),
    _metric("drop_rate", "1", "lower", False, "Share of slots that found their expert full, mean over layers"),
    _metric("decode_tokens_per_s", "token/s", "higher", False, "Generated tokens a second"),
    _metric("time_to_first_token_s", "s", "lower", False, "Seconds from prompt to first token"),
    _metric("acceptance_rate", "1", "higher", False, "Share of drafted tokens that were accepted"),
    _metric("mean_exit_layer", "1", None, False, "Mean layer at which tokens left the model"),
    _metric("decode_time_ratio", "1", "lower", False, "Seconds a generated token over the reference's, interleaved"),
    _metric("decode_flops_per_token", "FLOP/token", "lower", False, "FLOPs a generated token, as executed"),
    _metric("decode_j_per_token", "J/token", "lower", False, "Gross energy a generated token"),
    _metric("tokens_per_call", "token", "higher", False, "Tokens that a call of the checking model adds"),
    _metric("exit_threshold", "1", None, False, "Confidence at which a token leaves early"),
    _metric("token_accuracy", "1", "higher", False, "Share of held-out tokens that it would have written"),
    _metric("token_agreement", "1", "higher", False, "Share of held-out tokens where it chooses as the reference"),
    _metric("decode_loss", "nat/token", "lower", False, "Cross-entropy on held-out text, read as it decodes"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""name -> metric."""

_FAMILIES: dict[str, tuple[str, Direction, str]] = {
    "accuracy": ("1", "higher", "Accuracy on {}"),
    "bits_per_byte": ("bit/byte", "lower", "Bits a byte on {}"),
}


def find(name: str) -> Metric:
    """The metric of a name, members of `accuracy/` and `bits_per_byte/` included.

    Raises:
        UnknownMetric: there is none.
    """
    if name in METRICS:
        return METRICS[name]
    family, _, member = name.partition("/")
    if family in _FAMILIES and member:
        unit, direction, about = _FAMILIES[family]
        return _metric(name, unit, direction, False, about.format(member))
    near = difflib.get_close_matches(name, [*METRICS, "accuracy/TASK", "bits_per_byte/DOMAIN"], n=1)
    hint = f"; hint: did you mean `{near[0]}`?" if near else f"; hint: one of {', '.join(METRICS)}"
    raise UnknownMetric(f"unknown metric {name!r}{hint}")
