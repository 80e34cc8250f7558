"""Our decoder as a language model of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers.pre_tokenizers import ByteLevel

from bench.evaluate.scoring import Forward, Request, Score, score
from lmopt.arch.transformer import Transformer
from lmopt.data.tokenizer import end_of_text
from lmopt.step import Step

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer

MAX_GENERATED_TOKENS = 256
"""Where a task sets no limit of its own (lm-evaluation-harness's default)."""


class DecoderLM(TemplateLM):
    """Scores and generates with a `Transformer`. Tokenises and truncates exactly as the harness's own backends do."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, forward: Forward, batch_tokens: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._truncated: set[tuple[str, str]] = set()
        self._end = end_of_text(tokenizer)
        cutter = tokenizer.pre_tokenizer
        self._cuts_at_spaces = isinstance(cutter, ByteLevel) and cutter.use_regex and tokenizer.normalizer is None
        self._forward = forward
        self._batch_tokens = batch_tokens
        self._device = model.embedding.weight.device

    @property
    def eot_token_id(self) -> int:
        """Stands in for an empty context, as it does between documents in training."""
        return self._end

    @property
    def max_length(self) -> int:
        """Tokens of input the model takes."""
        return self.model.model.context

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:  # noqa: ARG002
        """Token ids, without any special token."""
        return self.tokenizer.encode(string, add_special_tokens=False).ids

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score_steps(self, pairs: Sequence[tuple[str, str]]) -> Generator[Step, None, list[Score]]:
        """Score (context, continuation) pairs; yields a step a batch, returns scores in order."""
        requests = self.requests(pairs)
        long = (
            pair for pair, request in zip(pairs, requests, strict=True) if len(request.tokens) > self.max_length + 1
        )
        self._truncated.update(long)
        return (yield from self._score(requests))

    def is_truncated(self, pair: tuple[str, str]) -> bool:
        """Whether the context of a scored pair did not fit and was cut off the front."""
        return pair in self._truncated

    def requests(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """Tokens of each pair. White space at a context's end belongs to its continuation; context and continuation are
        tokenised together and split after as many tokens as the context alone has.
        """
        stripped = [(context.rstrip(), context[len(context.rstrip()) :] + text) for context, text in pairs]
        apart = [self._tokenised_apart(context, text) for context, text in stripped]
        texts = dict.fromkeys(context for context, _ in stripped)
        texts |= dict.fromkeys(
            text if split else context + text for split, (context, text) in zip(apart, stripped, strict=True)
        )
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        ids = dict(zip(texts, (encoding.ids for encoding in encodings), strict=True))
        return [
            self._request(ids[context] + ids[text] if split else ids[context + text], len(ids[context]), text)
            for split, (context, text) in zip(apart, stripped, strict=True)
        ]

    def _tokenised_apart(self, context: str, text: str) -> bool:
        """Whether context and continuation give the same tokens apart as together.

        Byte-level BPE cuts text into words before it merges (Radford et al. 2019), and a single space before a word
        always begins a new one. Then a context is tokenised once for all its choices.
        """
        return self._cuts_at_spaces and context != "" and text[:1] == " " and text[1:2].strip() != ""

    def _request(self, ids: list[int], before: int, text: str) -> Request:
        if not ids or not text:
            raise ValueError(f"cannot score the empty continuation {text!r}")
        before = min(before, len(ids) - 1)  # where the last tokens merged across the boundary, score the merged one
        return Request(ids, len(ids) - before) if before else Request([self._end, *ids], len(ids))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
        """(log-likelihood in nats, whether greedy decoding would say it) of each continuation."""
        pairs: list[tuple[str, str]] = [request.args for request in requests]  # pyright: ignore[reportAssignmentType]
        scores = drain(self.score_steps(pairs))
        return [(found.log_likelihood, found.greedy) for found in scores]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        scores = drain(self._score([Request([*context, *rest], len(rest)) for _, context, rest in requests]))
        return [(found.log_likelihood, found.greedy) for found in scores]

    def _score(self, requests: Sequence[Request]) -> Generator[Step, None, list[Score]]:
        return score(self.model, requests, forward=self._forward, batch_tokens=self._batch_tokens)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-likelihood of whole texts, each token once, in windows that do not overlap but for the last."""
        windows: list[Request] = []
        text_of: list[int] = []
        for index, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                self.tok_encode(request.args[0]), prefix_token=self._end, max_seq_len=self.max_length, context_len=1
            )
            for context, rest in map(make_disjoint_window, rolling):
                windows.append(Request([*context, *rest], len(rest)))
                text_of.append(index)
        totals = [0.0] * len(requests)
        for index, found in zip(text_of, drain(self._score(windows)), strict=True):
            totals[index] += found.log_likelihood
        return totals

    # --- generation --------------------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The most probable next token, again and again, until a stop string, the end of the text or the limit."""
        return [self._generate(*request.args) for request in requests]

    @torch.inference_mode()
    def _generate(self, context: str, settings: dict[str, Any]) -> str:
        if settings.get("do_sample") or settings.get("temperature", 0) > 0:
            raise ValueError("this model generates greedily; a task that samples cannot be evaluated with it")
        stops = settings.get("until", [])
        stops = [stop for stop in ([stops] if isinstance(stops, str) else stops) if stop]  # "" is in every text
        tokens = self.tok_encode(context) or [self._end]
        limit = len(tokens) + settings.get("max_gen_toks", MAX_GENERATED_TOKENS)
        start = len(tokens)
        while len(tokens) < limit:
            window = torch.tensor([tokens[-self.max_length :]], device=self._device)
            with self._forward():
                hidden_BTD, _ = self.model.hidden(window)
            following = int((self.model.head_weight_VD.float() @ hidden_BTD[0, -1].float()).argmax())
            if following == self._end:
                break
            tokens.append(following)
            text = self.tokenizer.decode(tokens[start:])
            if any(stop in text for stop in stops):
                break
        text = self.tokenizer.decode(tokens[start:])
        return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]


def drain(steps: Generator[Step, None, list[Score]]) -> list[Score]:
    """Run to the end without looking at the steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value
