"""One endpoint of one arm, judged: the saving with its bounds, its outcome, and why in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import savings
from bench.design import ArmDesign, Endpoint
from bench.ledger import TRAINING_ALONE, AllIn
from bench.savings import Readings, Saving
from bench.stats.additive import NO_REPLICATE, Value
from bench.stats.effect import Effect
from bench.stats.holm import Adjusted, OneSided, holm
from bench.stats.power import detectable
from bench.study import Study
from bench.words import NEAR_ALL, TENFOLD, Outcome, finite, interval, percent, saved, several

WORDS: dict[Endpoint, str] = {"flops": "training FLOPs", "time": "training time", "energy": "training energy"}


@dataclass(frozen=True, slots=True)
class Adjustment:
    """A claim's two one-sided tests after Holm: whether the saving reaches the claim, and whether it cannot."""

    supports: Adjusted
    refutes: Adjusted

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the saving."""
        return self.supports.lower, -self.refutes.lower


def adjust(claims: Mapping[str, Saving], at_least: float, alpha: float) -> dict[str, Adjustment]:
    """Holm over the claim arms of one endpoint and scale; arms without a value take no part."""
    measured = {name: (saving.found.effect, saving.all_in) for name, saving in claims.items()}
    known = {name: (effect, all_in) for name, (effect, all_in) in measured.items() if effect and all_in}
    supports = holm([_supporting(effect, all_in, at_least) for effect, all_in in known.values()], at_least, alpha)
    refutes = holm([_refuting(effect, all_in, at_least) for effect, all_in in known.values()], -at_least, alpha)
    return {name: Adjustment(one, two) for name, one, two in zip(known, supports, refutes, strict=True)}


def _supporting(effect: Effect, all_in: AllIn, at_least: float) -> OneSided:
    p = effect.p_not_below(all_in.log_ratio(at_least))
    return OneSided(p, lambda alpha: all_in.saving(effect.upper(alpha)))


def _refuting(effect: Effect, all_in: AllIn, at_least: float) -> OneSided:
    p = effect.p_not_above(all_in.log_ratio(at_least))
    return OneSided(p, lambda alpha: -_upper(effect, all_in, alpha))


def _upper(effect: Effect, all_in: AllIn, alpha: float) -> float:
    """Upper bound of the saving; infinite where the cost is not bounded from below."""
    log_ratio = effect.lower(alpha)
    return float("inf") if log_ratio == float("-inf") else all_in.saving(log_ratio)


def describe(study: Study, arm: ArmDesign, saving: Saving, readings: Readings, alpha: float) -> dict[str, Any]:
    """Everything about an endpoint that is not a decision, ready for verdict.json."""
    effect, all_in = saving.found.effect, saving.all_in
    described: dict[str, Any] = {
        "saving_training": None, "saving_all_in": None, "bounds": [None, None], "bounds_training": [None, None],
        "bounds_adjusted": [None, None], "level": 1 - 2 * alpha, "alpha": alpha, "n_seeds": 0, "sd": None, "df": None,
        "how": None, "reading": _reading(study, arm), "noise_class": savings.noise_class(arm),
        "source": saving.found.source or None,
        "dropped_seeds": {str(seed): why for seed, why in readings.dropped.items()}, "per_seed": [],
        "censored": {"never_reached": 0, "reached_at_once": 0}, "detectable_saving": None,
    }  # fmt: skip
    described |= _break_even(saving)
    if effect is None:
        return described
    censored = [value for value in saving.found.by_seed.values() if not value.exact]
    described |= {
        "saving_training": _share(effect.value, TRAINING_ALONE),
        "bounds_training": _bounds(effect, TRAINING_ALONE, alpha),
        "n_seeds": effect.n, "sd": finite(effect.sd), "df": finite(effect.df), "how": effect.how,
        "noise": {"sd": finite(effect.noise), "arms": effect.arms},
        "censored": {
            "never_reached": sum(value.high == float("inf") for value in censored),
            "reached_at_once": sum(value.low == float("-inf") for value in censored),
        },
        "per_seed": [_seed(seed, value, all_in) for seed, value in saving.found.by_seed.items()],
    }  # fmt: skip
    if all_in is not None:
        described["saving_all_in"] = _share(effect.value, all_in)
        described["bounds"] = described["bounds_adjusted"] = _bounds(effect, all_in, alpha)
        threshold = study.design.hypothesis.saving.at_least if arm.role == "claim" else 0.0
        described["detectable_saving"] = detectable_saving(effect, all_in, threshold, alpha)
    return described


def detectable_saving(effect: Effect, all_in: AllIn, threshold: float, alpha: float) -> float | None:
    """The true saving that this study would have shown; 1 (none is large enough) where preparation alone forbids it.

    Args:
        threshold: what it must lie above.
        alpha: one-sided error at which it is judged.
    """
    room = detectable(effect, alpha)
    if room is None:
        return None
    limit = all_in.log_ratio(threshold)
    return 1.0 if limit == -math.inf else finite(all_in.saving(limit - room))


def _reading(study: Study, arm: ArmDesign) -> str:
    return "own curve" if study.design.layout == "full" and arm.role == "claim" else "reference's curve"


def _break_even(saving: Saving) -> dict[str, Any]:
    effect = saving.found.effect
    tokens, why = saving.preparation.break_even_tokens(saving.per_token_cost, effect.value if effect else None)
    return {"break_even_tokens": finite(tokens), "break_even_why": why}


def _share(log_ratio: float | None, all_in: AllIn) -> float | None:
    return None if log_ratio is None else finite(all_in.saving(log_ratio))


def _bounds(effect: Effect, all_in: AllIn, alpha: float) -> list[float | None]:
    return [finite(all_in.saving(effect.upper(alpha))), finite(_upper(effect, all_in, alpha))]


def _seed(seed: int, value: Value, all_in: AllIn | None) -> dict[str, Any]:
    """A seed's saving; one that is only known to lie beyond a limit has two ends, of which one may be open."""
    convert = all_in or TRAINING_ALONE
    ends = [
        finite(convert.saving(value.high)),
        None if value.low == float("-inf") else finite(convert.saving(value.low)),
    ]
    return {"seed": seed, "saving": ends[0] if value.exact else None, "ends": ends}


