"""The sparse layer against the dense layer of equal active width: rate per active FLOP, forward and backward, bf16.

    python benchmarks/moe.py --widths 192,384,512 --tokens 2048,4096

Sparse layers: `grouped` and `loop` are our two kernels, `naive` is the block one writes first, with indexing, one
`grouped_mm` a matrix and `index_add`; `mixtral` and `mixtral-grouped` are the block of transformers' Mixtral, with its
loop and with its grouped products, where transformers is installed. `products` is no layer but the matrix products
alone that an even load asks for, against the dense layer's: the ceiling of every kernel that is made of such products,
since router, sorting, gathering and casts of all experts come on top. Each works in a process of its own (they would
evict each other's compiled products from oneDNN's cache), interleaved there with the dense layer, SwiGLU, in rounds A
B B A. Tokens are drawn anew for every step, because an expert's number of rows then differs from step to step as it
does in training. With one thread the clock is the thread's processor time, which neighbours on the machine disturb
less than wall time; with more it is wall time.

Rate = 6 x active weights x tokens / seconds; the ratio is the median over rounds of the rate against the dense layer's.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch.experts import experts_grouped, experts_loop
from lmopt.arch.ffn import SwiGluFfn
from lmopt.arch.moe import MoeFfn
from lmopt.compute.memory import tune_allocator
from lmopt.recipe import Moe, SwiGlu

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str, None], Tensor]
WARMUP_ROUNDS = 20
"""Rounds left out: oneDNN compiles its products for the row counts that come up."""


@dataclass(frozen=True)
class Measured:
    """One layer at one shape."""

    layer: str
    width: int
    tokens: int
    rows_an_expert: int
    step_ms: float
    dense_step_ms: float
    gflop_per_s: float
    rate_against_dense: float


def naive(
    x_ND: Tensor, gate_NK: Tensor, expert_NK: Tensor, up_EFD: Tensor, down_EDF: Tensor, _: str, __: None
) -> Tensor:
    """What a first draft does: every step composed of torch's functions, gradients by autograd."""
    order_S = expert_NK.flatten().argsort(stable=True)
    token_S = order_S // expert_NK.shape[1]
    ends_E = expert_NK.flatten().bincount(minlength=len(up_EFD)).cumsum(0).to(torch.int32)
    up, down = up_EFD.to(x_ND.dtype).transpose(1, 2), down_EDF.to(x_ND.dtype).transpose(1, 2)
    gate, value = functional.grouped_mm(x_ND[token_S], up, offs=ends_E).chunk(2, dim=-1)
    y_SD = functional.grouped_mm(functional.silu(gate) * value, down, offs=ends_E)
    weighted_SD = y_SD * gate_NK.flatten()[order_S, None].to(y_SD.dtype)
    return torch.zeros_like(x_ND).index_add(0, token_S, weighted_SD)


def step(layer: nn.Module, x_BTD: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of one forward and backward pass on fresh tokens."""
    for parameter in layer.parameters():
        parameter.grad = None
    x_BTD.grad, grad_BTD = None, torch.randn_like(x_BTD)
    with torch.no_grad():
        x_BTD.normal_()
    start_s = clock()
    with torch.autocast("cpu", torch.bfloat16):
        y_BTD, auxiliary = layer(x_BTD)
    total = (y_BTD * grad_BTD).sum() if auxiliary is None else (y_BTD * grad_BTD).sum() + auxiliary
    total.backward()
    return clock() - start_s


KERNELS: dict[str, Experts] = {"grouped": experts_grouped, "naive": naive, "loop": experts_loop}
PRODUCTS = "products"
PEERS = {"mixtral": "eager", "mixtral-grouped": "grouped_mm"}


class Mixtral(nn.Module):
    """The block of transformers' Mixtral, called as ours are."""

    def __init__(self, config: Moe, width: int, implementation: str) -> None:
        super().__init__()
        from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralSparseMoeBlock

        described = MixtralConfig(
            hidden_size=width,
            intermediate_size=config.hidden_for(width),
            num_local_experts=config.experts,
            num_experts_per_tok=config.top_k,
        )
        described._experts_implementation = implementation
        self.block = MixtralSparseMoeBlock(described)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, None]:
        return self.block(x_BTD), None


Turn = Callable[[], float]
"""Works once and says how many seconds that took."""


