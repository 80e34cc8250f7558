"""Our training step against peers' at equal parameters, batch and sequence, in bf16: tokens/s and ratios.

    pip install --no-deps --target LITGPT -r benchmarks/litgpt.txt
    python benchmarks/train.py --sizes 3M,10M,30M --nanogpt PATH --nanochat PATH --litgpt LITGPT

Each contender lives in a process of its own, as it ships: its own allocator, its own compiled code. One works at a
time, in palindromic rounds (A B C C B A), so that a drift of the machine's speed falls on all alike; a ratio compares
blocks of the same round. Peers: Hugging Face GPT-2 and Llama from `transformers` (the extra `bench`); litgpt's Llama
from PyPI, in a folder of its own, since it wants older packages than ours (its model runs beside ours); nanoGPT's
`model.py` with the training step of its `train.py`, and nanochat's `gpt.py` with the optimizer it sets up itself (it
has value embeddings, so more parameters), from checkouts given by path. Suffixes: `+compiled` (torch.compile), `+heap`
(our allocator thresholds given to the peer too), `+composed` (ours by torch's operations, without kernels in C++).

The table goes to standard output, progress to standard error; `--json FILE` keeps every block.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from peers import CONTENDERS, LENGTH, SEQUENCES, SIZES, VOCAB, Size, our_recipe

WARMUP_STEPS = 3
SPREAD_LEVEL = 0.95


@dataclass
class Contender:
    """One process and what it said."""

    name: str
    process: Any
    pipe: Connection
    parameters: int
    first_step_s: float
    blocks_s: list[float] = field(default_factory=list)
    """Mean seconds a step, one entry a block, in the order they ran."""
    loss: float = math.nan

    def ask(self, what: Any) -> Any:
        self.pipe.send(what)
        answer = self.pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DEFAULT = "ours,ours+compiled,ours+composed,nanogpt,nanogpt+heap,nanogpt+compiled,nanochat,litgpt,hf-gpt2,hf-llama"
BY_PATH = {"nanogpt": "model.py", "nanochat": "nanochat/gpt.py", "litgpt": "litgpt/model.py"}
"""Peers that are given by path, and the file that must be there."""


# --- a contender's process -----------------------------------------------------------------------


def child(pipe: Connection, name: str, size: Size, options: argparse.Namespace) -> None:
    """Build the contender, warm it up, then answer: a number of steps -> (seconds, loss); "peak" -> FLOP/s."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    sys.stdout = sys.stderr  # some peers talk; standard output is the table's
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    base, *extras = name.split("+")
    try:
        if "heap" in extras:
            from lmopt.compute.memory import tune_allocator

            tune_allocator()
        if "composed" in extras:  # no compiler, and none of what one has made
            os.environ |= {"CXX": "left-out", "XDG_CACHE_HOME": "left-out"}
        parameters, step = CONTENDERS[base](size, "compiled" in extras, options)
        begin = time.perf_counter()
        step()
        first_s = time.perf_counter() - begin
        for _ in range(WARMUP_STEPS):
            step()
        pipe.send((parameters, first_s))
        while (what := pipe.recv()) is not None:
            pipe.send(matmul_peak_flops_per_s(clock) if what == "peak" else timed(step, what, clock))
    except Exception as error:  # noqa: BLE001 - whatever breaks a contender is the parent's to report
        pipe.send(RuntimeError(f"{name}: {type(error).__name__}: {error}"))


