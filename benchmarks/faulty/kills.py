"""kill -9 at random moments: of a runner, of the process of a case or the server that forks them, of a rank."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.faulty import study

ROOT = Path(__file__).parents[2]
LONGEST_WAIT_S = 12.0
"""A runner is killed within this time of its start: some seconds of imports, then cases."""


def of_runners(place: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Runners killed again and again until the study is whole, then the next study."""
    study.prepare(place, tokens=60_000, seeds=3)
    assert study.run(place, "whole")[0] == 0
    expected = study.result(place / "whole")
    found = {"kills": 0, "studies": 0, "records_lost": 0, "records_duplicated": 0, "orphans": 0, "continued": 0,
             "not_bit_identical": 0}  # fmt: skip
    while found["kills"] < kills:
        folder = place / f"broken-{found['studies']}"
        _one_study(place, folder, kills, found, draw)
        result = study.result(folder)
        found["studies"] += 1
        found["not_bit_identical"] += sum(result.get(case) != bits for case, bits in expected.items())
        found["continued"] += sum(record.segments > 1 for record in study.trainings(folder).values())
        found["records_duplicated"] += study.duplicated(folder)
    return found


def _one_study(place: Path, folder: Path, kills: int, found: dict[str, int], draw: random.Random) -> None:
    """Kill runners of one study until one comes to its end."""
    while True:
        before = study.lines(folder)
        process = study.start(place, folder)
        if found["kills"] >= kills:
            code, errors = study.ended(process)
            assert code == 0, errors
        else:
            time.sleep(draw.uniform(0, LONGEST_WAIT_S))
            family = study.family(process.pid)
            is_killed = process.poll() is None
            process.kill()
            process.communicate()
            found["kills"] += is_killed
            found["orphans"] += len(study.alive(family))
        found["records_lost"] += study.lines(folder)[: len(before)] != before
        if process.returncode == 0:
            return


