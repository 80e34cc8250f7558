import pytest
import torch
from torch.nn import functional

from lmopt.recipe import AdamW, Fp32
from lmopt.techniques.objective import Distillation
from lmopt.train import distillation, loop
from lmopt.train.distillation import DistillationLoss, divergence, initialise, taken_layers
from tests.lmopt.infer.models import SHAPES, VOCAB, recipe, tiny, tokens

TEXT, TARGETS = tokens(3, 9), tokens(3, 9, seed=1)


def student(**choices):
    return tiny(seed=1, layers=2, **choices).requires_grad_(True)


@pytest.mark.parametrize("chunk_bytes", [4 * VOCAB * 4, 1 << 20], ids=["chunks", "whole"])
def test_divergence_is_the_obvious_one_gradients_included(monkeypatch, chunk_bytes):
    monkeypatch.setattr(distillation, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    x_ND = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    weight_VD = torch.randn(VOCAB, 8, dtype=torch.float64, requires_grad=True)
    teacher_NW, teacher_VW = torch.randn(11, 6, dtype=torch.float64), torch.randn(VOCAB, 6, dtype=torch.float64)
    ours = divergence(x_ND, weight_VD, teacher_NW, teacher_VW, 3.0)
    slow = 9.0 * functional.kl_div(
        (x_ND @ weight_VD.T / 3).log_softmax(-1),
        (teacher_NW @ teacher_VW.T / 3).log_softmax(-1),
        log_target=True,
        reduction="batchmean",
    )
    torch.testing.assert_close(ours, slow)
    for mine, theirs in zip(
        torch.autograd.grad(2 * ours, (x_ND, weight_VD)), torch.autograd.grad(2 * slow, (x_ND, weight_VD)), strict=True
    ):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_is_the_weighted_sum(shape):
    ours, teacher = student(**SHAPES[shape]), tiny(**SHAPES[shape])
    config = Distillation(temperature=2, targets=0.5, teacher=0.3, hidden=0.2)
    losses = DistillationLoss(ours, teacher, config)(TEXT, TARGETS)
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


def test_a_teacher_that_weighs_nothing_leaves_plain_training():
    ours = student()
    losses = DistillationLoss(ours, tiny(), Distillation(targets=1, teacher=0, hidden=0))(TEXT, TARGETS)
    assert losses.total == ours.loss(TEXT, TARGETS).total


def test_a_student_equal_to_its_teacher_has_no_divergence():
    teacher = tiny()
    ours = tiny().requires_grad_(True)
    losses = DistillationLoss(ours, teacher, Distillation(targets=0, teacher=1, hidden=1))(TEXT, TARGETS)
    assert losses.total.abs() < 1e-5


def test_the_teacher_learns_nothing():
    teacher = tiny().requires_grad_(True)
    losses = DistillationLoss(student(), teacher, Distillation())(TEXT, TARGETS)
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
        DistillationLoss(student(), tiny(**teacher), Distillation())


def test_another_width_will_do_without_aligned_states():
    losses = DistillationLoss(student(), tiny(width=16), Distillation(hidden=0))(TEXT, TARGETS)
    assert torch.isfinite(losses.total)


def trained(seed):
    plan = recipe(layers=2).model_copy(update={"precision": Fp32(), "optimizer": AdamW(lr=1e-2), "tokens": 64 * 8})
    state = loop.start(plan, seed=seed)
    state.loss = DistillationLoss(state.model, tiny(), Distillation(targets=0, teacher=1, hidden=0))
    batch = tokens(2, 33)
    before = state.loss(batch[:, :-1], batch[:, 1:]).total.item()
    steps = list(loop.train(state, (batch for _ in range(8))))
    return [step.loss for step in steps], before, state.loss(batch[:, :-1], batch[:, 1:]).total.item()


def test_trains_in_the_loop_towards_the_teacher():
    first, again, other = trained(0), trained(0), trained(1)
    assert first == again != other
    assert first[2] < first[1]
