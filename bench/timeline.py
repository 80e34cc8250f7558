"""Memory of tensors over a few profiled steps, read from the trace that the profiler wrote."""

from __future__ import annotations

import json
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

POINTS = 400
"""Points kept of a timeline: more than a figure has pixels for."""
US_PER_MS = 1000.0
CPU = 0
"""The processor among a trace's device types."""

Point = tuple[float, int]
"""(milliseconds since the first allocation, bytes beyond those held then)."""


def memory_timeline(trace: Path) -> list[Point]:
    """Bytes of tensors over time: of the device's where there is one.

    Of each stretch of time the highest point is kept, so that no peak is lost.
    """
    events: list[dict[str, Any]] = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    on_device = [event for event in memory if event["args"].get("Device Type", CPU) != CPU]
    changes = sorted((float(event["ts"]), int(event["args"]["Bytes"])) for event in on_device or memory)
    if not changes:
        return []
    start_us = changes[0][0]
    held = accumulate(size for _, size in changes)
    points = [((when_us - start_us) / US_PER_MS, size) for (when_us, _), size in zip(changes, held, strict=True)]
    return thinned(points)


def thinned(points: list[Point], count: int = POINTS) -> list[Point]:
    """At most `count` points: the highest of each equal stretch of the list."""
    if len(points) <= count:
        return points
    edges = [round(i * len(points) / count) for i in range(count + 1)]
    return [max(points[low:high], key=lambda point: point[1]) for low, high in pairwise(edges)]
