"""Layer dropout and losses at exits against plain loops over layers."""

import pytest
import torch
from torch.nn import functional

from lmopt.recipe import AdamW, Fp32, Recipe
from lmopt.techniques.objective import LayerSkip
from lmopt.train import loop
from lmopt.train.layerskip import LayerSkipLoss
from tests.lmopt.infer.models import SHAPES, packed_apart, recipe, tiny, tokens

TEXT, TARGETS = tokens(4, 9), tokens(4, 9, seed=1)


def model(**choices):
    return tiny(**choices).requires_grad_(True)


def gradients(loss, of):
    return torch.autograd.grad(loss.total, list(of.parameters()), allow_unused=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_dropout_and_exits_it_is_the_models_own_loss(shape):
    plain = model(**SHAPES[shape]).train()
    skipping = LayerSkipLoss(plain, LayerSkip(dropout=0))
    ours, own = skipping(TEXT, TARGETS), plain.loss(TEXT, TARGETS)
    assert ours.cross_entropy == own.cross_entropy
    torch.testing.assert_close(ours.auxiliary, own.auxiliary)
    for mine, theirs in zip(gradients(ours, plain), gradients(own, plain), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert skipping.executed_share == 1


def test_exits_are_weighed_as_in_the_paper_gradients_included():
    plain = model(layers=4).train()
    config = LayerSkip(dropout=0, exits=(2, 3), exits_a_step=2, exit_scale=0.5)
    losses = LayerSkipLoss(plain, config)(TEXT, TARGETS)

    x, (cos, sin) = plain.embedding(TEXT), plain.rotary(9, torch.float32)
    expected = []
    for block in plain.blocks:
        x, _ = block(x, cos, sin)
        logits = functional.linear(plain.norm(x), plain.head_weight_VD)
        expected.append(functional.cross_entropy(logits.flatten(0, 1), TARGETS.flatten()))
    weights = {2: 0.5 * 1, 3: 0.5 * (1 + 2), 4: 3 + 0.5 * (1 + 2)}
    mixed = sum(weight * expected[layer - 1] for layer, weight in weights.items()) / sum(weights.values())
    torch.testing.assert_close(losses.total, mixed)
    torch.testing.assert_close(losses.cross_entropy, expected[-1])
    slow = torch.autograd.grad(mixed, list(plain.parameters()))
    for mine, theirs in zip(gradients(losses, plain), slow, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4)


def test_documents_packed_together_are_learnt_apart():
    packed, apart = packed_apart(LayerSkipLoss(model().train(), LayerSkip(dropout=0, exits=(1, 2), exits_a_step=2)))
    assert packed == pytest.approx(apart, rel=1e-5)


def test_a_sequence_goes_through_the_layers_drawn_for_it_and_no_others(monkeypatch):
    plain = model().train()
    skipping = LayerSkipLoss(plain, LayerSkip(dropout=0.5))
    rows = [torch.tensor([0, 1, 2, 3]), torch.tensor([1, 3]), torch.tensor([], dtype=torch.long)]
    monkeypatch.setattr(skipping, "_draw_rows", lambda batch: rows)
    (states,), _ = skipping.states(TEXT, ())
    cos, sin = plain.rotary(9, torch.float32)
    for sequence in range(4):
        x = plain.embedding(TEXT[sequence : sequence + 1])
        for block, through in zip(plain.blocks, rows, strict=True):
            x = block(x, cos, sin)[0] if sequence in through else x
        torch.testing.assert_close(states[sequence : sequence + 1], x)
    assert skipping.executed_share == 6 / 12


def test_dropout_grows_with_depth_and_is_met_on_average():
    config = LayerSkip(dropout=0.4)
    assert config.layer_dropout(5) == pytest.approx((0, 0.4 * 0.18921, 0.4 * 0.41421, 0.4 * 0.68179, 0.4), abs=1e-5)
    assert config.layer_dropout(1) == (0.0,)
    torch.manual_seed(0)
    skipping = LayerSkipLoss(model(layers=5).train(), config)
    stayed = torch.tensor([[len(rows) for rows in skipping._draw_rows(50)] for _ in range(100)]).sum(0) / 5000
    assert (1 - stayed - torch.tensor(config.layer_dropout(5))).abs().max() < 4 * 0.5 / 5000**0.5


def test_in_evaluation_nothing_is_left_out():
    plain = model().eval()
    skipping = LayerSkipLoss(plain, LayerSkip(dropout=0.9))
    assert skipping(TEXT, TARGETS).cross_entropy == plain.loss(TEXT, TARGETS).cross_entropy
    assert skipping.executed_share == 1


def test_exits_are_drawn_one_a_step():
    skipping = LayerSkipLoss(model(layers=5).train(), LayerSkip(exits=(2, 3, 4)))
    torch.manual_seed(0)
    drawn = {skipping._draw_exits() for _ in range(30)}
    assert drawn == {(2,), (3,), (4,)}


@pytest.mark.parametrize("exits", [(3,), (1, 7)])
def test_exits_beyond_the_depth_are_refused(exits):
    with pytest.raises(ValueError, match=r"of a model of 3 layers: 1 to 2 are possible"):
        LayerSkipLoss(model(), LayerSkip(exits=exits))
    with pytest.raises(ValueError, match="must ascend"):
        LayerSkip(exits=(2, 1))


def trained(seed):
    objective = LayerSkip(dropout=0.5, exits=(2,))
    settings = {"precision": Fp32(), "optimizer": AdamW(lr=1e-2), "tokens": 64 * 6, "objective": objective}
    state = loop.start(recipe().model_copy(update=settings), seed=seed)
    steps = list(loop.train(state, (tokens(2, 33, seed=step) for step in range(6))))
    return [step.loss for step in steps], state.loss.executed_share


def test_trains_in_the_loop_the_same_bits_for_the_same_seed():
    first, again, other = trained(0), trained(0), trained(1)
    assert first == again
    assert first[0] != other[0]
    assert first[1] < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": {"kind": "layer_skip", "exits": [2, 3]}}, r"objective.exits \[3\] of a model of 3 layers"),
        ({"objective": {"kind": "layer_skip"}, "compile": True}, "cannot be compiled"),
    ],
)
def test_a_recipe_refuses_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(recipe().model_dump(mode="json") | change)


def test_more_exits_a_step_than_there_are_is_a_mistake():
    with pytest.raises(ValueError, match=r"exits_a_step \(3\) exceeds the exits that there are: \[1, 2\]"):
        LayerSkip(exits=(1, 2), exits_a_step=3)