def timed(step: Callable[[], float], steps: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds a step by `clock`, and the last loss."""
    begin = clock()
    for _ in range(steps):
        loss = step()
    return (clock() - begin) / steps, loss


def matmul_peak_flops_per_s(clock: Callable[[], float], size: int = 2048, repeats: int = 8) -> float:
    """Best rate of a square bf16 product: what this machine could do at most."""
    import torch

    a, b = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    best_s = math.inf
    for _ in range(repeats):
        begin = clock()
        torch.mm(a, b, out=out)
        best_s = min(best_s, clock() - begin)
    return 2 * size**3 / best_s


def open_contender(name: str, size: Size, options: argparse.Namespace) -> Contender:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=child, args=(there, name, size, options), daemon=True)
    process.start()
    there.close()
    try:
        answer = here.recv()
    except EOFError:
        answer = RuntimeError(f"{name}: its process died")
    if isinstance(answer, Exception):
        raise answer
    return Contender(name, process, here, *answer)


# --- rounds and ratios -----------------------------------------------------------------------------


def measure(size: Size, names: list[str], options: argparse.Namespace) -> tuple[list[Contender], float]:
    """Run the rounds of one size; returns the contenders with their blocks, and the machine's bf16 peak."""
    contenders: list[Contender] = []
    try:
        for name in names:
            print(f"{size.name}: starting {name}", file=sys.stderr)
            contenders.append(open_contender(name, size, options))
        peak = 0.0
        for index in range(options.rounds):
            print(f"{size.name}: round {index + 1} of {options.rounds}", file=sys.stderr)
            peak = max(peak, contenders[0].ask("peak"))
            for contender in [*contenders, *reversed(contenders)]:
                step_s, contender.loss = contender.ask(options.steps)
                contender.blocks_s.append(step_s)
        return contenders, peak
    finally:
        for contender in contenders:
            contender.pipe.send(None)
            contender.process.join(10)


def round_means_s(contender: Contender) -> list[float]:
    pairs = zip(contender.blocks_s[::2], contender.blocks_s[1::2], strict=True)
    return [(first + second) / 2 for first, second in pairs]


def ratio(reference: Contender, other: Contender) -> tuple[float, float, float]:
    """How many times faster `reference` is: geometric mean over rounds and its t interval on the log scale."""
    logs = [math.log(b / a) for a, b in zip(round_means_s(reference), round_means_s(other), strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan
    from scipy.stats import t

    half = t.ppf((1 + SPREAD_LEVEL) / 2, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def report(size: Size, contenders: list[Contender], peak: float, flops_per_token: float) -> dict[str, Any]:
    """Print one size's table; return the same as data."""
    reference = contenders[0]
    batch_tokens = SEQUENCES * LENGTH
    print(f"\n{size.name}: {batch_tokens} tokens a step ({SEQUENCES} x {LENGTH}), vocabulary {VOCAB}, bf16")
    print(f"{'contender':<20}{'parameters':>12}{'tokens/s':>10}{'ms/step':>9}   {reference.name} is faster by")
    rows = []
    for contender in contenders:
        step_s = statistics.median(contender.blocks_s)
        mean, low, high = ratio(reference, contender)
        spread = "" if contender is reference else f"{mean:.2f}x  [{low:.2f}, {high:.2f}]"
        print(
            f"{contender.name:<20}{contender.parameters:>12,}"
            f"{batch_tokens / step_s:>10,.0f}{step_s * 1e3:>9.1f}   {spread}"
        )
        rows.append(
            {
                "contender": contender.name,
                "parameters": contender.parameters,
                "tokens_per_s": batch_tokens / step_s,
                "first_step_s": contender.first_step_s,
                "blocks_s": contender.blocks_s,
                "loss": contender.loss,
                "ratio": mean,
                "ratio_low": low,
                "ratio_high": high,
            }
        )
    for row in rows[: 1 + (len(contenders) > 1 and contenders[1].name.startswith("ours"))]:
        share = row["tokens_per_s"] * flops_per_token / peak
        print(
            f"{row['contender']}: {share:.0%} of the {peak / 1e9:,.0f} GFLOP/s that a 2048^3 bf16 product reaches here"
        )
    return {"size": asdict(size), "peak_flops_per_s": peak, "flops_per_token": flops_per_token, "contenders": rows}


def flops_per_token(size: Size, ffn: str) -> float:
    """Executed training FLOPs a token of our step, from the closed form."""
    from lmopt import cost

    return cost.train_flops_per_token(our_recipe(size, ffn)).executed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="3M,10M,30M", help=f"of {', '.join(SIZES)} (default: all)")
    parser.add_argument("--contenders", default=DEFAULT, help="the first is the reference (default: %(default)s)")
    parser.add_argument("--nanogpt", metavar="PATH", help="a checkout of nanoGPT; without it that peer is left out")
    parser.add_argument("--nanochat", metavar="PATH", help="the same for nanochat")
    parser.add_argument("--litgpt", metavar="PATH", help="the folder that litgpt is in; without it, left out, too")
    parser.add_argument("--ffn", choices=("swiglu", "relu2"), default="swiglu", help="our feed-forward")
    parser.add_argument("--rounds", type=int, default=6, help="palindromic rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps a block (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    parser.add_argument(
        "--clock",
        choices=tuple(CLOCKS),
        default="wall",
        help="cpu: processor time, for a machine that others use too; only with --threads 1 (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every block there")
    options = parser.parse_args()
    wrong = [s for s in options.sizes.split(",") if s not in SIZES]
    wrong += [c for c in options.contenders.split(",") if c.partition("+")[0] not in CONTENDERS]
    if wrong:
        parser.error(f"unknown: {', '.join(wrong)}")
    for peer, file in BY_PATH.items():
        path = getattr(options, peer)
        if path and not (Path(path) / file).is_file():
            parser.error(f"{path}: no {file} there")
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: waiting threads spin, and spinning counts as processor time")
    return options


def main() -> None:
    """Measure every size and print its table."""
    options = arguments()
    asked = [(name, name.partition("+")[0]) for name in options.contenders.split(",")]
    names = [name for name, peer in asked if peer not in BY_PATH or getattr(options, peer)]
    sizes = []
    for name in options.sizes.split(","):
        size = SIZES[name]
        contenders, peak = measure(size, names, options)
        sizes.append(report(size, contenders, peak, flops_per_token(size, options.ffn)))
    if options.json:
        import torch

        machine = {"processor": platform.processor() or platform.machine(), "torch": torch.__version__}
        settings = {"threads": options.threads, "rounds": options.rounds, "steps": options.steps}
        settings |= {"clock": options.clock, "ffn": options.ffn}
        text = json.dumps({"machine": machine, "settings": settings, "sizes": sizes}, indent=1)
        options.json.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
