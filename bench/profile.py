"""A few profiled training steps of one arm: where time, FLOPs and memory go, and how close to this machine's limit.

Leaves two files: a trace in Chrome's JSON, which https://ui.perfetto.dev reads, and `ARM.profile.json`, from which the
run's report draws. Nothing here is evidence: a profiled step is slower than a plain one.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.casefolder import write_atomically
from bench.forecast import columns
from bench.suite import Suite, load_suite
from lmopt.quantities import human_bytes
from lmopt.recipe import Recipe

if TYPE_CHECKING:
    from bench.operators import Operator, Work
    from bench.timeline import Point

SCHEMA = 1
FOLDER = "profiles"
"""Where a run folder keeps profiles."""
TOP_OPERATORS = 18
"""Rows of the table, which so fits a screen; all operators stand in `ARM.profile.json`."""
SHORTEST_NAME, LONGEST_NAME = 17, 44
"""Letters of an operator's name in the table."""
WARMUP_STEPS = 3
"""Steps before the first that is timed: kernels are compiled and memory is new in them."""
MOST_STEPS = 1000
"""A trace holds every operator of every step: a few megabytes each."""
DISTURBED = "The machine was measured beside other work: its limits are higher, and shares of them lower than shown."
QUIET = {"KINETO_LOG_LEVEL": "6", "TORCH_CPP_LOG_LEVEL": "ERROR"}
"""What keeps the profiler's own lines (`USDT: profiler_start`, blocks of unknown size) off the terminal where torch is
not imported yet; who sets these variables sees them."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the steps showed."""

    step_s: float
    """Mean of steps that were not profiled."""
    operators: list[Operator]
    memory: list[Point]
    weight_bytes: int


def profile(
    suite: Path, arm: str, *, steps: int = 5, out: Path | None = None, run: Path | None = None, width: int | None = None
) -> str:
    """Profile training steps of `arm` at the suite's first scale on random tokens; returns tables for people.

    Args:
        out: where the files go; default `results/profiles/<suite>`.
        run: a run folder of this suite, in whose report the profile is to appear (instead of `out`).
        width: letters a line of the terminal; None cuts no name short but by `LONGEST_NAME`.

    Raises:
        SuiteError: the suite is invalid or has no such arm.
        ProfileError: no step, more than a trace can hold, or `run` is no run folder of this suite.
    """
    if not 1 <= steps <= MOST_STEPS:
        raise ProfileError(f"--steps must be from 1 to {MOST_STEPS:,}, got {steps}")
    for name, level in QUIET.items():
        os.environ.setdefault(name, level)
    loaded = load_suite(suite)
    scale = loaded.over.scale[0].name
    recipe = loaded.resolve(arm, scale)
    folder = _folder(loaded, out, run)
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder / f"{arm}.trace.json"
    found = _facts(recipe, _in_place(arm, recipe, steps, trace)) | {"arm": arm, "scale": scale}
    write_atomically(folder / f"{arm}.profile.json", json.dumps(found, indent=1))
    parts = [_operator_table(found, width), _limits(found), *([DISTURBED] if found["disturbed"] else [])]
    return "\n\n".join([*parts, f"trace: {trace} (open in https://ui.perfetto.dev)"])


class ProfileError(ValueError):
    """What was asked for cannot be profiled."""


