"""Texts behind contexts, many at once: the most probable next token, again and again, with keys and values kept.

- Texts of like length are written together, each at its own place in the cache, within a budget of tokens.
- A text that has ended is left out of the batch once others have ended with it: leaving it out copies the cache.
- Stop strings are looked for in the last tokens alone, as many as the longest one has bytes.
- The output head runs in float32, as in scoring.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import torch
from lm_eval.models.utils import postprocess_generated_text
from tokenizers import Tokenizer
from torch import Tensor

from bench.evaluate.scoring import Forward
from lmopt.arch.matmul import mm
from lmopt.arch.numbers import compute_dtype
from lmopt.arch.transformer import Transformer
from lmopt.infer.decoder import Decoder
from lmopt.infer.generate import prefill
from lmopt.step import Step

BATCH_TOKENS = {"cpu": 16_384, "cuda": 65_536}
"""Tokens that the cache of a batch has room for, by device."""
KEPT_SHARE = 0.75
"""Ended texts are left out of the batch once no more than this share of it goes on."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Tokens to write behind, and when to stop."""

    tokens: Sequence[int]
    max_new: int
    """New tokens at most."""
    stops: Sequence[str]
    """The text ends before the first of them."""


class _Text:
    """What is written behind a prompt. Tokens that do not fit the model's context are cut off the prompt's front."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer, end: int, context: int) -> None:
        self.prompt = list(prompt.tokens[-(context - prompt.max_new) :])
        self.longest = len(self.prompt) + prompt.max_new
        self.ended = False
        self._written: list[int] = []
        self._asked, self._tokenizer, self._end = prompt, tokenizer, end
        self._stop_bytes = max((len(stop.encode()) for stop in prompt.stops), default=0)

    def add(self, token: int) -> None:
        """Write one more token; nothing is added behind the end."""
        if self.ended:
            return
        if token == self._end:
            self.ended = True
            return
        self._written.append(token)
        self.ended = len(self._written) == self._asked.max_new or self._stops()

    def _stops(self) -> bool:
        """Whether a stop string ends in the last token: each token has a byte of it at least."""
        recent = self._tokenizer.decode(self._written[-self._stop_bytes :]) if self._stop_bytes else ""
        if not any(stop in recent for stop in self._asked.stops):
            return False
        whole = self._tokenizer.decode(self._written)
        return any(stop in whole for stop in self._asked.stops)

    @property
    def said(self) -> str:
        """The text, cut before the stop strings by the harness's own rule."""
        return postprocess_generated_text(self._tokenizer.decode(self._written), list(self._asked.stops), None)


@torch.inference_mode()
def write(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    end: int,
    forward: Forward,
    batch_tokens: int | None = None,
) -> Generator[Step, None, list[str]]:
    """Write behind every prompt; yields a step a token of each batch and returns the texts in the prompts' order.

    The steps' notes say `requests` done and `requests_total`; their tokens are those that were computed.

    Args:
        end: the token that ends a text; it is no part of it.
        forward: its number format is the decoder's.
        batch_tokens: tokens that the cache of a batch has room for; default: by device.
    """
    decoder = Decoder(model, "bf16" if _is_bfloat16(model, forward) else "fp32")
    head_VD = model.head_weight_VD.detach().float()
    batch_tokens = batch_tokens or BATCH_TOKENS.get(decoder.device.type, BATCH_TOKENS["cpu"])
    texts = [_Text(prompt, tokenizer, end, model.model.context) for prompt in prompts]
    order = sorted(texts, key=lambda text: -text.longest)
    number = first = 0
    while first < len(order):
        batch = order[first : first + max(1, batch_tokens // order[first].longest)]
        for tokens in _write(decoder, head_VD, batch):
            number += 1
            done = first + sum(text.ended for text in batch)
            yield Step(number, tokens, notes={"requests": done, "requests_total": len(texts)})
        first += len(batch)
    return [text.said for text in texts]


def _is_bfloat16(model: Transformer, forward: Forward) -> bool:
    with forward():
        return compute_dtype(model.embedding.weight) == torch.bfloat16


def _write(decoder: Decoder, head_VD: Tensor, texts: Sequence[_Text]) -> Iterator[int]:
    """Write a batch of texts to their ends; yields the number of tokens read, pass by pass."""
    cache = decoder.new_cache(batch=len(texts), capacity=max(text.longest for text in texts))
    states_BD = prefill(decoder, [text.prompt for text in texts], cache)
    read = sum(cache.lengths)
    while True:
        chosen = mm(states_BD.float(), head_VD.T).argmax(-1).tolist()
        for text, token in zip(texts, chosen, strict=True):
            text.add(token)
        yield read
        live = [row for row, text in enumerate(texts) if not text.ended]
        if not live:
            return
        if len(live) <= KEPT_SHARE * len(texts):
            cache.keep(live)
            texts, chosen = [texts[row] for row in live], [chosen[row] for row in live]
        # an ended text begins anew, so that it never needs more room than the cache has
        lengths = zip(texts, cache.lengths, strict=True)
        cache.rollback([0 if text.ended else length for text, length in lengths])
        states_BD = decoder.extend(torch.tensor(chosen, device=decoder.device)[:, None], cache)[:, -1]
        read = len(live)
