"""A new suite from three answers: which text, how large a model, how much to spend."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from bench import budget as budgets
from bench import calibrate, source
from bench.allowance import Budget, BudgetError, parse_budget
from bench.estimate import Machine
from bench.findings import validate
from bench.plan import make_plan
from bench.problems import Problem, SuiteError
from bench.suite import Suite
from lmopt import cost
from lmopt.data.spec import CorpusSource
from lmopt.quantities import human_count, parse_count
from lmopt.recipe import FixedBatch, Model, Recipe

TOKENS_A_PARAMETER = 20
"""Compute-optimal training (Hoffmann et al., arXiv 2203.15556, table 3); the budget may allow less."""
NOMINAL_FLOPS_PER_S = 1e11
"""Training speed assumed where this machine was not calibrated: two CPU cores in bfloat16, at small sizes."""
MIN_SIZE, MAX_SIZE = 200_000, 175 * 10**9
MIN_STEPS = 100
"""The shortest training that is written, however small the budget."""
ASPECT = 48
"""Width per layer that is aimed at; between 30 and 130 the loss hardly changes (Kaplan et al., 2001.08361, fig. 5)."""


ASPECT_WEIGHT = 0.05
"""What a width off the aspect costs against a size off the mark, both squared logarithms."""
MAX_WIDTH = 12_288
"""The widest model that is proposed, that of GPT-3 175B (Brown et al., 2005.14165, table 2.1)."""


@dataclass(frozen=True, slots=True)
class Regime:
    """Choices that go with a size of model."""

    below: float
    """Parameters up to which it holds."""
    vocab: int
    sequences: int
    length: int
    head_width: int


REGIMES = (
    Regime(6e5, 1024, 16, 128, 16),
    Regime(3e6, 2048, 16, 128, 32),
    Regime(2e7, 4096, 16, 256, 64),
    Regime(1e8, 16_384, 32, 512, 64),
    Regime(math.inf, 32_768, 64, 1024, 64),
)


def init(path: Path, *, data: str, size: str, budget: str) -> None:
    """Write a commented, valid suite.

    Args:
        path: the new file; it must not exist.
        data: a source (`pypi:NAME==VERSION`, `hf:NAME`, ...) or the path of a file or folder.
        size: parameters of the baseline, for example `10M`.
        budget: what the whole study may cost: `30min`, `5M tokens` or `1e15 FLOP`.

    Raises:
        SuiteError: one of the answers cannot be used, or the file exists.
        OSError: the file cannot be written.
    """
    if path.exists():
        raise _refused(str(path), "exists already", "choose another name")
    text = suite_text(_suite_name(path), data=data, size=size, budget=budget)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)


def suite_text(name: str, *, data: str, size: str, budget: str) -> str:
    """The YAML of the suite that `init` writes.

    Raises:
        SuiteError: one of the answers cannot be used.
    """
    corpus, parameters, spend = _source(data), _parameters(size), _budget(budget)
    if re.fullmatch(r"[\d._eE+]+", budget.strip()):  # YAML would read a number where a suite has a text
        budget = f"{budget.strip()}s"
    regime = next(regime for regime in REGIMES if parameters <= regime.below)
    recipe = shape(parameters, regime)
    draft = _render(name, corpus, recipe, _full_tokens(recipe), budget)
    tokens = _tokens_within(_suite(draft), recipe, spend)
    return _render(name, corpus, recipe, tokens, budget)


def _refused(what: str, message: str, hint: str | None = None) -> SuiteError:
    return SuiteError([Problem(what, 0, 0, message, hint)])


def _suite_name(path: Path) -> str:
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")[:64]
    return name or "suite"


def _as_text(name: str) -> str:
    """The name in quotes where YAML would read a number, a truth value or nothing: `2026`, `true`, `null`."""
    return name if source.parse_text(f"name: {name}", "name").data() == {"name": name} else f'"{name}"'


# --- the three answers ---------------------------------------------------------------------------


def _source(text: str) -> str:
    """The source as it is written in the suite, quoted. A path becomes `file:PATH`."""
    if Path(text).exists() or text.startswith((".", "/", "~")):
        text = f"file:{text}"
    entry = {"source": text} | ({"limit": "200MB"} if text.startswith("hf:") else {})
    found = validate(CorpusSource, entry)[1]
    if found:
        raise _refused("--data", found[0].message, found[0].hint)
    if text.startswith("file:") and not Path(text.removeprefix("file:")).expanduser().exists():
        raise _refused("--data", f"no such file or folder: {text.removeprefix('file:')!r}")
    quoted = "'" + text.replace("'", "''") + "'"
    return f"{{source: {quoted}, limit: 200MB}}" if "limit" in entry else quoted


def _parameters(text: str) -> int:
    try:
        parameters = parse_count(text)
    except ValueError as error:
        raise _refused("--size", str(error)) from None
    if not MIN_SIZE <= parameters <= MAX_SIZE:
        allowed = f"{human_count(MIN_SIZE)} to {human_count(MAX_SIZE)} parameters"
        raise _refused("--size", f"{text} parameters; allowed: {allowed}", "for example 1M, 10M or 124M")
    return parameters


def _budget(text: str) -> Budget:
    try:
        return parse_budget(text)
    except BudgetError as error:
        message, _, hint = str(error).partition("; hint: ")
        raise _refused("--budget", message, hint or None) from None


# --- size and length -----------------------------------------------------------------------------


def shape(parameters: int, regime: Regime) -> Recipe:
    """The dense recipe nearest to a number of parameters whose width is near ASPECT x its layers.

    A block holds about 12 width^2 parameters (Kaplan et al., 2001.08361, table 1): far-off shapes are not even tried.
    """
    candidates = (
        _dense(layers, width, regime)
        for layers in range(2, 129)
        for width in range(2 * regime.head_width, MAX_WIDTH, 2 * regime.head_width)
        if ASPECT / 2 <= width / layers <= ASPECT * 2
        and 0.3 < (12 * layers * width + regime.vocab) * width / parameters < 3
    )

    def distance(recipe: Recipe) -> float:
        off = math.log(cost.parameters(recipe).total / parameters)
        aspect = math.log(recipe.model.width / recipe.model.layers / ASPECT)
        return off**2 + ASPECT_WEIGHT * aspect**2

    return min(candidates, key=distance)


def _dense(layers: int, width: int, regime: Regime) -> Recipe:
    model = Model(
        layers=layers,
        width=width,
        heads=width // regime.head_width,
        vocab=regime.vocab,
        context=max(256, regime.length),
    )
    batching = FixedBatch(sequences=regime.sequences, length=regime.length)
    return Recipe(model=model, batching=batching, tokens=10**15)


def _full_tokens(recipe: Recipe) -> int:
    return TOKENS_A_PARAMETER * cost.parameters(recipe).total


def _tokens_within(suite: Suite, recipe: Recipe, budget: Budget) -> int:
    """Tokens at horizon 1.0 with which the whole study costs at most the budget, in whole steps."""
    plan = make_plan(suite, Machine(machine_class="unknown"))
    flops = sum(case.estimate.train_flops or 0.0 for case in plan.cases)
    trained = sum(case.recipe.steps(case.horizon) for case in plan.cases if case.recipe and case.horizon)
    spent = {
        "flops": flops,
        "tokens": trained * recipe.batching.tokens,
        "time_s": budgets.OVERHEAD * flops / _speed_flops_per_s(),
    }
    factor = min(1.0, budget.amount / spent[budget.kind])
    steps = max(MIN_STEPS, int(factor * _full_tokens(recipe) / recipe.batching.tokens))
    return steps * recipe.batching.tokens


def _speed_flops_per_s() -> float:
    speeds = calibrate.cached()
    return speeds.train_flops_per_s.get("bf16", NOMINAL_FLOPS_PER_S) if speeds else NOMINAL_FLOPS_PER_S


def learning_rate(parameters: int) -> float:
    """A first guess to tune from: 0.003239 - 0.0001395 ln(N) (Kaplan et al., arXiv 2001.08361, eq. D.1)."""
    return float(f"{max(1e-4, 0.003239 - 0.0001395 * math.log(parameters)):.2g}")


# --- the text ------------------------------------------------------------------------------------


def _suite(text: str) -> Suite:
    return Suite.model_validate(source.parse_text(text, "new suite").data())


def _render(name: str, corpus: str, recipe: Recipe, tokens: int, budget: str) -> str:
    model, batching = recipe.model, recipe.batching
    count = cost.parameters(recipe).total
    scale = f"{human_count(count).lower()}"
    return f"""\
