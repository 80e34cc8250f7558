"""What fewer bits cost and save: products, quantising, whole linear layers, gradients' errors, optimizer steps.

    python benchmarks/precision.py [--threads 1] [--clock cpu] [--compile]

Alternatives of a row run in turn in one process; the shortest of several runs counts, since neighbours only ever make
it longer. `--compile` adds layers compiled by torch.compile, where quantising is fused. The table goes to standard
output.
"""

from __future__ import annotations

import argparse
import copy
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lmopt.arch.transformer import build
from lmopt.compute import int8
from lmopt.compute.int8 import FrozenInt8Linear, Int8Linear, exchange_linears
from lmopt.compute.memory import tune_allocator
from lmopt.compute.precision import build as precision
from lmopt.recipe import AdamW, AdamW8bit, Bf16Stochastic, Int8, Recipe
from lmopt.train import optimizer

ROWS = 2048
SHAPES = ((192, 1024), (512, 2752), (1376, 512), (2048, 2048))
"""(inputs, outputs): gate and up at width 192, at 512, down at 512, and the square that peaks are quoted for."""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
REPEATS = 7


def best_ms(clock: Callable[[], float], *works: Callable[[], object]) -> list[float]:
    """Shortest time of each, in turn."""
    best = [float("inf")] * len(works)
    for work in works:
        work()
    for _ in range(REPEATS):
        for place, work in enumerate(works):
            begin = clock()
            work()
            best[place] = min(best[place], clock() - begin)
    return [1000 * seconds for seconds in best]


def table(title: str, head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    print(f"\n{title}")
    text = [head, *(tuple(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row) for row in rows)]
    widths = [max(len(row[i]) for row in text) for i in range(len(head))]
    for row in text:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))


