"""A short measurement of this machine, so that `plan` can say how long a study takes before it is started.

Matrix products of a few widths and a small model's training step at each precision, and the bandwidth of memory: some
four seconds on an idle machine, in a process of its own (torch would stay in a runner's memory for hours), kept in the
user's cache folder by machine and software. What was measured beside other work is measured again once the machine is
idle, and the better figure kept. An estimate, never evidence.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from pydantic import BaseModel, ConfigDict, ValidationError

from bench import machine
from bench.instruments.clock import NS_PER_S, Clock, now_ns, synchronise
from bench.instruments.codecarbon import cache_folder
from lmopt import children

if TYPE_CHECKING:
    import torch

    from lmopt.recipe import Recipe

ROWS = 2048
"""Tokens of a matrix product: 8 sequences of 256."""
WIDTHS = (128, 256, 512, 1024)
"""Widths of the square weights that are multiplied."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
SLICE_S = 0.1
"""Time spent on one width at one precision."""
COPY_BYTES = 256 * 2**20
TRAIN_SHAPE = {"layers": 4, "width": 256, "heads": 4, "vocab": 4096}
"""About 4M parameters: between the smallest suites and those that need an accelerator."""
SPARSE_FFN = {"kind": "moe", "experts": 8, "top_k": 2}
DEVICE_ROWS = 8192
DEVICE_WIDTHS = (1024, 4096, 8192)
"""The same of an accelerator. Work that fills a processor takes a GPU a few microseconds, less than its start: rates
would be a fraction of what it reaches, MFU above 1, and a study said to take far too long."""
DEVICE_TRAIN_SHAPE = {"layers": 6, "width": 1024, "heads": 16, "vocab": 16384, "context": 1024}
"""About 94M parameters, four TFLOP a step."""
DEVICE_TRAIN_SEQUENCES = 8
DEVICE_TRAIN_LENGTH = 1024
TRAIN_KINDS: dict[str, dict[str, object]] = {
    "fp32": {"precision": {"kind": "fp32"}},
    "bf16": {"precision": {"kind": "bf16"}},
    "bf16+moe": {"precision": {"kind": "bf16"}, "ffn": SPARSE_FFN},
}
"""Name of a training rate -> what the step is made of. A sparse step does fewer FLOP/s than a dense one."""
TRAIN_SEQUENCES = 4
TRAIN_LENGTH = 256
FIXED_SHAPE = {"layers": 4, "width": 32, "heads": 2, "vocab": 256}
"""A model so small that its step is all calls and no arithmetic."""
FIXED_LENGTH = 32
TRAIN_S = 0.6
"""Time spent on training steps at one precision (a step that takes longer is the only one)."""
BUSY_LOAD = 0.75
"""Load average a core above which a measurement is taken to be disturbed."""
BUSY_SHARE = 0.1
"""Share of the usable cores that other processes may take meanwhile. A load average of the last minute does not know
what has just begun."""
TIMEOUT_S = 300.0
SCHEMA = 7


class CalibrationError(RuntimeError):
    """The machine could not be measured: says why. Planning and running go on without times."""


