"""A case of the plan as judging reads it from `plan.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from bench.design import Design, Name
from bench.record import CaseKind


class PlannedSize(BaseModel):
    """What the plan computed of an arm at a scale; other entries go along as they are."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    params_total: int | float | None = None
    params_active: int | float | None = None
    train_flops_per_token: int | float | None = None
    infer_flops_per_token: int | float | None = None
    change: str = ""


class PlannedCase(BaseModel):
    """One node of the plan, without what only running it needs."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str
    kind: CaseKind
    arm: Name
    scale: Name | None = None
    seed: int | None = None
    horizon: float | None = None
    parents: tuple[str, ...] = ()
    purpose: str = ""
    spec: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    estimate: Mapping[str, Any] = Field(default_factory=dict[str, Any])
    fits: bool = True
    reason: str | None = None

    @property
    def is_trial(self) -> bool:
        """Whether it is a tuning trial."""
        return self.purpose == "tune"

    @property
    def is_tuning(self) -> bool:
        """Whether it is a tuning trial, or a training that trials start or learn from."""
        return self.is_trial or self.purpose == "trial_source"

    @property
    def place(self) -> str:
        """Its kind; what tuning takes is kept apart from the trainings that arms are judged by."""
        if self.is_tuning:
            return "trial" if self.is_trial else "trial source"
        return self.kind

    @property
    def tuning(self) -> Mapping[str, Any]:
        """How a training chooses among its trials; empty where it had none."""
        return self.spec.get("tune") or {}

    @property
    def label(self) -> str:
        """Short name for people: `train moe/s seed 0 x1`."""
        parts = [self.place, self.arm + (f"/{self.scale}" if self.scale else "")]
        parts += [f"seed {self.seed}"] if self.seed is not None else []
        parts += [f"x{self.horizon:g}"] if self.horizon is not None else []
        parts += [str(self.spec.get("task"))] if self.kind == "finetune" else []
        return " ".join(parts)


class Contents(BaseModel):
    """What judging needs of a plan."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    design: Design
    run: str = Field(default="", pattern=r"^[\w.-]*$")
    cases: tuple[PlannedCase, ...] = ()
    arms: dict[Name, dict[Name, PlannedSize]] | None = None
    """arm -> scale -> what the plan computed of it."""

    @property
    def facts(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The same as plain data."""
        return {arm: {scale: one.model_dump() for scale, one in of.items()} for arm, of in (self.arms or {}).items()}
