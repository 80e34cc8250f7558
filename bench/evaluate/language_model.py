"""Our decoder as a language model of lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tokenizers.pre_tokenizers import ByteLevel

from bench.evaluate.scoring import Forward, Request, Score, score
from bench.evaluate.writing import Prompt, write
from lmopt.arch.transformer import Transformer
from lmopt.data.tokenizer import end_of_text
from lmopt.step import Step, run_to_end

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from tokenizers import Tokenizer

MAX_GENERATED_TOKENS = 256
"""Where a task sets no limit of its own (lm-evaluation-harness's default)."""
GREEDY_SETTINGS = ("until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k")
"""Generation settings that are heeded, or mean nothing without sampling."""


class Unanswerable(ValueError):
    """A request that the harness's own backend would refuse, or that needs more than greedy decoding."""


class DecoderLM(TemplateLM):
    """Scores and generates with a `Transformer`. Tokenises and truncates exactly as the harness's own backends do."""

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, *, forward: Forward, batch_tokens: int | None = None
    ) -> None:
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer
        self._end = end_of_text(tokenizer)
        self._end_text = tokenizer.decode([self._end], skip_special_tokens=False)
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

    def is_truncated(self, asked: Request | Prompt | str) -> bool:
        """Whether a context does not fit and is cut off the front; whole texts are scored in windows."""
        if isinstance(asked, str):
            return False
        room = self.max_length + 1 if isinstance(asked, Request) else self.max_length - asked.max_new
        return len(asked.tokens) > room

    # --- scoring -----------------------------------------------------------------------------------------------------

    def score_steps(self, requests: Sequence[Request]) -> Generator[Step, None, list[Score]]:
        """Score requests; yields a step a batch, returns scores in order."""
        return score(self.model, requests, forward=self._forward, batch_tokens=self._batch_tokens)

    def requests(self, pairs: Sequence[tuple[str, str]]) -> list[Request]:
        """Tokens of each (context, continuation), as `TemplateLM` encodes them: white space at a context's end belongs
        to its continuation, and a continuation is what context and continuation have together behind as many tokens as
        the context has alone. Where a token reaches across the border, the two are not what they are together.

        Raises:
            Unanswerable: a continuation without a token of its own, or with more than the model's context holds.
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
            self._request(ids[context], ids[text] if split else ids[context + text][len(ids[context]) :], context, text)
            for split, (context, text) in zip(apart, stripped, strict=True)
        ]

    def _tokenised_apart(self, context: str, text: str) -> bool:
        """Whether context and continuation give the same tokens apart as together.

        Byte-level BPE cuts text into words before it merges (Radford et al. 2019), and a single space before a word
        always begins a new one. Then a context is tokenised once for all its choices.
        """
        return self._cuts_at_spaces and context != "" and text[:1] == " " and text[1:2].strip() != ""

    def _request(self, before: list[int], scored: list[int], context: str, text: str) -> Request:
        if not before and scored[:1] == [self._end]:  # a text that begins so needs no other beginning
            before, scored = scored[:1], scored[1:]
        if not scored:
            raise Unanswerable(f"cannot score {text!r} behind {context[-50:]!r}: it has no token of its own")
        if len(scored) > self.max_length:
            raise Unanswerable(
                f"cannot score {text[:50]!r}: its {len(scored)} tokens do not fit the model's context of "
                f"{self.max_length}\nhint: a model with a longer context"
            )
        return Request([*(before or [self._end]), *scored], len(scored))

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:  # noqa: ARG002
        """(log-likelihood in nats, whether greedy decoding would say it) of each continuation."""
        scores = run_to_end(self.score_steps(self.requests([request.args for request in requests])))  # pyright: ignore[reportArgumentType]
        return [(found.log_likelihood, found.greedy) for found in scores]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        **kwargs: Any,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        scores = run_to_end(self.score_steps([Request([*context, *rest], len(rest)) for _, context, rest in requests]))
        return [(found.log_likelihood, found.greedy) for found in scores]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-likelihood of whole texts, each token once, in windows that do not overlap but for the last."""
        return run_to_end(self.rolling_steps([request.args[0] for request in requests]))

    def rolling_steps(self, texts: Sequence[str]) -> Generator[Step, None, list[float]]:
        """`loglikelihood_rolling`, a step a batch."""
        windows: list[Request] = []
        text_of: list[int] = []
        for index, text in enumerate(texts):
            rolling = get_rolling_token_windows(
                self.tok_encode(text), prefix_token=self._end, max_seq_len=self.max_length, context_len=1
            )
            for context, rest in map(make_disjoint_window, rolling):
                windows.append(Request([*context, *rest], len(rest)))
                text_of.append(index)
        scores = yield from self.score_steps(windows)
        totals = [0.0] * len(texts)
        for index, found in zip(text_of, scores, strict=True):
            totals[index] += found.log_likelihood
        return totals

    # --- generation --------------------------------------------------------------------------------------------------

    def write_steps(self, prompts: Sequence[Prompt]) -> Generator[Step, None, list[str]]:
        """Write behind prompts; yields a step a token of each batch, returns texts in order."""
        return write(
            self.model, self.tokenizer, prompts,
            end=self._end, forward=self._forward, batch_tokens=self._batch_tokens,
        )  # fmt: skip

    def prompts(self, asked: Sequence[tuple[str, dict[str, Any]]]) -> list[Prompt]:
        """Tokens of each context, and when to stop by its generation settings, as the harness's own backend reads them.

        Raises:
            Unanswerable: a request that samples, wants more new tokens than fit, or has settings unknown here.
        """
        contexts = [context for context, _ in asked]
        encodings = self.tokenizer.encode_batch_fast(contexts, add_special_tokens=False)
        return [
            self._prompt(encoding.ids or [self._end], settings)
            for encoding, (_, settings) in zip(encodings, asked, strict=True)
        ]

    def _prompt(self, tokens: list[int], settings: dict[str, Any]) -> Prompt:
        wanted: dict[str, Any] = dict(normalize_gen_kwargs(settings, MAX_GENERATED_TOKENS))
        if wanted["do_sample"]:
            raise Unanswerable(
                f"asks for sampling ({settings}), and this model generates greedily"
                "\nhint: a task whose generation_kwargs say do_sample: false"
            )
        unknown = {name: value for name, value in wanted.items() if name not in GREEDY_SETTINGS}
        if unknown.pop("num_beams", 1) != 1 or unknown:
            raise Unanswerable(f"has generation settings that mean nothing to greedy decoding here: {settings}")
        max_new = wanted["max_gen_toks"]
        if not 0 < max_new < self.max_length:
            raise Unanswerable(
                f"asks for {max_new} new tokens, and the model's context of {self.max_length} holds 1 to "
                f"{self.max_length - 1} behind a context\nhint: a model with a longer context"
            )
        stops = handle_stop_sequences([stop for stop in wanted["until"] if stop], self._end_text)  # "" is in every text
        return Prompt(tokens, max_new, stops)

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """The most probable next token, again and again, until a stop string, the end of the text or the limit."""
        return run_to_end(self.write_steps(self.prompts([request.args for request in requests])))  # pyright: ignore[reportArgumentType]
