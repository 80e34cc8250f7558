"""Downstream accuracy through lm-evaluation-harness: its tasks and its scoring rules, pulled a batch at a time.

The harness builds requests from a task and turns the model's answers into its own metrics. In between, `evaluate_steps`
scores the requests of all tasks together and yields a `Step` a batch, so that the caller can time, show and stop it.
Beside the harness's accuracy each item gets a score in which a tie among m best choices counts 1/m.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.evaluate.asking import Instance, Loaded, Task, answer, load
from bench.evaluate.index import HUB_PREFIX, Family, family_of, find
from bench.evaluate.items import ItemRow
from bench.evaluate.language_model import DecoderLM
from bench.evaluate.loading import NotAvailable
from bench.evaluate.scoring import Forward
from bench.record import Reading, missing, reading
from lmopt.arch.transformer import Transformer
from lmopt.step import Step, run_to_end

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ITEM_METRICS = ("acc", "exact_match")
"""Metrics of the harness that judge an item right or wrong; of those that a task has, the first is taken."""


@dataclass(frozen=True, slots=True)
class TaskResult:
    """How a model did on a task."""

    name: str
    family: Family
    chance: float
    """What guessing earns (`_chance`)."""
    rows: tuple[ItemRow, ...]
    truncated: int
    """Requests whose context was cut off the front to fit the model."""

    @property
    def accuracy(self) -> float:
        """Mean score, ties counted 1/m."""
        return _mean([row.score for row in self.rows])

    @property
    def accuracy_lm_eval(self) -> float:
        """Mean of the harness's own values."""
        return _mean([row.score_lm_eval for row in self.rows])

    @property
    def correct_choice_bits_per_byte(self) -> float | None:
        """Mean over items; None where the task has no choices."""
        values = [row.choice_bits_per_byte for row in self.rows if row.choice_bits_per_byte is not None]
        return _mean(values) if values else None


@dataclass(frozen=True, slots=True)
class TaskResults:
    """How a model did on all tasks of a suite."""

    tasks: Mapping[str, TaskResult]
    missing: Mapping[str, str]
    """Task -> why it could not be measured."""

    def named(self, name_of: Callable[[str], str]) -> TaskResults:
        """The same under other names."""
        renamed = {
            name_of(name): replace(
                task, name=name_of(name), rows=tuple(replace(row, task=name_of(name)) for row in task.rows)
            )
            for name, task in self.tasks.items()
        }
        return TaskResults(renamed, {name_of(name): why for name, why in self.missing.items()})

    @property
    def rows(self) -> list[ItemRow]:
        """Every item of every task."""
        return [row for result in self.tasks.values() for row in result.rows]

    def readings(self) -> dict[str, Reading]:
        """`accuracy/<task>` by name, missing ones with their reason."""
        found = {f"accuracy/{name}": reading(task.accuracy, "1", "counted") for name, task in self.tasks.items()}
        return found | {f"accuracy/{name}": missing("1", reason) for name, reason in self.missing.items()}

    def detail(self) -> dict[str, Any]:
        """Facts of each task for the record."""
        return {
            name: {
                "family": task.family,
                "chance": task.chance,
                "n": len(task.rows),
                "accuracy_lm_eval": task.accuracy_lm_eval,
                "correct_choice_bits_per_byte": task.correct_choice_bits_per_byte,
                "truncated": task.truncated,
            }
            for name, task in self.tasks.items()
        }


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    cache: Path | None = None,
    corpus: Path | None = None,
    seed: int = 0,
    forward: Forward = nullcontext,
    batch_tokens: int | None = None,
) -> TaskResults:
    """`evaluate_steps`, run to its end."""
    steps = evaluate_steps(
        model, tokenizer, tasks,
        limit=limit, cache=cache, corpus=corpus, seed=seed, forward=forward, batch_tokens=batch_tokens,
    )  # fmt: skip
    return run_to_end(steps)


def evaluate_steps(
    model: Transformer,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    cache: Path | None = None,
    corpus: Path | None = None,
    seed: int = 0,
    forward: Forward = nullcontext,
    batch_tokens: int | None = None,
    test_share: float | None = None,
) -> Generator[Step, None, TaskResults]:
    """Evaluate a model; yields a step a batch and returns the results.

    Args:
        tasks: names of `index.TASKS`, or `hub:NAME` for the harness's own.
        limit: at most this many items a task, the same ones for every model.
        cache: where fetched sources lie; default: the user's cache folder.
        corpus: folder of the built corpus, for sets derived from held-out text.
        seed: of derived sets.
        forward: a context for one forward pass, the precision the model was trained in.
        batch_tokens: padded tokens a forward pass; default: by device.
        test_share: of each set's passages that fine-tuned models are tested on; None takes all.

    Raises:
        UnknownTask: a name that means nothing here.
    """
    for name in tasks:
        find(name)
    folders = {"cache": str(cache) if cache else None, "corpus": str(corpus) if corpus else None}
    metadata = {**folders, "seed": seed, "limit": limit, "test_share": test_share}
    lm = DecoderLM(model, tokenizer, forward=forward, batch_tokens=batch_tokens)
    loaded: dict[str, Loaded] = {}
    absent: dict[str, str] = {}
    for name in dict.fromkeys(tasks):
        with _or_absent(name, absent):
            loaded[name] = load(name, metadata, limit, lm)
    with _evaluating(model):
        yield from answer(lm, [asked for found in loaded.values() for asked in found.asked])
    results: dict[str, TaskResult] = {}
    for name, found in loaded.items():
        with _or_absent(name, absent):
            results[name] = _judge(name, found, lm)
    return TaskResults(results, absent)


