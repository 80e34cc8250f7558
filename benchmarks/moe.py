"""The sparse layer against the dense layer of equal active width: rate per active FLOP, forward and backward, bf16.

    python benchmarks/moe.py --widths 192,384,512 --tokens 2048,4096

Sparse layers: `fused`, `grouped` and `loop` are our kernels, `naive` is the block one writes first, with indexing, one
`grouped_mm` a matrix and `index_add`; `mixtral` and `mixtral-grouped` are the block of transformers' Mixtral, with its
loop and with its grouped products, where transformers is installed. `products` is no layer but the matrix products
alone that an even load asks for, against the dense layer's: the ceiling of every kernel that is made of such products,
since router, sorting, gathering and casts of all experts come on top.

Each lives in a process of its own (they would evict each other's compiled products from oneDNN's cache), with the dense
layer, SwiGLU, beside it. One works at a time, in palindromic rounds: dense and sparse of the first, of the second, and
so on, then all of it backwards. Each turn begins with a step of both that is not counted: the threads of the process
before still spin for some milliseconds, on cores that this one wants. Ours run with our allocator thresholds, as in
training; Mixtral's as they ship, and as `mixtral+heap` with those thresholds too. Tokens are drawn anew for every step,
because an expert's number of rows then differs from step to step as it does in training. With one thread the clock is
the thread's processor time, which neighbours on the machine disturb less than wall time; with more it is wall time.

Rate = 6 x active weights x tokens / seconds; the ratios are medians over rounds: of the rate against the dense layer in
the same process, and of the first layer's speed over each other one's.
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
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection

import torch
from torch import Tensor, nn
from torch.nn import functional

from lmopt.arch import fused
from lmopt.arch.experts import experts_auto, experts_grouped, experts_loop
from lmopt.arch.ffn import SwiGluFfn
from lmopt.arch.moe import MoeFfn
from lmopt.compute.memory import tune_allocator
from lmopt.recipe import Moe, SwiGlu

Experts = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, str, None], Tensor]
WARMUP_STEPS = 40
"""Steps left out: oneDNN compiles its products for the row counts that come up."""


@dataclass(frozen=True)
class Shape:
    """What is compared at."""

    width: int
    tokens: int
    experts: int
    top_k: int

    @property
    def config(self) -> Moe:
        return Moe(experts=self.experts, top_k=self.top_k)

    @property
    def dense_weights(self) -> int:
        return 3 * self.width * SwiGlu().hidden_for(self.width)

    def active_weights(self, kernel: str) -> int:
        """Those that one token is multiplied by."""
        router = 0 if kernel == PRODUCTS else self.experts * self.width
        return self.top_k * 3 * self.width * self.config.hidden_for(self.width) + router


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
    first_is_faster_by: float
    """The first layer's speed over this one's."""


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
FUSED = "fused"
if fused.obstacle() is None:
    KERNELS = {FUSED: experts_auto, **KERNELS}
PRODUCTS = "products"
HEAP = "+heap"
PEERS = {"mixtral": "eager", "mixtral-grouped": "grouped_mm"}
PEERS |= {name + HEAP: implementation for name, implementation in PEERS.items()}


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


def layers(kernel: str, shape: Shape, clock: Callable[[], float]) -> tuple[Turn, Turn]:
    """A step of the dense layer, and one of the sparse layer."""
    width, config = shape.width, shape.config
    dense = SwiGluFfn(width, SwiGlu().hidden_for(width))
    if kernel in PEERS:
        sparse: nn.Module = Mixtral(config, width, PEERS[kernel])
    else:
        auto = kernel == FUSED  # with a router of its own
        sparse = MoeFfn(config if auto else config.model_copy(update={"kernel": "grouped"}), width)
        sparse.experts = KERNELS[kernel]
    for parameter in (*dense.parameters(), *sparse.parameters()):
        nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    x_BTD = torch.empty(1, shape.tokens, width, dtype=torch.bfloat16, requires_grad=True)
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


# --- a layer's process, and the rounds -----------------------------------------------------------


@dataclass
class Contender:
    """A layer in a process of its own."""

    layer: str
    pipe: Connection
    dense_s: list[float] = field(default_factory=list)
    """Two entries a round, in the order they ran."""
    sparse_s: list[float] = field(default_factory=list)

    def work(self, *, backwards: bool) -> None:
        """A step of the dense layer and one of the sparse one, or the other way round."""
        self.pipe.send(backwards)
        dense_s, sparse_s = self.pipe.recv()
        self.dense_s.append(dense_s)
        self.sparse_s.append(sparse_s)


def child(pipe: Connection, kernel: str, shape: Shape, threads: int) -> None:
    """Build both layers, warm them up, then answer: backwards or not -> seconds of the dense and of the sparse step."""
    torch.set_num_threads(threads)
    if kernel not in PEERS or kernel.endswith(HEAP):
        tune_allocator()
    clock = time.thread_time if threads == 1 else time.perf_counter
    torch.manual_seed(0)
    if kernel == PRODUCTS:
        hidden, rows = shape.config.hidden_for(shape.width), shape.tokens * shape.top_k // shape.experts
        dense = products(shape.tokens, shape.width, SwiGlu().hidden_for(shape.width), 1, clock)
        sparse = products(rows, shape.width, hidden, shape.experts, clock)
    else:
        dense, sparse = layers(kernel, shape, clock)
    for _ in range(WARMUP_STEPS):
        dense()
        sparse()
    pipe.send(None)
    while (backwards := pipe.recv()) is not None:
        dense()
        sparse()
        if backwards:
            sparse_s, dense_s = sparse(), dense()
        else:
            dense_s, sparse_s = dense(), sparse()
        pipe.send((dense_s, sparse_s))


def measure(kernels: list[str], shape: Shape, rounds: int, threads: int) -> list[Measured]:
    """All layers at one shape, in turns."""
    spawn = multiprocessing.get_context("spawn")
    contenders: list[Contender] = []
    with ExitStack() as stack:
        for kernel in kernels:
            here, there = spawn.Pipe()
            process = spawn.Process(target=child, args=(there, kernel, shape, threads), daemon=True)
            process.start()
            stack.callback(process.join, 10)
            there.close()
            here.recv()  # it is warm: nothing else works meanwhile
            stack.callback(here.send, None)
            contenders.append(Contender(kernel, here))
        for _ in range(rounds):
            for contender in contenders:
                contender.work(backwards=False)
            for contender in reversed(contenders):
                contender.work(backwards=True)
    return [judge(contender, contenders[0], shape) for contender in contenders]


def judge(contender: Contender, first: Contender, shape: Shape) -> Measured:
    """Medians over rounds."""
    dense_s, sparse_s, first_s = (
        [a + b for a, b in zip(each[::2], each[1::2], strict=True)]
        for each in (contender.dense_s, contender.sparse_s, first.sparse_s)
    )
    active = shape.active_weights(contender.layer)
    return Measured(
        layer=contender.layer,
        width=shape.width,
        tokens=shape.tokens,
        rows_an_expert=shape.tokens * shape.top_k // shape.experts,
        step_ms=1e3 * statistics.median(sparse_s) / 2,
        dense_step_ms=1e3 * statistics.median(dense_s) / 2,
        gflop_per_s=6 * active * shape.tokens / (statistics.median(sparse_s) / 2) / 1e9,
        rate_against_dense=statistics.median(
            active * d / (shape.dense_weights * s) for d, s in zip(dense_s, sparse_s, strict=True)
        ),
        first_is_faster_by=statistics.median(s / f for s, f in zip(sparse_s, first_s, strict=True)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", default="192,384", help="widths of the residual stream")
    parser.add_argument("--tokens", default="2048,4096", help="tokens a step")
    known = (*KERNELS, PRODUCTS, *(PEERS if importlib.util.find_spec("transformers") else ()))
    parser.add_argument("--layers", default=",".join(known), help="those to measure (default: %(default)s)")
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of the table")
    arguments = parser.parse_args()
    for kernel in arguments.layers.split(","):
        if kernel == FUSED and kernel not in known:
            parser.error(f"--layers: no fused kernel here: {fused.obstacle()}")
        if kernel not in known:
            parser.error(f"--layers: {kernel!r} is none of {', '.join(known)}")
    print(f"torch {torch.__version__}, {arguments.threads} threads", file=sys.stderr)
    for width in map(int, arguments.widths.split(",")):
        for tokens in map(int, arguments.tokens.split(",")):
            shape = Shape(width, tokens, arguments.experts, arguments.top_k)
            for found in measure(arguments.layers.split(","), shape, arguments.rounds, arguments.threads):
                show(found, as_json=arguments.json)


def show(found: Measured, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(found)), flush=True)
        return
    print(
        f"width {found.width:4}  tokens {found.tokens:5}  rows/expert {found.rows_an_expert:5}  {found.layer:21}"
        f"{found.step_ms:7.1f} ms, dense {found.dense_step_ms:7.1f} ms  {found.gflop_per_s:5.0f} GFLOP/s  "
        f"{found.rate_against_dense:5.2f} x dense  {found.first_is_faster_by:5.2f} x as long as the first",
        flush=True,
    )


if __name__ == "__main__":
    main()
