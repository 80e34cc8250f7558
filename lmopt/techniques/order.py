"""In which order a training goes through its windows of text, as plain data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Share
from lmopt.techniques.technique import Positive, Technique


class Shuffled(Technique):
    """Every epoch in an order of its own, drawn from the seed."""

    builder: ClassVar[str] = "lmopt.data.order:shuffled"
    kind: Literal["shuffled"] = "shuffled"


class Curriculum(Technique):
    """Easy text first, more and more allowed, then all (Bengio et al. 2009; pacing: Platanios et al., 1903.09848).

    A warm-up, as it does best in arXiv 2506.11300: behind it the order is drawn from all that is left. Each window is
    still seen once an epoch. Needs the data step `difficulty`.
    """

    builder: ClassVar[str] = "lmopt.data.order:curriculum"
    kind: Literal["curriculum"] = "curriculum"
    pacing: Literal["linear", "root", "step"] = "linear"
    """How the allowed share grows with the share x of the warm-up that is over. linear: s + (1 - s) x. root: the
    square root of s^2 + (1 - s^2) x. step: as linear, but only at the ends of `stages` equal parts."""
    start: Annotated[Share, Field(gt=0)] = 0.2
    """Share s of the windows, the easiest, that is allowed at first."""
    warmup: Share = 0.3
    """Share of the training's tokens until everything is allowed; at most the first epoch."""
    stages: Annotated[Positive, Field(le=1000)] = 4
    """Parts of the warm-up with `pacing: step`."""
    hardest_first: bool = False
    """The other way round: a control that shows whether it is the order that helps."""
