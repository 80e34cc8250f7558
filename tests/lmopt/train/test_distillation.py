"""Distillation against the obvious losses, gradients included; teachers that fit and that do not."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from lmopt import cost
from lmopt.arch.loss import IGNORED
from lmopt.cost_memory import peak_memory_bytes
from lmopt.recipe import AdamW, Distillation, Fp32, Moe, Recipe, TeacherLayers, builder
from lmopt.train import checkpoint, distillation, loop
from lmopt.train.distillation import DistillationLoss, head_losses, initialise, taken_layers
from tests.lmopt.infer.models import SHAPES, VOCAB, packed_apart, recipe, tiny, tokens

TEXT, TARGETS = tokens(3, 9), tokens(3, 9, seed=1)


def taught(**knobs) -> Distillation:
    return Distillation(teacher="large", **knobs)


def student(**choices):
    return tiny(seed=1, layers=2, **choices).requires_grad_(True)


@pytest.mark.parametrize("chunk_bytes", [4 * VOCAB * 4, 1 << 20], ids=["chunks", "whole"])
@pytest.mark.parametrize("block_bytes", [8 * VOCAB * 2, 1 << 20], ids=["blocks", "block"])
@pytest.mark.parametrize(("targets", "probabilities"), [(0.25, 0.625), (0.0, 1.0)])
def test_losses_of_the_head_are_the_obvious_ones_gradients_included(
    monkeypatch, chunk_bytes, block_bytes, targets, probabilities
):
    monkeypatch.setattr(distillation, "CHUNK_BYTES", chunk_bytes)
    monkeypatch.setattr(distillation, "BLOCK_BYTES", block_bytes)
    torch.manual_seed(0)
    x_ND = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(VOCAB, 8, dtype=torch.float64, requires_grad=True)
    teacher_NW, teacher_VW = torch.randn(11, 6, dtype=torch.float64), torch.randn(VOCAB, 6, dtype=torch.float64)
    targets_N = torch.randint(0, VOCAB, (11,))
    targets_N[[2, 7]] = IGNORED
    config = taught(temperature=3.0, targets=targets, probabilities=probabilities)
    ours = head_losses(x_ND, weight_VD, targets_N, teacher_NW, teacher_VW, config)
    learnt, z = targets_N != IGNORED, x_ND @ weight_VD.T
    kl = 9.0 * functional.kl_div(
        (z / 3).log_softmax(-1)[learnt],
        (teacher_NW @ teacher_VW.T / 3).log_softmax(-1)[learnt],
        log_target=True,
        reduction="batchmean",
    )
    own = functional.cross_entropy(z, targets_N)
    slow = targets * own + probabilities * kl
    torch.testing.assert_close(ours.mixed, slow)
    torch.testing.assert_close(ours.cross_entropy, own)
    assert not ours.cross_entropy.requires_grad
    parameters = x_ND, weight_VD
    for mine, theirs in zip(
        torch.autograd.grad(2 * ours.mixed, parameters), torch.autograd.grad(2 * slow, parameters), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_the_weighted_sum(shape):
    ours, teacher = student(**SHAPES[shape]), tiny(**SHAPES[shape])
    config = taught(temperature=2, targets=0.5, probabilities=0.3, hidden=0.2)
    losses = DistillationLoss(ours, config, teacher)(TEXT, TARGETS)
    (x, auxiliary), (x_teacher, _) = ours.hidden(TEXT), teacher.hidden(TEXT)
    kl = 4 * functional.kl_div(
        (ours(TEXT) / 2).log_softmax(-1).flatten(0, 1),
        (teacher(TEXT) / 2).softmax(-1).flatten(0, 1),
        reduction="batchmean",
    )
    own = functional.cross_entropy(ours(TEXT).flatten(0, 1), TARGETS.flatten())
    cosine = functional.cosine_similarity(x, x_teacher, dim=-1).mean()
    torch.testing.assert_close(losses.total, auxiliary + 0.5 * own + 0.3 * kl + 0.2 * (1 - cosine))
    torch.testing.assert_close(losses.cross_entropy, own)


def test_documents_packed_together_are_learnt_apart_and_padding_not_at_all():
    packed, apart = packed_apart(DistillationLoss(student(), taught(), tiny()))
    assert packed == pytest.approx(apart, rel=1e-5)


def test_tokens_that_are_not_learnt_have_no_gradient():
    ours, learnt_N = student(), TARGETS.flatten() % 3 > 0
    x_ND, weight_VD = torch.randn(27, 32, requires_grad=True), ours.head_weight_VD
    targets_N = TARGETS.flatten().masked_fill(~learnt_N, IGNORED)
    head_losses(x_ND, weight_VD, targets_N, torch.randn(27, 32), tiny().head_weight_VD, taught()).mixed.backward()
    assert torch.equal(x_ND.grad.abs().sum(1) > 0, learnt_N)


def test_a_teacher_that_weighs_nothing_leaves_plain_training():
    ours = student()
    losses = DistillationLoss(ours, taught(targets=1, probabilities=0, hidden=0), tiny())(TEXT, TARGETS)
    assert losses.total == ours.loss(TEXT, TARGETS).total


def test_a_student_equal_to_its_teacher_has_no_divergence():
    teacher = tiny()
    ours = tiny().requires_grad_(True)
    losses = DistillationLoss(ours, taught(targets=0, probabilities=1, hidden=1), teacher)(TEXT, TARGETS)
    assert losses.total.abs() < 1e-5


def test_the_teacher_learns_nothing():
    teacher = tiny().requires_grad_(True)
    losses = DistillationLoss(student(), taught(), teacher)(TEXT, TARGETS)
    losses.total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


class TestInitialise:
    def test_takes_one_layer_out_of_two(self):
        assert taken_layers(6, 12) == (0, 2, 4, 6, 8, 10)
        assert taken_layers(3, 3) == (0, 1, 2)
        with pytest.raises(ValueError, match="a student of 4 layers is deeper than its teacher of 3"):
            taken_layers(4, 3)

    def test_copies_what_it_takes(self):
        teacher, ours = tiny(layers=4), student()
        initialise(ours, teacher)
        assert torch.equal(ours.embedding.weight, teacher.embedding.weight)
        assert torch.equal(ours.blocks[1].ffn.down.weight, teacher.blocks[2].ffn.down.weight)

    def test_of_all_layers_is_the_teacher(self):
        teacher, ours = tiny(layers=2), student()
        initialise(ours, teacher)
        assert torch.equal(ours(TEXT), teacher(TEXT))

    def test_a_router_s_biases_are_its_layer_s_too(self):
        config = Moe(experts=4, top_k=2, hidden=32, routing={"kind": "loss_free"})
        teacher, ours = tiny(layers=2, ffn=config), student(ffn=config)
        for block in teacher.blocks:
            block.ffn.router.bias_E.copy_(torch.tensor([3.0, 0.0, -3.0, 0.0]))
        initialise(ours, teacher)
        assert torch.equal(ours(TEXT), teacher(TEXT))

    def test_another_shape_is_named_and_nothing_is_copied(self):
        ours = student(width=16)
        before = ours.embedding.weight.clone()
        with pytest.raises(ValueError, match=r"embedding.weight: shape \(61, 16\), the teacher's .* has \(61, 32\)"):
            initialise(ours, tiny())
        assert torch.equal(ours.embedding.weight, before)


@pytest.mark.parametrize(
    ("teacher", "words"),
    [({"vocab": 50}, "the student knows 61 tokens, the teacher 50"), ({"width": 16}, "widths? .* cannot be aligned")],
)
def test_a_teacher_that_does_not_fit_is_refused(teacher, words):
    with pytest.raises(ValueError, match=words):
        DistillationLoss(student(), taught(), tiny(**teacher))


def test_another_width_will_do_without_aligned_states():
    losses = DistillationLoss(student(), taught(hidden=0), tiny(width=16))(TEXT, TARGETS)
    assert torch.isfinite(losses.total)


def trained(seed):
    plan = recipe(layers=2).model_copy(update={"precision": Fp32(), "optimizer": AdamW(lr=1e-2), "tokens": 64 * 8})
    plan = plan.model_copy(update={"objective": taught(targets=0, probabilities=1, hidden=0)})
    state = loop.start(plan, seed=seed)
    state.loss.learn_from(tiny())
    batch = tokens(2, 33)
    before = state.loss(batch[:, :-1], batch[:, 1:]).total.item()
    steps = list(loop.train(state, (batch for _ in range(8))))
    return [step.loss for step in steps], before, state.loss(batch[:, :-1], batch[:, 1:]).total.item()


def test_trains_in_the_loop_towards_the_teacher():
    first, again, other = trained(0), trained(0), trained(1)
    assert first == again != other
    assert first[2] < first[1]


# --- as a recipe's objective ---------------------------------------------------------------------


def shape(**model) -> dict[str, object]:
    """What a suite fills in of a teacher."""
    return recipe(layers=4, **model).model_dump(mode="json", include={"model", "ffn"})


LAYERS = {"kind": "teacher_layers"}


def distilled(precision="fp32", **knobs) -> Recipe:
    plain = recipe(layers=2).model_dump() | {"precision": {"kind": precision}, "tokens": 64 * 8}
    return Recipe.model_validate(plain | {"objective": taught(shape=shape(), **knobs)})


def losses(state, steps=slice(None)):
    batches = [tokens(2, 33, seed=number) for number in range(8)]
    return [step.loss for step in loop.train(state, iter(batches[steps]))]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_objective_of_a_recipe_is_the_loss_of_the_library(precision):
    state = loop.start(distilled(precision), seed=0)
    with pytest.raises(ValueError, match="no teacher to learn from"):
        state.loss(TEXT, TARGETS)
    state.loss.learn_from(tiny(layers=4))
    with state.compute.forward():
        expected = DistillationLoss(state.model, taught(), tiny(layers=4))(TEXT, TARGETS).total
        assert torch.equal(state.loss(TEXT, TARGETS).total, expected)


def test_continued_training_has_the_same_bits_with_the_same_teacher(tmp_path):
    plan = distilled("bf16")
    whole, stopped = loop.start(plan, seed=3), loop.start(plan, seed=3)
    for state in (whole, stopped):
        state.loss.learn_from(tiny(layers=4))
    expected = losses(whole)
    steps = loop.train(stopped, (tokens(2, 33, seed=number) for number in range(8)))
    first = [next(steps).loss for _ in range(3)]
    checkpoint.save(stopped, tmp_path)
    assert not any("teacher" in name for name in load_file(next(tmp_path.glob("step-*/model.safetensors"))))
    again = checkpoint.load(tmp_path, plan)
    again.loss.learn_from(tiny(layers=4))
    assert first + losses(again, slice(3, None)) == expected
    for (name, one), (_, two) in zip(whole.model.named_parameters(), again.model.named_parameters(), strict=True):
        assert torch.equal(one, two), name


def test_another_teacher_is_another_training():
    found = []
    for seed in (0, 1):
        state = loop.start(distilled(), seed=0)
        state.loss.learn_from(tiny(layers=4, seed=seed))
        found.append(losses(state))
    assert found[0][0] == found[1][0], "the first loss is the student's own"
    assert found[0][1:] != found[1][1:]


def test_the_start_of_a_recipe_takes_the_layers():
    ours, teacher = student(), tiny(layers=4)
    start = TeacherLayers()
    builder(start)(start, ours, teacher)
    assert torch.equal(ours.blocks[1].ffn.down.weight, teacher.blocks[2].ffn.down.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": taught(shape=shape(vocab=50))}, r"objective.teacher \(large\) knows 50 tokens, the student 61"),
        ({"objective": taught(shape=shape(width=64))}, r"objective.hidden \(0.125\) aligns states, and those of large"),
        ({"compile": True}, "cannot be compiled"),
        ({"start": LAYERS, "objective": {"kind": "next_token"}}, "but objective is next_token"),
        ({"model": {**shape()["model"], "layers": 5}, "start": LAYERS}, "of large: model.layers is 5: deeper than its"),
        ({"model": {**shape()["model"], "context": 128}}, r"has a context of 64, the student one of 128"),
        ({"ffn": {"hidden": 48}, "start": LAYERS}, "cannot take layers of large: ffn is .*48"),
        ({"objective": {**taught().model_dump(), "targets": 0, "probabilities": 0, "hidden": 0}}, "nothing would be"),
    ],
)  # fmt: skip
def test_a_recipe_refuses_what_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(distilled().model_dump() | change)


def test_a_teacher_of_any_width_costs_its_weights_and_passes():
    plain, with_teacher = recipe(layers=2), distilled(hidden=0)
    teacher = with_teacher.teacher
    assert teacher is not None
    forward = cost.forward_flops(teacher, 32)
    assert cost.teacher_flops(with_teacher, 32) == forward.total
    assert cost.teacher_flops(distilled(probabilities=0), 32) == forward.total - forward.head
    assert cost.train_flops(with_teacher, 32).model == cost.train_flops(plain, 32).model + forward.total
    more = peak_memory_bytes(with_teacher) - peak_memory_bytes(plain.model_copy(update={"precision": Fp32()}))
    assert more > 4 * cost.parameters(teacher).total


def test_the_program_of_the_page_runs():
    page = (Path(__file__).parents[3] / "docs" / "techniques" / "distillation.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    short = recipe(layers=2).model_copy(update={"tokens": 64})
    names = {"recipe": short, "Distillation": Distillation, "loop": loop, "initialise": initialise}
    exec(program, names | {"teacher": tiny(layers=4), "batches": [tokens(2, 33)]})


def test_a_teacher_of_whom_nothing_comes_is_a_mistake():
    """It would be waited for and charged all the same."""
    nothing = Distillation(teacher="large", targets=1, probabilities=0, hidden=0)
    with pytest.raises(ValueError, match="nothing comes of the teacher that is charged"):
        Recipe.model_validate({**recipe().model_dump(), "objective": nothing})
    Recipe.model_validate({**recipe().model_dump(), "objective": nothing, "start": TeacherLayers()})
