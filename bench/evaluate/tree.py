"""Many sequences with common beginnings as one: a token trie, laid out in a line and run through the model at once.

Sequences are sorted, so that each follows the one it shares most with, and only the tokens after the common beginning
are added. In the line a token's ancestors lie before it, and everything between a token and the end of its subtree
descends from it: token i may attend to token j exactly if j <= i < end[j]. A token's position is its depth. What the
model computes for it is what it would compute in a sequence of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmopt.arch.transformer import Transformer

MIN_SHARED_TOKENS = 8
"""A shorter common beginning is computed twice: the sharing would cost more attention than it saves."""
MAX_TREE_TOKENS = 512
"""A longer line is begun anew, unless a sequence is itself half as long: the mask grows with the square."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A trie of tokens in depth-first order."""

    tokens: np.ndarray
    """Token ids, int64, N."""
    depth: np.ndarray
    """Position of each token in its own sequence, int64, N."""
    end: np.ndarray
    """One past each token's last descendant, int64, N."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def is_chain(self) -> bool:
        """Whether it is a single sequence: then the model's own causal attention does."""
        return bool((self.end == len(self.tokens)).all())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a sequence lies."""

    tree: int
    path: np.ndarray
    """Index in the tree's line of each of its tokens, int64."""


class _Growing:
    """A tree while sequences are added to it, in sorted order."""

    def __init__(self) -> None:
        self.tokens: list[np.ndarray] = []
        self.depth: list[np.ndarray] = []
        self.closed: list[tuple[np.ndarray, int]] = []
        self.size = 0
        self.path = np.empty(0, dtype=np.int64)

    def add(self, sequence: np.ndarray, shared: int) -> None:
        """Add what follows the first `shared` tokens, which the sequence added last has too."""
        new = sequence[shared:]
        self.closed.append((self.path[shared:], self.size))
        self.path = np.concatenate([self.path[:shared], np.arange(self.size, self.size + len(new))])
        self.tokens.append(new)
        self.depth.append(np.arange(shared, len(sequence)))
        self.size += len(new)

    def done(self) -> Tree:
        end = np.full(self.size, self.size, dtype=np.int64)
        for nodes, size in self.closed:
            end[nodes] = size
        return Tree(np.concatenate(self.tokens), np.concatenate(self.depth), end)


def grow(sequences: Sequence[np.ndarray]) -> tuple[list[Tree], list[Place]]:
    """Trees that hold every sequence, and the place of each, in the order given.

    A sequence that equals another one or is its beginning adds nothing.
    """
    keys = [sequence.astype(">u4").tobytes() for sequence in sequences]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    trees: list[_Growing] = []
    places: list[Place | None] = [None] * len(keys)
    before = np.empty(0, dtype=np.int64)
    for index in order:
        sequence = sequences[index]
        shared = _common_beginning(before, sequence)
        new = len(sequence) - shared
        fits = trees and (new == 0 or shared == len(before) or shared >= MIN_SHARED_TOKENS)
        if not fits or (new and trees[-1].size + new > max(MAX_TREE_TOKENS, 2 * len(sequence))):
            trees.append(_Growing())
            shared = 0
        trees[-1].add(sequence, shared)
        places[index] = Place(len(trees) - 1, trees[-1].path)
        before = sequence
    return [tree.done() for tree in trees], [place for place in places if place is not None]


def _common_beginning(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def hidden(model: Transformer, trees: Sequence[Tree]) -> Tensor:
    """The last block's normalised output for each token of each tree, B x N x D; padding on the right is garbage.

    Dimension letters as in `lmopt.arch.transformer`, with N the padded length of a tree.
    """
    device = model.embedding.weight.device
    length = max(map(len, trees))
    tokens_BN = np.zeros((len(trees), length), dtype=np.int64)
    for row, tree in enumerate(trees):
        tokens_BN[row, : len(tree)] = tree.tokens
    tokens = torch.from_numpy(tokens_BN).to(device)
    if all(tree.is_chain for tree in trees):
        return model.hidden(tokens)[0]
    return _masked(model, tokens, *_geometry(trees, length, device))


def _geometry(trees: Sequence[Tree], length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Depths (B x N) and the mask of what each token sees (B x 1 x N x N). Padding sees itself alone."""
    depth_BN = np.zeros((len(trees), length), dtype=np.int64)
    end_BN = np.tile(np.arange(1, length + 1), (len(trees), 1))
    for row, tree in enumerate(trees):
        depth_BN[row, : len(tree)] = tree.depth
        end_BN[row, : len(tree)] = tree.end
    end = torch.from_numpy(end_BN).to(device)
    here = torch.arange(length, device=device)
    mask_BNN = (here[None, None, :] <= here[None, :, None]) & (here[None, :, None] < end[:, None, :])
    return torch.from_numpy(depth_BN).to(device), mask_BNN[:, None]


def _masked(model: Transformer, tokens_BN: Tensor, depth_BN: Tensor, mask_B1NN: Tensor) -> Tensor:
    """The model's forward pass with given positions and a given mask."""
    x_BND = model.embedding(tokens_BN)
    if torch.is_autocast_enabled(x_BND.device.type):
        x_BND = x_BND.to(torch.get_autocast_dtype(x_BND.device.type))
    cos_TC, sin_TC = model.rotary(model.model.context, x_BND.dtype)
    cos_B1NC, sin_B1NC = cos_TC[depth_BN][:, None], sin_TC[depth_BN][:, None]
    bias_B1NN = torch.zeros(mask_B1NN.shape, dtype=x_BND.dtype, device=x_BND.device).masked_fill_(
        ~mask_B1NN, -torch.inf
    )
    block: Any  # what a ModuleList holds has no type of its own
    for block in model.blocks:
        attention = block.attention
        q_BHNC, k_BKNC, v_BKNC = attention.project(block.attention_norm(x_BND), cos_B1NC, sin_B1NC)
        y_BHNC = nn.functional.scaled_dot_product_attention(
            q_BHNC, k_BKNC, v_BKNC, attn_mask=bias_B1NN, enable_gqa=attention.key_heads != attention.heads
        )
        x_BND = x_BND + attention.output(y_BHNC.transpose(1, 2).flatten(2))
        y_BND, _ = block.ffn(block.ffn_norm(x_BND))
        x_BND = x_BND + y_BND
    return model.norm(x_BND)
