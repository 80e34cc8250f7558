"""Which questions of a set a model is fine-tuned on, and which it is tested on: by a hash of their passage.

The same for every model, whatever the limit, so that items pair; a passage is never on both sides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

from bench.evaluate.sets import Item

SUFFIX = "-finetuned"
"""What the accuracy after fine-tuning is called beside the set's own name."""


def finetuned_name(task: str) -> str:
    """`vitaminc` -> `vitaminc-finetuned`: another model and other items than the set's own accuracy."""
    return task + SUFFIX


def tested(items: Iterable[Item], share: float) -> list[Item]:
    """The items that models are tested on: those of about this share of the passages, in their order."""
    return [item for item in items if _place(item, "test") < share]


def untested(items: Iterable[Item], share: float) -> list[Item]:
    """The others."""
    return [item for item in items if _place(item, "test") >= share]


def kept_back(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """(those that are learnt from, those of about this share of the passages that choices are made by).

    Where the passages are too few to leave some on each side, items are parted by themselves.
    """
    chosen = [_place(item, "choose") < share for item in items]
    if all(chosen) or not any(chosen):
        chosen = [_place(replace(item, passage=None), "choose") < share for item in items]
    learn = [item for item, is_chosen in zip(items, chosen, strict=True) if not is_chosen]
    return learn, [item for item, is_chosen in zip(items, chosen, strict=True) if is_chosen]


def _place(item: Item, purpose: str) -> float:
    """A number from 0 to 1 drawn by the item's passage, or by itself where it stands alone."""
    key = item.passage if item.passage is not None else "\0".join((item.context, *sorted(item.choices)))
    return int.from_bytes(hashlib.blake2b(f"{purpose}\0{key}".encode(), digest_size=8).digest()) / 2**64
