"""A student that learns from a teacher's probabilities beside the text (DistilBERT, arXiv 1910.01108).

    recipe = recipe.model_copy(update={"objective": Distillation(teacher="large")})
    state = loop.start(recipe, seed=0)
    state.loss.learn_from(teacher)
    initialise(state.model, teacher)                                   # optional: evenly spaced layers of the teacher
    for step in loop.train(state, batches): ...

Letters: see lmopt/arch/transformer.py; W width of the teacher.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from lmopt.arch.loss import BLOCK_BYTES, CHUNK_BYTES, IGNORED, cross_entropy, outer
from lmopt.arch.matmul import mm
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


class HeadLosses(NamedTuple):
    """Scalars in nats a token, float32 or better."""

    mixed: Tensor
    """targets x cross-entropy + probabilities x T^2 KL(teacher || student)."""
    cross_entropy: Tensor
    """The student's own; no gradient goes through it."""


class _TaughtHead(torch.autograd.Function):
    """Both losses and the gradients of their weighted sum in one pass: the student's logits are computed once."""

    @staticmethod
    def forward(
        ctx,
        x_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        teacher_NW: Tensor,
        teacher_VW: Tensor,
        config: Distillation,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(weight_VD)
        weight, teacher = weight_VD.to(dtype), teacher_VW.to(dtype)
        high = torch.promote_types(x_ND.dtype, torch.float32)
        total_2 = torch.zeros(2, dtype=high, device=x_ND.device)
        grad_x_ND, grad_weight_VD = torch.empty_like(x_ND, dtype=dtype), torch.zeros_like(weight_VD, dtype=high)
        for start in range(0, len(x_ND), chunk):
            rows = slice(start, start + chunk)
            x, targets = x_ND[rows].to(dtype), targets_N[rows]
            logits = mm(x, weight.T)
            total_2 += _mixed_gradient(logits, mm(teacher_NW[rows].to(dtype), teacher.T), targets, config, high)
            ignored = (targets == IGNORED)[:, None]
            mm(logits, weight, out=grad_x_ND[rows]).masked_fill_(ignored, 0)
            grad_weight_VD += outer(logits, x.masked_fill(ignored, 0))
        count = (targets_N != IGNORED).sum().clamp(min=1)
        ctx.save_for_backward(grad_x_ND, grad_weight_VD, count)
        ctx.dtypes = x_ND.dtype, weight_VD.dtype
        own, taught = (total_2 / count).unbind()
        ctx.mark_non_differentiable(own)
        return config.targets * own + config.probabilities * taught, own

    @staticmethod
    def backward(ctx, grad: Tensor, _of_own: Tensor) -> tuple[Tensor, Tensor, None, None, None, None, None]:
        grad_x_ND, grad_weight_VD, count = ctx.saved_tensors
        grad = grad / count
        x_dtype, weight_dtype = ctx.dtypes
        return (grad_x_ND * grad).to(x_dtype), (grad_weight_VD * grad).to(weight_dtype), None, None, None, None, None


def _mixed_gradient(
    logits_NV: Tensor, teacher_NV: Tensor, targets_N: Tensor, config: Distillation, high: torch.dtype
) -> Tensor:
    """Turn logits in place into the gradient of a token's mixed loss; returns the sums of (cross-entropy, T^2 KL).

    d KL / dz = (q - p) / T, of which T^2 leaves T. A few rows at a time, as in `lmopt.arch.loss`.
    """
    whole = logits_NV.device.type != "cpu" or type(logits_NV) is not Tensor
    block = len(logits_NV) if whole else max(1, BLOCK_BYTES // (high.itemsize * logits_NV.shape[1]))
    temperature = config.temperature
    total_2 = torch.zeros(2, dtype=high, device=logits_NV.device)
    for logits, teachers, targets in zip(
        logits_NV.split(block), teacher_NV.split(block), targets_N.split(block), strict=True
    ):
        index, ignored = targets.clamp(min=0)[:, None], (targets == IGNORED)[:, None]
        z = logits.to(high)
        log_q = (z / temperature).log_softmax(-1)
        log_p = (teachers.to(high) / temperature).log_softmax(-1)
        p = log_p.exp()
        taught = temperature**2 * log_p.sub_(log_q).mul_(p).sum(-1, keepdim=True)
        own = z.logsumexp(-1, keepdim=True) - z.gather(1, index)
        total_2 += torch.stack([own.masked_fill_(ignored, 0).sum(), taught.masked_fill_(ignored, 0).sum()])
        grad = log_q.exp_().sub_(p).mul_(config.probabilities * temperature).add_(z.softmax(-1), alpha=config.targets)
        logits.copy_(grad.scatter_add_(1, index, torch.full_like(index, -config.targets, dtype=high)))
    return total_2


def head_losses(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    teacher_NW: Tensor,
    teacher_VW: Tensor,
    config: Distillation,
) -> HeadLosses:
    """What a student's last states lose against the text and against a teacher's, targets of -100 left out of both.

    Gradients go to the student's states and head only. At most `CHUNK_BYTES` of each model's logits exist at once,
    counted as float32.
    """
    chunk = max(1, CHUNK_BYTES // (4 * weight_VD.shape[0]))
    return HeadLosses(*_TaughtHead.apply(x_ND, weight_VD, targets_N, teacher_NW, teacher_VW, config, chunk))


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
        weight_VD, x_ND, targets_N = self.student.head_weight_VD, x_BTD.flatten(0, 1), targets_BT.flatten()
        if config.asks_teacher:
            with torch.no_grad():
                teacher_NW = self.teacher.hidden(tokens_BT, segments_BT)[0].flatten(0, 1)
        if config.probabilities:
            mixed, own = head_losses(x_ND, weight_VD, targets_N, teacher_NW, self.teacher.head_weight_VD, config)
        else:
            own = cross_entropy(x_ND, weight_VD, targets_N)
            mixed = config.targets * own
        if config.hidden:
            cosine_N = functional.cosine_similarity(x_ND.float(), teacher_NW.float(), dim=-1)
            learnt_N = targets_N != IGNORED
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
    """Start a student from its teacher: embedding, norm, head, and evenly spaced layers, a router's biases among them.

    Raises:
        ValueError: the student is deeper, or a parameter's shape differs (says which).
    """
    taken = taken_layers(len(student.blocks), len(teacher.blocks))
    source = teacher.state_dict()
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, parameter in student.state_dict().items():
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
