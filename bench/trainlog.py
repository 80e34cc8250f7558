"""What the harness itself remembers of a training: the loss curve, the time of each step, how often it was resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.casefolder import write_atomically
from lmopt.step import Step

CURVE_POINTS = 60


class TrainLog:
    """Grows step by step; saved beside each checkpoint, so that a resumed training keeps its curve."""

    def __init__(self, checkpoint: Path) -> None:
        self._path = checkpoint / "harness.json"
        self.segments = 1
        """Processes this training took so far."""
        self.elapsed_s = 0.0
        """Seconds of training in all processes, compilation left out."""
        self.compile_s = 0.0
        self.tokens = 0
        """Tokens trained on."""
        self.durations_s: list[float] = []
        """Seconds of each step of this process."""
        self.points: list[dict[str, Any]] = []
        """The loss curve: each point the mean loss over the steps since the last."""
        self._losses: list[tuple[int, float]] = []
        """(tokens after it, loss) of the latest steps: those of the next point, of the older checkpoint's too."""
        self._needed_from = 0
        """Tokens at the last point before the older checkpoint."""
        self.tokens_by_length: dict[int, int] = {}
        """Tokens trained on, by the length of their sequences."""
        self._every = 1
        self._flops_per_token: Mapping[int, float] = {}
        self._full_length = 0

    def restore(self, tokens_by_length: Mapping[int, int]) -> None:
        """Continue after so many tokens, by the length of their sequences; what was logged beyond is forgotten."""
        tokens = sum(tokens_by_length.values())
        try:
            kept: Mapping[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            kept = {}
        self.tokens, self.tokens_by_length = tokens, dict(tokens_by_length)
        self.segments = int(kept.get("segments", 1)) + 1
        self.elapsed_s = float(kept.get("elapsed_s", 0.0))
        self.points = [point for point in kept.get("points", []) if point["tokens"] <= tokens]
        self._losses = [(after, loss) for after, loss in kept.get("losses", []) if after <= tokens]

    def begin(self, *, total_tokens: int, flops_per_token: Mapping[int, float], full_length: int) -> None:
        """Say how long the training is, so that the curve gets some sixty points, and what its tokens cost.

        Args:
            flops_per_token: by length of sequence.
            full_length: the length of a step that does not say its own.
        """
        self._every = max(1, total_tokens // CURVE_POINTS)
        self._flops_per_token = flops_per_token
        self._full_length = full_length

    def add(self, step: Step, duration_s: float) -> None:
        """A finished step and the seconds it took."""
        compile_s = step.notes.get("compile_time_s", 0.0)
        self.compile_s += compile_s
        self.durations_s.append(duration_s - compile_s)
        self.elapsed_s += duration_s - compile_s
        before, self.tokens = self.tokens, self.tokens + step.tokens
        length = int(step.notes.get("length", self._full_length))
        self.tokens_by_length[length] = self.tokens_by_length.get(length, 0) + step.tokens
        if step.loss is not None:
            self._losses.append((self.tokens, step.loss))
        if self.tokens // self._every == before // self._every:
            return
        losses = [loss for after, loss in self._losses if after > self._last_point()]
        if losses:
            self.points.append(
                {
                    "tokens": self.tokens,
                    "loss": round(sum(losses) / len(losses), 6),
                    "train_flops": round(self._flops()),
                    "seconds": round(self.elapsed_s, 3),
                }
            )

    def _last_point(self) -> int:
        return int(self.points[-1]["tokens"]) if self.points else 0

    def _flops(self) -> float:
        """Executed so far."""
        return sum(self._flops_per_token[length] * tokens for length, tokens in self.tokens_by_length.items())

    def save(self) -> None:
        """Write beside the checkpoint that is saved next; a training can go on from that one or the one before."""
        self._losses = [(after, loss) for after, loss in self._losses if after > self._needed_from]
        self._needed_from = self._last_point()
        kept = {
            "segments": self.segments, "elapsed_s": self.elapsed_s, "points": self.points, "losses": self._losses,
        }  # fmt: skip
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps(kept))
