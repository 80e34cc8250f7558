"""A student that learns from a teacher's probabilities beside the text (DistilBERT, arXiv 1910.01108).

    recipe = recipe.model_copy(update={"objective": Distillation(teacher="large")})
    state = loop.start(recipe, seed=0)
    state.loss.learn_from(teacher)
    initialise(state.model, teacher)                                   # optional: evenly spaced layers of the teacher
    for step in loop.train(state, batches): ...

Letters: see lmopt/arch/transformer.py; W width of the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch.loss import CHUNK_BYTES, IGNORED, cross_entropy
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.transformer import Losses, Transformer
from lmopt.techniques.objective import Distillation
from lmopt.techniques.start import TeacherLayers


def build(config: Distillation, model: Transformer) -> DistillationLoss:
    """What training descends; it needs a teacher before it is called (`DistillationLoss.learn_from`)."""
    return DistillationLoss(model, config)


def begin(_config: TeacherLayers, model: Transformer, teacher: Transformer) -> None:
    """Start a student with its teacher's layers (see `initialise`)."""
    initialise(model, teacher)


class _HeadDivergence(torch.autograd.Function):
    """T^2 KL(teacher || student) and its gradients in one pass, a chunk of tokens at a time: no logits are kept."""

    @staticmethod
    def forward(
        ctx,
        x_ND: Tensor,
        weight_VD: Tensor,
        teacher_NW: Tensor,
        teacher_VW: Tensor,
        learnt_N: Tensor,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        dtype = compute_dtype(weight_VD)
        weight, teacher = weight_VD.detach().to(dtype), teacher_VW.detach().to(dtype)
        high = torch.promote_types(x_ND.dtype, torch.float32)
        total = torch.zeros((), dtype=high, device=x_ND.device)
        grad_x_ND, grad_weight_VD = torch.empty_like(x_ND), torch.zeros_like(weight_VD)
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            x = x_ND[rows].to(dtype)
            log_q = torch.mm(x, weight.T).to(high).div_(temperature).log_softmax(-1)
            log_p = torch.mm(teacher_NW[rows].to(dtype), teacher.T).to(high).div_(temperature).log_softmax(-1)
            p = log_p.exp()
            ignored_N1 = ~learnt_N[rows, None]
            total += log_p.sub_(log_q).mul_(p).sum(-1, keepdim=True).masked_fill_(ignored_N1, 0).sum()
            grad = log_q.exp_().sub_(p).to(dtype)  # d KL / d (z/T); T^2 x 1/T is left to backward
            grad_x_ND[rows] = torch.mm(grad, weight).masked_fill_(ignored_N1, 0).to(x_ND.dtype)
            grad_weight_VD += torch.mm(grad.T, x.masked_fill(ignored_N1, 0))
        count = learnt_N.sum().clamp(min=1)
        ctx.save_for_backward(grad_x_ND, grad_weight_VD, temperature / count)
        return total * temperature**2 / count

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        grad_x_ND, grad_weight_VD, scale = ctx.saved_tensors
        scale = grad * scale
        return (grad_x_ND * scale).to(grad_x_ND.dtype), grad_weight_VD * scale, None, None, None, None, None


def divergence(
    x_ND: Tensor,
    weight_VD: Tensor,
    teacher_NW: Tensor,
    teacher_VW: Tensor,
    temperature: float,
    learnt_N: Tensor | None = None,
) -> Tensor:
    """T^2 mean_n KL(softmax(teacher_n / T) || softmax(student_n / T)) in nats: a scalar, float32 or better.

    Gradients go to the student's states and head only. At most three chunks of `CHUNK_BYTES` of logits exist at once.

    Args:
        learnt_N: which tokens count; default: all.
    """
    chunk = max(1, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    if learnt_N is None:
        learnt_N = torch.ones(len(x_ND), dtype=torch.bool, device=x_ND.device)
    return _HeadDivergence.apply(x_ND, weight_VD, teacher_NW, teacher_VW, learnt_N, temperature, chunk)


class DistillationLoss:
    """A student's loss beside a frozen teacher; in the place of `model.loss`.

    Every call runs the teacher forward once, if anything of it weighs (`lmopt.cost.teacher_flops`: part of what
    training costs). It is no part of the student: a checkpoint does not hold it, so whoever continues a training gives
    it again.
    """

    def __init__(self, student: Transformer, config: Distillation, teacher: Transformer | None = None) -> None:
        self.student, self.config = student, config
        self.teacher: Transformer | None = None
        if teacher is not None:
            self.learn_from(teacher)

    def learn_from(self, teacher: Transformer) -> None:
        """Take a teacher, which learns nothing from here on.

        Raises:
            ValueError: vocabularies differ, or widths where states are aligned, or the teacher's context is shorter.
        """
        ours, theirs = self.student.model, teacher.model
        if ours.vocab != theirs.vocab:
            raise ValueError(f"the student knows {ours.vocab} tokens, the teacher {theirs.vocab}")
        if self.config.hidden and ours.width != theirs.width:
            raise ValueError(
                f"states of width {ours.width} and {theirs.width} cannot be aligned\nhint: set hidden to 0"
            )
        if theirs.context < ours.context:
            raise ValueError(f"the teacher's context of {theirs.context} is shorter than the student's {ours.context}")
        self.teacher = teacher.eval().requires_grad_(False)

    def __call__(self, tokens_BT: Tensor, targets_BT: Tensor, segments_BT: Tensor | None = None) -> Losses:
        """`cross_entropy` is the student's own; `auxiliary` makes the sum the weighted loss.

        Targets of -100 are left out of all three means. `segments_BT` numbers the documents of packed sequences.

        Raises:
            ValueError: there is no teacher.
        """
        config = self.config
        if self.teacher is None:
            raise ValueError("there is no teacher to learn from\nhint: state.loss.learn_from(teacher) after loop.start")
        x_BTD, auxiliary = self.student.hidden(tokens_BT, segments_BT)
        weight_VD, x_ND = self.student.head_weight_VD, x_BTD.flatten(0, 1)
        own = cross_entropy(x_ND, weight_VD, targets_BT.flatten())
        mixed = config.targets * own
        if not config.asks_teacher:
            return Losses(own, auxiliary + (mixed - own))
        with torch.no_grad():
            teacher_BTW, _ = self.teacher.hidden(tokens_BT, segments_BT)
        teacher_NW, teacher_VW = teacher_BTW.flatten(0, 1), self.teacher.head_weight_VD
        learnt_N = targets_BT.flatten() != IGNORED
        if config.probabilities:
            from_teacher = divergence(x_ND, weight_VD, teacher_NW, teacher_VW, config.temperature, learnt_N)
            mixed = mixed + config.probabilities * from_teacher
        if config.hidden:
            cosine_N = functional.cosine_similarity(x_ND.float(), teacher_NW.float(), dim=-1)
            mixed = mixed + config.hidden * ((1 - cosine_N) * learnt_N).sum() / learnt_N.sum().clamp(min=1)
        return Losses(own, auxiliary + (mixed - own))


def taken_layers(student_layers: int, teacher_layers: int) -> tuple[int, ...]:
    """Which teacher layer each student layer begins as: evenly spaced from the first (1910.01108: one out of two).

    Raises:
        ValueError: the student is the deeper one.
    """
    if student_layers > teacher_layers:
        raise ValueError(f"a student of {student_layers} layers is deeper than its teacher of {teacher_layers}")
    return tuple(layer * teacher_layers // student_layers for layer in range(student_layers))


@torch.no_grad()
def initialise(student: Transformer, teacher: Transformer) -> None:
    """Start a student from its teacher: embedding, norm, head, and evenly spaced layers.

    Raises:
        ValueError: the student is deeper, or a parameter's shape differs (says which).
    """
    taken = taken_layers(len(student.blocks), len(teacher.blocks))
    source = dict(teacher.named_parameters())
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, parameter in student.named_parameters():
        theirs = name
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            theirs = f"blocks.{taken[int(number)]}.{rest}"
        found = source.get(theirs)
        if found is None or found.shape != parameter.shape:
            shape = "none" if found is None else tuple(found.shape)
            raise ValueError(f"{name}: shape {tuple(parameter.shape)}, the teacher's {theirs} has {shape}")
        pairs.append((parameter, found))
    for parameter, found in pairs:
        parameter.copy_(found)
