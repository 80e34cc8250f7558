"""Sharing common beginnings changes what is computed, never the result."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.evaluate import tree
from lmopt.recipe import Moe
from tests.bench.evaluate.tiny import tiny_model

SHARED = list(range(3, 11))
WIDTH = 32
"""Of the model that the trees are grown for."""


def _sequences(*tails: list[int]) -> list[np.ndarray]:
    return [np.array(SHARED + tail, dtype=np.int64) for tail in tails]


def test_a_common_beginning_is_laid_out_once():
    trees, places = tree.grow(_sequences([50, 51], [50, 52, 53], [60]), WIDTH)
    (only,) = trees
    assert len(only) == len(SHARED) + 5
    for sequence, place in zip(_sequences([50, 51], [50, 52, 53], [60]), places, strict=True):
        assert only.tokens[place.path].tolist() == sequence.tolist()
        assert only.depth[place.path].tolist() == list(range(len(sequence)))


def test_a_beginning_of_another_sequence_and_a_repetition_add_nothing():
    trees, places = tree.grow([*_sequences([50, 51, 52], [50], [50, 51, 52]), np.array(SHARED[:2])], WIDTH)
    (only,) = trees
    assert only.is_chain
    assert len(only) == len(SHARED) + 3
    assert places[0].path.tolist() == places[2].path.tolist()
    assert places[3].path.tolist() == [0, 1]


def test_the_beginning_of_a_long_text_adds_nothing_in_a_narrow_model():
    text = np.arange(300, dtype=np.int64)
    trees, places = tree.grow([text, text[:100], text[:200]], WIDTH)
    (only,) = trees
    assert only.is_chain
    assert [len(place.path) for place in places] == [300, 100, 200]
    assert len(only) == 300


def test_a_common_beginning_is_not_always_worth_a_tree():
    """Two short sentences share their first word at once; two long texts are apart unless the model is a wide one."""
    short = [np.array([1, 2, 3, 4]), np.array([1, 5, 6, 7])]
    assert [len(one) for one in tree.grow(short, WIDTH)[0]] == [7]
    long = [np.array([1, 2, *[third] * 100]) for third in (3, 4)]
    assert [len(one) for one in tree.grow(long, WIDTH)[0]] == [102, 102]
    assert [len(one) for one in tree.grow(long, 400 * WIDTH)[0]] == [202]
    assert [len(one) for one in tree.grow([np.array([1, 2]), np.array([3, 4])], 400 * WIDTH)[0]] == [2, 2]


def test_a_long_line_is_begun_anew(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tree, "MAX_TREE_TOKENS", 30)
    sequences = _sequences(*[[50 + n, 60, 61, 62, 63] for n in range(12)])
    trees, places = tree.grow(sequences, WIDTH)
    assert len(trees) > 1
    assert max(map(len, trees)) <= 30
    for sequence, place in zip(sequences, places, strict=True):
        assert trees[place.tree].tokens[place.path].tolist() == sequence.tolist()


def test_a_token_sees_its_ancestors_and_itself_alone():
    trees, places = tree.grow(_sequences([50, 51], [50, 52], [60]), WIDTH)
    _, mask = tree._geometry(trees, len(trees[0]) + 2, torch.device("cpu"))
    for place in places:
        for seen_from, node in enumerate(place.path):
            assert mask[0, 0, node].nonzero().flatten().tolist() == place.path[: seen_from + 1].tolist()
    padding = len(trees[0])
    assert mask[0, 0, padding].nonzero().flatten().tolist() == [padding]


@pytest.mark.parametrize("ffn", [None, Moe(experts=4, top_k=2, kernel="loop")], ids=["dense", "sparse"])
@pytest.mark.parametrize("asked", [slice(None), slice(-2, None)], ids=["every token", "the last two"])
@pytest.mark.parametrize("branching", [True, False], ids=["branching", "chains"])
def test_states_equal_those_of_each_sequence_alone(tokenizer, ffn, asked, branching):
    model = tiny_model(tokenizer, ffn=ffn).double().eval()
    generator = np.random.default_rng(0)
    stem = generator.integers(0, 300, 20)
    sequences = [
        np.concatenate([stem[: generator.integers(9, 20)], generator.integers(0, 300, generator.integers(0, 9))])
        for _ in range(12)
    ]
    if not branching:
        sequences = [(sequence[: 8 + number] + number) % 300 for number, sequence in enumerate(sequences)]
    trees, places = tree.grow(sequences, model.model.width)
    assert any(not one.is_chain for one in trees) == branching
    wanted = [
        np.unique(np.concatenate([place.path[asked] for place in places if place.tree == number]))
        for number in range(len(trees))
    ]
    first = np.cumsum([0, *map(len, wanted)])
    with torch.inference_mode():
        states_WD = tree.states(model, trees, wanted)
        for sequence, place in zip(sequences, places, strict=True):
            alone = model.hidden(torch.tensor(sequence)[None])[0][0]
            rows = first[place.tree] + np.searchsorted(wanted[place.tree], place.path[asked])
            torch.testing.assert_close(states_WD[rows], alone[asked], atol=1e-6, rtol=1e-6)
