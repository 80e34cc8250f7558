"""Our linear layer against torch's: a forward and backward pass in bf16.

    python benchmarks/linear.py --threads 1

For each shape (inputs x outputs) both layers work in rounds A B B A on the same 2,048 tokens; the ratio is the median
over rounds. With one thread the clock is processor time, which neighbours on the machine disturb less than wall time;
with more it is wall time. `linear.WIDE`, below which ours is torch's, is lifted here: this shows why it is there.
Shapes: queries, keys and values, gate and up, at the widths of `benchmarks/train.py` and one between.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from lmopt.arch import linear
from lmopt.compute.memory import tune_allocator

TOKENS = 2048
SHAPES = ((192, 576), (192, 1024), (256, 768), (256, 1408), (320, 960), (320, 1728), (512, 1536), (512, 2752))
WARMUP_ROUNDS = 3


def seconds(layer: nn.Linear, clock: Callable[[], float], passes: int = 4) -> float:
    """Of a forward and backward pass, mean of several."""
    x_ND = torch.randn(TOKENS, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    grad_NF = torch.randn(TOKENS, layer.out_features, dtype=torch.bfloat16)
    start_s = clock()
    for _ in range(passes):
        layer.weight.grad = x_ND.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            y_NF = layer(x_ND)
        y_NF.backward(grad_NF)
    return (clock() - start_s) / passes


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tune_allocator()
    linear.WIDE = 0
    clock = time.process_time if arguments.threads == 1 else time.perf_counter
    print("inputs x outputs   torch ms   ours ms   ours is faster by")
    for inputs, outputs in SHAPES:
        layers = nn.Linear(inputs, outputs, bias=False), linear.Linear(inputs, outputs)
        rounds: list[tuple[float, float]] = []
        for _ in range(WARMUP_ROUNDS + arguments.rounds):
            spent = [0.0, 0.0]
            for which in (0, 1, 1, 0):
                spent[which] += seconds(layers[which], clock) / 2
            rounds.append((spent[0], spent[1]))
        theirs, ours = (statistics.median(column) * 1e3 for column in zip(*rounds[WARMUP_ROUNDS:], strict=True))
        ratios = sorted(a / b for a, b in rounds[WARMUP_ROUNDS:])
        print(
            f"{inputs:>6} x {outputs:<9} {theirs:>8.2f} {ours:>9.2f}   {statistics.median(ratios):.2f}x "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
