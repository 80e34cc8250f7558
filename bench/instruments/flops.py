"""FLOPs of a model, counted in ways that know nothing of each other, and compared.

Forward three ways: closed form (`lmopt.cost`), dispatched operations (torch's FlopCounterMode with formulas for what
it misses), twice fvcore's multiply-adds plus what fvcore cannot see. Forward and backward two ways: closed, dispatched.
One multiply-add is 2 FLOPs; attention counts full, length x length; an embedding lookup counts nothing, by convention.

Nothing is computed: the operations of one full-length sequence run on tensors without storage (fake tensors that name
the model's own device, so that the kernels it would take are the ones counted; `meta` tensors under fvcore's tracer).
A model whose shapes depend on data (the plain expert loop) runs for real, once, on one sequence.
"""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils.flop_counter import FlopCounterMode

from bench.instruments.formulas import FORMULAS, known_operators
from lmopt import cost
from lmopt.arch.formulas import Shape, unpadded
from lmopt.recipe import LayerSkip, Recipe, builder

TOLERANCE = 0.005
"""Largest relative difference between two counts of the same thing that is still agreement."""

NEEDS_DATA = (DataDependentOutputException, DynamicOutputShapeException, NotImplementedError)
"""What tensors without storage raise when a shape depends on values."""


class LanguageModel(Protocol):
    """What is asked of a model: logits when called, and losses that carry gradients."""

    def __call__(self, tokens_BT: Tensor) -> Tensor: ...

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor) -> Any: ...


@dataclass(frozen=True, slots=True)
class Counts:
    """FLOPs of one sequence, by each method; None where a method could not count."""

    closed: float
    dispatched: float | None
    fvcore: float | None = None

    def spread(self) -> float:
        """Largest relative difference between two of the counts."""
        known = [value for value in (self.closed, self.dispatched, self.fvcore) if value is not None]
        return (max(known) - min(known)) / max(known)


@dataclass(frozen=True, slots=True)
class FlopCounts:
    """What one sequence of a recipe's batches costs, and whether the counts agree."""

    length: int
    """Tokens of the sequence counted."""
    forward: Counts
    train: Counts
    """Forward and backward as executed."""
    train_model: float
    """Forward and backward as the mathematics needs it (backward = 2 x forward)."""
    train_flops_per_token: float
    """Executed in a forward and backward pass over as many sequences as a training takes at once, closed form."""
    forward_causal: float
    """Forward with only the causal half of attention, for comparison with papers that count so."""
    params_total: int
    params_active: int
    disagreement: str | None
    """Which counts differ by more than 0.5%, with their values; None when all agree."""

    @property
    def agree(self) -> bool:
        return self.disagreement is None

    @property
    def train_model_flops_per_token(self) -> float:
        return self.train_model / self.length

    @property
    def infer_flops_per_token(self) -> float:
        return self.forward.closed / self.length

    def to_dict(self) -> dict[str, Any]:
        """For a record's detail: plain numbers."""
        return {
            "length": self.length,
            "forward": {
                "closed": self.forward.closed,
                "dispatched": self.forward.dispatched,
                "fvcore": self.forward.fvcore,
                "causal": self.forward_causal,
            },
            "train": {"closed": self.train.closed, "dispatched": self.train.dispatched, "model": self.train_model},
            "agree": self.agree,
            "disagreement": self.disagreement,
        }


def count(model: nn.Module, recipe: Recipe, length: int | None = None, teacher: nn.Module | None = None) -> FlopCounts:
    """Count one sequence of a length (default: the recipe's), on the model as built. The model is left as it was.

    Args:
        teacher: what the recipe's objective learns from, if it does.

    Raises:
        LookupError: the feed-forward is a foreign technique that does not say what it costs.
    """
    length = length or recipe.batching.length
    device = next(model.parameters()).device
    closed = cost.forward_flops(recipe, length)
    whole = _without_dropout(recipe)
    closed_train = cost.train_flops(whole, length, device.type)
    objective = builder(whole.objective)

    def loss_of(twin: Any, teacher: Any) -> Callable[[Tensor, Tensor], Any]:
        loss = objective(whole.objective, twin)
        if teacher is not None:
            loss.learn_from(teacher)
        return loss

    held = cost.parameters(recipe)
    autocast = recipe.precision.arithmetic == "bf16"
    forward = Counts(
        closed=closed.total,
        dispatched=dispatched(model, length, backward=False, autocast=autocast),
        fvcore=traced(model, length),
    )
    train = Counts(
        closed_train.executed,
        dispatched(model, length, backward=True, autocast=autocast, loss_of=loss_of, teacher=teacher),
    )
    params_total = sum(parameter.numel() for parameter in model.parameters())
    return FlopCounts(
        length=length,
        forward=forward,
        train=train,
        train_model=closed_train.model,
        train_flops_per_token=cost.train_flops_per_token(recipe, device.type, length).executed,
        forward_causal=closed.causal,
        params_total=params_total,
        params_active=held.active - held.total + params_total,
        disagreement=_disagreement(forward, train, held.total, params_total),
    )


def _without_dropout(recipe: Recipe) -> Recipe:
    """With every layer run for every sequence: how many are left out is a coin's doing, which no count can check."""
    if not isinstance(recipe.objective, LayerSkip):
        return recipe
    return recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"dropout": 0.0})})


