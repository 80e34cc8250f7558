"""The parts of a suite, typed: what may be written under each of its keys, with bounds and defaults."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, StrictBool, Tag, model_serializer, model_validator

from bench import design
from bench.design import AblationKind, Endpoint, Frozen, Name, Role
from bench.merge import SCALE_PATHS
from lmopt.quantities import Bytes, Seconds, Whole
from lmopt.recipe import MAX_CONTEXT, MAX_LAYERS, MAX_WIDTH, Positive

MAX_ARMS = 100
MAX_SCALES = 20
MAX_SEEDS = 1000
MAX_HORIZONS = 20
MIN_BLOCKS = 8
"""Interleaved blocks of a timing case: fewer give no usable interval (a t interval with 7 degrees of freedom)."""
MIN_BLOCK_STEPS = 20
"""Steps of an arm in a block: shorter blocks measure the clock and the cache, not the step."""
DAY_S = 86_400
MIN_STEPS = 20
"""A training shorter than this says nothing about any technique."""
MAX_TRIALS = 100
"""Trials of one arm: more is a search, not parity."""
MAX_TARGETS = 10
MIN_SAMPLE = 3
"""Fewest steps of a sample: their median is then not the slowest one's."""

RecipeMapping = dict[str, Any]
"""Part of a recipe, as written; checked after it is merged. The JSON Schema gives it the type of a recipe."""


class Baseline(Frozen):
    """What every arm is a difference from: dense, bf16, tuned."""

    name: Name = "dense"
    """Name of the baseline."""
    recipe: RecipeMapping = Field(default_factory=dict[str, Any])
    """The recipe, without what `over.scale` sets (layers, width, heads, tokens, ...); the rest has defaults."""


class Shape(Frozen):
    """Numbers of an arm's model at one scale, in place of the scale's."""

    layers: Annotated[Positive, Field(le=MAX_LAYERS)] | None = None
    """Number of Transformer blocks."""
    width: Annotated[Positive, Field(le=MAX_WIDTH)] | None = None
    """Size of the residual stream (d_model)."""
    heads: Annotated[Positive, Field(le=MAX_WIDTH)] | None = None
    """Query heads."""
    kv_heads: Annotated[Positive, Field(le=MAX_WIDTH)] | None = None
    """Key and value heads."""
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of the feed-forward."""

    def values(self) -> Mapping[str, Any]:
        """What it sets, by name."""
        return {name: value for name in SCALE_PATHS if (value := getattr(self, name, None)) is not None}


class Arm(Frozen):
    """A variant: a name, a role, and what it changes."""

    name: Name
    """Name of the arm."""
    role: Role = "component"
    """`claim`: tested against `hypothesis`. `component`: its saving is estimated. `control`: a placebo or a smaller
    model. `timing`: only its step time is compared."""
    primary: Endpoint = "flops"
    """The endpoint that decides for this arm: `flops`, `time` or `energy`."""
    against: Name | None = None
    """The arm that it is compared with; default: the baseline. `change` is from the baseline in any case."""
    parallel: bool = False
    """Same parameters and batches as its reference: almost no noise of its own, and none lent to other arms."""
    timed: bool = True
    """Whether its step time is compared with its reference's too (a timing case)."""
    change: RecipeMapping = Field(default_factory=dict[str, Any])
    """What differs from the baseline's recipe, and nothing else: mappings merge, another `kind` replaces the whole
    technique, lists replace."""
    at: Annotated[dict[Name, Shape], Field(max_length=MAX_SCALES)] = Field(default_factory=dict[str, Shape])
    """Scale -> numbers of the model's shape there, set after `change`: where an arm is not the same share of every
    scale."""

    def shape(self, scale: str) -> Mapping[str, Any]:
        """What it sets at a scale alone."""
        return self.at[scale].values() if scale in self.at else {}


class Ablation(Frozen):
    """A combined change taken apart: the arms that this needs are made from this line."""

    of: Name
    """The arm whose change is taken apart. Its factors are the data steps that it adds, each by its `kind`, and the
    other parts of the recipe that it changes, each by the `kind` that it names, else by its key (`optimizer`)."""
    design: Annotated[tuple[AblationKind, ...], Field(min_length=1, max_length=3)] = ("add_one", "leave_one_out")
    """`add_one`: the baseline with one factor. `leave_one_out`: the whole without one. `factorial`: all combinations,
    or the fraction that `resolution` asks for, with seeds as blocks: shows interactions."""
    resolution: Literal["full", 3, 4, 5] = "full"
    """Of the factorial: `full`, or the smallest fraction with at least this resolution (3: main effects mixed with
    pairs; 4: pairs mixed with pairs; 5: pairs mixed with triples only)."""
    factors: Annotated[
        dict[Name, Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ARMS)]], Field(max_length=MAX_ARMS)
    ] = Field(default_factory=dict[str, tuple[str, ...]])
    """Names for groups of changes that are switched together; a change that none names is a factor by itself."""
    timed: bool = False
    """Whether the step times of the made arms are compared too."""