class Calibration(BaseModel):
    """What was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    schema_version: int = SCHEMA
    env: str
    """Machine and software that it holds for."""
    device: str
    """`cpu` or `cuda`."""
    threads: int
    """Threads of torch when it was measured."""
    matmul_flops_per_s: dict[str, dict[int, float]]
    """Precision -> width -> FLOP/s of (2048, width) x (width, width), 8192 rows on an accelerator."""
    train_flops_per_s: dict[str, float]
    """`fp32`, `bf16`, `bf16+moe` -> FLOP/s of the training step of a small decoder, executed FLOPs."""
    fixed_s: dict[str, float]
    """The same names -> seconds that a forward and backward pass of one layer takes however small it is."""
    bytes_per_s: float
    """Memory bandwidth: bytes read plus bytes written, of a copy that fits no cache."""
    busy: bool
    """Others kept the machine busy meanwhile, so that it may be faster than this."""

    @property
    def peak_flops_per_s(self) -> dict[str, float]:
        """Precision -> best measured rate of a matrix product: what MFU is a share of."""
        return {precision: max(rates.values()) for precision, rates in self.matmul_flops_per_s.items()}


def calibrate(*, folder: Path | None = None, facts: machine.Facts | None = None) -> Calibration:
    """The kept calibration of this machine, or a new one (some four seconds beside the import of torch).

    Args:
        folder: where it is kept; default the user's cache folder.
        facts: this machine's fingerprint, if it is known already.

    Raises:
        CalibrationError: the measuring process ended without a result, or not in time.
    """
    facts = facts or machine.fingerprint()
    env = machine.env_id(facts)
    kept = cached(folder=folder, env=env)
    busy = machine.is_busy(facts, BUSY_LOAD)
    if kept is not None and (busy or not kept.busy):
        return kept
    measured = _measured_apart(env, busy=busy)
    if kept is not None:
        measured = better(kept, measured)
    path = _path(folder, env)
    with suppress(OSError):  # a cache that cannot be written costs three seconds each time, nothing else
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(measured.model_dump_json())
        scratch.replace(path)
    return measured


def cached(*, folder: Path | None = None, env: str | None = None) -> Calibration | None:
    """The kept calibration of this machine, or None; imports no torch."""
    env = env or machine.env_id()
    try:
        kept = Calibration.model_validate(json.loads(_path(folder, env).read_text()))
    except (OSError, ValueError, ValidationError):
        return None
    return kept if kept.env == env and kept.schema_version == SCHEMA else None


def better(one: Calibration, other: Calibration) -> Calibration:
    """The higher figure of two calibrations of one machine: neighbours only ever make it look slower."""
    return other.model_copy(
        update={
            "matmul_flops_per_s": {
                precision: {width: max(rate, one.matmul_flops_per_s[precision][width]) for width, rate in rates.items()}
                for precision, rates in other.matmul_flops_per_s.items()
            },
            "train_flops_per_s": {
                precision: max(rate, one.train_flops_per_s[precision])
                for precision, rate in other.train_flops_per_s.items()
            },
            "fixed_s": {name: min(seconds, one.fixed_s[name]) for name, seconds in other.fixed_s.items()},
            "bytes_per_s": max(one.bytes_per_s, other.bytes_per_s),
        }
    )


def _measured_apart(env: str, *, busy: bool) -> Calibration:
    """`measure` in a process of its own."""
    command = children.command("bench.calibrate", env, *(["--busy"] if busy else []))
    try:
        done = subprocess.run(
            command, env=children.environment(), capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CalibrationError(f"calibrating this machine took over {TIMEOUT_S:g} s: it is very busy") from None
    if done.returncode:
        raise CalibrationError(
            f"calibrating this machine failed with code {done.returncode}: {done.stderr[-2000:].strip()}"
        )
    return Calibration.model_validate_json(done.stdout)


def measure(env: str, *, busy: bool, clock: Clock = now_ns, widths: tuple[int, ...] | None = None) -> Calibration:
    """Measure the machine now: its CUDA device if it has one."""
    import torch

    from lmopt.arch import fused

    fused.obstacle()  # kernels are compiled at first use: that is neither a step's time nor somebody else's work
    others_s, begin = _others_s(), clock()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    widths = widths or (WIDTHS if device == "cpu" else DEVICE_WIDTHS)
    rates = {
        precision: {width: _matmul_rate(getattr(torch, dtype), width, device, clock) for width in widths}
        for precision, dtype in PRECISIONS.items()
    }
    train = {name: _train_rate(parts, device, clock) for name, parts in TRAIN_KINDS.items()}
    fixed = {name: _fixed_s(parts, device, clock) for name, parts in TRAIN_KINDS.items()}
    bytes_per_s = _bandwidth(device, clock)
    elapsed_s = max(clock() - begin, 1) / NS_PER_S
    taken = (_others_s() - others_s) / (elapsed_s * len(os.sched_getaffinity(0)))
    return Calibration(
        env=env,
        device=device,
        threads=torch.get_num_threads(),
        matmul_flops_per_s=rates,
        train_flops_per_s=train,
        fixed_s=fixed,
        bytes_per_s=bytes_per_s,
        busy=busy or taken > BUSY_SHARE,
    )


def _others_s() -> float:
    """Seconds of processor time that everything but this process has used since the machine started."""
    of_all, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = of_all.idle + getattr(of_all, "iowait", 0.0)
    return sum(of_all[:8]) - idle - (own.user + own.system)


def _path(folder: Path | None, env: str) -> Path:
    return (folder or cache_folder()) / f"calibration-{env}.json"


def _matmul_rate(dtype: torch.dtype, width: int, device: str, clock: Clock) -> float:
    """FLOP/s of (rows, width) x (width, width), the best of a few; 1 multiply-add is 2 FLOPs."""
    import torch

    from lmopt.arch.matmul import mm

    rows = ROWS if device == "cpu" else DEVICE_ROWS
    left = torch.ones(rows, width, dtype=dtype, device=device)
    right = torch.ones(width, width, dtype=dtype, device=device)
    return 2 * rows * width * width / _best_s(lambda: mm(left, right), SLICE_S, device, clock)


def _train_rate(parts: Mapping[str, object], device: str, clock: Clock) -> float:
    """Executed FLOP/s of the training step of a small decoder on random tokens."""
    from lmopt import cost

    on_cpu = (TRAIN_SHAPE, TRAIN_SEQUENCES, TRAIN_LENGTH)
    on_device = (DEVICE_TRAIN_SHAPE, DEVICE_TRAIN_SEQUENCES, DEVICE_TRAIN_LENGTH)
    recipe = _small(parts, *(on_cpu if device == "cpu" else on_device))
    step_s = _step_s(recipe, TRAIN_S, device, clock)
    return cost.train_flops_per_token(recipe).executed * recipe.batching.tokens / step_s


def _fixed_s(parts: Mapping[str, object], device: str, clock: Clock) -> float:
    """Seconds of a layer's share in the step of a decoder with next to nothing to compute; its ends count as one."""
    recipe = _small(parts, FIXED_SHAPE, 1, FIXED_LENGTH)
    return _step_s(recipe, SLICE_S, device, clock) / (recipe.model.layers + 1)


