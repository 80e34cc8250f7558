"""What a step trains on: inputs, targets, and which targets count. Letters: B sequences, L tokens a sequence."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from lmopt.arch.loss import IGNORED


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of one step, or of one forward pass."""

    inputs_BL: Tensor
    targets_BL: Tensor
    segments_BL: Tensor | None = None
    """Number of each token's document within its sequence, 0 for padding; None where a sequence is one text."""
    weight: Tensor | None = None
    """Share of the step's targets that are in this part; None where parts are equal."""

    @classmethod
    def of(cls, windows: Tensor) -> Batch:
        """Each token's target is the next one of its own document.

        Args:
            windows: B x (L+1) token numbers; (2, B, L+1) with segments where documents are packed; (3, B, L+1) with
                what is learnt (0: not asked) where only answers are (lmopt.data.packing).
        """
        if windows.ndim == 2:
            return cls(windows[:, :-1], windows[:, 1:])
        tokens_BL1, segments_BL1, *learnt = windows
        unasked = (segments_BL1[:, 1:] != segments_BL1[:, :-1]) | (segments_BL1[:, 1:] == 0)
        for learnt_BL1 in learnt:
            unasked = unasked | (learnt_BL1[:, 1:] == 0)
        return cls(tokens_BL1[:, :-1], tokens_BL1[:, 1:].masked_fill(unasked, IGNORED), segments_BL1[:, :-1])

    def parts(self, micro: int | None) -> Iterator[Batch]:
        """Equal numbers of sequences, in order."""
        size = micro or len(self.inputs_BL)
        inputs, targets = self.inputs_BL.split(size), self.targets_BL.split(size)
        if self.segments_BL is None:
            yield from (Batch(x, y) for x, y in zip(inputs, targets, strict=True))
            return
        count = (self.targets_BL != IGNORED).sum()
        for x, y, segments in zip(inputs, targets, self.segments_BL.split(size), strict=True):
            yield Batch(x, y, segments, (y != IGNORED).sum() / count)

    def shape_at_once(self, micro: int | None) -> tuple[int, ...]:
        """Sequences and tokens of what goes through a model at once."""
        return tuple(next(self.parts(micro)).inputs_BL.shape)
