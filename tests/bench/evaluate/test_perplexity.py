"""Validation loss against a slow, obvious loop."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from bench.evaluate.perplexity import Tally, Validation, validate, validate_steps, windows
from lmopt.data.validation import ValidationDocument, ValidationSet
from lmopt.step import run_to_end
from tests.bench.evaluate.tiny import slow_score

END = 0


def _set(*documents: tuple[str, int]) -> ValidationSet:
    """Documents of a domain and a number of random tokens, with made-up byte counts."""
    rng = random.Random(0)
    made = (
        ValidationDocument(f"d{n}", domain, 3 * length + 1, np.array([rng.randrange(1, 300) for _ in range(length)]))
        for n, (domain, length) in enumerate(documents)
    )
    return ValidationSet("held-out", tuple(made), END)


SHORT = _set(("web", 10), ("wiki", 48), ("web", 1), ("wiki", 30))


def test_equal_to_a_slow_loop(model):
    nats = {"web": 0.0, "wiki": 0.0}
    tokens = dict.fromkeys(nats, 0)
    size = dict.fromkeys(nats, 0)
    for document in SHORT.documents:
        nats[document.domain] -= slow_score(model, [END, *document.tokens.tolist()], len(document.tokens))[0]
        tokens[document.domain] += len(document.tokens)
        size[document.domain] += document.size_bytes
    found = validate(model, SHORT)
    loss = sum(nats.values()) / sum(tokens.values())
    assert found["val_loss"].value == pytest.approx(loss, abs=1e-4)
    assert found["perplexity"].value == pytest.approx(math.exp(loss), rel=1e-3)
    assert found["bits_per_byte"].value == pytest.approx(
        sum(nats.values()) / math.log(2) / sum(size.values()), abs=1e-4
    )
    for domain in nats:
        expected = nats[domain] / math.log(2) / size[domain]
        assert found[f"bits_per_byte/{domain}"].value == pytest.approx(expected, abs=1e-4)


def test_a_long_document_is_scored_in_half_overlapping_windows(model):
    long = _set(("web", 200))
    tokens = [END, *long.documents[0].tokens.tolist()]
    context = model.model.context
    nats = -slow_score(model, tokens[: context + 1], context)[0]
    position = context + 1
    while position < len(tokens):
        end = min(position + context // 2, len(tokens))
        nats -= slow_score(model, tokens[end - context - 1 : end], end - position)[0]
        position = end
    assert validate(model, long)["val_loss"].value == pytest.approx(nats / 200, abs=1e-4)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 11, 12, 13, 50])
@pytest.mark.parametrize("context", [1, 2, 8])
def test_windows_score_each_token_once_with_enough_context(length, context):
    tokens = np.arange(length + 1)
    scored: list[int] = []
    for request in windows(tokens, context):
        assert len(request.tokens) <= context + 1
        first = len(request.tokens) - request.scored
        scored.extend(request.tokens[first:])
        assert first >= min(request.tokens[first], (context + 1) // 2)
    assert scored == list(range(1, length + 1))


def test_the_batch_size_and_repetition_do_not_matter(model):
    first, again = validate(model, SHORT), validate(model, SHORT)
    assert first == again
    small = validate(model, SHORT, batch_tokens=1)
    for name, reading in first.items():
        assert small[name].value == pytest.approx(reading.value, rel=1e-4)


def test_a_constant_model_knows_nothing(constant_model):
    found = validate(constant_model, SHORT)
    assert found["val_loss"].value == pytest.approx(math.log(300), abs=1e-5)
    assert found["perplexity"].value == pytest.approx(300, rel=1e-4)


def test_units_and_grades(model):
    found = validate(model, SHORT)
    assert set(found) == {"val_loss", "perplexity", "bits_per_byte", "bits_per_byte/web", "bits_per_byte/wiki"}
    assert found["val_loss"].unit == "nat/token"
    assert found["bits_per_byte/web"].unit == "bit/byte"
    assert found["perplexity"].unit == "1"


def test_tokens_and_bytes_are_counted_exactly(model):
    total = run_to_end(validate_steps(model, SHORT)).total
    assert (total.tokens, total.size_bytes) == (89, SHORT.size_bytes)


def test_no_text_is_missing_not_zero(model):
    found = validate(model, _set())
    assert found["val_loss"].value is None
    assert "no text" in (found["val_loss"].reason or "")


def test_an_absurd_loss_is_missing_not_infinite():
    found = Validation({"web": Tally(1e6, 10, 30)}).readings()
    assert found["perplexity"].value is None
    assert found["val_loss"].value == 1e5


def test_a_broken_model_gives_no_numbers(model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    assert validate(model, SHORT)["val_loss"].value is None


def test_the_model_is_left_as_it_was(model):
    model.train()
    validate(model, SHORT)
    assert model.training
