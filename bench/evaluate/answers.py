"""Questions as a model learns and answers them: tokens cut and joined exactly as when it is tested."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from bench.evaluate.language_model import DecoderLM
from bench.evaluate.sets import Item
from lmopt.data.packing import Example
from lmopt.step import Step

DELIMITER = " "
"""Between a context and a choice (`target_delimiter` of the task files)."""


@dataclass(frozen=True, slots=True)
class Answered:
    """How a model did on questions that choose between learning rates."""

    accuracy: float
    """Mean score, a tie among m best choices counted 1/m."""
    nats: float
    """Mean -log of the right choice's share of the choices' probability: decides where accuracies are equal."""


def examples(lm: DecoderLM, items: Sequence[Item]) -> list[Example]:
    """Each question with its right answer; what does not fit the model's context is cut off the front.

    Raises:
        ValueError: an answer that does not fit the context by itself.
    """
    requests = lm.requests([(item.context, DELIMITER + item.choices[item.target]) for item in items])
    most = lm.max_length + 1
    return [Example(request.tokens[-most:], request.scored) for request in requests]


def answer_steps(lm: DecoderLM, items: Sequence[Item]) -> Generator[Step, None, Answered]:
    """Answer every question; yields a step a batch and returns how well that went."""
    pairs = [(item.context, DELIMITER + choice) for item in items for choice in item.choices]
    scores = iter((yield from lm.score_steps(lm.requests(pairs))))
    right, nats = 0.0, 0.0
    for item in items:
        values = [next(scores).log_likelihood for _ in item.choices]
        best = max(values)
        right += (values[item.target] == best) / values.count(best)
        nats += best + math.log(sum(math.exp(value - best) for value in values)) - values[item.target]
    return Answered(right / len(items), nats / len(items))