# --- outcomes ------------------------------------------------------------------------------------


def judge_component(described: dict[str, Any], saving: Saving, readings: Readings, unfinished: str | None) -> None:
    """SAVES, COSTS or UNCLEAR against zero; fills in `outcome` and `why`."""
    missing = unfinished or unmeasured(saving, readings)
    if missing:
        described |= {"outcome": "NOT MEASURED", "why": missing}
        return
    low, high = described["bounds"]
    outcome: Outcome = "UNCLEAR"
    if low is not None and low > 0:
        outcome = "SAVES"
    elif high is not None and high < 0:
        outcome = "COSTS"
    reason = sentence(described, saving)
    if outcome == "UNCLEAR":
        reason += "; " + no_interval(described, "the interval holds zero")
    described |= {"outcome": outcome, "why": reason}


def unmeasured(saving: Saving, readings: Readings) -> str | None:
    """Why an endpoint has no value."""
    if saving.found.effect is None:
        reason = saving.found.reason or "nothing was measured"
        dropped = _dropped(readings)
        return reason if not dropped or reason in dropped else f"{reason} ({dropped})"
    if saving.all_in is None:
        return f"preparation cannot be charged: {saving.all_in_reason}"
    return None


def _dropped(readings: Readings, most: int = 2) -> str:
    """Why seeds have no reading, each reason once: without a seed where it is that of all, or names its own."""
    seeds: dict[str, list[int]] = {}
    for seed, why in readings.dropped.items():
        seeds.setdefault(why, []).append(seed)
    is_of_all = len(seeds) == 1 and not readings.by_seed
    said: list[str] = []
    for why, of in list(seeds.items())[:most]:
        names_its_own = f"seed {of[0]}" in why
        who = "" if is_of_all or names_its_own else f"seed{'s' if len(of) > 1 else ''} {', '.join(map(str, of))}: "
        said.append(who + why)
    return "; ".join(said)


def no_interval(described: Mapping[str, Any], otherwise: str) -> str:
    """Why nothing was decided: no interval at all, an open one, or one that holds both answers."""
    if described["n_seeds"] == 1:
        return "one seed gives no interval"
    if described["bounds"] == [None, None] and sum(described.get("censored", {}).values()) == described["n_seeds"]:
        needed = math.ceil(-math.log2(described["alpha"]))
        return f"no seed has a size, so there is no interval: {needed} seeds that all agree would be a sign test"
    if described["bounds"] == [None, None] and described.get("how") == NO_REPLICATE:
        return "only one seed has a size, so there is no interval"
    if described["bounds"] == [None, None]:
        return "there is no interval, because a part of it was measured only once"
    if None in described["bounds"]:
        return "the interval is open on one side"
    return otherwise


def sentence(described: Mapping[str, Any], saving: Saving) -> str:
    """`saves 27.1% [22.0, 31.3] of the training FLOPs at equal loss, preparation included (3 seeds)`."""
    value, training = described["saving_all_in"], described["saving_training"]
    n = several(described["n_seeds"], "seed")
    if value is None:
        words = _censored_words(described, saving)
        return words if words.startswith(n) and ";" not in words and " and " not in words else f"{words} ({n})"
    text = saved(value, described["bounds"])
    what = f"{'of the ' if value >= 0 else ''}{WORDS[saving.endpoint]} at equal loss"
    if training is not None and abs(training - value) >= 0.0005:
        text += f" {what}, preparation included ({_without(training, value)} without"
        tokens = described["break_even_tokens"]
        text += f"; it pays from {tokens:,.0f} training tokens" if tokens else ""
        return f"{text}; {n})"
    return f"{text} {what} ({n})"


