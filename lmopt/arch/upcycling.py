"""A sparse model that starts as a dense one (letters: see transformer.py).

Every expert begins as the dense feed-forward, so whichever are chosen, gates that sum to 1 give what the dense layer
gave: the loss of the first step is the dense model's. The experts part as the router sends them different tokens.
"""

from __future__ import annotations

import torch
from torch import nn

from lmopt.techniques.start import Scratch, Upcycled

DENSE_NAMES = {"ffn.up": ("ffn.gate_up.weight", "ffn.up.weight"), "ffn.down": ("ffn.down.weight",)}
"""Stacked matrices of experts -> what the same matrix of a dense layer may be called."""


def keep(_config: Scratch, _model: nn.Module, _source: nn.Module | None = None) -> None:
    """A model starts from the weights that were drawn."""


@torch.no_grad()
def upcycle(_config: Upcycled, model: nn.Module, source: nn.Module) -> None:
    """Fill a sparse model from a trained dense one, in place; routers keep the weights that were drawn.

    Raises:
        ValueError: a parameter has no counterpart, or one of another shape.
    """
    known = dict(source.named_parameters())
    for name, parameter in model.named_parameters():
        if ".ffn.router." in name:
            continue
        block, dot, part = name.partition(".ffn.")
        candidates = [f"{block}.{dense}" for dense in DENSE_NAMES.get(f"ffn.{part}", ())] if dot else [name]
        counterpart = next((known[one] for one in candidates if one in known), None)
        if counterpart is None:
            raise ValueError(f"{name}: the dense model has none of {candidates or [name]}")
        if counterpart.shape != parameter.shape[-counterpart.dim() :]:
            raise ValueError(
                f"{name}: shape {tuple(parameter.shape)}, the dense model's is {tuple(counterpart.shape)}\n"
                "hint: `split: 1` makes experts as wide as a dense layer"
            )
        parameter.copy_(counterpart)  # the same for each expert of a stack
