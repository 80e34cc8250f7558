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
from torch import Tensor

from lmopt.arch.attention import torch_attention
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.transformer import Transformer

SCORES_PER_WIDTH = 2
"""Attention scores that cost as much as a token's products, per unit of the model's width: a block's products are about
24 D^2 FLOPs a token, and a score 4 D at a third of their rate. Half and three times as many are as fast within 10%."""
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


def grow(sequences: Sequence[np.ndarray], width: int) -> tuple[list[Tree], list[Place]]:
    """Trees that hold every sequence, and the place of each, in the order given.

    A sequence that equals another one or is its beginning adds nothing. One that would cost more attention than its
    common beginning saves a model of this width begins a tree of its own.
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
        if not trees or (new and not _pays(trees[-1].size, shared, new, width)):
            trees.append(_Growing())
            shared = 0
        trees[-1].add(sequence, shared)
        places[index] = Place(len(trees) - 1, trees[-1].path)
        before = sequence
    return [tree.done() for tree in trees], [place for place in places if place is not None]


def _pays(size: int, shared: int, new: int, width: int) -> bool:
    """Whether a line of `size` tokens takes `new` more of a sequence whose first `shared` ones it has.

    Every token of a line has scores with every other; of its own, a sequence would have half of that. One that begins
    with all there is makes the line no more than itself.
    """
    length = shared + new
    if shared == size:
        return True
    more_scores = (size + new) ** 2 - size**2 - length**2 / 2
    return more_scores <= SCORES_PER_WIDTH * width * shared and size + new <= max(MAX_TREE_TOKENS, 2 * length)


def _common_beginning(first: np.ndarray, second: np.ndarray) -> int:
    length = min(len(first), len(second))
    different = np.flatnonzero(first[:length] != second[:length])
    return int(different[0]) if len(different) else length


def states(model: Transformer, trees: Sequence[Tree], wanted: Sequence[np.ndarray]) -> Tensor:
    """The last block's normalised output at the wanted places of each tree, one tree after another: W x D.

    The last block computes keys and values of every token, and the rest of itself only where it is wanted. Dimension
    letters as in `lmopt.arch.transformer`, with N the padded length of a tree.

    Args:
        wanted: ascending places in each tree's line, int64.
    """
    weight_VD = model.embedding.weight
    length = max(map(len, trees))
    tokens_BN = np.zeros((len(trees), length), dtype=np.int64)
    for row, tree in enumerate(trees):
        tokens_BN[row, : len(tree)] = tree.tokens
    x_BND = model.embedding(torch.from_numpy(tokens_BN).to(weight_VD.device)).to(compute_dtype(weight_VD))
    if all(tree.is_chain for tree in trees):
        cos_TC, sin_TC = model.rotary(length, x_BND.dtype)
        layout = _Layout(cos_TC, sin_TC, None)
    else:
        depth_BN, mask_B1NN = _geometry(trees, length, weight_VD.device)
        cos_TC, sin_TC = model.rotary(model.model.context, x_BND.dtype)
        layout = _Layout(cos_TC[depth_BN][:, None], sin_TC[depth_BN][:, None], _bias(mask_B1NN, x_BND.dtype))
    last: Any  # what a ModuleList holds has no type of its own
    *before, last = model.blocks
    for block in before:
        x_BND = _block(block, x_BND, layout)
    return model.norm(_last_block(last, x_BND, layout, wanted))


@dataclass(frozen=True, slots=True)
class _Layout:
    """How the tokens of a batch lie."""

    cos: Tensor
    """Of the tokens' positions, as `Attention.project` takes them."""
    sin: Tensor
    bias_B1NN: Tensor | None
    """Added to attention's scores; None where all trees are chains."""


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


def _bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where the mask is true, -inf elsewhere."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _block(block: Any, x_BND: Tensor, layout: _Layout) -> Tensor:
    """A whole block."""
    if layout.bias_B1NN is None:
        return block(x_BND, layout.cos, layout.sin)[0]
    q_BHNC, k_BKNC, v_BKNC = block.attention.project(block.attention_norm(x_BND), layout.cos, layout.sin)
    return _rest_of_block(block, x_BND, q_BHNC, k_BKNC, v_BKNC, layout.bias_B1NN)


def _last_block(block: Any, x_BND: Tensor, layout: _Layout, wanted: Sequence[np.ndarray]) -> Tensor:
    """A block's output at the wanted places, W x D. Rows are filled up to the longest, P, with places not wanted."""
    count_B = torch.tensor([len(places) for places in wanted])
    place_BP = torch.zeros(len(wanted), int(count_B.max()), dtype=torch.int64)
    for row, places in enumerate(wanted):
        place_BP[row, : len(places)] = torch.from_numpy(places)
    is_wanted_BP = (torch.arange(place_BP.shape[1]) < count_B[:, None]).to(x_BND.device)
    place_BP, row_B1 = place_BP.to(x_BND.device), torch.arange(len(wanted), device=x_BND.device)[:, None]
    if 2 * place_BP.numel() > x_BND.shape[0] * x_BND.shape[1]:
        return _block(block, x_BND, layout)[row_B1, place_BP][is_wanted_BP]
    q_BHNC, k_BKNC, v_BKNC = block.attention.project(block.attention_norm(x_BND), layout.cos, layout.sin)
    q_BHPC = q_BHNC.transpose(1, 2)[row_B1, place_BP].transpose(1, 2)
    if layout.bias_B1NN is None:
        bias_BPN = _bias(torch.arange(x_BND.shape[1], device=x_BND.device) <= place_BP[..., None], x_BND.dtype)
    else:
        bias_BPN = layout.bias_B1NN[:, 0][row_B1, place_BP]
    x_BPD = _rest_of_block(block, x_BND[row_B1, place_BP], q_BHPC, k_BKNC, v_BKNC, bias_BPN[:, None])
    return x_BPD[is_wanted_BP]


def _rest_of_block(
    block: Any, x_BPD: Tensor, q_BHPC: Tensor, k_BKNC: Tensor, v_BKNC: Tensor, bias_B1PN: Tensor
) -> Tensor:
    """What follows a block's projections, for the P tokens of each row that have queries."""
    attention = block.attention
    y_BHPC = torch_attention(q_BHPC, k_BKNC, v_BKNC, bias_B1PN)
    x_BPD = x_BPD + attention.output(y_BHPC.transpose(1, 2).flatten(2))
    return x_BPD + block.ffn(block.ffn_norm(x_BPD))[0]
