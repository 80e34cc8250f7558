"""What a study claims and compares: the part of a suite that judging needs, and nothing of how it is run.

Read from the `suite.yaml` and `plan.json` of a run folder; free of torch and of `lmopt`, so that a laptop with
nothing but the records can judge them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Role = Literal["claim", "component", "control", "timing"]
Endpoint = Literal["flops", "time", "energy"]
Purpose = Literal["confirm", "explore", "selftest"]
Layout = Literal["full", "economical", "sample"]
"""`full`: reference and claim arms at every horizon. `economical`: only the reference has horizons. `sample`: a few
steps of every arm, which measure cost and not quality."""


class Frozen(BaseModel):
    """Frozen, strict about unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False, validate_default=True
    )


class Saving(Frozen):
    """The saving that a claim states, as a share of the reference's cost."""

    at_least: Annotated[float, Field(gt=0, lt=1)] = 0.20
    """The claim: SUPPORTED needs the lower bound at or above this."""
    target: Annotated[float, Field(gt=0, lt=1)] = 0.30
    """The effect that power planning assumes and a line in the plot; it decides nothing."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.target < self.at_least:
            raise ValueError(f"target ({self.target}) must not be below at_least ({self.at_least})")
        return self


class AccuracyDrop(Frozen):
    """The drop in accuracy that is still called none."""

    less_than: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """The margin: 0.01 is one percentage point when absolute."""
    kind: Literal["absolute", "relative"] = "absolute"
    """Percentage points, or a share of the reference's accuracy."""


class Hypothesis(Frozen):
    """What is tested."""

    saving: Saving = Saving()
    """Saving of training compute at equal quality."""
    accuracy_drop: AccuracyDrop = AccuracyDrop()
    """Non-inferiority margin of downstream accuracy."""
    alpha: Annotated[float, Field(gt=0, le=0.2)] = 0.025
    """One-sided error of each test; 0.025 makes the printed two-sided interval the 95% one."""
    budget: Annotated[int, Field(gt=0, le=10**15)] | None = None
    """Training tokens that preparation is charged against; default: the largest horizon's."""


class ArmDesign(Frozen):
    """An arm as judging sees it."""

    name: Name
    role: Role
    primary: Endpoint = "flops"
    against: Name | None = None
    """The arm it is compared with; None is the baseline."""
    parallel: bool = False
    """Same parameters and batches as its reference: almost no noise of its own, and none lent to other arms."""

    @property
    def decided_by(self) -> Endpoint:
        """The endpoint of the outcome: `primary`, but of a timing arm, which is not trained, its seconds."""
        return "time" if self.role == "timing" else self.primary


TOKENS_PER_PARAM = 20
"""Training tokens a parameter where a target names none (Hoffmann et al., arXiv 2203.15556, table 3)."""


class Target(Frozen):
    """A size that is not trained."""

    params: Annotated[int, Field(gt=0, le=10**15)]
    """Parameters."""
    tokens: Annotated[int, Field(gt=0, le=10**18)] | None = None
    """Training tokens; default: 20 a parameter."""

    @property
    def training_tokens(self) -> int:
        """Training tokens, with the default filled in."""
        return self.tokens or TOKENS_PER_PARAM * self.params

    @property
    def flops(self) -> float:
        """Training FLOPs, C = 6 N D (Kaplan et al., arXiv 2001.08361, section 2.1)."""
        return 6.0 * self.params * self.training_tokens


def _listed(value: Any) -> Any:
    """Plans made when there could be one target or none hold it by itself, or null."""
    if value is None:
        return ()
    return (value,) if isinstance(value, Mapping) else value


AblationKind = Literal["add_one", "leave_one_out", "factorial"]


class AblationDesign(Frozen):
    """How the arms of an ablation take a combined change apart."""

    of: Name
    """The arm that has every factor on."""
    designs: tuple[AblationKind, ...]
    factors: dict[Name, str]
    """factor -> what it changes, in words."""
    cells: dict[Name, tuple[Name, ...]]
    """arm -> the factors that are on; the baseline has none, `of` has all."""
    generators: tuple[str, ...] | None = None
    """Of the factorial part (`D=ABC`, factors lettered in order); empty where it is full, None where there is none."""


class InferenceArmDesign(Frozen):
    """A way of decoding as judging sees it."""

    name: Name
    primary: Endpoint = "time"
    lossless: bool = False
    """It must write exactly what the reference writes; else its quality is judged."""
    decoding: str = ""
    """In words."""


class InferenceDesign(Frozen):
    """Ways of decoding, each compared with one of them."""

    model: Name
    """The arm whose trained models generate, or the name of the checkpoint that does."""
    trains: bool = True
    """Whether the study trains its models; a checkpoint is one model, trained elsewhere."""
    reference: Name
    new_tokens: Annotated[int, Field(gt=0)]
    arms: tuple[InferenceArmDesign, ...]


class GateRule(Frozen):
    """One thing that must not get worse."""

    metric: str
    """A metric's name, for example `train_flops_per_token` or `val_loss`."""
    arm: Name | None = None
    """Only this arm; default: every arm of the run."""
    kind: Annotated[Literal["exact", "noisy"] | None, Field()] = None
    """`exact`: equal to the last digit. `noisy`: worse than `floor` and beyond its interval. Default: by metric."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Relative change that is never called a regression (noisy rules)."""
    required: bool = True
    """Whether a missing reading makes the gate fail with 'could not measure'."""


class Design(Frozen):
    """A study as judging sees it."""

    suite: Name
    purpose: Purpose = "explore"
    layout: Layout = "economical"
    baseline: Name
    arms: tuple[ArmDesign, ...]
    """Every arm but the baseline."""
    scales: tuple[Name, ...]
    seeds: tuple[int, ...]
    horizons: tuple[float, ...]
    hypothesis: Hypothesis = Hypothesis()
    gate: tuple[GateRule, ...] = ()
    tuned: bool = False
    """Whether the suite asks for tuning trials; that every arm had them is read from the records."""
    ablation: AblationDesign | None = None
    """The ablation, if the study has one."""
    extrapolate: Annotated[tuple[Target, ...], BeforeValidator(_listed)] = ()
    """The sizes that savings are extrapolated to."""
    inference: InferenceDesign | None = None
    """Ways of decoding, if the study compares any."""
    claim_points: dict[str, dict[str, float]] = Field(default_factory=dict[str, dict[str, float]])
    """arm -> scale -> the horizon at which its total cost is at most (1 - at_least) of the reference's."""
    controls: dict[str, str] = Field(default_factory=dict[str, str])
    """control (`truncated`, `half`, `smaller`, `aa`) -> the arm that carries it."""

    @property
    def trains(self) -> bool:
        """Whether the study trains any model."""
        return self.inference is None or self.inference.trains
