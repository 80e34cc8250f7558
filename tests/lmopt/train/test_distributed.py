"""Two processes train as one does, and a checkpoint of two is continued by one, by three, in shards or in copies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lmopt.recipe import Recipe
from lmopt.train import loop

ROOT = Path(__file__).parents[3]
SEQUENCES, LENGTH, STEPS = 12, 16, 6
RANK = """
import json, sys, torch
from pathlib import Path
torch.set_num_threads(1)
from lmopt.recipe import Recipe
from lmopt.train import distributed, loop, sharded
from tests.lmopt.train.test_distributed import batches
todo = json.loads(sys.argv[1])
with distributed.process_group() as world:
    folder = Path(todo["folder"])
    if todo["resume"]:
        state = sharded.load(folder, world, sharding=todo["sharding"])
    else:
        state = distributed.start(Recipe.model_validate(todo["recipe"]), seed=0, world=world, sharding=todo["sharding"])
    found = []
    for step in loop.train(state, batches(state.step), lag=todo["lag"]):
        found.append([step.loss, step.notes["grad_norm"]])
        if step.index == todo["save_at"]:
            sharded.save(state, folder, world)
    noise = [None] * world.size
    torch.distributed.all_gather_object(noise, torch.randn(3).tolist())
    held = sum(getattr(p, "to_local", lambda p=p: p)().numel() for p in state.model.parameters())
    if world.rank == 0:
        Path(todo["out"]).write_text(json.dumps({"losses": found, "held": held, "size": world.size, "noise": noise}))
"""


def batches(start_step: int = 0):
    import torch

    step = start_step
    while True:
        generator = torch.Generator().manual_seed(step)
        first = torch.randint(0, 64, (SEQUENCES, 1), generator=generator)
        yield (first + torch.arange(LENGTH + 1)) % 64
        step += 1


def recipe(**changes: object) -> Recipe:
    plain: dict[str, object] = {
        "model": {"layers": 2, "width": 32, "heads": 2, "vocab": 64, "context": LENGTH},
        "batching": {"sequences": SEQUENCES, "length": LENGTH},
        "precision": {"kind": "fp32"},
        "optimizer": {"lr": 1e-2, "clip": 0.5},
        "tokens": SEQUENCES * LENGTH * STEPS,
    }
    return Recipe.model_validate(plain | changes)


def on_ranks(
    folder: Path,
    described: Recipe,
    *,
    ranks: int = 2,
    sharding: str = "copies",
    resume: bool = False,
    save_at: int = 0,
    lag: int | None = None,
) -> dict:
    folder.mkdir(exist_ok=True)
    (folder / "rank.py").write_text(RANK)
    todo = {"folder": str(folder / "checkpoint"), "recipe": described.model_dump(mode="json"), "sharding": sharding,
            "resume": resume, "save_at": save_at, "lag": lag, "out": str(folder / "out.json")}  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    done = subprocess.run(
        [*command, str(folder / "rank.py"), json.dumps(todo)], env=environment, capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((folder / "out.json").read_text())


def alone(described: Recipe) -> list[list[float]]:
    steps = loop.train(loop.start(described, seed=0), batches())
    return [[step.loss, step.notes["grad_norm"]] for step in steps]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["copies", "shards"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batching": {"sequences": SEQUENCES, "length": LENGTH, "micro_sequences": 3}},
        {"activations": {"kind": "recompute"}, "optimizer": {"lr": 1e-2, "clip": None}},
    ],
    ids=["plain", "micro", "small"],
)
def test_two_ranks_train_as_one_does(tmp_path: Path, sharding: str, changes: dict[str, object]) -> None:
    described = recipe(**changes)
    found = on_ranks(tmp_path, described, sharding=sharding)
    for ours, theirs in zip(found["losses"], alone(described), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    whole = sum(p.numel() for p in loop.start(described, seed=0).model.parameters())
    assert found["held"] == whole if sharding == "copies" else found["held"] < 0.6 * whole
    first, second = found["noise"]
    assert first != second, "what a rank draws in training is its own"


@pytest.mark.slow
def test_biases_of_loss_free_routing_follow_the_load_of_all_ranks_and_are_saved(tmp_path: Path) -> None:
    routing = {"kind": "loss_free", "rate": 0.05}
    described = recipe(ffn={"kind": "moe", "experts": 4, "top_k": 1, "routing": routing})
    whole = on_ranks(tmp_path / "whole", described, save_at=3)["losses"]
    for ours, theirs in zip(whole, alone(described), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "checkpoint").symlink_to(tmp_path / "whole" / "checkpoint")
    again = on_ranks(tmp_path / "again", described, ranks=3, resume=True)["losses"]
    for ours, theirs in zip(again, whole[3:], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_a_checkpoint_of_two_ranks_is_continued_by_any_number(tmp_path: Path) -> None:
    described = recipe()
    whole = on_ranks(tmp_path / "two", described, sharding="shards", save_at=3)["losses"]
    saved = tmp_path / "two" / "checkpoint"
    assert sorted(path.suffix for path in (saved / "step-00000003").iterdir()) == [
        ".json",
        ".safetensors",
        ".safetensors",
    ]
    for ranks, sharding in ((1, "copies"), (3, "shards"), (2, "copies")):
        place = tmp_path / f"{ranks}{sharding}"
        place.mkdir()
        (place / "checkpoint").symlink_to(saved)
        found = on_ranks(place, described, ranks=ranks, sharding=sharding, resume=True)
        assert found["size"] == ranks
        for ours, theirs in zip(found["losses"], whole[3:], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_a_step_that_was_not_read_yet_is_not_lost(tmp_path: Path) -> None:
    """On a GPU a step's numbers are read while the next one runs: a checkpoint may stand between the two."""
    whole = on_ranks(tmp_path, recipe(), save_at=3, lag=1)["losses"]
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-00000004"]
    assert on_ranks(tmp_path, recipe(), resume=True, lag=1)["losses"] == whole[3:]