class Target(design.Target):
    """A size that is not trained: what the savings at three scales or more say of it."""

    params: Positive
    """Parameters, for example `1B`."""
    tokens: Positive | None = None
    """Training tokens; default: 20 a parameter."""


def _one_or_several(value: Any) -> str:
    return "several" if isinstance(value, list | tuple) else "one"


Targets = Annotated[
    Annotated[Target, Tag("one")]
    | Annotated[tuple[Target, ...], Field(min_length=1, max_length=MAX_TARGETS), Tag("several")],
    Discriminator(_one_or_several),
]


class Scale(Frozen):
    """A size of model with its training budget, applied to every arm before the arm's own change."""

    name: Name
    """Name of the scale."""
    layers: Annotated[Positive, Field(le=MAX_LAYERS)]
    """Number of Transformer blocks."""
    width: Annotated[Positive, Field(le=MAX_WIDTH)]
    """Size of the residual stream (d_model)."""
    heads: Annotated[Positive, Field(le=MAX_WIDTH)]
    """Query heads; must divide `width`, and width / heads must be even."""
    kv_heads: Annotated[Positive, Field(le=MAX_WIDTH)] | None = None
    """Key and value heads; must divide `heads`."""
    context: Annotated[Positive, Field(le=MAX_CONTEXT)] | None = None
    """Longest sequence in tokens."""
    hidden: Annotated[Positive, Field(le=4 * MAX_WIDTH)] | None = None
    """Inner width of the baseline's feed-forward."""
    tokens: Positive
    """Training tokens at horizon 1.0."""
    lr: Annotated[float, Field(gt=0, le=10)] | None = None
    """Peak learning rate."""
    sequences: Annotated[Positive, Field(le=2**24)] | None = None
    """Sequences a step."""
    micro_sequences: Annotated[Positive, Field(le=2**24)] | None = None
    """Sequences a forward pass; must divide `sequences`."""
    length: Annotated[Positive, Field(le=MAX_CONTEXT)] | None = None
    """Tokens a sequence."""

    def values(self) -> Mapping[str, Any]:
        """What it sets, by name."""
        return {name: value for name in SCALE_PATHS if (value := getattr(self, name)) is not None}


class Over(Frozen):
    """The axes that the study is expanded over."""

    scale: Annotated[tuple[Scale, ...], Field(min_length=1, max_length=MAX_SCALES)]
    """Sizes of model."""
    seed: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=MAX_SEEDS)] = (
        0,
        1,
        2,
    )
    """Seeds: each fixes the order of the data and, with a parameter's name, its initial values."""
    horizon: Annotated[
        tuple[Annotated[float, Field(gt=0, le=10)], ...], Field(min_length=1, max_length=MAX_HORIZONS)
    ] = (1.0,)
    """Training lengths as shares of a scale's `tokens`, each fully annealed; must hold 1.0."""


def _name_or_choice(value: Any) -> Any:
    if value is None or isinstance(value, str | bool):
        return value
    raise ValueError(f"expected the name of an arm, true or false, got {value!r}\nhint: `true` has the arm made")


Made = Annotated[Name | StrictBool | None, BeforeValidator(_name_or_choice)]
"""An arm by name; or whether one is made; null leaves that to the purpose of the suite."""


class Controls(Frozen):
    """Controls: the first two are run for every study with a claim, the others for a confirming one (or where true)."""

    truncated: bool = True
    """The reference at the claim's compute: what stopping early costs."""
    half: bool = True
    """The reference at half its tokens: a task that cannot tell it from the full one does not count."""
    smaller: Made = None
    """The control arm that is a smaller dense model at the claim's FLOPs a token: a name, or true to have it made.
    null makes it where a confirming suite has a claim."""
    aa: Made = None
    """The control arm that differs from the baseline in `model.init_stream` only, how far two equal models end apart:
    a name, or true to have it made. null makes it where a confirming suite has a claim."""


Rate = Annotated[float, Field(gt=0, le=10)]
Factor = Annotated[float, Field(gt=0, le=1000)]


class Spaced(Frozen):
    """Learning rates evenly spaced on a logarithmic scale, both ends included."""

    from_: Annotated[Rate, Field(alias="from")]
    """The lowest."""
    to: Rate
    """The highest."""
    points: Annotated[Whole, Field(ge=2, le=MAX_TRIALS)]
    """How many."""

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if self.from_ >= self.to:
            raise ValueError(f"from ({self.from_:g}) must be below to ({self.to:g})")
        return self

    @model_serializer
    def _as_written(self) -> dict[str, Any]:
        return {"from": self.from_, "to": self.to, "points": self.points}

    def values(self) -> tuple[float, ...]:
        """The rates, rising, to six digits (so that a plan is the same on every machine)."""
        step = (self.to / self.from_) ** (1 / (self.points - 1))
        return tuple(float(f"{self.from_ * step**n:.6g}") for n in range(self.points))