@contextlib.contextmanager
def _or_absent(name: str, absent: dict[str, str]) -> Generator[None]:
    """Note why a task cannot be measured, so that the others go on; a task of others may fail in any way."""
    try:
        yield
    except NotAvailable as error:
        absent[name] = str(error)
    except Exception as error:
        if not name.startswith(HUB_PREFIX):
            raise
        absent[name] = f"{name}: its own code failed ({type(error).__name__}: {error})"


@contextlib.contextmanager
def _evaluating(model: Transformer) -> Generator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


# --- answers and scores ----------------------------------------------------------------------------------------------


def _judge(name: str, loaded: Loaded, lm: DecoderLM) -> TaskResult:
    """Rows of a task from the answers in its requests, by the harness's rules and by ours."""
    items = [item for task in loaded.parts for item in _items(name, task, prefix=len(loaded.parts) > 1)]
    return TaskResult(
        name=name,
        family=family_of(name),
        chance=_chance([choices for _, choices in items]),
        rows=tuple(row for row, _ in items),
        truncated=sum(lm.is_truncated(one.ready) for one in loaded.asked),
    )


def _items(name: str, task: Task, *, prefix: bool) -> Iterator[tuple[ItemRow, Choices | None]]:
    """Each item's row, and its choices where it has some."""
    task.apply_filters()
    requests_of: dict[int, list[Instance]] = defaultdict(list)
    for request in task.instances:
        requests_of[request.doc_id].append(request)
    for number, requests in requests_of.items():
        requests.sort(key=lambda request: request.idx)
        doc = requests[0].doc
        answers = [next(iter(request.filtered_resps.values())) for request in requests]
        metrics = task.process_results(doc, answers)
        metric = next((metric for metric in ITEM_METRICS if metric in metrics), None)
        if metric is None:
            raise NotAvailable(f"{name}: judges no single item right or wrong (its metrics: {', '.join(metrics)})")
        item = f"{task.task_name}/{number}" if prefix else str(doc.get("id", number))
        theirs = float(metrics[metric])
        if task.OUTPUT_TYPE != "multiple_choice":
            yield ItemRow(name, item, None, theirs, theirs, None), None
            continue
        choices = _choices(task, doc)
        score = choices.score([answer[0] for answer in answers[: len(choices.texts)]])
        bits = min(_bits_per_byte(requests[gold], answers[gold]) for gold in choices.correct)
        yield ItemRow(name, item, _passage(doc), score, theirs, bits), choices


@dataclass(frozen=True, slots=True)
class Choices:
    """What an item offers."""

    texts: tuple[str, ...]
    correct: tuple[int, ...]
    """Indices of the correct ones; more than one in a few tasks of the harness."""

    def score(self, log_likelihoods: Sequence[float]) -> float:
        """The share of the m best choices that is correct: 1 or 0 without a tie, 1/m with one correct among m."""
        if not all(math.isfinite(value) for value in log_likelihoods):
            raise ValueError(f"the model's log-likelihoods are not finite: {list(log_likelihoods)}")
        best = max(log_likelihoods)
        tied = [index for index, value in enumerate(log_likelihoods) if value == best]
        return sum(index in self.correct for index in tied) / len(tied)


def _choices(task: Task, doc: Mapping[str, Any]) -> Choices:
    texts: tuple[str, ...] = tuple(task.doc_to_choice(doc))
    gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    golds = gold if isinstance(gold, list) else [gold]
    return Choices(texts, tuple(texts.index(one) if isinstance(one, str) else int(one) for one in golds))


def _passage(doc: Mapping[str, Any]) -> str | None:
    """What an item shares with others: the hash a set of ours carries, or one of a foreign set's passage."""
    passage = doc.get("passage")
    if passage is None or {"id", "context", "choices", "target"} <= doc.keys():
        return passage
    return hashlib.blake2b(str(passage).encode(), digest_size=8).hexdigest()


def _bits_per_byte(request: Instance, answer: tuple[float, bool]) -> float:
    """Of the continuation that was scored, its leading space included."""
    return -answer[0] / math.log(2) / len(request.args[1].encode())


def _chance(offered: Sequence[Choices | None]) -> float:
    """What guessing earns: max(mean 1/k, share of the commonest answer where every item offers the same answers).

    0 where an item has no choices to guess among.
    """
    known = [choices for choices in offered if choices is not None]
    if not known or len(known) < len(offered):
        return 0.0
    guess = _mean([1 / len(choices.texts) for choices in known])
    if len({frozenset(choices.texts) for choices in known}) > 1:
        return guess
    commonest = Counter(choices.texts[choices.correct[0]] for choices in known).most_common(1)[0][1]
    return max(guess, commonest / len(known))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