# Written by `lmbench init`. `lmbench check FILE` finds mistakes, `lmbench plan FILE` shows what a run will cost.
# For completion in an editor: `lmbench schema > suite.schema.json` beside this file, and uncomment the next line.
# # yaml-language-server: $schema=./suite.schema.json
suite: {_as_text(name)}
about: Do clean data and sparse experts reach the dense model's loss with less compute?
purpose: explore # confirm: fix everything below before the first run, and claim the result
layout: economical # full: claim arms at every horizon too, about twice the cost

data:
  corpus: [{corpus}] # also file:, hf:, pypi:, npm:, deb:, stdlib:
  validation:
    - {{kind: holdout, name: holdout, share: 0.02}} # documents kept out of training, and their duplicates with them
  tokenizer: {{vocab: {model.vocab}}}

baseline: # what every arm is compared with: make it strong, tune it first
  name: dense
  recipe:
    precision: {{kind: bf16}}
    model: {{context: {model.context}}}
    optimizer: {{lr: {learning_rate(count):g}}} # a first guess from the size
    batching: {{sequences: {batching.sequences}, length: {batching.length}}}

arms: # each is a difference from the baseline, and nothing else
  - name: clean
    role: component # its saving is estimated, not tested
    change: {{data: [{{kind: exact_dedup}}, {{kind: near_dedup}}]}}
  - name: moe
    role: component
    change: {{ffn: {{kind: moe, experts: 8, top_k: 2}}}}
  - name: fp32
    role: timing # only its step time is compared
    primary: time
    change: {{precision: {{kind: fp32}}}}
  - name: all
    role: claim # tested against the hypothesis below
    primary: flops # what decides: flops, time or energy
    change:
      data: [{{kind: exact_dedup}}, {{kind: near_dedup}}]
      ffn: {{kind: moe, experts: 8, top_k: 2}}

