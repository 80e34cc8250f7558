"""Float32 products through oneDNN against torch's own, the three of a linear layer.

    python benchmarks/matmul.py --threads 1
    python benchmarks/matmul.py --threads 1 --step
    python benchmarks/matmul.py --threads 1 --step --kernels

For each shape (inputs x outputs) both ways multiply the same 2,048 rows (`--rows`) in rounds A B B A: y = x W^T, and
the gradients of x and of W. Printed: GFLOP/s of each, and how many times as fast ours is (median, least and most of
the rounds).
`--step`: the same of a decoder's whole training step in float32, 2,048 tokens, 8,192 in the vocabulary. `--kernels`:
of that step, all beside products by torch's operations, and by kernels of our own. On a processor
where `lmopt.arch.matmul` leaves products to torch it says so and forces them through oneDNN: this shows
whether it should. With one thread the clock is processor time, which neighbours on the machine disturb less than wall
time; with more it is wall time.
"""

from __future__ import annotations

import argparse
import itertools
import sys

import torch
from turns import Work, compare

from lmopt import cost
from lmopt.arch import fused, matmul
from lmopt.recipe import Recipe
from lmopt.train import loop

SHAPES = ((128, 384), (192, 1024), (384, 384), (384, 1152), (512, 4096), (1024, 384), (2048, 2048), (704, 32000))
STEPS = {"3m": (4, 192, 3), "10m": (6, 320, 5), "30m": (8, 512, 8)}
"""name -> layers, width, heads."""
VOCAB, SEQUENCES, LENGTH = 8192, 8, 256


def products(rows: int, inputs: int, outputs: int) -> dict[str, tuple[Work, Work]]:
    """Name -> (torch's product, ours)."""
    x_ND, weight_FD, grad_NF = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(rows, outputs)
    operands = {"y": (x_ND, weight_FD.T), "grad x": (grad_NF, weight_FD), "grad W": (grad_NF.T, x_ND)}
    return {
        name: (lambda a=a, b=b: torch.mm(a, b), lambda a=a, b=b: matmul.mm(a, b)) for name, (a, b) in operands.items()
    }


def steps(size: str, kernels: bool) -> tuple[tuple[Work, Work], float]:
    """(a training step with torch's products, or without kernels; one with ours), and the FLOPs of each."""
    layers, width, heads = STEPS[size]
    recipe = Recipe.model_validate(
        {
            "model": {"layers": layers, "width": width, "heads": heads, "vocab": VOCAB, "context": LENGTH},
            "batching": {"sequences": SEQUENCES, "length": LENGTH},
            "precision": {"kind": "fp32"},
            "tokens": 10**9,
        }
    )
    batch = torch.randint(VOCAB, (SEQUENCES, LENGTH + 1))
    training = loop.train(loop.start(recipe, seed=0), itertools.repeat(batch))

    there = fused._obstacle

    def step(ours: bool) -> object:
        if kernels:
            fused._obstacle = there if ours else lambda: "left out"
        else:
            matmul.mkl_is_slow = lambda: ours
        return next(training)

    flops = cost.train_flops_per_token(recipe).executed * SEQUENCES * LENGTH
    return (lambda: step(False), lambda: step(True)), flops


def main() -> None:
    """Print a line for each product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step", action="store_true", help="training steps instead of products")
    parser.add_argument("--kernels", action="store_true", help="with --step: without and with kernels of our own")
    parser.add_argument("--rows", type=int, default=2048, help="of the products (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if not matmul.mkl_is_slow():
        print("here products are torch's: those through oneDNN are forced", file=sys.stderr)
        matmul.mkl_is_slow = lambda: True
    works = {
        f"{inputs:>6} x {outputs:<9}{name}": (pair, 2.0 * arguments.rows * inputs * outputs)
        for inputs, outputs in ([] if arguments.step else SHAPES)
        for name, pair in products(arguments.rows, inputs, outputs).items()
    }
    works |= {f"step of {size}": steps(size, arguments.kernels) for size in (STEPS if arguments.step else ())}
    print(f"{'':<28}{'torch GFLOP/s':>14}{'ours':>8}   times as fast")
    for name, (pair, flops) in works.items():
        found = compare(*pair, rounds=arguments.rounds, warmup_rounds=1, threads=arguments.threads)
        torchs, ours = flops / found.first_s / 1e9, flops / found.second_s / 1e9
        print(f"{name:<28}{torchs:>14.0f}{ours:>8.0f}   {found.times_as_fast()}", flush=True)


if __name__ == "__main__":
    main()
