"""How steps are filled with tokens, as plain data.

Every kind draws *portions*: `portion` windows of `length` tokens each, in an order that is a function of the seed
alone. A step takes one or several portions and may cut their windows into shorter sequences; which steps do what is a
list of phases where it is known before the training, and decided while it runs where it is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from lmopt.quantities import Bytes, Share
from lmopt.techniques.technique import MAX_CONTEXT, Positive, Sha256, Technique

MAX_SEQUENCES = 2**24
Sequences = Annotated[Positive, Field(le=MAX_SEQUENCES)]


@dataclass(frozen=True, slots=True)
class Phase:
    """Steps that are alike."""

    steps: int
    portions: int
    """Portions a step takes."""
    length: int
    """Tokens a sequence: the windows' length or a part of it."""


class FixedBatch(Technique):
    """The same number of sequences of the same length at every step."""

    builder: ClassVar[str] = "lmopt.data.batches:build"
    pace: ClassVar[str] = "lmopt.compute.pace:scheduled"
    kind: Literal["fixed"] = "fixed"
    sequences: Sequences = 16
    """Sequences a step (the global batch)."""
    length: Annotated[Positive, Field(le=MAX_CONTEXT)] = 256
    """Tokens a sequence."""
    micro_sequences: Sequences | None = None
    """Sequences a forward pass; gradients accumulate over sequences / micro_sequences passes. Default: all at once."""

    def misfits(self) -> Iterator[str]:
        if self.micro_sequences and self.sequences % self.micro_sequences:
            yield f"micro_sequences ({self.micro_sequences}) must divide sequences ({self.sequences})"

    @property
    def tokens(self) -> int:
        """Tokens a step, at its largest."""
        return self.sequences * self.length

    @property
    def portion(self) -> int:
        """Windows that are drawn at once."""
        return self.sequences

    @property
    def held_sequences(self) -> int:
        """Sequences of a forward pass, at most."""
        return self.micro_sequences or self.sequences

    def phases(self, tokens: float) -> tuple[Phase, ...]:
        """What the steps of a training of so many tokens are like, rounded to whole steps (at least one)."""
        return (Phase(max(1, round(tokens / self.tokens)), self.sequences // self.portion, self.length),)

    @property
    def full(self) -> FixedBatch:
        """Steps as they are at their largest, all alike: what a stopwatch times."""
        return FixedBatch(sequences=self.sequences, length=self.length, micro_sequences=self.micro_sequences)


class LengthWarmup(FixedBatch):
    """Short sequences first, twice as long from stage to stage (sequence length warm-up, Li et al., 2108.06084).

    A step keeps its number of sequences, so early steps hold fewer tokens; the budget in tokens is the same. Windows
    are cut, not truncated: the order of the text is that of `fixed`.
    """

    kind: Literal["length_warmup"] = "length_warmup"  # pyright: ignore[reportIncompatibleVariableOverride]
    start: Annotated[Positive, Field(le=MAX_CONTEXT)] = 64
    """Tokens a sequence at first; doubling it some times must give `length`."""
    share: Share = 0.3
    """Share of the training's tokens spent below the full length, divided equally between the lengths."""

    def misfits(self) -> Iterator[str]:
        yield from super().misfits()
        yield from _undoubled("start", self.start, "length", self.length)
        cuts = self.length // self.start
        if cuts and self.sequences % cuts:
            yield (
                f"sequences ({self.sequences}) must be a multiple of length / start ({cuts}): a step at the shortest "
                "length takes whole windows"
            )

    @property
    def portion(self) -> int:
        """Windows of a step at the shortest length."""
        return self.sequences * self.start // self.length

    def phases(self, tokens: float) -> tuple[Phase, ...]:
        """One phase a length; a length whose share is less than half a step is left out."""
        lengths = [self.start << stage for stage in range(_doublings(self.start, self.length))]
        found, left = [], tokens
        for length in lengths:
            steps = round(self.share * tokens / len(lengths) / (self.sequences * length))
            found.append(Phase(steps, length // self.start, length))
            left -= steps * self.sequences * length
        return _taken(*found, Phase(round(left / self.tokens), self.length // self.start, self.length))


class BatchRamp(FixedBatch):
    """Few sequences a step first, twice as many from stage to stage."""

    kind: Literal["batch_ramp"] = "batch_ramp"  # pyright: ignore[reportIncompatibleVariableOverride]
    start: Sequences = 4
    """Sequences a step at first; doubling it some times must give `sequences`."""
    share: Share = 0.3
    """Share of the training's tokens spent below the full batch, divided equally between the sizes."""

    def misfits(self) -> Iterator[str]:
        yield from super().misfits()
        yield from _undoubled("start", self.start, "sequences", self.sequences)
        yield from _micro_misfits(self.micro_sequences, self.start)

    @property
    def portion(self) -> int:
        """Sequences of the smallest step."""
        return self.start

    def phases(self, tokens: float) -> tuple[Phase, ...]:
        """One phase a size; a size whose share is less than half a step is left out."""
        stages = _doublings(self.start, self.sequences)
        found, left = [], tokens
        for stage in range(stages):
            per_step = (self.start << stage) * self.length
            steps = round(self.share * tokens / stages / per_step)
            found.append(Phase(steps, 1 << stage, self.length))
            left -= steps * per_step
        return _taken(*found, Phase(round(left / self.tokens), 1 << stages, self.length))


class NoiseRamp(FixedBatch):
    """Batches grow when the gradient's noise says that larger ones pay (McCandlish et al., 1812.06162, appendix A.1).

    The noise scale B = tr(S) / |G|^2 is estimated from the gradient norms of the first micro-batch and of the whole
    batch; when it exceeds the batch, the batch doubles. It never shrinks.
    """

    pace: ClassVar[str] = "lmopt.compute.noiseramp:noise_ramp"
    kind: Literal["noise_ramp"] = "noise_ramp"  # pyright: ignore[reportIncompatibleVariableOverride]
    start: Sequences = 4
    """Sequences a step at first; doubling it some times must give `sequences`, the largest batch."""
    micro_sequences: Annotated[Positive, Field(le=MAX_SEQUENCES)] = 2  # pyright: ignore[reportIncompatibleVariableOverride]
    """Sequences a forward pass; fewer than `start`, for the noise is seen by comparing the two."""
    every: Annotated[Positive, Field(le=10**6)] = 20
    """Steps between two decisions."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Weight of the past in the running means of tr(S) and |G|^2."""
    replay: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """A file of decisions of an earlier run (`batching.jsonl` in its case folder) to repeat instead of deciding."""
    sha256: Sha256 | None = None
    """SHA-256 of that file. A run fills it in, so that other decisions are another case."""

    def misfits(self) -> Iterator[str]:
        yield from super().misfits()
        yield from _undoubled("start", self.start, "sequences", self.sequences)
        yield from _sha256_misfits(self.sha256, self.replay)
        if self.micro_sequences >= self.start:
            yield f"micro_sequences ({self.micro_sequences}) must be fewer than start ({self.start})"
        else:
            yield from _micro_misfits(self.micro_sequences, self.start)

    @property
    def portion(self) -> int:
        """Sequences of the smallest step."""
        return self.start

    def phases(self, tokens: float) -> tuple[Phase, ...]:
        """As if the batch never grew: an upper bound of the steps, in whole portions."""
        return (Phase(max(1, round(tokens / (self.start * self.length))), 1, self.length),)


class AdaptiveMicro(FixedBatch):
    """The micro-batch follows free memory and measured speed; the batch, and so what is learnt, stays as it is."""

    pace: ClassVar[str] = "lmopt.compute.pace:adaptive"
    kind: Literal["adaptive"] = "adaptive"  # pyright: ignore[reportIncompatibleVariableOverride]
    memory: Bytes | None = None
    """What this training may take in all; default: what is free."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of the free memory that a step may fill with activations."""
    every: Annotated[Positive, Field(le=10**6)] = 10
    """Steps at one size before its speed is judged."""
    replay: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    """A file of decisions of an earlier run (`batching.jsonl` in its case folder) to repeat instead of deciding."""
    sha256: Sha256 | None = None
    """SHA-256 of that file. A run fills it in, so that other decisions are another case."""

    def misfits(self) -> Iterator[str]:
        yield from super().misfits()
        yield from _sha256_misfits(self.sha256, self.replay)

    @property
    def held_sequences(self) -> int:
        """The least that a forward pass may be cut to."""
        return 1

    @property
    def full(self) -> FixedBatch:
        """Itself: its steps are alike in what they learn."""
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Micro-batches that divide the batch, ascending, none above `micro_sequences`."""
        most = self.micro_sequences or self.sequences
        return tuple(size for size in range(1, most + 1) if self.sequences % size == 0)


class Packed(FixedBatch):
    """Whole documents packed into sequences by best fit, and no attention across documents (Ding et al., 2404.10830).

    Documents longer than a sequence are cut; the rest is placed, longest first, where it leaves the least room.
    """

    builder: ClassVar[str] = "lmopt.data.packing:build"
    kind: Literal["packed"] = "packed"  # pyright: ignore[reportIncompatibleVariableOverride]
    group: Annotated[Positive, Field(ge=2, le=10**6)] = 2048
    """Documents that are packed together: more leave less room, and are shuffled farther."""

    @property
    def full(self) -> FixedBatch:
        """Itself: its steps are alike."""
        return self


def _taken(*phases: Phase) -> tuple[Phase, ...]:
    """The phases that have steps; of none, one step of the last, as in any training."""
    return tuple(phase for phase in phases if phase.steps) or (replace(phases[-1], steps=1),)


def _doublings(start: int, end: int) -> int:
    """How often `start` doubles before another time would exceed `end`; 0 where it does from the beginning."""
    return max(0, (end // start).bit_length() - 1)


def _undoubled(name: str, start: int, end_name: str, end: int) -> Iterator[str]:
    if start << _doublings(start, end) != end:
        yield f"{name} ({start}) doubled some times must give {end_name} ({end})"


def _sha256_misfits(sha256: str | None, replay: str | None) -> Iterator[str]:
    if sha256 is not None and replay is None:
        yield "sha256 is that of a file to `replay`, and none is given"


def _micro_misfits(micro: int | None, start: int) -> Iterator[str]:
    if micro and start % micro:
        yield f"micro_sequences ({micro}) must divide start ({start}), the smallest batch"
