"""What a result depends on besides the suite: hardware, driver, kernel, versions, commit.

Read from /proc, /sys, NVML and package metadata; importing no tensor library. Nothing here says whose machine it is:
no host name, no user, no path.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.instruments import Sensor
from bench.instruments.nvml import Nvml
from bench.instruments.table import describe, probe

Facts = Mapping[str, Any]
"""A fingerprint."""

ROOT = Path("/")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8", "sve", "bf16")
"""Instruction sets that decide which matrix kernels run."""
PACKAGES = (
    "torch", "numpy", "scipy", "tokenizers", "safetensors", "lm-eval", "fvcore", "nvidia-ml-py", "pyRAPL", "codecarbon",
    "transformers", "triton",
)  # fmt: skip
PASSING = ("load", "memory_available_bytes", "commit", "dirty")
"""Parts of a fingerprint that change from run to run on one and the same machine (the commit has its own field)."""


def fingerprint(root: Path = ROOT, *, nvml: Nvml | None = None) -> dict[str, Any]:
    """Everything about this machine that a number may depend on, as plain data.

    Args:
        root: where `proc` and `sys` are found.
        nvml: the sensor that lists GPUs; a new one by default.
    """
    import lmopt

    gpus, driver = _gpus(nvml or Nvml())
    return {
        "cpu": _cpu(root / "proc/cpuinfo"),
        "cores": _cores(root),
        "memory_bytes": _meminfo_bytes(root, "MemTotal"),
        "memory_available_bytes": available_memory_bytes(root),
        "numa": numa(root),
        "gpus": gpus,
        "driver": driver,
        "kernel": _text(root / "proc/sys/kernel/osrelease"),
        "virtual": "hypervisor" in _flags(root / "proc/cpuinfo"),
        "cgroup": cgroup_limits(root),
        "load": _load(root),
        "python": platform.python_version(),
        "lmopt": lmopt.__version__,
        "packages": _versions(),
        **_commit(),
    }


def env_id(facts: Facts | None = None) -> str:
    """Ten hex digits that are equal for runs on the same machine with the same software."""
    stable = {name: value for name, value in (facts or fingerprint()).items() if name not in PASSING}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()[:10]


def machine_class(facts: Facts | None = None) -> str:
    """A short name for machines that run alike: `nvidia-h200`, `2x-nvidia-a100`, `amd-epyc-f26m2-2c`."""
    facts = facts or fingerprint()
    gpus: list[str] = facts["gpus"]
    if gpus:
        count = f"{len(gpus)}x-" if len(gpus) > 1 else ""
        return count + _slug(gpus[0])
    cpu = facts["cpu"]
    kind = f"-f{cpu['family']}m{cpu['model_number']}" if cpu["family"] else ""
    return f"{_slug(cpu['model'])}{kind}-{facts['cores']['usable']}c"


def environment(facts: Facts, sensors: Sequence[Sensor]) -> dict[str, Any]:
    """The content of a run's environment.json."""
    return {"schema": 1, "env": env_id(facts), "machine": dict(facts), "sensors": describe(sensors)}


def is_busy(facts: Facts, load_per_core: float) -> bool:
    """Whether the load average of the last minute was above `load_per_core` for each usable core."""
    load: list[float] = facts.get("load") or [0.0]
    return load[0] > load_per_core * facts["cores"]["usable"]


def available_memory_bytes(root: Path = ROOT) -> int | None:
    """What a new process may take: MemAvailable, or less where a cgroup allows less; None where neither says."""
    from lmopt.compute import controlgroup

    found = (_meminfo_bytes(root, "MemAvailable"), controlgroup.available_bytes(root))
    return min((size for size in found if size is not None), default=None)


def device_memory_bytes(nvml: Nvml | None = None) -> int | None:
    """Free memory of the GPU that cases run on, the first that is visible; None without one."""
    nvml = nvml or Nvml()
    return nvml.free_bytes() if probe(nvml).available else None


def device_capability(nvml: Nvml | None = None) -> tuple[str, tuple[int, int]] | None:
    """Name and compute capability of the GPU that cases run on; None without one, or where NVML does not say."""
    nvml = nvml or Nvml()
    capability = nvml.capability() if probe(nvml).available else None
    return None if capability is None else (nvml.names()[0], capability)


def numa(root: Path = ROOT) -> list[dict[str, Any]]:
    """NUMA nodes: number, its CPUs as the kernel lists them, memory in bytes, distances to all nodes.

    One whose memory this process may not take says so: `allowed` is false.
    """
    from lmopt.compute.topology import nodes

    found = [asdict(node) | {"distances": list(node.distances)} for node in nodes(root)]
    return [
        {key: value for key, value in node.items() if key not in ("allowed", "runs") or not value} for node in found
    ]


