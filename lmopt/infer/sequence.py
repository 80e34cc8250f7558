"""One text being written: its tokens, when it ends, and what a step of work added to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmopt.infer.decoder import Decoder, PromptTooLong
from lmopt.infer.sampling import Choose, seeded
from lmopt.step import Step

Stops = Sequence[Sequence[int]]
"""Token sequences after which a text ends; they stay part of it."""


@dataclass(frozen=True, slots=True)
class Decoded(Step):
    """One unit of generation; `tokens` counts what it added to all texts together."""

    added: tuple[tuple[int, ...], ...] = ()
    """New tokens of each text, in the order of the prompts; empty for one that has ended."""


@dataclass(slots=True)
class Text:
    """A prompt and what was written behind it."""

    tokens: list[int]
    prompt: int
    """Tokens of the prompt."""
    longest: int
    """Tokens at which it ends at the latest, the prompt included."""
    stops: tuple[tuple[int, ...], ...]
    choose: Choose
    ended: bool = False
    fresh: list[int] = field(default_factory=list[int])
    """Tokens added since the last `take`."""

    def add(self, token: int) -> None:
        """Append a token, and see whether the text ends with it. After its end nothing is added."""
        if self.ended:
            return
        self.tokens.append(token)
        self.fresh.append(token)
        behind = self.tokens[self.prompt :]
        self.ended = len(self.tokens) >= self.longest or any(
            len(behind) >= len(stop) and tuple(behind[-len(stop) :]) == stop for stop in self.stops
        )

    @property
    def room(self) -> int:
        """Tokens that may still be added."""
        return self.longest - len(self.tokens)

    def take(self) -> tuple[int, ...]:
        """What was added since the last call."""
        fresh, self.fresh = tuple(self.fresh), []
        return fresh


def begin(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, max_new: int, stops: Stops = (), seed: int = 0
) -> list[Text]:
    """Texts that so far are their prompts; text i draws from seed + i, so that it is the same when written alone.

    Raises:
        PromptTooLong: a prompt with `max_new` tokens behind it exceeds the model's context.
        ValueError: no prompt, an empty one, a token id outside the vocabulary, or an empty stop sequence.
    """
    if not prompts or max_new < 1:
        raise ValueError(f"{len(prompts)} prompts and {max_new} new tokens: at least one of each is needed")
    if any(not stop for stop in stops):
        raise ValueError("an empty stop sequence would end every text at once")
    context = decoder.model.context
    for number, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"prompt {number} is empty\nhint: begin with the end-of-text token")
        if len(prompt) + max_new > context:
            raise PromptTooLong(
                f"prompt {number}: {len(prompt)} tokens and {max_new} new ones exceed the model's context of {context}"
                f"\nhint: keep the last {max(context - max_new, 0)} tokens of it, or ask for fewer new ones"
            )
        wrong = next((token for token in prompt if not 0 <= token < decoder.vocab), None)
        if wrong is not None:
            raise ValueError(f"prompt {number}: token id {wrong} is not in the vocabulary of {decoder.vocab}")
    ends = tuple(tuple(stop) for stop in stops)
    return [
        Text(list(prompt), len(prompt), len(prompt) + max_new, ends, seeded(seed + number))
        for number, prompt in enumerate(prompts)
    ]
