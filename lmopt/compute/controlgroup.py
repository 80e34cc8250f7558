"""What the control groups of this process leave it of the machine's memory (cgroups(7)). No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

ROOT = Path("/")
VERSION_2 = ("memory.max", "memory.current", "")
VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
"""Names of limit and use in bytes, and what stands before the names in `memory.stat` that count groups below too."""


def available_bytes(root: Path = ROOT) -> int | None:
    """The least that this process's group and those above it leave; None where none sets a limit.

    A group's use counts the files that its processes read. Their pages are taken back before memory runs out, and so
    are as good as free, as they are in the machine's `MemAvailable`.
    """
    left = (_left(group, *names) for group, names in _groups(root))
    return min((size for size in left if size is not None), default=None)


def _groups(root: Path) -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """Folders of the group and of those above it. Inside a container the group may be mounted as the topmost one."""
    mount, lines = root / "sys/fs/cgroup", list[str]()
    with suppress(OSError, UnicodeDecodeError):
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    for line in lines or ["0::/"]:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # of a group outside the ones that are shown here
            parts = []
        top, names = (mount / "memory", VERSION_1) if controllers else (mount, VERSION_2)
        for depth in range(len(parts), -1, -1):
            yield top.joinpath(*parts[:depth]), names


def _left(group: Path, limit: str, used: str, prefix: str) -> int | None:
    """Bytes below the limit of one group, file pages counted as free; None where it has none or does not say."""
    try:
        limit_bytes, used_bytes = (int((group / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):  # `max`: no limit
        return None
    counts = dict[str, str]()
    with suppress(OSError, ValueError):
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    files = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("inactive", "active"))
    return max(0, limit_bytes - max(0, used_bytes - files))
