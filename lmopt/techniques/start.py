"""What weights a training starts from, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.techniques.feedforward import Moe, Relu2, SwiGlu
from lmopt.techniques.technique import Technique

if TYPE_CHECKING:
    from lmopt.recipe import Recipe


class Scratch(Technique):
    """Weights drawn by the seed."""

    builder: ClassVar[str] = "lmopt.arch.upcycling:keep"
    kind: Literal["scratch"] = "scratch"


class Upcycled(Technique):
    """Experts that begin as copies of a trained dense feed-forward (Komatsuzaki et al., arXiv 2212.05055).

    The rest is the dense model's, the router is drawn anew. An arm that starts so pays for the dense training too.
    """

    builder: ClassVar[str] = "lmopt.arch.upcycling:upcycle"
    kind: Literal["upcycled"] = "upcycled"
    horizon: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Horizon of the dense training, one of the suite's; of the arm that this one is compared with, same seed."""


class TeacherLayers(Technique):
    """A student's layers that begin as evenly spaced layers of its teacher (DistilBERT, arXiv 1910.01108).

    Embedding, head and last norm are the teacher's too; needs `objective: {kind: distillation}`.
    """

    builder: ClassVar[str] = "lmopt.train.distillation:begin"
    kind: Literal["teacher_layers"] = "teacher_layers"


MAY_DIFFER = ("init_stream", "layers", "context")
"""Numbers of a model that its weights do not depend on, but for how many layers there are."""


def unlike_teacher(recipe: Recipe, teacher: Recipe) -> str | None:
    """Why a student cannot begin with its teacher's layers, beginning with what is to blame; None where it can."""
    if recipe.model.layers > teacher.model.layers:
        return f"model.layers is {recipe.model.layers}: deeper than its teacher, which has {teacher.model.layers}"
    for name in type(recipe.model).model_fields:
        own, other = getattr(recipe.model, name), getattr(teacher.model, name)
        if own != other and name not in MAY_DIFFER:
            return f"model.{name} is {own}, the teacher's is {other}"
    width = recipe.model.width
    ours, theirs = (_with_hidden(one, width) for one in (recipe.ffn, teacher.ffn))
    return None if ours == theirs else f"ffn is {ours}, the teacher's is {theirs}"


def _with_hidden(ffn: Technique, width: int) -> Technique:
    """With the inner width that its default stands for."""
    own = getattr(ffn, "hidden_for", None)
    return ffn if own is None else ffn.model_copy(update={"hidden": own(width)})


def misfit(recipe: Recipe, source: Recipe) -> str | None:
    """Why a model cannot be upcycled from a source, beginning with what is to blame; None where it can."""
    ffn, dense, width = recipe.ffn, source.ffn, recipe.model.width
    if not isinstance(ffn, Moe):
        return f"ffn is {ffn.kind}: only experts can be upcycled"
    if ffn.shared:
        return f"ffn.shared is {ffn.shared}: a shared expert would be added to what the dense layer said"
    if not isinstance(dense, SwiGlu | Relu2) or dense.kind != ffn.activation:
        return f"ffn.activation is {ffn.activation}, the source's feed-forward is {dense.kind}"
    if ffn.hidden_for(width) != dense.hidden_for(width):
        return (
            f"ffn.hidden is {ffn.hidden_for(width)}, the source's is {dense.hidden_for(width)}"
            "; hint: split: 1 makes each expert as wide as the dense layer"
        )
    for name in type(recipe.model).model_fields:
        own, other = getattr(recipe.model, name), getattr(source.model, name)
        if own != other and name != "init_stream":
            return f"model.{name} is {own}, the source's is {other}"
    return None