def _disagreement(forward: Counts, train: Counts, params_closed: int, params_total: int) -> str | None:
    found = [
        f"{name}: closed {counts.closed:.6g}, dispatched {_text(counts.dispatched)}, fvcore {_text(counts.fvcore)} "
        f"FLOPs a sequence differ by {counts.spread():.1%}"
        for name, counts in (("forward", forward), ("forward and backward", train))
        if counts.spread() > TOLERANCE
    ]
    if params_closed != params_total:
        found.append(f"parameters: closed {params_closed}, built {params_total}")
    return "; ".join(found) or None


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.6g}"


# --- dispatched operations -----------------------------------------------------------------------


LossOf = Callable[[Any, Any], Callable[[Tensor, Tensor], Any]]


def _own_loss(model: LanguageModel, _teacher: None) -> Callable[[Tensor, Tensor], Any]:
    return model.loss


def dispatched(
    model: nn.Module,
    length: int,
    *,
    backward: bool,
    autocast: bool = False,
    loss_of: LossOf = _own_loss,
    teacher: nn.Module | None = None,
) -> float:
    """FLOPs of the operations that torch dispatches for one sequence: forward, or forward and backward of the loss.

    Args:
        loss_of: what training descends, made of the model and its teacher; default: the model's own loss.
        teacher: what it learns from, if anything.
    """

    def twins(replace: Callable[[Tensor], Tensor]) -> tuple[nn.Module, nn.Module | None]:
        return _twin(model, replace), None if teacher is None else _twin(teacher, replace)

    try:
        with FakeTensorMode() as mode:
            return _dispatched(*twins(mode.from_tensor), length, backward, autocast, loss_of)
    except NEEDS_DATA:
        pass
    gc.collect()  # what was begun holds hooks on saved tensors until it is gone: torch 2.11's checkpointed blocks do
    return _dispatched(*twins(lambda tensor: tensor), length, backward, autocast, loss_of)


def _dispatched(
    model: nn.Module, teacher: nn.Module | None, length: int, backward: bool, autocast: bool, loss_of: LossOf
) -> float:
    model.train(backward)  # a router may do more in training
    parameters = list(model.parameters())
    device = parameters[0].device
    tokens_BT = torch.zeros(1, length, dtype=torch.int64, device=device)
    counter = FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS))
    with counter, torch.set_grad_enabled(backward), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        if backward:
            total = loss_of(model, teacher)(tokens_BT, tokens_BT).total
            torch.autograd.grad(total, parameters, allow_unused=True)
        else:
            cast(LanguageModel, model)(tokens_BT)
    return counter.get_total_flops()


def _twin(model: nn.Module, replace: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy of the module tree that shares no state with the model and holds `replace(tensor)` for each tensor."""
    memo: dict[int, Any] = {id(tensor): replace(tensor) for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo)


# --- fvcore --------------------------------------------------------------------------------------


def traced(model: nn.Module, length: int) -> float:
    """Twice the multiply-adds that fvcore finds in the traced forward pass of one sequence."""
    try:
        return _traced(_twin(model, _on_meta), torch.zeros(1, length, dtype=torch.int64, device="meta"))
    except NEEDS_DATA:
        device = next(model.parameters()).device
        return _traced(_twin(model, lambda tensor: tensor), torch.zeros(1, length, dtype=torch.int64, device=device))


def _traced(model: nn.Module, tokens_BT: Tensor) -> float:
    with _quiet(), torch.no_grad():
        from fvcore.nn import FlopCountAnalysis  # here: importing it already warns, of a part of torch it compiles

        analysis = FlopCountAnalysis(model.eval(), (tokens_BT,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
        # fvcore counts a few elementwise operations too; here only products count
        for operator in ("aten::layer_norm", "aten::batch_norm", "aten::group_norm"):
            analysis.set_op_handle(operator, None)
        for operator, handle in HANDLES.items():
            analysis.set_op_handle(operator, handle)
        return 2.0 * analysis.total()


def _on_meta(tensor: Tensor) -> Tensor:
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def _quiet() -> Generator[None]:
    """Without the tracer's remarks on shapes: they are constants here, one sequence of one length is what is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _shape(value: Any) -> Shape:
    """Shape of a value of the traced graph."""
    return tuple(value.type().sizes())


def _attention_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    (batch, heads, queries, width), keys = _shape(inputs[0]), _shape(inputs[1])[2]
    return 2 * batch * heads * queries * keys * width


def _fused_attention_macs(inputs: list[Any], outputs: list[Any]) -> int:
    width, scale = _shape(inputs[0])[3], inputs[6].toIValue()
    return _attention_macs(inputs, outputs) // width * unpadded(width, scale)


def _experts_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    (tokens, chosen), (_, inner, width), (_, _, hidden) = (_shape(value) for value in inputs[1:4])
    return tokens * chosen * width * (inner + hidden)


def _linear_macs(inputs: list[Any], _outputs: list[Any]) -> int:
    (rows, width), (features, _) = _shape(inputs[0]), _shape(inputs[1])
    return rows * width * features


HANDLES: Mapping[str, Any] = {
    "aten::scaled_dot_product_attention": _fused_attention_macs,
    "lmopt::causal_attention": _attention_macs,
    "prim::PythonOp._Experts": _experts_macs,
    "prim::PythonOp._Int8Product": _linear_macs,
}
"""What fvcore cannot see: fused attention, and products inside an autograd function, which it calls by its name."""
