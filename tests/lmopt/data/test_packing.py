"""Packed documents: whole, each once, best fit, and blind to each other in attention."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch

from lmopt.arch import causal
from lmopt.arch.attention import attend
from lmopt.arch.transformer import build as build_model
from lmopt.data import packing
from lmopt.data.shards import Shards
from lmopt.data.storage import DataError
from lmopt.recipe import Packed, Recipe
from lmopt.train import loop

END = 0


def corpus(*sizes: int) -> Shards:
    """Documents of these sizes, their tokens numbered on, each with END behind it (counted in its size)."""
    parts, number = [], 1
    for size in sizes:
        parts += [np.arange(number, number + size - 1), [END]]
        number += size - 1
    return Shards(np.concatenate(parts).astype(np.uint16), {"end_of_text": END})


SIZES = [3, 17, 9, 40, 5, 2, 8, 12, 6, 30]


@pytest.mark.parametrize("group", [2, 2048])
def test_an_epoch_holds_every_prediction_once(group):
    config = Packed(sequences=1, length=15, group=group)
    shards = corpus(*SIZES)
    rows = len(shards.tokens)  # far more than an epoch has
    pairs: list[tuple[int, int]] = []
    expected = sum(size - 1 for size in SIZES)
    for tokens, segments in islice(packing.build(config, shards, seed=1), rows):
        same = (segments[0, 1:] == segments[0, :-1]) & (segments[0, 1:] > 0)
        pairs += zip(tokens[0, :-1][same].tolist(), tokens[0, 1:][same].tolist(), strict=True)
        if len(pairs) >= expected:
            break
    whole = []
    starts, sizes = packing.documents(shards.tokens, END)
    for start, size in zip(starts, sizes, strict=True):
        document = shards.tokens[start : start + size].tolist()
        whole += pairwise(document)
    assert sorted(pairs) == sorted(whole)


def test_best_fit_by_hand():
    # capacity 10: 7 opens a row (3 left), 6 opens one (4 left), 4 fits the second best, 3 the first
    rows = packing.pack([(0, 3), (10, 6), (20, 7), (30, 4)], 10)
    assert sorted(sorted(row) for row in rows) == [[(0, 3), (20, 7)], [(10, 6), (30, 4)]]


def test_long_documents_are_cut_with_one_token_twice():
    assert packing.pack([(0, 25)], 10) == [[(0, 10)], [(9, 10)], [(18, 7)]]


def test_little_room_is_left():
    sizes = np.random.default_rng(0).integers(5, 200, size=500)
    rows = packing.pack([(0, int(size)) for size in sizes], 257)
    assert len(rows) <= 1.02 * sizes.sum() / 257 + 1


def test_any_portion_can_be_the_first_and_the_seed_matters():
    config = Packed(sequences=2, length=15)
    shards = corpus(*SIZES)
    whole = list(islice(packing.build(config, shards, seed=0), 12))
    for start in (0, 3, 11):
        assert torch.equal(next(packing.build(config, shards, seed=0, start=start)), whole[start])
    assert not torch.equal(torch.stack(list(islice(packing.build(config, shards, seed=1), 12))), torch.stack(whole))


def test_corpora_that_cannot_be_packed():
    with pytest.raises(DataError, match="do not say which token ends a document"):
        packing.build(Packed(), Shards(np.arange(9, dtype=np.uint16), {}), seed=0)
    with pytest.raises(DataError, match="no document of two tokens"):
        packing.build(Packed(), Shards(np.zeros(9, np.uint16), {"end_of_text": 0}), seed=0)


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
def test_attention_within_documents_equals_each_alone(kept, monkeypatch):
    monkeypatch.setattr(causal, "BLOCK", 5)
    monkeypatch.setattr("lmopt.arch.attention.keeps_probabilities", lambda *_: kept)
    torch.manual_seed(0)
    q = torch.randn(1, 4, 12, 8, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(1, 2, 12, 8, dtype=torch.float64, requires_grad=True) for _ in range(2))
    sizes = [3, 1, 6, 2]
    segments = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(sizes))[None]
    ours = attend(q, k, v, segments)
    alone = torch.cat(
        [attend(*parts) for parts in zip(*(x.split(sizes, dim=2) for x in (q, k, v)), strict=True)], dim=1
    )
    torch.testing.assert_close(ours, alone)
    weight = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((alone * weight).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_one_document_a_row_is_plain_attention():
    q = torch.randn(2, 2, 9, 8)
    assert torch.equal(attend(q, q, q, torch.ones(2, 9, dtype=torch.int64)), attend(q, q, q))


def packed_recipe(**batching) -> Recipe:
    return Recipe.model_validate(
        {
            "model": {"layers": 2, "width": 16, "heads": 2, "vocab": 512, "context": 16},
            "batching": {"kind": "packed", "sequences": 4, "length": 15, **batching},
            "precision": {"kind": "fp32"},
            "tokens": 4 * 15 * 5,
        }
    )


def test_the_loss_is_the_mean_over_documents_alone():
    described = packed_recipe()
    model = build_model(described, seed=0)
    shards = corpus(*SIZES)
    portion = next(packing.build(described.batching, shards, seed=0))
    state = loop.start(described, seed=0)
    batch = loop._next_batch(state, state.pace.next(), iter([portion]))
    ours = model.loss(batch.inputs_BL, batch.targets_BL, batch.segments_BL).cross_entropy
    total, count = 0.0, 0
    for tokens, segments in zip(*portion, strict=True):
        for number in range(1, int(segments.max()) + 1):
            document = tokens[segments == number][None]
            predicted = document.shape[1] - 1
            total += model.loss(document[:, :-1], document[:, 1:]).cross_entropy.item() * predicted
            count += predicted
    assert ours.item() == pytest.approx(total / count, rel=1e-5)


def test_training_learns_alike_in_micro_batches_and_repeats_to_the_bit():
    shards = corpus(*SIZES * 3)

    def run(described):
        state = loop.start(described, seed=0)
        return state, list(loop.train(state, packing.build(described.batching, shards, seed=0)))

    whole, steps = run(packed_recipe())
    again, _ = run(packed_recipe())
    _, part_steps = run(packed_recipe(micro_sequences=1))
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert [s.loss for s in part_steps] == pytest.approx([s.loss for s in steps], rel=1e-4)
    assert [s.notes["grad_norm"] for s in part_steps] == pytest.approx([s.notes["grad_norm"] for s in steps], rel=1e-3)


# --- answers -------------------------------------------------------------------------------------


def examples(count: int) -> list[packing.Example]:
    """Tokens numbered on, 5 to 9 an example, the last 1 or 2 the answer."""
    numbers = iter(range(1, 10**6))
    return [packing.Example(list(islice(numbers, 5 + n % 5)), 1 + n % 2) for n in range(count)]


def test_every_answer_is_learnt_once_an_epoch_and_nothing_else():
    config = Packed(sequences=1, length=15)
    given = examples(40)
    wanted = sorted(token for one in given for token in one.tokens[-one.answer :])
    learnt: list[int] = []
    for tokens, segments, answer in islice(packing.answers(config, given, seed=3), 500):
        is_target = (segments[0, 1:] == segments[0, :-1]) & (segments[0, 1:] > 0) & (answer[0, 1:] > 0)
        learnt += tokens[0, 1:][is_target].tolist()
        if len(learnt) >= len(wanted):
            break
    assert sorted(learnt) == wanted


def test_answers_start_at_any_portion_and_follow_the_seed():
    config = Packed(sequences=2, length=15)
    whole = list(islice(packing.answers(config, examples(40), seed=3), 6))
    assert torch.equal(torch.stack(whole[2:]), torch.stack(list(islice(packing.answers(config, examples(40), seed=3, start=2), 4))))  # fmt: skip  # noqa: E501
    assert not torch.equal(whole[0], next(packing.answers(config, examples(40), seed=4)))


@pytest.mark.parametrize("wrong", [packing.Example(list(range(17)), 1), packing.Example([1, 2], 2), packing.Example([1, 2], 0)])  # fmt: skip  # noqa: E501
def test_an_example_that_cannot_be_learnt_is_refused(wrong: packing.Example):
    with pytest.raises(DataError, match="example 1"):
        next(packing.answers(Packed(sequences=1, length=15), [*examples(1), wrong], seed=0))


def test_the_loss_of_answers_is_theirs_alone():
    """Equal to the mean over the answers' tokens of each example by itself."""
    batching = {"kind": "packed", "sequences": 1, "length": 15}
    model = {"layers": 1, "width": 16, "heads": 2, "vocab": 64, "context": 15}
    recipe = Recipe.model_validate({"model": model, "precision": {"kind": "fp32"}, "batching": batching, "tokens": 15})
    given = [packing.Example([3, 9, 4, 7, 11], 2), packing.Example([5, 6, 8, 2, 1, 12], 1)]
    state = loop.start(recipe, seed=0)
    alone = build_model(recipe, seed=0)
    nats = []
    for one in given:
        log_p = alone(torch.tensor([one.tokens[:-1]]))[0].log_softmax(-1)
        nats += [-log_p[place - 1, one.tokens[place]].item() for place in range(len(one.tokens) - one.answer, len(one.tokens))]  # fmt: skip  # noqa: E501
    (step,) = loop.train(state, packing.answers(recipe.batching, given, seed=0))
    assert step.loss == pytest.approx(np.mean(nats), rel=1e-5)
