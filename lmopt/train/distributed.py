"""One training on many devices, under `torchrun`: whole copies (DDP) or shards of every parameter (FSDP2).

    torchrun --nproc-per-node 2 mine.py      # with process_group() as world: state = start(recipe, world=world, ...)

Each rank gets the same global batch and trains on its own sequences, so that the loss is that of one process to the
order of summation. An auxiliary loss (a router's balance) is computed within a rank, as it is within a micro-batch.
Gloo on the CPU, NCCL on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from lmopt.arch import transformer
from lmopt.arch.attention import Rotary
from lmopt.arch.initial import draw_parameters
from lmopt.arch.transformer import Losses
from lmopt.compute import memory
from lmopt.recipe import Recipe, builder
from lmopt.train.loop import TrainState, assemble

Sharding = Literal["copies", "shards"]
"""`copies`: every rank holds the whole model (DDP). `shards`: each holds a part of every parameter (FSDP2)."""

SHARED = {
    "optimizer": ("adamw",),
    "batching": ("fixed",),
    "precision": ("fp32", "bf16"),
    "objective": ("next_token",),
}
"""Techniques that many devices can share, by seam; the others keep a state or a choice of one device's own."""

RANK_STRIDE = 0x9E3779B1
"""What a rank's generator is seeded apart by: no seed of a study is as far from another, and torch keeps 32 bits."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device


@contextmanager
def process_group() -> Iterator[World]:
    """Join the group that torchrun describes in the environment; leave it at the end.

    Raises:
        RuntimeError: not started by torchrun.
    """
    if "RANK" not in os.environ:
        raise RuntimeError("not under torchrun: RANK is not set\nhint: torchrun --nproc-per-node 2 PROGRAM")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


class LossOf(nn.Module):
    """The model's loss as a forward pass, which is what DDP and FSDP2 watch. Tensors in, tensors out."""

    def __init__(self, model: transformer.Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens_BT: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
        losses = self.model.loss(tokens_BT, targets_BT)
        return losses.cross_entropy, losses.auxiliary


class Ranks:
    """The team of a training (lmopt.train.team.Team)."""

    def __init__(self, world: World, wrapped: Any) -> None:
        self.world = world
        self._wrapped = wrapped

    def part(self, tokens_BL1: Tensor) -> Tensor:
        """Consecutive sequences: rank r takes the r-th of as many equal parts as there are ranks."""
        each = len(tokens_BL1) // self.world.size
        return tokens_BL1[self.world.rank * each : (self.world.rank + 1) * each]

    def mean(self, numbers: Tensor) -> Tensor:
        return self.total(numbers) / self.world.size

    def total(self, numbers: Tensor) -> Tensor:
        numbers = numbers.clone()
        dist.all_reduce(numbers)
        return numbers

    def exchanging(self, is_last: bool) -> AbstractContextManager[object]:
        if isinstance(self._wrapped, DistributedDataParallel):
            return nullcontext() if is_last else self._wrapped.no_sync()
        self._wrapped.set_requires_gradient_sync(is_last)
        return nullcontext()


def start(
    recipe: Recipe, *, seed: int, world: World, sharding: Sharding = "copies", horizon: float = 1.0
) -> TrainState:
    """A training shared by all ranks, at its initialisation: the same numbers as one process starts from.

    Shards are drawn a parameter at a time, so that no rank ever holds the whole model.

    Raises:
        ValueError: the batch does not divide among the ranks, the vocabulary is not set, or a technique of the recipe
            knows one device only.
    """
    _refuse(recipe, world)
    allocator = memory.tune_allocator()
    compute = builder(recipe.precision)(recipe.precision, world.device)
    pace = builder(recipe.batching, "pace")(recipe.batching, recipe, horizon)
    torch.manual_seed(seed + RANK_STRIDE * world.rank)  # weights are drawn from streams of their own
    if sharding == "copies":
        model = transformer.build(recipe, seed=seed, device=world.device)
        wrapped: Any = DistributedDataParallel(LossOf(model), broadcast_buffers=False, gradient_as_bucket_view=True)
    else:
        model, wrapped = _sharded(recipe, seed, world)

    def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Losses:
        return Losses(*wrapped(tokens_BT, targets_BT))

    return assemble(
        recipe, model, loss, seed=seed, horizon=horizon, device=world.device, pace=pace, compute=compute,
        allocator=allocator, team=Ranks(world, wrapped),
    )  # fmt: skip


def _refuse(recipe: Recipe, world: World) -> None:
    """Before any work: what cannot be shared."""
    for seam, kinds in SHARED.items():
        chosen = getattr(recipe, seam).kind
        if chosen not in kinds:
            raise ValueError(f"{seam} {chosen!r} knows one device only; allowed on many: {', '.join(kinds)}")
    sequences, micro = recipe.batching.sequences, recipe.batching.micro_sequences
    each = sequences // world.size
    if sequences % world.size or (micro and each % micro):
        raise ValueError(
            f"batching.sequences ({sequences}) must divide into {world.size} ranks"
            + (f" of whole micro-batches of {micro}" if micro else "")
        )


def _sharded(recipe: Recipe, seed: int, world: World) -> tuple[transformer.Transformer, Any]:
    """A model whose parameters are cut over all ranks, block by block."""
    mesh = init_device_mesh(world.device.type, (world.size,))
    model = transformer.build(recipe, seed=seed, device="meta")
    buffers = model.state_dict().keys() - dict(model.named_parameters()).keys()
    if buffers:
        raise ValueError(
            f"shards of {min(buffers)}: a state beside the parameters is for copies\nhint: sharding copies"
        )
    wrapped = LossOf(model)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(wrapped, mesh=mesh)
    wrapped.to_empty(device=world.device)
    draw_parameters(
        model, seed=seed, stream=recipe.model.init_stream, layers=recipe.model.layers, place=_own_part(mesh)
    )
    for module in model.modules():
        if isinstance(module, Rotary):
            module.fill()
    return model, wrapped


def _own_part(mesh: DeviceMesh) -> Any:
    """Copies this rank's part of a drawn tensor into its shard; all ranks have drawn the same one."""

    def place(parameter: Tensor, drawn: Tensor) -> None:
        assert isinstance(parameter, DTensor)
        own = distribute_tensor(drawn.to(mesh.device_type), mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(own.to_local())

    return place
