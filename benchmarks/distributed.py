"""One training on 1 and on N ranks, in copies (DDP) and in shards (FSDP2): `python benchmarks/distributed.py`.

Every rank runs under torchrun with its own instruments; their readings are combined (joules once a device, memory of
all ranks, time of the slowest). Configurations are run in turn, A B C C B A, and the table gives tokens a second over
those of one rank. On a CPU two ranks share the cores that one would have: there it shows what the parts cost.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RECIPE: dict[str, Any] = {
    "model": {"layers": 4, "width": 256, "heads": 4, "vocab": 4096, "context": 128},
    "batching": {"sequences": 8, "length": 128},
}


def rank_main(todo: dict[str, Any]) -> None:
    """What each rank does: a few steps to warm up, then steps in a window; writes its readings."""
    import torch

    from bench.instruments.table import Window
    from lmopt.recipe import Recipe
    from lmopt.train import distributed, loop

    with distributed.process_group() as world:
        recipe = Recipe.model_validate(todo["recipe"])
        window = Window(device=str(world.device))
        window.before_model()
        state = distributed.start(recipe, seed=0, world=world, sharding=todo["sharding"])
        shape = (recipe.batching.sequences, recipe.batching.length + 1)
        batch = torch.randint(0, recipe.model.vocab or 1, shape, generator=torch.Generator().manual_seed(0))
        steps = loop.train(state, (batch for _ in range(state.total_steps)))
        for _ in range(todo["warmup"]):
            next(steps)
        window.start()
        losses = [step.loss for step in steps]
        readings = {name: one.model_dump() for name, one in window.stop().items()}
    found = {"host": socket.gethostname(), "device": str(world.device), "duration_s": window.duration_s,
             "devices": window.devices, "readings": readings, "loss": losses[-1]}  # fmt: skip
    (Path(todo["out"]) / f"rank{world.rank}.json").write_text(json.dumps(found))


def measure(ranks: int, sharding: str, steps: int) -> dict[str, float | None]:
    """One run under torchrun: tokens a second, bytes of all ranks, joules, last loss."""
    from bench.instruments.ranks import Rank, combine
    from bench.record import Reading

    warmup = 2
    batching = RECIPE["batching"]
    tokens = batching["sequences"] * batching["length"]
    with tempfile.TemporaryDirectory() as out:
        todo = {
            "recipe": {**RECIPE, "tokens": (steps + warmup) * tokens},
            "sharding": sharding,
            "warmup": warmup,
            "out": out,
        }
        threads = str(max(1, (os.cpu_count() or 1) // ranks))
        subprocess.run(
            [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks),
             __file__, "--rank", json.dumps(todo)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": threads}, check=True, capture_output=True,
        )  # fmt: skip
        found = [json.loads(path.read_text()) for path in sorted(Path(out).glob("rank*.json"))]
    whole = combine(
        [
            Rank(one["host"], one["device"], one["duration_s"],
                 {name: Reading.model_validate(value) for name, value in one["readings"].items()}, one["devices"])
            for one in found
        ]
    )  # fmt: skip
    seconds = whole["train_time_s"].value or 1.0
    return {"tokens_per_s": steps * tokens / seconds, "memory_bytes": whole["peak_memory_bytes"].value,
            "energy_j": whole["energy_j"].value, "loss": found[0]["loss"]}  # fmt: skip


def main() -> None:
    """Measure each configuration twice and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rank", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank_main(json.loads(arguments.rank))
        return
    configurations = [(1, "copies"), (arguments.ranks, "copies"), (arguments.ranks, "shards")]
    found: dict[tuple[int, str], list[dict[str, float | None]]] = {one: [] for one in configurations}
    for one in (*configurations, *reversed(configurations)):
        found[one].append(measure(*one, arguments.steps))
    base = statistics.fmean(run["tokens_per_s"] or 0.0 for run in found[configurations[0]])
    print(
        "| ranks | parameters in | tokens/s over one rank's | memory of all ranks, MiB | last loss |\n"
        "|---|---|---|---|---|"
    )
    for (ranks, sharding), runs in found.items():
        speed = statistics.fmean(run["tokens_per_s"] or 0.0 for run in runs) / base
        memory = max(run["memory_bytes"] or 0.0 for run in runs) / 2**20
        print(f"| {ranks} | {sharding} | {speed:.2f} | {memory:.0f} | {runs[0]['loss']:.5f} |")


if __name__ == "__main__":
    main()