def _small(parts: Mapping[str, object], shape: Mapping[str, int], sequences: int, length: int) -> Recipe:
    from lmopt.recipe import Recipe

    batching = {"sequences": sequences, "length": length}
    return Recipe.model_validate({"model": shape, **parts, "batching": batching, "tokens": 10**4 * sequences * length})


def _step_s(recipe: Recipe, within_s: float, device: str, clock: Clock) -> float:
    import torch

    from lmopt.train import loop

    batching, vocab = recipe.batching, recipe.model.vocab or 1
    batch = torch.randint(vocab, (batching.sequences, batching.length + 1), device=device)
    steps = loop.train(loop.start(recipe, seed=0, horizon=1.0, device=device), _forever(batch))
    return _best_s(lambda: next(steps), within_s, device, clock)


def _forever(batch: torch.Tensor) -> Iterator[torch.Tensor]:
    while True:
        yield batch


def _bandwidth(device: str, clock: Clock) -> float:
    """Bytes read and written a second by a copy to memory that was written before: new pages cost many times more."""
    import torch

    source = torch.ones(COPY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.ones_like(source)
    return 2 * COPY_BYTES / _best_s(lambda: target.copy_(source), SLICE_S, device, clock)


def _best_s(work: Callable[[], object], within_s: float, device: str, clock: Clock) -> float:
    """Shortest of as many runs as fit into `within_s`; the first, to warm up, counts only where no other fits."""

    def run_ns() -> int:
        start = clock()
        work()
        synchronise(device)
        return max(1, clock() - start)

    begin = clock()
    warm_up_ns, later_ns = run_ns(), list[int]()
    while clock() - begin < within_s * NS_PER_S:
        later_ns.append(run_ns())
    return min(later_ns, default=warm_up_ns) / NS_PER_S


if __name__ == "__main__":
    print(measure(sys.argv[1], busy="--busy" in sys.argv[2:]).model_dump_json())