def layers(kernel: str, width: int, tokens: int, config: Moe, clock: Callable[[], float]) -> tuple[Turn, Turn]:
    """A step of the dense layer, and one of the sparse layer."""
    dense = SwiGluFfn(width, SwiGlu().hidden_for(width))
    if kernel in PEERS:
        sparse: nn.Module = Mixtral(config, width, PEERS[kernel])
    else:
        sparse = MoeFfn(config, width)
        sparse.experts = KERNELS[kernel]
    for parameter in (*dense.parameters(), *sparse.parameters()):
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x_BTD = torch.empty(1, tokens, width, dtype=torch.bfloat16, requires_grad=True)
    return lambda: step(dense, x_BTD, clock), lambda: step(sparse, x_BTD, clock)


def products(rows: int, width: int, hidden: int, experts: int, clock: Callable[[], float]) -> Turn:
    """The six products of `experts` SwiGLU layers on `rows` each, forward and backward, and nothing else."""
    shapes = (rows, width), (rows, hidden), (rows, width), (rows, 2 * hidden), (2 * hidden, width), (width, hidden)
    operands = [[torch.randn(shape).bfloat16() for shape in shapes] for _ in range(experts)]

    def turn() -> float:
        start_s = clock()
        for x, h, _, _, up, down in operands:
            torch.mm(x, up.t())
            torch.mm(h, down.t())
        for x, h, grad_y, grad_inner, up, down in operands:
            torch.mm(grad_y.t(), h)
            torch.mm(grad_y, down)
            torch.mm(grad_inner, up)
            torch.mm(grad_inner.t(), x)
        return clock() - start_s

    return turn


def measure(kernel: str, width: int, tokens: int, experts: int, top_k: int, rounds: int, threads: int) -> Measured:
    """One kernel at one shape."""
    torch.set_num_threads(threads)
    tune_allocator()
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    config = Moe(experts=experts, top_k=top_k)
    hidden, dense_hidden, rows = config.hidden_for(width), SwiGlu().hidden_for(width), tokens * top_k // experts
    dense_weights, active_weights = 3 * width * dense_hidden, top_k * 3 * width * hidden
    if kernel == PRODUCTS:
        dense = products(tokens, width, dense_hidden, 1, clock)
        sparse = products(rows, width, hidden, experts, clock)
    else:
        dense, sparse = layers(kernel, width, tokens, config, clock)
        active_weights += experts * width
    seconds: list[tuple[float, float]] = []
    for _ in range(WARMUP_ROUNDS + rounds):
        a, b, c, d = (turn() for turn in (dense, sparse, sparse, dense))
        seconds.append((a + d, b + c))
    dense_s, sparse_s = zip(*seconds[WARMUP_ROUNDS:], strict=True)
    return Measured(
        layer=kernel,
        width=width,
        tokens=tokens,
        rows_an_expert=rows,
        step_ms=1e3 * statistics.median(sparse_s) / 2,
        dense_step_ms=1e3 * statistics.median(dense_s) / 2,
        gflop_per_s=6 * active_weights * tokens / (statistics.median(sparse_s) / 2) / 1e9,
        rate_against_dense=statistics.median(
            active_weights * d / (dense_weights * s) for d, s in seconds[WARMUP_ROUNDS:]
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="192,384", help="widths of the residual stream")
    parser.add_argument("--tokens", default="2048,4096", help="tokens a step")
    known = (PRODUCTS, *KERNELS, *(PEERS if importlib.util.find_spec("transformers") else ()))
    parser.add_argument("--layers", default=",".join(known), help="those to measure (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    arguments = parser.parse_args()
    for kernel in arguments.layers.split(","):
        if kernel not in known:
            parser.error(f"--layers: {kernel!r} is none of {', '.join(known)}")
    print(f"torch {torch.__version__}, {arguments.threads} threads", file=sys.stderr)
    spawn = multiprocessing.get_context("spawn")
    for width in map(int, arguments.widths.split(",")):
        for tokens in map(int, arguments.tokens.split(",")):
            for kernel in arguments.layers.split(","):
                shape = (kernel, width, tokens, arguments.experts, arguments.top_k, arguments.rounds, arguments.threads)
                with spawn.Pool(1) as pool:
                    show(pool.apply(measure, shape), as_json=arguments.json)


def show(found: Measured, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    print(
        f"width {found.width:4}  tokens {found.tokens:5}  rows/expert {found.rows_an_expert:5}  {found.layer:16}"
        f"{found.step_ms:7.1f} ms, dense {found.dense_step_ms:7.1f} ms  {found.gflop_per_s:5.0f} GFLOP/s  "
        f"{found.rate_against_dense:5.2f} x dense",
        flush=True,
    )


if __name__ == "__main__":
    main()