def test_a_batch_that_does_not_divide_is_refused_before_any_work() -> None:
    import torch

    from lmopt.train.distributed import World, start

    world = World(rank=0, size=5, device=torch.device("cpu"))
    with pytest.raises(ValueError, match="must divide into 5 ranks"):
        start(recipe(), seed=0, world=world)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"optimizer": {"kind": "adamw_8bit"}}, "optimizer 'adamw_8bit'"),
        ({"precision": {"kind": "int8"}}, "precision 'int8'"),
    ],
)
def test_what_knows_one_device_only_is_refused(changes: dict[str, object], words: str) -> None:
    import torch

    from lmopt.train.distributed import World, start

    with pytest.raises(ValueError, match=words):
        start(recipe(**changes), seed=0, world=World(rank=0, size=2, device=torch.device("cpu")))


def test_without_torchrun_the_hint_is_how_to_start() -> None:
    from lmopt.train.distributed import process_group

    with pytest.raises(RuntimeError, match="torchrun"), process_group():
        pass


@pytest.fixture
def two_hosts():
    """Two network namespaces joined by a cable: to torchrun, two machines."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("two hosts in network namespaces need root and iproute2")
    names = [f"lmb{os.getpid()}{end}" for end in "ab"]

    def ip(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["ip", *words], capture_output=True, text=True, check=False)

    made = ip("netns", "add", names[0])
    if made.returncode:
        pytest.skip(f"no network namespaces here: {made.stderr.strip()}")
    try:
        ip("netns", "add", names[1])
        cable = ip(
            "link", "add", "lmbv0", "netns", names[0], "type", "veth", "peer", "name", "lmbv1", "netns", names[1]
        )
        if cable.returncode:
            pytest.skip(f"no virtual cable between network namespaces here: {cable.stderr.strip()}")
        for number, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{number + 1}/24", "dev", f"lmbv{number}")
            ip("-n", name, "link", "set", f"lmbv{number}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            ip("netns", "del", name)


@pytest.mark.slow
def test_two_hosts_train_as_one_process_does(tmp_path: Path, two_hosts: list[str]) -> None:
    described = recipe()
    (tmp_path / "rank.py").write_text(RANK)
    todo = {"folder": str(tmp_path / "checkpoint"), "recipe": described.model_dump(mode="json"), "sharding": "shards",
            "resume": False, "save_at": 0, "lag": None, "out": str(tmp_path / "out.json")}  # fmt: skip
    processes = [
        subprocess.Popen(
            ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2",
             "--node-rank", str(number), "--nproc-per-node", "1", "--master-addr", "10.77.0.1",
             "--master-port", "29555", str(tmp_path / "rank.py"), json.dumps(todo)],
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": f"lmbv{number}"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for number, name in enumerate(two_hosts)
    ]  # fmt: skip
    try:
        said = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said[0][-3000:] + said[1][-3000:]
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["size"] == 2
    for ours, theirs in zip(found["losses"], alone(described), strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)