over: # everything above is run for each of these
  scale:
    - {{name: {scale}, layers: {model.layers}, width: {model.width}, heads: {model.heads}, tokens: {tokens}}}
  seed: [0, 1, 2] # 3 to look, 5 for a headline, 8 or more for an effect under 10%
  horizon: [0.5, 0.7, 0.8, 1.0, 1.4] # training lengths of the baseline, as shares of `tokens`

evaluate:
  tasks: [heldout_cloze, quartz, corr2cause] # language modelling, question answering, inference
  limit: 1000 # items of each

# tune: # the same number of trials for every arm; each then trains at its best. `purpose: confirm` needs it
#   lr: {{times: [0.5, 1, 2, 4]}} # of each arm's own; or {{from: 1e-3, to: 8e-3, points: 4}}, or a list
#   share: 0.25 # of the tokens above, for each trial

hypothesis:
  saving: {{at_least: 0.20, target: 0.30}} # of the baseline's compute, at equal loss
  accuracy_drop: {{less_than: 0.01, kind: absolute}} # one percentage point

gate: # what `lmbench gate` watches from version to version
  - {{metric: train_flops_per_token, kind: exact}}
  - {{metric: val_loss, kind: noisy, floor: 0.02}}

budget: {budget} # of the whole study; it is cut to what fits, and says so
"""
