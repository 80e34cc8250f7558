"""What a finished training says in its record: metrics of its log, routers and counts. Nothing is measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from bench.casefolder import Job
from bench.instruments.flops import FlopCounts
from bench.record import Reading, missing, reading
from bench.trainlog import TrainLog
from lmopt.arch import fused
from lmopt.arch.moe import kernel_in_use
from lmopt.recipe import Moe, Recipe
from lmopt.train.loop import TrainState


def compiled_detail(state: TrainState) -> dict[str, Any]:
    """Whether the step was compiled and why not, where the recipe asks for it; empty elsewhere."""
    if not state.recipe.compile:
        return {}
    return {"compiled": {"is": state.eager is not None, "reason": state.not_compiled}}


def kernels_detail(state: TrainState) -> dict[str, Any]:
    """By what attention, norms, activations, the loss and experts trained, and why not all by kernels."""
    ffn, model, dtype = state.recipe.ffn, state.recipe.model, state.compute.dtype
    width, inner = model.width, getattr(ffn, "hidden_for", None)  # another package's need not have it
    hidden = inner(width) if inner else 0
    kernel, reason = "torch", fused.unsuited(fused.ROW_FORMATS, dtype, state.device)
    if reason is None:
        widths = width, hidden, model.head_width // 2, model.vocab or 0, state.recipe.batching.length
        reason = fused.unsuited(fused.ROW_FORMATS, dtype, state.device, *widths)
        kernel = "partly fused" if reason else "fused"
    if state.eager is not None:
        kernel, reason = "compiled", "the compiler fuses what it can itself"
    detail: dict[str, Any] = {"rows": {"kernel": kernel, "reason": reason}}
    if isinstance(ffn, Moe):
        kernel, reason = kernel_in_use(ffn, width, dtype, state.device)
        detail["experts"] = {"kernel": kernel, "reason": reason}
    return detail


def counts_detail(counts: Mapping[int, FlopCounts], recipe: Recipe) -> dict[str, Any]:
    """The three counts of the full length; of shorter ones where there are any, and whatever disagrees."""
    detail = counts[recipe.batching.length].to_dict()
    shorter = {str(length): count.to_dict() for length, count in counts.items() if length != recipe.batching.length}
    if not shorter:
        return detail
    found = [one.disagreement for one in counts.values() if one.disagreement]
    return detail | {"shorter": shorter, "agree": not found, "disagreement": "; ".join(found) or None}


def training_metrics(
    job: Job, by_length: Mapping[int, FlopCounts], log: TrainLog, compile_s: float, energy: Reading
) -> dict[str, Reading]:
    """FLOPs by count, times by stopwatch, joules a token, share of the machine's peak."""
    counts = by_length[max(by_length)]
    executed = sum(by_length[length].train_flops_per_token * tokens for length, tokens in log.tokens_by_length.items())
    model_flops = sum(
        by_length[length].train_model_flops_per_token * tokens for length, tokens in log.tokens_by_length.items()
    )
    per_token = executed / log.tokens if len(by_length) > 1 else counts.train_flops_per_token
    step_s = statistics.median(log.durations_s) if log.durations_s else None
    metrics = {
        "train_flops": reading(executed, "FLOP", "counted"),
        "train_model_flops": reading(model_flops, "FLOP", "counted"),
        "train_flops_per_token": reading(per_token, "FLOP/token", "counted"),
        "infer_flops_per_token": reading(counts.infer_flops_per_token, "FLOP/token", "counted"),
        "train_time_s": reading(log.elapsed_s, "s", "timed", "host"),
        "tokens_per_s": reading(log.tokens / log.elapsed_s, "token/s", "timed", "host"),
        "step_time_s": reading(step_s, "s", "timed", "host"),
        "compile_time_s": reading(compile_s, "s", "timed", "host"),
        "params_total": reading(counts.params_total, "1", "counted"),
        "params_active": reading(counts.params_active, "1", "counted"),
        "mfu": missing("1", "the peak of this machine was not measured"),
    }
    if job.flops_per_s_peak:
        metrics["mfu"] = reading(model_flops / log.elapsed_s / job.flops_per_s_peak, "1", "timed", "host")
    if energy.value is None or energy.grade is None:
        metrics["energy_j_per_token"] = missing("J/token", energy.reason or "no energy", energy.scope)
    else:
        metrics["energy_j_per_token"] = reading(energy.value / log.tokens, "J/token", energy.grade, energy.scope)
    return metrics


def router_metrics(report: Mapping[str, float]) -> dict[str, Reading]:
    """What the routers did in the last step, over all layers; nothing for a dense model."""

    def layers(name: str) -> list[float]:
        return [value for key, value in report.items() if key.partition("/")[2] == name]

    over = {"router_entropy": ("router_entropy", fmean, "nat/token"), "expert_load_max": ("load_max", max, "1"),
            "drop_rate": ("drop_rate", fmean, "1")}  # fmt: skip
    return {
        metric: reading(summary(found), unit, "counted")
        for metric, (name, summary, unit) in over.items()
        if (found := layers(name))
    }