def of_workers(place: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """Processes of cases killed, and every fifth time the server that forked them; the next run tries them again."""
    study.prepare(place, tokens=60_000, seeds=3)
    assert study.run(place, "whole")[0] == 0
    expected = study.result(place / "whole")
    found = {"kills": 0, "of_the_server": 0, "studies": 0, "records_lost": 0, "records_duplicated": 0, "continued": 0,
             "not_bit_identical": 0, "tracebacks": 0}  # fmt: skip
    while found["kills"] < kills:
        folder = place / f"broken-{found['studies']}"
        while len(study.trainings(folder) if folder.exists() else ()) < len(expected):
            before = study.lines(folder)
            process = study.start(place, folder)
            _kill_workers(process, folder, kills, found, draw)
            errors = study.ended(process)[1]
            found["tracebacks"] += "Traceback" in errors
            found["records_lost"] += study.lines(folder)[: len(before)] != before
        found["studies"] += 1
        result = study.result(folder)
        found["not_bit_identical"] += sum(result.get(case) != bits for case, bits in expected.items())
        found["continued"] += sum(record.segments > 1 for record in study.trainings(folder).values())
        found["records_duplicated"] += study.duplicated(folder)
    return found


def _kill_workers(
    process: subprocess.Popen[str], folder: Path, kills: int, found: dict[str, int], draw: random.Random
) -> None:
    """As long as the runner lives: wait for a case, every other time until it has saved, and kill it a moment later."""
    while found["kills"] < kills and study.until(lambda: study.worker_of(process.pid), process):
        worker, server = study.worker_of(process.pid), study.server_of(process.pid)
        if found["kills"] % 2:
            _wait_for_checkpoint(process, folder, worker)
        time.sleep(draw.uniform(0, 0.6))
        aims_at_server = found["kills"] % 5 == 4
        if study.kill(server if aims_at_server else worker):
            found["kills"] += 1
            found["of_the_server"] += aims_at_server
            study.alive([pid for pid in (worker,) if pid])


def _wait_for_checkpoint(process: subprocess.Popen[str], folder: Path, worker: int | None) -> None:
    """Until this process of a case has saved one, or has ended without."""
    since_s = time.time()
    study.until(lambda: study.has_saved(folder, since_s) or study.worker_of(process.pid) != worker, process)


# --- ranks ---------------------------------------------------------------------------------------

RANK = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from benchmarks.faulty.kills import rank
rank(json.loads(sys.argv[1]))
"""
STEPS = 120
SAVE_EVERY = 5


def rank(todo: dict[str, Any]) -> None:
    """What each rank does: train from the newest checkpoint to the end, saving often; rank 0 notes the bits."""
    from lmopt.recipe import Recipe
    from lmopt.train import checkpoint, distributed, loop, sharded

    recipe, folder = Recipe.model_validate(todo["recipe"]), Path(todo["folder"])
    with distributed.process_group() as world:
        if checkpoint.exists(folder):
            state = sharded.load(folder, world, recipe, sharding=todo["sharding"])
        else:
            state = distributed.start(recipe, seed=0, world=world, sharding=todo["sharding"])
        (folder.parent / f"pid-{world.rank}").write_text(str(os.getpid()))
        first = state.step
        for step in loop.train(state, _batches(recipe, first)):
            if step.index % SAVE_EVERY == 0:
                sharded.save(state, folder, world)
        own = b"".join(
            getattr(p, "to_local", lambda p=p: p)().detach().contiguous().numpy().tobytes()
            for p in state.model.parameters()
        )
        bits = {"first": first, "sha256": hashlib.sha256(own).hexdigest()}
        (folder.parent / f"bits-{world.rank}.json").write_text(json.dumps(bits))


def _batches(recipe: Any, step: int) -> Iterator[Any]:
    import torch

    sequences, length, vocab = recipe.batching.sequences, recipe.batching.length, recipe.model.vocab
    while True:
        first = torch.randint(0, vocab, (sequences, 1), generator=torch.Generator().manual_seed(step))
        yield (first + torch.arange(length + 1)) % vocab
        step += 1


def of_ranks(place: Path, kills: int, draw: random.Random) -> dict[str, Any]:
    """One of two ranks killed, alternately of whole copies and of shards; all are started again."""
    found = {"kills": 0, "trainings": 0, "starts": 0, "continued": 0, "not_bit_identical": 0, "orphans": 0}
    whole: dict[str, list[str]] = {}
    while found["kills"] < kills:
        sharding = ("copies", "shards")[found["trainings"] % 2]
        if sharding not in whole:
            whole[sharding] = _train(place / f"whole-{sharding}", sharding, None, found, draw)
        broken = _train(place / f"broken-{found['trainings']}", sharding, kills, found, draw)
        found["trainings"] += 1
        found["not_bit_identical"] += broken != whole[sharding]
    return found


def _train(place: Path, sharding: str, kills: int | None, found: dict[str, int], draw: random.Random) -> list[str]:
    """Start two ranks until they come to the end, killing one each time while kills are wanted; the bits of both."""
    place.mkdir(parents=True)
    (place / "rank.py").write_text(RANK)
    recipe = {"model": {"layers": 2, "width": 32, "heads": 2, "vocab": 64, "context": 16},
              "batching": {"sequences": 8, "length": 16}, "tokens": 8 * 16 * STEPS}  # fmt: skip
    todo = {"recipe": recipe, "folder": str(place / "checkpoint"), "sharding": sharding}
    while True:
        for old in place.glob("pid-*"):
            old.unlink()
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             str(place / "rank.py"), json.dumps(todo)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        ranks: list[int] = []
        if kills is not None and found["kills"] < kills and study.until(lambda: (place / "pid-1").exists(), process):
            time.sleep(draw.uniform(0, 1.5))
            ranks = study.family(process.pid)
            victim = (place / f"pid-{draw.randrange(2)}").read_text()
            found["kills"] += study.kill(int(victim)) if victim else 0
        code, errors = study.ended(process)
        found["orphans"] += len(study.alive(ranks))
        found["starts"] += 1
        if code == 0:
            bits = [json.loads((place / f"bits-{number}.json").read_text()) for number in range(2)]
            found["continued"] += kills is not None and bits[0]["first"] > 0
            return [one["sha256"] for one in bits]
        assert kills is not None, errors