class Multiples(Frozen):
    """Learning rates as multiples of each arm's own: for arms whose optimizers want rates of different sizes."""

    times: Annotated[tuple[Factor, ...], Field(min_length=2, max_length=MAX_TRIALS)]
    """The factors."""


def _form(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "list"
    is_multiples = isinstance(value, Multiples) or (isinstance(value, Mapping) and "times" in value)
    return "multiples" if is_multiples else "spaced"


Rates = Annotated[
    Annotated[tuple[Rate, ...], Field(min_length=2, max_length=MAX_TRIALS), Tag("list")]
    | Annotated[Spaced, Tag("spaced")]
    | Annotated[Multiples, Tag("multiples")],
    Discriminator(_form),
]


class Tune(Frozen):
    """Learning-rate trials, the same number for every trained arm at every scale; each arm trains with its best."""

    lr: Rates
    """Peak learning rates to try: a list, `{from, to, points}` evenly spaced on a logarithmic scale, or multiples of
    each arm's own, `{times: [0.5, 1, 2]}`."""
    weight_decay: (
        Annotated[tuple[Annotated[float, Field(ge=0, le=10)], ...], Field(min_length=1, max_length=MAX_TRIALS)] | None
    ) = None
    """Values of weight decay to try with each rate; null keeps each arm's own."""
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """Tokens of a trial, as a share of the scale's. Longer trainings want smaller rates, by a power law of the tokens
    (exponent near a third: Bjorck et al., arXiv 2409.19913): a quarter of them errs by 1.6, less than a step of two."""
    seed: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=20)] = (
        1_000_000,
    )
    """Seeds of the trials, none of them the study's own; a choice rests on the mean over them."""
    validation: Name | None = None
    """The validation set whose loss decides; null is the first."""


class Finetune(Frozen):
    """A set that every evaluated model is fine-tuned on and then tested on, all alike; its accuracy is called
    `NAME-finetuned` and joins those of `evaluate`."""

    task: Annotated[str, Field(min_length=1, max_length=200)]
    """Name of the set: of its family is the accuracy."""
    learn: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=20)] = ()
    """Other sets to learn from, in full. Questions that share 13 words in a row with a tested one are left out."""
    test: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of the set's own passages that is tested; the rest is learnt from. null: half, or all where `learn` names
    other sets."""
    tokens: Positive = 1_000_000
    """Tokens of a trial, the questions over and over: the same for every arm at every scale."""
    sequences: Annotated[Positive, Field(le=2**24)] = 16
    """Sequences a step, each as long as the model's context and filled with questions."""
    lr: Rates = Multiples(times=(0.3, 1.0))
    """Peak learning rates, each tried in full; the best on questions kept back is tested. A list, `{from, to, points}`,
    or multiples of each arm's own, `{times: [0.3, 1]}`."""
    limit: Positive | None = None
    """At most this many of the tested items; null takes all."""


class Timing(Frozen):
    """How step times are compared: interleaved blocks A B B A in one process."""

    blocks: Annotated[Whole, Field(ge=MIN_BLOCKS, le=10_000)] = MIN_BLOCKS
    """Number of blocks."""
    steps: Annotated[Whole, Field(ge=MIN_BLOCK_STEPS, le=100_000)] = MIN_BLOCK_STEPS
    """Steps of each arm in a block."""
    warmup: Annotated[Whole, Field(ge=1, le=10_000)] = 3
    """Steps of each arm before the first block, not measured."""


class Sample(Frozen):
    """The `sample` layout: training steps at true size, for what they cost; nothing is learned from them."""

    steps: Annotated[Whole, Field(ge=MIN_SAMPLE, le=100_000)] = 10
    """Measured steps of each arm."""
    warmup: Annotated[Whole, Field(ge=1, le=10_000)] = 2
    """Steps before them, not measured: first allocations, kernel choices, compilation."""


class Evaluate(Frozen):
    """Which downstream tasks the trained models are scored on."""

    tasks: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = ()
    """Names of tasks, or `hub:NAME` for a task of lm-evaluation-harness from the Hugging Face hub."""
    limit: Positive | None = None
    """At most this many items of each task; null takes all."""
    when: Literal["ends", "every"] = "ends"
    """`ends`: the reference at horizon 1.0, the controls and the claim points. `every`: every trained model."""


class Limits(Frozen):
    """What one case may use before it is stopped and counted as failed."""

    case_time: Seconds = DAY_S
    """Time."""
    case_memory: Bytes | None = None
    """Memory of the whole process, of which some 290 MiB are taken before a model is built; null is the machine's."""


class Hypothesis(design.Hypothesis):
    """What is tested."""

    budget: Positive | None = None
    """Training tokens that preparation is charged against; default: the largest horizon's."""
