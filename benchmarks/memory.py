"""Peak memory of real training steps beside what `lmbench plan` predicts, each in a process of its own.

    python benchmarks/memory.py                  # 1M to 100M, dense and sparse, activations kept and computed again
    python benchmarks/memory.py --only distilled # a student beside a teacher of twice its depth
    python benchmarks/memory.py --only left_out --sizes 1m --steps 100    # layers left out by chance, and an exit
    python benchmarks/memory.py --sizes 300m 1b  # the large ones need 6 and 16 GiB
    python benchmarks/memory.py --precision fp32
    python benchmarks/memory.py --sizes 1m --steps 200     # as many as a training: what grows with them

Prints a Markdown row a case: predicted, measured, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "1m": {"layers": 4, "width": 128, "heads": 4, "vocab": 2048},
    "10m": {"layers": 8, "width": 288, "heads": 6, "vocab": 4096},
    "30m": {"layers": 8, "width": 512, "heads": 8, "vocab": 8192},
    "100m": {"layers": 12, "width": 768, "heads": 12, "vocab": 16384},
    "300m": {"layers": 20, "width": 1024, "heads": 16, "vocab": 32768},
    "1b": {"layers": 20, "width": 2048, "heads": 32, "kv_heads": 4, "vocab": 32000},
}
"""Named by the parameters of the dense model, about."""
SPARSE = {"kind": "moe", "experts": 8, "top_k": 2}


def cases(sizes: list[str], precision: str, sequences: int, length: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(label, recipe) of each case."""
    for size in sizes:
        shape = {**SIZES[size], "context": 256}
        common = {
            "model": shape,
            "precision": {"kind": precision},
            "batching": {"sequences": sequences, "length": length},
            "tokens": 10**9,
        }
        for ffn, activations, optimizer in (
            ({"kind": "swiglu"}, "keep", "adamw"),
            ({"kind": "swiglu"}, "recompute", "adamw_8bit"),
            (SPARSE, "keep", "adamw"),
            (SPARSE, "recompute", "adamw_8bit"),
        ):
            if ffn is SPARSE and size in ("100m", "300m", "1b"):  # as many parameters in all as the dense model
                ffn = {**SPARSE, "hidden": sparse_hidden(shape)}
            yield (
                f"{size} {ffn['kind']} {activations} {optimizer}",
                {**common, "ffn": ffn, "activations": {"kind": activations}, "optimizer": {"kind": optimizer}},
            )
        yield (
            f"{size} swiglu keep adamw left_out",
            {**common, "objective": {"kind": "layer_skip", "dropout": 0.2, "exits": [shape["layers"] // 2]}},
        )
        teacher = {"model": {**shape, "layers": 2 * shape["layers"]}, "ffn": {"kind": "swiglu"}}
        yield (
            f"{size} swiglu keep adamw distilled",
            {**common, "objective": {"kind": "distillation", "teacher": "deep", "shape": teacher}},
        )


def sparse_hidden(shape: dict[str, int]) -> int:
    """Inner width of one of eight experts that together hold what the dense feed-forward does."""
    from lmopt.recipe import SwiGlu

    return -(-SwiGlu().hidden_for(shape["width"]) // 64) * 8


def measure(plain: dict[str, Any], steps: int) -> int:
    """Peak memory of so many steps over that of the process before the model, in bytes."""
    import torch

    from bench import worker  # noqa: F401 - all that a case has imported before its model
    from bench.instruments.memory import HostMemory
    from lmopt.arch import transformer
    from lmopt.recipe import Recipe
    from lmopt.train import loop

    recipe = Recipe.model_validate(plain)
    sensor = HostMemory()
    sensor.before_model()
    teacher = transformer.build(recipe.teacher, seed=1) if recipe.teacher is not None else None
    state = loop.start(recipe, seed=0, horizon=steps * recipe.batching.tokens / recipe.tokens)
    if teacher is not None:
        state.loss.learn_from(teacher)
    shape = (recipe.batching.sequences, recipe.batching.length + 1)
    batches = (torch.randint(0, recipe.model.vocab or 1, shape) for _ in range(steps))
    sensor.start()
    for _ in loop.train(state, batches):
        pass
    return int(sensor.stop()["peak_memory_bytes"].value or 0)


def main() -> None:
    """Measure every case in a child and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["1m", "10m", "30m", "100m"])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", default="", help="words that a case's label must hold, for example `1b moe`")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(measure(json.loads(arguments.child), arguments.steps))
        return
    from lmopt import cost, cost_memory
    from lmopt.recipe import Recipe

    print("| case | parameters | predicted GiB | measured GiB | predicted / measured |\n|---|---|---|---|---|")
    for label, plain in cases(arguments.sizes, arguments.precision, arguments.sequences, arguments.length):
        if not all(word in label.split() for word in arguments.only.split()):
            continue
        recipe = Recipe.model_validate(plain)
        child = subprocess.run(
            [sys.executable, __file__, "--steps", str(arguments.steps), "--child", json.dumps(plain)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        measured, predicted = int(child.stdout), cost_memory.peak_memory_bytes(recipe)
        held = cost.parameters(recipe).total
        row = (label, f"{held / 1e6:.1f}M", f"{predicted / 2**30:.2f}", f"{measured / 2**30:.2f}")
        print("| " + " | ".join((*row, f"{predicted / measured:.2f}")) + " |", flush=True)


if __name__ == "__main__":
    main()
