"""A short measurement of this machine, so that `plan` can say how long a study takes before it is started.

Matrix products of a few widths at each precision, and the bandwidth of memory: under three seconds, kept in the user's
cache folder by machine and version of torch. An estimate, never evidence.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, ValidationError

from bench import machine
from bench.instruments.clock import NS_PER_S, Clock, now_ns, synchronise
from bench.instruments.codecarbon import cache_folder

if TYPE_CHECKING:
    import torch

ROWS = 2048
"""Tokens of a matrix product: 8 sequences of 256."""
WIDTHS = (128, 256, 512, 1024)
"""Widths of the square weights that are multiplied."""
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16"}
REPEATS = 5
SLICE_S = 0.25
"""Longest time spent on one width at one precision."""
COPY_BYTES = 256 * 2**20
TRAINING_SHARE = 0.4
"""Share of the rate of bare matrix products that a whole training step of a small decoder keeps (attention, norms,
optimizer and the shares of small products come on top); measured with this package's own step, between 0.3 and 0.5."""
SCHEMA = 1


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
    """Precision -> width -> FLOP/s of (2048, width) x (width, width)."""
    bytes_per_s: float
    """Memory bandwidth: bytes read plus bytes written, of a copy that fits no cache."""

    @property
    def peak_flops_per_s(self) -> dict[str, float]:
        """Precision -> best measured rate of a matrix product: what MFU is a share of."""
        return {precision: max(rates.values()) for precision, rates in self.matmul_flops_per_s.items()}

    @property
    def train_flops_per_s(self) -> dict[str, float]:
        """Precision -> FLOP/s that a training step may be expected to keep: a share of the median width's rate."""
        return {
            precision: TRAINING_SHARE * statistics.median(rates.values())
            for precision, rates in self.matmul_flops_per_s.items()
        }


def calibrate(*, folder: Path | None = None, facts: machine.Facts | None = None) -> Calibration:
    """The kept calibration of this machine, or a new one (under three seconds beside the import of torch).

    Args:
        folder: where it is kept; default the user's cache folder.
        facts: this machine's fingerprint, if it is known already.
    """
    env = machine.env_id(facts)
    kept = cached(folder=folder, env=env)
    if kept is not None:
        return kept
    measured = measure(env)
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


def measure(env: str, *, clock: Clock = now_ns, widths: tuple[int, ...] = WIDTHS) -> Calibration:
    """Measure the machine now."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rates = {
        precision: {width: _matmul_rate(getattr(torch, dtype), width, device, clock) for width in widths}
        for precision, dtype in PRECISIONS.items()
    }
    return Calibration(
        env=env,
        device=device,
        threads=torch.get_num_threads(),
        matmul_flops_per_s=rates,
        bytes_per_s=_bandwidth(device, clock),
    )


def _path(folder: Path | None, env: str) -> Path:
    return (folder or cache_folder()) / f"calibration-{env}.json"


def _matmul_rate(dtype: torch.dtype, width: int, device: str, clock: Clock) -> float:
    """FLOP/s of (ROWS, width) x (width, width), the best of a few; 1 multiply-add is 2 FLOPs."""
    import torch

    left = torch.ones(ROWS, width, dtype=dtype, device=device)
    right = torch.ones(width, width, dtype=dtype, device=device)
    best_s = _best_s(lambda: torch.mm(left, right), device, clock)
    return 2 * ROWS * width * width / best_s


def _bandwidth(device: str, clock: Clock) -> float:
    """Bytes read and written a second by a copy."""
    import torch

    source = torch.ones(COPY_BYTES // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * COPY_BYTES / _best_s(lambda: target.copy_(source), device, clock)


def _best_s(work: Callable[[], object], device: str, clock: Clock) -> float:
    """Shortest of up to REPEATS runs after one to warm up, within SLICE_S."""
    work()
    synchronise(device)
    best_ns, deadline = 0, clock() + int(SLICE_S * NS_PER_S)
    for _ in range(REPEATS):
        start = clock()
        work()
        synchronise(device)
        took = clock() - start
        best_ns = min(best_ns or took, took)
        if clock() > deadline:
            break
    return max(best_ns, 1) / NS_PER_S
