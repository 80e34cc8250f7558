"""What every technique is: frozen plain data that names the function which builds its working part.

A package outside this one adds a technique by an entry point in the group `lmbench.techniques` whose name is
`SEAM.KIND` (for example `ffn.mine`) and whose value is its config class; the class joins the union of that seam.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, model_validator

from lmopt.quantities import MAX_COUNT, Whole

ENTRY_POINT_GROUP = "lmbench.techniques"
MAX_LAYERS = 1024
MAX_WIDTH = 131_072
MAX_CONTEXT = 16_777_216

Positive = Annotated[Whole, Field(gt=0, le=MAX_COUNT)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Misfits(ValueError):
    """Values that are right by themselves and do not go together."""

    def __init__(self, sentences: tuple[str, ...]) -> None:
        super().__init__("\n".join(sentences))
        self.sentences = sentences


class Plain(BaseModel):
    """Frozen data: unknown keys are refused, docstrings under fields become descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )

    def misfits(self) -> Iterator[str]:
        """What does not go together, a sentence each, that begins with the value to blame: `heads (3) must divide ...`.

        Everything at once: a person who mends one mistake should not meet the next only then.
        """
        return iter(())

    @model_validator(mode="after")
    def _go_together(self, info: ValidationInfo) -> Self:
        """`rules_of` in the context: a class whose own rules are asked, although parts of it may break theirs."""
        asked = (info.context or {}).get("rules_of", Plain)
        if isinstance(self, asked) and (found := tuple(self.misfits())):
            raise Misfits(found)
        return self


class Technique(Plain):
    """A choice at one seam. `builder` is `module:function`, imported when the run needs it."""

    builder: ClassVar[str]
    makes_text: ClassVar[bool] = False
    """Whether a data step adds text that a model made, which is compared with held-out text once more."""
    shown: ClassVar[tuple[str, ...]] = ()
    """Knobs that belong to a description in words even at their defaults."""
    untold: ClassVar[tuple[str, ...]] = ()
    """Knobs that do not belong to it, because they follow from others."""


def builder(technique: Technique, part: str = "builder") -> Callable[..., Any]:
    """The function that turns a technique's description into the working part.

    Args:
        part: the class variable that names the function, where a technique has several parts (batching: its `pace`).

    Raises:
        LookupError: the module or function named by the description is not there.
    """
    module, _, function = getattr(type(technique), part).partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise LookupError(f"technique {technique!r}: cannot load its builder {module}:{function} ({error})") from error


@functools.cache
def plugins(seam: str) -> tuple[type[Technique], ...]:
    """Techniques that other installed packages offer at `seam`. A broken one is skipped; `doctor` names it."""
    found: list[type[Technique]] = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        if entry.name.partition(".")[0] != seam:
            continue
        try:
            config = entry.load()
        except Exception:  # noqa: BLE001 - foreign code: whatever it raises must not break every suite
            continue
        if isinstance(config, type) and issubclass(config, Technique):
            found.append(config)
    return tuple(found)
