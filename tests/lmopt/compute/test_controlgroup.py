"""What control groups leave, in recorded trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from lmopt.compute import controlgroup, memory

GIB = 2**30


def planted(root: Path, own: str, files: dict[str, str | int]) -> Path:
    for name, text in {"proc/self/cgroup": own, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def test_a_group_above_is_tighter(tmp_path):
    """As Slurm and systemd nest them: the job has the limit, the step's own group has none."""
    root = planted(tmp_path, "0::/job/step", {
        "sys/fs/cgroup/job/step/memory.max": "max", "sys/fs/cgroup/job/step/memory.current": GIB,
        "sys/fs/cgroup/job/memory.max": 4 * GIB, "sys/fs/cgroup/job/memory.current": 3 * GIB,
    })  # fmt: skip
    assert controlgroup.available_bytes(root) == GIB


@pytest.mark.parametrize(
    ("own", "folder", "names", "prefix"),
    [
        ("0::/", "sys/fs/cgroup", ("memory.max", "memory.current"), ""),
        ("0::/../other", "sys/fs/cgroup", ("memory.max", "memory.current"), ""),
        ("0::/docker/abc", "sys/fs/cgroup", ("memory.max", "memory.current"), ""),
        ("4:memory:/job", "sys/fs/cgroup/memory/job", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
        ("4:cpu,memory:/x", "sys/fs/cgroup/memory", ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_"),
    ],
)
def test_pages_of_files_that_were_read_are_as_good_as_free(tmp_path, own, folder, names, prefix):
    root = planted(tmp_path, own, {
        f"{folder}/{names[0]}": 8 * GIB, f"{folder}/{names[1]}": 7 * GIB,
        f"{folder}/memory.stat": f"anon {GIB}\n{prefix}inactive_file {4 * GIB}\n{prefix}active_file {2 * GIB}",
    })  # fmt: skip
    assert controlgroup.available_bytes(root) == 7 * GIB


def test_no_limit_and_no_groups(tmp_path):
    assert controlgroup.available_bytes(tmp_path) is None
    root = planted(tmp_path, "0::/", {"sys/fs/cgroup/memory.max": "max", "sys/fs/cgroup/memory.current": 5})
    assert controlgroup.available_bytes(root) is None


def test_a_group_that_is_over_its_limit_leaves_nothing(tmp_path):
    root = planted(tmp_path, "0::/a", {"sys/fs/cgroup/a/memory.max": 5, "sys/fs/cgroup/a/memory.current": 7})
    assert controlgroup.available_bytes(root) == 0


def test_the_machine_or_the_group_whichever_has_less(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    root = planted(tmp_path, "0::/a", {
        "proc/meminfo": "MemAvailable:    1048576 kB",
        "sys/fs/cgroup/a/memory.max": 2 * GIB, "sys/fs/cgroup/a/memory.current": GIB // 2,
    })  # fmt: skip
    assert memory.available_bytes(root) == GIB
    (root / "sys/fs/cgroup/a/memory.current").write_text(str(GIB + GIB // 2))
    assert memory.available_bytes(root) == GIB // 2
