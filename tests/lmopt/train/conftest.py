"""Tiny recipes and batches, so small that a training takes a fraction of a second."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from lmopt.recipe import Recipe

VOCAB, LENGTH, SEQUENCES, STEPS = 64, 16, 4, 12


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from threads, and a busy machine makes them wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """Make a tiny recipe; keyword arguments replace its fields."""

    def make(**changes: object) -> Recipe:
        plain: dict[str, object] = {
            "model": {"layers": 2, "width": 32, "heads": 2, "vocab": VOCAB, "context": LENGTH},
            "batching": {"sequences": SEQUENCES, "length": LENGTH},
            "precision": {"kind": "fp32"},
            "optimizer": {"lr": 1e-2},
            "tokens": SEQUENCES * LENGTH * STEPS,
        }
        return Recipe.model_validate(plain | changes)

    return make


@pytest.fixture
def batches() -> Callable[..., Iterator[Tensor]]:
    """Batches that are a pure function of (seed, step): a noisy counting sequence, easy to learn."""

    def make(seed: int = 0, start_step: int = 0) -> Iterator[Tensor]:
        step = start_step
        while True:
            generator = torch.Generator().manual_seed(1000 * seed + step)
            first = torch.randint(0, VOCAB, (SEQUENCES, 1), generator=generator)
            yield (first + torch.arange(LENGTH + 1)) % VOCAB
            step += 1

    return make
