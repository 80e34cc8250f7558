"""Loss on held-out text: nats a token, perplexity, and bits a byte overall and by domain.

Every token of every document is scored exactly once, and nothing else: a document begins after the end-of-text token,
as in training; the end-of-text behind it is not scored, because it is none of the text's bytes. A document longer than
the model's context is scored in windows that advance by half a context, so that behind the first window each token is
predicted from at least half a context of its own document. Sums are taken in float64 over float32 log-probabilities.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np

from bench.evaluate.scoring import Forward, Request, score
from bench.record import Reading, missing, reading
from lmopt.arch.transformer import Transformer
from lmopt.data.validation import ValidationSet
from lmopt.step import Step, run_to_end


@dataclass(frozen=True, slots=True)
class Tally:
    """What was scored of some text."""

    nats: float = 0.0
    tokens: int = 0
    size_bytes: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.nats + other.nats, self.tokens + other.tokens, self.size_bytes + other.size_bytes)

    @property
    def loss(self) -> float | None:
        """Nats a token; None without tokens."""
        return self.nats / self.tokens if self.tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Independent of the tokenizer; None without bytes."""
        return self.nats / math.log(2) / self.size_bytes if self.size_bytes else None


@dataclass(frozen=True, slots=True)
class Validation:
    """Loss on a validation set."""

    domains: dict[str, Tally]

    @property
    def total(self) -> Tally:
        """All domains together."""
        return sum(self.domains.values(), Tally())

    def readings(self) -> dict[str, Reading]:
        """`val_loss`, `perplexity`, `bits_per_byte` and `bits_per_byte/<domain>`."""
        total = self.total
        found = {
            "val_loss": _reading(total.loss, "nat/token"),
            "perplexity": _reading(_perplexity(total.loss), "1"),
            "bits_per_byte": _reading(total.bits_per_byte, "bit/byte"),
        }
        for domain, tally in self.domains.items():
            found[f"bits_per_byte/{domain}"] = _reading(tally.bits_per_byte, "bit/byte")
        return found


def validate(
    model: Transformer,
    texts: ValidationSet,
    *,
    forward: Forward = nullcontext,
    batch_tokens: int | None = None,
) -> dict[str, Reading]:
    """Readings of the loss on a validation set (`validate_steps`, run to its end)."""
    return run_to_end(validate_steps(model, texts, forward=forward, batch_tokens=batch_tokens)).readings()


def validate_steps(
    model: Transformer,
    texts: ValidationSet,
    *,
    forward: Forward = nullcontext,
    batch_tokens: int | None = None,
) -> Generator[Step, None, Validation]:
    """Score a validation set; yields a step a batch and returns the sums of each domain.

    Args:
        forward: a context for one forward pass, the precision the model was trained in.
        batch_tokens: padded tokens a forward pass; default: by device.
    """
    requests: list[Request] = []
    domain_of: list[str] = []
    domains: dict[str, Tally] = defaultdict(Tally)
    for document in texts.documents:
        domains[document.domain] += Tally(0.0, len(document.tokens), document.size_bytes)
        tokens = np.concatenate([[texts.end_of_text], document.tokens.astype(np.int64)])
        for request in windows(tokens, model.model.context):
            requests.append(request)
            domain_of.append(document.domain)
    was_training = model.training
    model.eval()
    try:
        scores = yield from score(model, requests, forward=forward, batch_tokens=batch_tokens)
    finally:
        model.train(was_training)
    for domain, found in zip(domain_of, scores, strict=True):
        domains[domain] += Tally(-found.log_likelihood)
    return Validation(dict(sorted(domains.items())))


def windows(tokens: np.ndarray, context: int) -> Iterator[Request]:
    """Requests that score every token but the first exactly once.

    The first window scores a whole context; each later one ends half a context further and scores what is new.
    """
    done = 1
    while done < len(tokens):
        end = min(len(tokens), context + 1 if done == 1 else done + max(1, context // 2))
        yield Request(tokens[max(0, end - context - 1) : end].tolist(), end - done)
        done = end


def _perplexity(loss: float | None) -> float | None:
    if loss is None:
        return None
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _reading(value: float | None, unit: str) -> Reading:
    return missing(unit, "the validation set holds no text") if value is None else reading(value, unit, "counted")
