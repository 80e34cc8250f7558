"""Our linear layer against torch's, and the head's weight gradient our way and straight: forward and backward in bf16.

    python benchmarks/linear.py --threads 1
    python benchmarks/linear.py --threads 1 --head

For each shape (inputs x outputs) both ways work in rounds A B B A on the same 2,048 tokens; the ratio is the median
over rounds. With one thread the clock is processor time, which neighbours on the machine disturb less than wall time;
with more it is wall time. The bounds within which a way is not taken (`linear.WIDE` and `TILES`, `loss.MANY_ROWS`) are
lifted here: this shows why they are there. Shapes: queries, keys and values, gate and up, at the widths of
`benchmarks/train.py` and one between; `--head`: the fused loss with 8,192 tokens of vocabulary at those widths.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn
from turns import Work, compare

from lmopt.arch import linear, loss
from lmopt.compute.memory import tune_allocator

TOKENS = 2048
SHAPES = ((192, 576), (192, 1024), (256, 768), (256, 1408), (320, 960), (320, 1728), (512, 1536), (512, 2752))
HEADS = ((192, 8192), (320, 8192), (512, 8192), (768, 8192))
WARMUP_ROUNDS = 3


def layers(inputs: int, outputs: int) -> tuple[Work, Work]:
    """(torch's layer, ours), one pass each."""
    grad_NF = torch.randn(TOKENS, outputs, dtype=torch.bfloat16)

    def passing(layer: nn.Linear) -> Work:
        x_ND = torch.randn(TOKENS, inputs, dtype=torch.bfloat16, requires_grad=True)

        def work() -> None:
            layer.weight.grad = x_ND.grad = None
            with torch.autocast("cpu", torch.bfloat16):
                y_NF = layer(x_ND)
            y_NF.backward(grad_NF)

        return work

    return passing(nn.Linear(inputs, outputs, bias=False)), passing(linear.Linear(inputs, outputs))


def heads(width: int, vocab: int) -> tuple[Work, Work]:
    """The fused loss with (its weight gradient as grad^T x, the same turned round), one pass each."""
    x_ND = torch.randn(TOKENS, width, dtype=torch.bfloat16, requires_grad=True)
    weight_VD = nn.Parameter(0.02 * torch.randn(vocab, width))
    targets_N = torch.randint(0, vocab, (TOKENS,))

    def passing(outer: Callable[[Tensor, Tensor], Tensor]) -> Work:
        def work() -> None:
            weight_VD.grad = x_ND.grad = None
            loss.outer = outer
            with torch.autocast("cpu", torch.bfloat16):
                loss.cross_entropy(x_ND, weight_VD, targets_N).backward()

        return work

    return passing(lambda grad_NV, x_ND: torch.mm(grad_NV.T, x_ND)), passing(loss.outer)


def main() -> None:
    """Print a line for each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--head", action="store_true", help="the head's fused loss instead of linear layers")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tune_allocator()
    linear.WIDE, linear.TILES, loss.MANY_ROWS = 0, True, 0
    first, second = ("straight", "turned") if arguments.head else ("torch", "ours")
    print(f"{'inputs x outputs':<18} {f'{first} ms':>12} {f'{second} ms':>10}   {second} is as many times as fast")
    for shape in HEADS if arguments.head else SHAPES:
        works = heads(*shape) if arguments.head else layers(*shape)
        found = compare(*works, rounds=arguments.rounds, warmup_rounds=WARMUP_ROUNDS, threads=arguments.threads)
        theirs_ms, ours_ms = found.first_s * 1e3, found.second_s * 1e3
        shown = f"{shape[0]:>6} x {shape[1]:<9} {theirs_ms:>12.2f} {ours_ms:>10.2f}"
        print(f"{shown}   {found.times_as_fast()}", flush=True)


if __name__ == "__main__":
    main()