def cgroup_limits(root: Path = ROOT) -> dict[str, Any]:
    """Limits of this process's control group: `cpus` (a float) and `memory_bytes`; None where there is none."""
    cpus = None
    quota, _, period = (_cgroup_text(root, "cpu.max") or "").partition(" ")
    if not quota:
        quota = _cgroup_text(root, "cpu.cfs_quota_us") or ""
        period = _cgroup_text(root, "cpu.cfs_period_us") or ""
    with suppress(ValueError, ZeroDivisionError):
        cpus = int(quota) / int(period) if int(quota) > 0 else None
    memory = _cgroup_number(root, "memory.max", "memory.limit_in_bytes")
    total = _meminfo_bytes(root, "MemTotal")
    if memory is not None and total is not None and memory >= total:
        memory = None  # version 1 writes "no limit" as the largest page-aligned integer
    return {"cpus": cpus, "memory_bytes": memory}


def _cgroup_text(root: Path, name: str) -> str | None:
    """A file of this process's control group, version 2 or 1; inside a container the group is mounted as the root."""
    groups = _text(root / "proc/self/cgroup") or ""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        mount = root / "sys/fs/cgroup"
        if controllers:
            mount /= controllers if (mount / controllers).exists() else controllers.split(",")[0]
        for folder in (mount / path.lstrip("/"), mount):
            found = _text(folder / name)
            if found is not None:
                return found
    return None


def _cgroup_number(root: Path, *names: str) -> int | None:
    for name in names:
        with suppress(ValueError):
            return int(_cgroup_text(root, name) or "")
    return None


def _cpu(cpuinfo: Path) -> dict[str, Any]:
    fields = _cpuinfo(cpuinfo)
    flags = set(_flags(cpuinfo))
    return {
        "model": fields.get("model name") or platform.machine(),
        "family": fields.get("cpu family"),
        "model_number": fields.get("model"),
        "stepping": fields.get("stepping"),
        "microcode": fields.get("microcode"),
        "flags": [flag for flag in FLAGS if flag in flags],
    }


def _cpuinfo(path: Path) -> dict[str, str]:
    """Fields of the first processor."""
    first, _, _ = (_text(path) or "").partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _flags(cpuinfo: Path) -> list[str]:
    fields = _cpuinfo(cpuinfo)
    return (fields.get("flags") or fields.get("Features") or "").split()


def _cores(root: Path) -> dict[str, Any]:
    """Logical CPUs of the machine, physical cores, sockets, and how many a program may use at once."""
    blocks = [dict(_pairs(block)) for block in (_text(root / "proc/cpuinfo") or "").split("\n\n") if block.strip()]
    logical = len(blocks) or os.cpu_count() or 1
    physical = {(block.get("physical id"), block.get("core id")) for block in blocks}
    quota = cgroup_limits(root)["cpus"]
    usable = logical if quota is None else max(1, min(logical, round(quota)))
    return {
        "logical": logical,
        "physical": len(physical) if blocks and "core id" in blocks[0] else None,
        "sockets": len({block.get("physical id") for block in blocks}) or None,
        "usable": usable,
    }


def _pairs(block: str) -> list[tuple[str, str]]:
    parts = (line.partition(":") for line in block.splitlines())
    return [(name.strip(), value.strip()) for name, _, value in parts]


def _meminfo_bytes(root: Path, field: str) -> int | None:
    found = re.search(rf"^{field}:\s+(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _load(root: Path) -> list[float]:
    """Load averages of one, five and fifteen minutes."""
    return [float(number) for number in (_text(root / "proc/loadavg") or "").split()[:3]]


def _gpus(nvml: Nvml) -> tuple[list[str], str | None]:
    if not probe(nvml).available:
        return [], None
    return nvml.names(), nvml.driver()


def _versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for package in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _commit() -> dict[str, Any]:
    """Commit of this program's checkout, and whether its code was changed since; both None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return {"commit": None, "dirty": None}

    def git(*words: str) -> str:
        answer = subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, timeout=20, check=True
        )
        return answer.stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(git("status", "--porcelain", "--", "bench", "lmopt"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None


def _slug(name: str) -> str:
    """`Intel(R) Xeon(R) Platinum 8480C` -> `intel-xeon-platinum-8480c`."""
    plain = re.sub(r"\((?:R|TM|C)\)|\bCPU\b|@.*$", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.") or "unknown"
