"""A few profiled training steps of one arm: where the time goes, how close to this machine's limit, a trace to open.

The trace is Chrome JSON, which https://ui.perfetto.dev and chrome://tracing read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.forecast import columns
from bench.suite import Suite, load_suite
from lmopt.quantities import human_bytes
from lmopt.recipe import Recipe

TOP_OPERATORS = 18
WARMUP_STEPS = 3


def profile(suite: Path, arm: str, *, steps: int = 5, out: Path | None = None) -> str:
    """Profile training steps of `arm` at the suite's first scale on random tokens; returns a table of operators.

    Writes `<arm>.trace.json`.

    Raises:
        SuiteError: the suite is invalid or has no such arm.
        ValueError: fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    loaded = load_suite(suite)
    recipe = _recipe(loaded, arm)
    folder = out or Path("results") / "profiles" / loaded.suite
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / f"{arm}.trace.json"
    table, step_s, peak_bytes = _profiled(recipe, steps, trace)
    return "\n\n".join(
        [table, _limits(recipe, step_s, peak_bytes), f"trace: {trace} (open in https://ui.perfetto.dev)"]
    )


def _recipe(suite: Suite, arm: str) -> Recipe:
    return suite.resolve(arm, suite.over.scale[0].name)


def _profiled(recipe: Recipe, steps: int, trace: Path) -> tuple[str, float, int]:
    """Table, mean seconds of an unprofiled step, and peak bytes of tensors."""
    import time

    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from bench import workloads

    total = 2 * (WARMUP_STEPS + steps)
    state = workloads.start(recipe, seed=0, horizon=total * recipe.batching.tokens / recipe.tokens)
    shape = (recipe.batching.sequences, recipe.batching.length + 1)
    tokens = torch.randint(recipe.model.vocab or 1, shape, generator=torch.Generator().manual_seed(0))
    pulled = workloads.train(state, iter([tokens] * total))
    for _ in range(WARMUP_STEPS):
        next(pulled)
    begin_s = time.perf_counter()
    for _ in range(steps):
        next(pulled)
    step_s = (time.perf_counter() - begin_s) / steps
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with torch_profile(activities=activities, profile_memory=True, record_shapes=False) as profiler:
        for _ in range(steps):
            next(pulled)
    profiler.export_chrome_trace(str(trace))
    return _operators(profiler.key_averages(), steps), step_s, _tensor_bytes(state.model)


def _tensor_bytes(model: Any) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _operators(events: Any, steps: int) -> str:
    """Operators by the time spent in themselves, on the device where there is one."""
    has_device = any(event.self_device_time_total for event in events)

    def self_us(event: Any) -> float:
        return event.self_device_time_total if has_device else event.self_cpu_time_total

    total_us = sum(self_us(event) for event in events) or 1.0
    rows = [("operator", "ms/step", "share", "calls/step")]
    for event in sorted(events, key=self_us, reverse=True)[:TOP_OPERATORS]:
        share = self_us(event) / total_us
        rows.append(
            (
                event.key[:60],
                f"{self_us(event) / steps / 1000:.2f}",
                f"{100 * share:.1f} %",
                f"{event.count / steps:.0f}",
            )
        )
    return columns(rows)


def _limits(recipe: Recipe, step_s: float, weight_bytes: int) -> str:
    """Tokens a second, achieved FLOP/s, and its share of the measured peak of this machine."""
    from bench import calibrate
    from lmopt import cost

    tokens = recipe.batching.tokens
    achieved = cost.train_flops_per_token(recipe).model * tokens / step_s
    peak = calibrate.calibrate().peak_flops_per_s.get(recipe.precision.kind)
    rows = [
        ("step (not profiled)", f"{1000 * step_s:.1f} ms"),
        ("tokens per second", f"{tokens / step_s:,.0f}"),
        ("model FLOP/s", f"{achieved / 1e9:,.1f} GFLOP/s"),
        (
            "measured peak",
            f"{peak / 1e9:,.0f} GFLOP/s ({recipe.precision.kind} matrix product)" if peak else "not measured",
        ),
        ("MFU", f"{100 * achieved / peak:.1f} %" if peak else "not measured"),
        ("weights", human_bytes(weight_bytes)),
    ]
    return columns(rows, numeric_from=2)
