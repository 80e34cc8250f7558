"""The typed suite: an experiment as it is declared, every case of it checked before anything runs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, model_validator
from pydantic_core import to_jsonable_python
from ruamel.yaml import YAML

from bench import ablation, controls, design, ownmodel, replays, source
from bench.concealed import PARTS_ALONE, concealed
from bench.crosscheck import crosscheck
from bench.design import ArmDesign, Design, Frozen, GateRule, Layout, Name, Purpose
from bench.draft import Draft, canonical
from bench.findings import Finding, validate
from bench.inferstanza import Inference
from bench.merge import expand, in_words, with_teacher
from bench.problems import Problem, SuiteError, format_problem, suggest
from bench.stanzas import (
    MAX_ARMS,
    Ablation,
    Arm,
    Baseline,
    Controls,
    Evaluate,
    Finetune,
    Hypothesis,
    Limits,
    Over,
    Sample,
    Scale,
    Target,
    Targets,
    Timing,
    Tune,
)
from lmopt.data.spec import Data
from lmopt.recipe import Recipe

__all__ = ["Arm", "Scale", "Suite", "SuiteError", "check", "format_problem", "load_suite"]


class Suite(Frozen):
    """A declared experiment: a dense baseline, variants of it, and the hypothesis about them."""

    suite: Name
    """Name of the suite; its run folders lie in results/<suite>."""
    about: Annotated[str, Field(max_length=2000)] = ""
    """The question that it answers, in a sentence."""
    purpose: Purpose = "explore"
    """`confirm`: pre-registered. `explore`: looking around. `selftest`: a planted effect."""
    data: Data
    """Training text, validation sets, tokenizer."""
    baseline: Baseline
    """What every arm is compared with."""
    arms: Annotated[tuple[Arm, ...], Field(max_length=MAX_ARMS)]
    """The variants, at least one; none where the model of `inference` is a checkpoint."""
    ablation: Ablation | None = None
    """A combined change taken apart into its factors."""
    over: Over
    """Scales, seeds and horizons."""
    extrapolate: Targets | None = None
    """A size that savings are extrapolated to, with their interval, or a list of such sizes; needs three scales."""
    layout: Layout = "economical"
    """`full`: reference and claim arms at every horizon. `economical`: only the reference has horizons. `sample`: a few
    steps of every arm instead of trainings; what they cost is measured, quality is not."""
    controls: Controls = Controls()
    """Controls."""
    tune: Tune | None = None
    """Learning-rate trials of every trained arm; null trains each arm with its recipe's. A confirming study without
    them decides nothing."""
    timing: Timing = Timing()
    """How step times are compared."""
    sample: Sample = Sample()
    """How many steps the `sample` layout takes."""
    evaluate: Evaluate = Evaluate()
    """Downstream tasks."""
    finetune: Annotated[tuple[Finetune, ...], Field(max_length=20)] = ()
    """Sets that evaluated models are fine-tuned on: small models are at chance on most questions until they are."""
    inference: Inference | None = None
    """Ways of decoding, compared on models that the study trains, or on a checkpoint: then nothing is trained, and a
    suite is its `data` and this."""
    hypothesis: Hypothesis = Hypothesis()
    """What is claimed."""
    gate: Annotated[tuple[GateRule, ...], Field(max_length=1000)] = ()
    """What must not get worse from one version to the next."""
    limits: Limits = Limits()
    """What one case may use."""
    budget: Annotated[str, Field(max_length=60)] | None = None
    """What the whole study may cost: `30min`, `5M tokens` or `1e15 FLOP`; it is cut to what fits."""

    @model_validator(mode="before")
    @classmethod
    def _spell_out(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return controls.with_arms(ablation.with_arms(canonical(to_jsonable_python(data, fallback=lambda value: value))))

    @model_validator(mode="after")
    def _parts_fit(self, info: ValidationInfo) -> Self:
        found = [] if info.context == PARTS_ALONE else crosscheck(self.model_dump(mode="json"))
        if found:
            raise ValueError("; ".join(f"{_dotted(finding.path)}: {finding.message}" for finding in found))
        return self

    def all_arms(self) -> tuple[Arm, ...]:
        """The baseline as an arm that changes nothing, then the arms."""
        return (Arm(name=self.baseline.name, role="control"), *self.arms)

    def arm(self, name: str) -> Arm:
        """The arm of a name, the baseline included.

        Raises:
            SuiteError: there is none.
        """
        return _named(name, {arm.name: arm for arm in self.all_arms()}, "arm", self.suite)

    def scale(self, name: str) -> Scale:
        """The scale of a name.

        Raises:
            SuiteError: there is none.
        """
        return _named(name, {scale.name: scale for scale in self.over.scale}, "scale", self.suite)

    def resolve(self, arm: str, scale: str) -> Recipe:
        """The full recipe of an arm (or the baseline) at a scale.

        Raises:
            SuiteError: no such arm or scale.
        """
        values, vocab = self.scale(scale).values(), self.data.tokenizer.vocab

        def alone(one: Arm) -> dict[str, Any]:
            return expand(self.baseline.recipe, values, vocab, one.change, one.shape(scale))

        return Recipe.model_validate(with_teacher(alone(self.arm(arm)), lambda name: alone(self.arm(name))))

    def describe_change(self, arm: str, scale: str | None = None) -> str:
        """In words, how an arm differs from what it is compared with, at a scale (default: the first).

        A cell of an ablation is told from the combined change where that is shorter. The smaller control's also say how
        close it comes to the FLOPs that a claim may spend.
        """
        at = scale or self.over.scale[0].name
        reference = self.arm(arm).against or self.baseline.name
        words = in_words(self.resolve(reference, at), self.resolve(arm, at))
        if self.ablation is not None and arm != self.ablation.of:
            apart = in_words(self.resolve(self.ablation.of, at), self.resolve(arm, at))
            words = min(words, f"as {self.ablation.of}, but {apart}", key=len)
        return f"{words}; {self._spends(arm, reference)}" if arm == self.controls.smaller else words

    def _spends(self, arm: str, reference: str) -> str:
        """`79.8% of the training FLOPs of dense (a claim may spend 0.8 of them)`."""
        shares = (
            f"{controls.spent_share(self.resolve(reference, scale.name), self.resolve(arm, scale.name)):.1%}"
            f"{f' at {scale.name}' if len(self.over.scale) > 1 else ''}"
            for scale in self.over.scale
        )
        allowed = f"a claim may spend {1 - self.hypothesis.saving.at_least:.4g} of them"
        return f"{', '.join(shares)} of the training FLOPs of {reference} ({allowed})"

    def design(self) -> Design:
        """The part that judging needs; the plan adds the claim points."""
        return Design(
            suite=self.suite,
            purpose=self.purpose,
            layout=self.layout,
            baseline=self.baseline.name,
            arms=tuple(ArmDesign(**arm.model_dump(exclude={"change", "at", "timed"})) for arm in self.arms),
            scales=tuple(scale.name for scale in self.over.scale),
            seeds=self.over.seed,
            horizons=self.over.horizon,
            hypothesis=design.Hypothesis(**self.hypothesis.model_dump()),
            gate=self.gate,
            tuned=self.tune is not None,
            controls=self._control_arms(),
            extrapolate=tuple(design.Target(**target.model_dump()) for target in self._targets()),
            inference=None if self.inference is None else self.inference.as_design(self.baseline.name),
            ablation=ablation.design_of(Draft.of(self.model_dump(mode="json"))),
        )

    def _targets(self) -> tuple[Target, ...]:
        if self.extrapolate is None:
            return ()
        return (self.extrapolate,) if isinstance(self.extrapolate, Target) else self.extrapolate

    def _control_arms(self) -> dict[str, str]:
        carried = {"smaller": self.controls.smaller, "aa": self.controls.aa}
        if any(arm.role == "claim" for arm in self.arms):
            carried["truncated"] = self.baseline.name if self.controls.truncated else None
            carried["half"] = self.baseline.name if self.controls.half else None
        return {control: arm for control, arm in carried.items() if isinstance(arm, str)}

    def with_over(self, **axes: Any) -> Suite:
        """The same study over other scales, seeds or horizons."""
        over = self.over.model_copy(update=axes)
        known = {scale.name for scale in over.scale}
        arms = tuple(
            arm.model_copy(update={"at": {scale: shape for scale, shape in arm.at.items() if scale in known}})
            for arm in self.arms
        )
        return self.model_copy(update={"over": over, "arms": arms})

    def resolved_yaml(self) -> str:
        """The suite with every default filled in; it loads back to an equal suite."""
        yaml = YAML(typ="safe", pure=True)
        yaml.default_flow_style = False
        yaml.sort_base_mapping_type_on_output = False  # pyright: ignore[reportAttributeAccessIssue]
        yaml.width = 120
        text = io.StringIO()
        yaml.dump(self.model_dump(mode="json"), text)
        return text.getvalue()


def _named(name: str, known: Mapping[str, Any], what: str, suite: str) -> Any:
    if name not in known:
        raise SuiteError([Problem(suite, 0, 0, f"no {what} is named {name!r}", suggest(name, known))])
    return known[name]


def _dotted(path: source.DataPath) -> str:
    return ".".join(map(str, path)) or "suite"


# --- files ---------------------------------------------------------------------------------------


def load_suite(path: Path | str) -> Suite:
    """Read a suite. Checkpoints and decisions that it names are read in full, for their hashes.

    Raises:
        SuiteError: the file cannot be read or the suite is invalid; it holds every problem.
    """
    text, suite, problems = _read(Path(path))
    if suite is None or problems:
        raise SuiteError(problems)
    baseline, arms, found = replays.pinned(suite.baseline, suite.arms)
    inference = suite.inference
    if inference is not None and inference.own is not None:
        inference, others = ownmodel.pinned(inference)
        found += others
    if found:
        raise SuiteError([_problem(text, finding) for finding in found])
    return suite.model_copy(update={"baseline": baseline, "arms": arms, "inference": inference})


def check(path: Path | str) -> list[Problem]:
    """Every problem of a suite, in the order of its lines; empty when it is valid."""
    return _read(Path(path))[2]


def read_suite(path: Path | str) -> tuple[Suite | None, list[Problem]]:
    """The suite, None where it is not valid; and every problem of it, in the order of its lines."""
    _, suite, problems = _read(Path(path))
    return suite, problems


def _read(path: Path) -> tuple[source.Source, Suite | None, list[Problem]]:
    text = source.read(path)
    if text.root is None or not isinstance(text.root.value, dict):
        return text, None, list(text.problems)
    data = ownmodel.spelled_out(text.data())
    suite, found = validate(Suite, data)
    found += concealed(Suite, data, found, parts_alone=True)
    # The typed suite repeats the rules between parts in one sentence; here each has its place.
    by_itself = [finding for finding in found if finding.path or not finding.is_cross_field]
    found = by_itself + crosscheck(data, look_at_files=True) or found
    return text, suite, _in_order(text.problems, [_problem(text, finding) for finding in found])


def _problem(text: source.Source, finding: Finding) -> Problem:
    return text.problem(finding.path, finding.message, finding.hint, at_key=finding.at_key)


def _in_order(unreadable: Sequence[Problem], wrong: Sequence[Problem]) -> list[Problem]:
    """By line, each once; where the text itself could not be read, what would follow from that is left out."""
    places = {(problem.line, problem.column) for problem in unreadable}
    kept = [*unreadable, *(problem for problem in wrong if (problem.line, problem.column) not in places)]
    return sorted(dict.fromkeys(kept), key=lambda problem: (problem.line, problem.column))
