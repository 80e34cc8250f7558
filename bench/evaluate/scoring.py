"""Log-likelihoods of continuations, many at once, with as little computing as gives the same numbers.

A request is a token sequence whose last tokens are scored. Requests are turned into rows of model input:
- equal inputs are computed once, and an input that is the beginning of another one is read off that row (all choices
  of one token share their context's row; a cloze passage is one row);
- rows are sorted by length and batched by a budget of padded tokens; padding lies to the right, where a causal model
  cannot see it;
- the output head and the softmax run only at the scored positions, in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lmopt.arch.transformer import Transformer
from lmopt.step import Step

Forward = Callable[[], AbstractContextManager[object]]
"""A fresh context for one forward pass: the precision the model was trained in."""

BATCH_TOKENS = 8_192
"""Padded tokens a forward pass: enough to fill the machine, small enough for its caches."""
HEAD_BYTES = 32 * 2**20
"""Float32 logits held at once."""


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence of tokens whose last `scored` ones are scored, each given all before it."""

    tokens: Sequence[int]
    scored: int

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.tokens):
            raise ValueError(f"cannot score {self.scored} of {len(self.tokens)} tokens: one must come before them")


@dataclass(frozen=True, slots=True)
class Score:
    """What the model says about the scored tokens."""

    log_likelihood: float
    """Sum of their log-probabilities, in nats."""
    greedy: bool
    """Whether each is the most probable one."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Inputs to compute, longest first, and which of them answers which request."""

    inputs: list[np.ndarray]
    """Token ids, int64, T each."""
    row_of: list[int]
    """Index of the row, for each request."""


def window(request: Request, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Input and target ids of a request; tokens that do not fit the model's context are cut off the front.

    Raises:
        ValueError: more tokens are scored than the context holds; such text is scored in windows.
    """
    if request.scored > context:
        raise ValueError(f"{request.scored} scored tokens do not fit a context of {context}")
    kept = np.asarray(request.tokens[-(context + 1) :], dtype=np.int64)
    return kept[:-1], kept[-request.scored :]


def plan(inputs: Sequence[np.ndarray]) -> Rows:
    """The fewest rows that hold every input as a beginning: prefixes of others need none of their own."""
    keys = [ids.astype(">u4").tobytes() for ids in inputs]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    leaders: list[int] = []
    leader_of = [0] * len(keys)
    for position in reversed(order):  # in sorted order, what extends an input follows it directly
        if not leaders or not keys[leaders[-1]].startswith(keys[position]):
            leaders.append(position)
        leader_of[position] = leaders[-1]
    leaders.sort(key=lambda leader: (-len(inputs[leader]), leader))
    index = {leader: row for row, leader in enumerate(leaders)}
    return Rows([inputs[leader] for leader in leaders], [index[leader] for leader in leader_of])


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[range]:
    """Ranges of rows, already sorted longest first, whose padded size stays within the budget (one row at least)."""
    start = 0
    while start < len(lengths):
        size = max(1, batch_tokens // lengths[start])
        yield range(start, min(start + size, len(lengths)))
        start += size


@torch.inference_mode()
def score(
    model: Transformer,
    requests: Sequence[Request],
    *,
    forward: Forward = nullcontext,
    batch_tokens: int = BATCH_TOKENS,
) -> Generator[Step, None, list[Score]]:
    """Score every request; yields a step after each batch and returns the scores in the order of the requests.

    The steps' notes say `requests` done and `requests_total`.
    """
    context = model.model.context
    windows = [window(request, context) for request in requests]
    rows = plan([inputs for inputs, _ in windows])
    asked: list[list[int]] = [[] for _ in rows.inputs]
    for request, row in enumerate(rows.row_of):
        asked[row].append(request)
    scores: dict[int, Score] = {}
    for number, batch in enumerate(batches([len(ids) for ids in rows.inputs], batch_tokens), 1):
        inputs = [rows.inputs[row] for row in batch]
        hidden_BTD = _hidden(model, inputs, forward)
        members = [(place, request) for place, row in enumerate(batch) for request in asked[row]]
        scores.update(_read(model, hidden_BTD, members, windows))
        tokens = sum(len(ids) for ids in inputs)
        yield Step(number, tokens, notes={"requests": len(scores), "requests_total": len(requests)})
    return [scores[request] for request in range(len(requests))]


def _hidden(model: Transformer, inputs: Sequence[np.ndarray], forward: Forward) -> Tensor:
    device = model.embedding.weight.device
    tokens_BT = np.zeros((len(inputs), max(len(ids) for ids in inputs)), dtype=np.int64)
    for place, ids in enumerate(inputs):
        tokens_BT[place, : len(ids)] = ids
    with forward():
        hidden_BTD, _ = model.hidden(torch.from_numpy(tokens_BT).to(device))
    return hidden_BTD


def _read(
    model: Transformer,
    hidden_BTD: Tensor,
    members: Sequence[tuple[int, int]],
    windows: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Iterator[tuple[int, Score]]:
    """Scores of the requests that a batch answers, from its hidden states."""
    length = hidden_BTD.shape[1]
    positions: list[np.ndarray] = []
    for place, request in members:
        inputs, targets = windows[request]
        positions.append(place * length + np.arange(len(inputs) - len(targets), len(inputs)))
    distinct, inverse = np.unique(np.concatenate(positions), return_inverse=True)
    targets_N = np.concatenate([windows[request][1] for _, request in members])
    log_p_N, best_N = _head(model, hidden_BTD.flatten(0, 1), distinct, inverse, targets_N)
    ends = np.cumsum([len(places) for places in positions])
    for (_, request), end, places in zip(members, ends, positions, strict=True):
        part = slice(end - len(places), end)
        yield request, Score(float(log_p_N[part].sum()), bool(best_N[part].all()))


def _head(
    model: Transformer, hidden_ND: Tensor, positions: np.ndarray, inverse: np.ndarray, targets_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(log-probability, whether it is the most probable) of each target, the head computed once a position."""
    device = hidden_ND.device
    weight_VD = model.head_weight_VD.float()
    order = np.argsort(inverse, kind="stable")
    log_p_N = np.empty(len(targets_N), dtype=np.float64)
    best_N = np.empty(len(targets_N), dtype=bool)
    chunk = max(1, HEAD_BYTES // (4 * weight_VD.shape[0]))
    for start in range(0, len(positions), chunk):
        rows = torch.from_numpy(positions[start : start + chunk]).to(device)
        logits_PV = torch.mm(hidden_ND[rows].float(), weight_VD.T)
        log_p_PV = torch.log_softmax(logits_PV, dim=-1)
        best_P = logits_PV.argmax(dim=-1)
        first, last = np.searchsorted(inverse[order], [start, start + len(rows)])
        wanted = order[first:last]
        place = torch.from_numpy(inverse[wanted] - start).to(device)
        target = torch.from_numpy(targets_N[wanted]).to(device)
        log_p_N[wanted] = log_p_PV[place, target].double().cpu().numpy()
        best_N[wanted] = (best_P[place] == target).cpu().numpy()
    return log_p_N, best_N