def products(clock: Callable[[], float]) -> None:
    rows = []
    for inputs, outputs in SHAPES:
        x, w = torch.randn(ROWS, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16()
        (xq, xs), (wq, ws) = int8.quantize(x, 1), int8.quantize(w, 1)
        found = best_ms(
            clock,
            lambda x=x, w=w: x @ w.T,
            lambda a=xq, b=wq: torch._int_mm(a, b.T),
            lambda a=(xq, xs), b=(wq.T, ws.T): int8.product(a, b, torch.bfloat16),
            lambda x=x: int8.quantize(x, 1),
            lambda w=w: int8.quantize(w, 1),
        )
        rows.append((f"{ROWS} x {inputs} x {outputs}", *found))
    head = ("rows x inputs x outputs", "bf16 product", "_int_mm", "with scales", "quantise x", "quantise W")
    table("Products (ms)", head, rows)


def layers(clock: Callable[[], float], compiled: bool) -> None:
    plans = {
        "int8, all three": Int8(grad_weight=True),
        "int8, SwitchBack": Int8(),
        "stochastic": Int8(rounding="stochastic"),
    }
    rows = []
    for inputs, outputs in SHAPES:
        plain = nn.Linear(inputs, outputs, bias=False)
        x, grad = torch.randn(ROWS, inputs).bfloat16().requires_grad_(), torch.randn(ROWS, outputs).bfloat16()
        made = [plain]
        for plan in plans.values():
            layer = Int8Linear(inputs, outputs, bias=False)
            layer.weight, layer.plan, layer.smooth = plain.weight, plan, False
            made.append(layer)
        if compiled:
            made += [torch.compile(made[0]), torch.compile(made[2])]

        def both(layer: nn.Module, x: torch.Tensor = x, grad: torch.Tensor = grad) -> object:
            with torch.autocast("cpu", torch.bfloat16):
                y = layer(x)
            return torch.autograd.grad(y, (x, *layer.parameters()), grad)

        found = best_ms(clock, *(lambda layer=layer: both(layer) for layer in made))
        frozen = FrozenInt8Linear(plain)
        half = copy.deepcopy(plain).bfloat16()
        with torch.no_grad():
            prefill = best_ms(clock, lambda h=half, x=x: h(x), lambda f=frozen, x=x: f(x))
        rows.append((f"{ROWS} x {inputs} x {outputs}", *found, *prefill))
    head = ("rows x inputs x outputs", "bf16", *plans) + (("bf16 compiled", "SwitchBack compiled") if compiled else ())
    table("A linear layer, forward and backward; prefill alone (ms)", (*head, "prefill bf16", "prefill int8"), rows)


def errors() -> None:
    """Gradients of a small model against float32, relative norm of the difference over all weights."""
    recipe = Recipe.model_validate(
        {"model": {"layers": 4, "width": 256, "heads": 4, "vocab": 1024, "context": 128},
         "batching": {"sequences": 4, "length": 128}, "tokens": 10**6}
    )  # fmt: skip
    tokens = torch.randint(1024, (4, 129), generator=torch.Generator().manual_seed(0))

    def gradients(plan: Int8 | None, autocast: bool) -> dict[str, torch.Tensor]:
        model = build(recipe, seed=0)
        if plan is not None:
            exchange_linears(model, plan)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model.loss(tokens[:, :-1], tokens[:, 1:]).total
        loss.backward()
        return {name: p.grad for name, p in model.named_parameters() if "blocks" in name and p.ndim == 2}

    exact = gradients(None, False)
    kinds: dict[str, Int8 | None] = {
        "bf16": None,
        "forward alone": Int8(grad_input=False),
        "input gradient alone": Int8(forward=False),
        "weight gradient alone": Int8(forward=False, grad_input=False, grad_weight=True),
        "SwitchBack": Int8(),
        "SwitchBack, smooth": Int8(outliers="smooth"),
        "SwitchBack, stochastic": Int8(rounding="stochastic"),
        "all three": Int8(grad_weight=True),
    }
    rows = []
    for name, plan in kinds.items():
        found = gradients(plan, True)
        difference = torch.stack([(found[key] - exact[key]).norm() for key in exact]).norm()
        rows.append((name, 100 * (difference / torch.stack([g.norm() for g in exact.values()]).norm()).item()))
    table("Gradient against float32 (% of its norm)", ("products", "error"), rows)


def optimizers(clock: Callable[[], float]) -> None:
    recipe = Recipe.model_validate(
        {"model": {"layers": 8, "width": 512, "heads": 8, "vocab": 8192}, "tokens": 10**9, "batching": {"length": 256}}
    )
    works, names = [], []
    for name, config, small in (
        ("AdamW fused", AdamW(), False), ("8 bits", AdamW8bit(), False), ("bf16_sr", AdamW(), True)
    ):  # fmt: skip
        model = build(recipe, seed=0)
        if small:
            precision(Bf16Stochastic()).prepare(model)
        adam = optimizer.build(config, model) if small or name == "AdamW fused" else _compact(config, model)

        def step(model: nn.Module = model, adam: Any = adam) -> None:
            for p in model.parameters():
                p.grad = torch.full_like(p, 1e-3)
            adam.step(1.0)

        works.append(step)
        names.append(name)
    table("One optimizer step at 29M parameters, gradients filled (ms)", tuple(names), [tuple(best_ms(clock, *works))])


def _compact(config: AdamW8bit, model: nn.Module) -> Any:
    from lmopt.recipe import builder

    return builder(config)(config, model)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads (default: all cores)")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: processor time, with --threads 1")
    parser.add_argument("--compile", action="store_true", help="compiled layers too")
    options = parser.parse_args()
    if options.clock == "cpu" and options.threads != 1:
        parser.error("--clock cpu needs --threads 1: waiting threads spin, and spinning counts as processor time")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tune_allocator()
    clock = CLOCKS[options.clock]
    products(clock)
    layers(clock, options.compile)
    errors()
    optimizers(clock)


if __name__ == "__main__":
    main()