def _without(training: float, value: float) -> str:
    """The saving without preparation; whether it saves or costs is said where the saving with it does the other."""
    said = percent(training) if training >= 0 else f"{percent(-training)} more"
    if (training >= 0) == (value >= 0):
        return said
    return f"it {'saves' if training >= 0 else 'costs'} {said}"


def _censored_words(described: Mapping[str, Any], saving: Saving) -> str:
    never, at_once = described["censored"]["never_reached"], described["censored"]["reached_at_once"]
    parts: list[str] = []
    if described["reading"] == "own curve":
        above, below = "never reached the reference's loss", "had reached the reference's loss at the shortest horizon"
    else:
        above, below = "ended above the reference's whole curve", "ended below the reference's whole curve"
    parts += [f"{several(never, 'seed')} {above}"] if never else []
    parts += [f"{several(at_once, 'seed')} {below}"] if at_once else []
    low, high = described["bounds"]
    known: list[str] = []
    if high is not None and high < NEAR_ALL:
        known.append(f"saves at most {percent(high)}" if high >= 0 else f"costs at least {percent(-high)} more")
    if low is not None and low > TENFOLD:
        known.append(f"saves at least {percent(low)}" if low >= 0 else f"costs at most {percent(-low)} more")
    of = "of the " if known and known[-1].startswith("saves") else ""
    saved = f"; it {' and '.join(known)} {of}{WORDS[saving.endpoint]}" if known else ""
    return " and ".join(parts) + saved


def judge_step(study: Study, arm: ArmDesign, scale: str, alpha: float) -> dict[str, Any]:
    """A timing arm: seconds a token against its reference's, and nothing about loss."""
    record, reason = savings.timing_record(study, arm, scale)
    step = savings.block_ratio(record, "s") if record is not None else None
    if record is not None and step is not None:
        reason = savings.evidence_problem([record])
    elif record is not None:
        reason = "the timing record holds no complete blocks"
    judged: dict[str, Any] = {
        "estimand": "step", "saving_training": None, "saving_all_in": None, "bounds": [None, None],
        "bounds_adjusted": [None, None], "level": 1 - 2 * alpha, "alpha": alpha, "n_seeds": 0, "n_blocks": 0,
    }  # fmt: skip
    if step is None or reason:
        return judged | {"outcome": "NOT MEASURED", "why": reason or "no timing"}
    bounds = _bounds(step, TRAINING_ALONE, alpha)
    value = _share(step.value, TRAINING_ALONE)
    outcome = "SAVES" if (bounds[0] or 0) > 0 else "COSTS" if bounds[1] is not None and bounds[1] < 0 else "UNCLEAR"
    why = f"a token takes {percent(abs(value or 0.0))} {'less' if (value or 0) >= 0 else 'more'} time than with "
    why += f"{study.reference(arm)}, saving {interval(bounds)} ({several(step.n, 'interleaved block')})"
    if outcome == "UNCLEAR":
        why += "; " + ("one block gives no interval" if step.se is None else "the interval holds zero")
    return judged | {
        "saving_training": value, "saving_all_in": value, "bounds": bounds, "bounds_adjusted": bounds,
        "n_seeds": 1, "n_blocks": step.n, "sd": finite(step.sd), "df": finite(step.df), "outcome": outcome, "why": why,
    }  # fmt: skip


def sign_disagreement(endpoints: Mapping[Endpoint, Mapping[str, Any]]) -> str | None:
    """A warning where an arm saves in one unit and costs in another, by its means; says what no interval shows."""
    values = {WORDS[name]: one for name, one in endpoints.items() if one["saving_all_in"] is not None}
    saved = {name: (one["bounds"][0] or 0) > 0 for name, one in values.items() if one["saving_all_in"] > 0}
    lost = {name: (one["bounds"][1] or 0) < 0 for name, one in values.items() if one["saving_all_in"] < 0}
    if not saved or not lost:
        return None
    gain, loss = (" and ".join(name for name, shown in side.items() if shown) for side in (saved, lost))
    if gain and loss:
        return f"saves {gain} but costs more {loss}"
    if gain:
        return f"saves {gain}; whether it costs more {' and '.join(lost)} is not shown"
    if loss:
        return f"costs more {loss}; that it saves {' and '.join(saved)} is not shown"
    return (
        f"may save {' and '.join(saved)} and cost more {' and '.join(lost)}: the means say so, no interval shows either"
    )