def _folder(suite: Suite, out: Path | None, run: Path | None) -> Path:
    if run is None:
        return out or Path("results") / FOLDER / suite.suite
    try:
        name = json.loads((run / "plan.json").read_text())["design"]["suite"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ProfileError(f"--run {run}: no run folder there; hint: give one that `lmbench run` printed") from error
    if name != suite.suite:
        raise ProfileError(f"--run {run}: holds a run of suite `{name}`, not of `{suite.suite}`")
    return run / FOLDER


# --- measuring -----------------------------------------------------------------------------------


def _in_place(arm: str, recipe: Recipe, steps: int, trace: Path) -> Measured:
    """`_measured` where the recipe wants threads and memory; without that it would be another arm's profile.

    Raises:
        ProfileError: this machine cannot place it so.
    """
    from bench.workloads import placed
    from lmopt.compute.numa import NotApplicable, PlacementError
    from lmopt.compute.topology import NoSuchNode

    try:
        with placed(recipe):
            return _measured(recipe, steps, trace)
    except (NotApplicable, NoSuchNode, PlacementError) as error:
        raise ProfileError(f"arm {arm!r}: {error}") from error


def _measured(recipe: Recipe, steps: int, trace: Path) -> Measured:
    """Warm up, time plain steps, count one step's work, then profile."""
    from bench import workloads
    from bench.operators import operators, work_of
    from bench.timeline import memory_timeline

    step, weight_bytes = _steps(recipe, WARMUP_STEPS + 1 + 2 * steps)
    for _ in range(WARMUP_STEPS):
        step()
    begin_s = time.perf_counter()
    for _ in range(steps):
        step()
    step_s = (time.perf_counter() - begin_s) / steps
    # compiled steps dispatch no operators of torch
    work: dict[str, Work] = {} if recipe.compiles_on(workloads.device().type) else work_of(step)
    events = _traced(step, steps, trace)
    return Measured(step_s, operators(events, work, steps), memory_timeline(trace), weight_bytes)


def _steps(recipe: Recipe, count: int) -> tuple[Callable[[], object], int]:
    """A function that does the next full training step, and the bytes of the weights."""
    import torch

    from bench import workloads

    recipe = recipe.model_copy(update={"batching": recipe.batching.full})
    state = workloads.start(recipe, seed=0, horizon=count * recipe.batching.tokens / recipe.tokens)
    shape = (recipe.batching.sequences, recipe.batching.length + 1)
    tokens = torch.randint(recipe.model.vocab or 1, shape, generator=torch.Generator().manual_seed(0))
    if recipe.batching.kind == "packed":  # one document a sequence
        tokens = torch.stack([tokens, torch.ones_like(tokens)])
    pulled = workloads.train(state, iter([tokens] * count))
    weights = sum(parameter.numel() * parameter.element_size() for parameter in state.model.parameters())
    return lambda: next(pulled), weights


def _traced(step: Callable[[], object], steps: int, trace: Path) -> Any:
    """Events of the profiled steps; the trace is written on the way."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as torch_profile

    from bench.operators import kernel_named
    from lmopt.arch import fused

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    with (
        torch_profile(activities=activities, profile_memory=True, acc_events=True) as profiler,
        fused.watched(kernel_named),
    ):
        for _ in range(steps):
            step()
    profiler.export_chrome_trace(str(trace))
    return profiler.events()


# --- facts ---------------------------------------------------------------------------------------


def _facts(recipe: Recipe, measured: Measured) -> dict[str, Any]:
    """The content of a profile's file; what this machine could not be measured for is null."""
    from bench import calibrate
    from lmopt import cost

    arithmetic = recipe.precision.arithmetic
    machine = calibrate.calibrate()
    peak = machine.peak_flops_per_s.get(arithmetic)
    tokens = recipe.batching.tokens
    achieved = cost.train_flops_per_token(recipe).model * tokens / measured.step_s
    return {
        "schema": SCHEMA,
        "step_s": measured.step_s,
        "tokens_per_s": tokens / measured.step_s,
        "model_flops_per_s": achieved,
        "arithmetic": arithmetic,
        "peak_flops_per_s": peak,
        "bytes_per_s": machine.bytes_per_s,
        "disturbed": machine.busy,
        "mfu": achieved / peak if peak else None,
        "weight_bytes": measured.weight_bytes,
        "peak_tensor_bytes": max((size for _, size in measured.memory), default=None),
        "operators": [asdict(one) | _roof(one, peak, machine.bytes_per_s) for one in measured.operators],
        "memory": measured.memory,
    }


def _roof(operator: Operator, peak: float | None, bytes_per_s: float) -> dict[str, Any]:
    """What limits an operator, and how much of its time that limit explains; nulls where it dispatched no work."""
    if not peak or not (operator.flops or operator.bytes):
        return {"bound": None, "roof_share": None}
    bound = "products" if operator.is_bound_by_products(peak, bytes_per_s) else "memory"
    return {"bound": bound, "roof_share": operator.roof_s(peak, bytes_per_s) / operator.seconds}


# --- for people ----------------------------------------------------------------------------------


def _operator_table(found: dict[str, Any], width: int | None) -> str:
    """Operators by time; the last two columns say what would limit them and how near they are to it."""
    total_s = sum(one["seconds"] for one in found["operators"]) or 1.0
    shown = found["operators"][:TOP_OPERATORS]
    rows = [("ms/step", "share", "calls", "GFLOP", "MB", "GFLOP/s", "bound by", "of roof")]
    for one in shown:
        roof = one["roof_share"]
        rows.append(
            (
                f"{1000 * one['seconds']:.2f}",
                f"{100 * one['seconds'] / total_s:.1f}%",
                f"{one['calls']:.0f}",
                f"{one['flops'] / 1e9:.2f}" if one["flops"] else "",
                f"{one['bytes'] / 1e6:.0f}" if one["bytes"] else "",
                f"{one['flops'] / one['seconds'] / 1e9:,.0f}" if one["flops"] else "",
                one["bound"] or "",
                "" if roof is None else f"{100 * roof:.0f}%",
            )
        )
    taken = sum(2 + max(map(len, column)) for column in zip(*rows, strict=True))
    letters = LONGEST_NAME if width is None else min(max(width - taken, SHORTEST_NAME), LONGEST_NAME)
    names = ["operator", *(_cut(one["name"], letters) for one in shown)]
    return columns((name, *row) for name, row in zip(names, rows, strict=True))


def _cut(name: str, letters: int) -> str:
    """Its beginning and its end, where `backward` stands."""
    end = (letters - 1) // 2
    return name if len(name) <= letters else f"{name[: letters - 1 - end]}\u2026{name[-end:]}"


def _limits(found: dict[str, Any]) -> str:
    """Tokens a second, achieved FLOP/s, and its share of the measured peak of this machine."""
    peak, mfu, held = found["peak_flops_per_s"], found["mfu"], found["peak_tensor_bytes"]
    least, most = ("at least ", "at most ") if found["disturbed"] else ("", "")
    rows = [
        ("step (not profiled)", f"{1000 * found['step_s']:.1f} ms"),
        ("tokens per second", f"{found['tokens_per_s']:,.0f}"),
        ("model FLOP/s", f"{found['model_flops_per_s'] / 1e9:,.1f} GFLOP/s"),
        (
            "measured peak",
            f"{least}{peak / 1e9:,.0f} GFLOP/s ({found['arithmetic']} matrix product)" if peak else "not measured",
        ),
        ("measured bandwidth", f"{least}{found['bytes_per_s'] / 1e9:,.1f} GB/s"),
        ("MFU", f"{most}{100 * mfu:.1f}%" if mfu else "not measured"),
        ("weights", human_bytes(found["weight_bytes"])),
        ("tensors at the peak", human_bytes(held) if held else "not measured"),
    ]
    return columns(rows, numeric_from=2)
