"""An executor from what a person writes: `local`, `ray`, `ray:address=auto`, `slurm:partition=gpu,time=4h,gpus=1`."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.executors import Executor, ExecutorError
from lmopt.quantities import parse_bytes, parse_duration_s

MAX_DIGITS = 9
EXTRAS = {"local": None, "ray": "ray", "slurm": "submitit"}
"""Executor -> the library it needs."""
SLURM_WORDS = {"partition": "slurm_partition", "account": "slurm_account", "qos": "slurm_qos",
               "constraint": "slurm_constraint", "gpus": "gpus_per_node", "cpus": "cpus_per_task",
               "slots": "slots", "cluster": "cluster"}  # fmt: skip
"""Words that pass on as they are -> submitit's names; those of `TURNED` are turned into its units."""
TURNED = ("time", "memory")
LEAST = {"gpus": 0, "cpus": 1, "slots": 1}
"""Words that are whole numbers, from which on; all others are text, though they be digits (an account, say)."""


def choose(where: str | None, folder: Path) -> Executor:
    """The executor for a run in `folder`.

    Raises:
        ExecutorError: no such executor or option, or its library is not installed.
    """
    name, _, text = (where or "local").partition(":")
    if name not in EXTRAS:
        raise ExecutorError(f"no executor is called {name!r}; allowed: {', '.join(EXTRAS)}")
    library = EXTRAS[name]
    if library is not None and importlib.util.find_spec(library) is None:
        raise ExecutorError(
            f"{name} needs {library}, which is not installed; hint: pip install 'lmbench-suite[{name}]'"
        )
    options = _options(name, text)
    if name == "ray":
        from bench.executors.ray import RayExecutor

        return RayExecutor(**_known(name, options, {"address": "address"}))
    if name == "slurm":
        from bench.executors.slurm import SlurmExecutor

        return SlurmExecutor(folder / "slurm", **_slurm(options))
    from bench.executors.local import LocalExecutor

    _known(name, options, {})
    return LocalExecutor()


def _options(name: str, text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in filter(None, text.split(",")):
        key, equals, value = part.partition("=")
        if not equals or not key or not value:
            raise ExecutorError(f"{name}: option {part!r} is not understood; hint: write {name}:KEY=VALUE,KEY=VALUE")
        found[key] = value
    return found


def _known(
    name: str, options: Mapping[str, str], words: Mapping[str, str], others: Sequence[str] = ()
) -> dict[str, Any]:
    """Options under their library's names; `others` are allowed too, and read elsewhere."""
    for key in options:
        if key not in words:
            raise ExecutorError(f"{name}: no option {key!r}; allowed: {', '.join((*words, *others)) or 'none'}")
    return {words[key]: _value(name, key, value) for key, value in options.items()}


def _value(name: str, key: str, text: str) -> int | str:
    least = LEAST.get(key)
    if least is None:
        return text
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS and int(text) >= least):
        raise ExecutorError(f"{name}: {key} is {text!r}, allowed: a whole number from {least}")
    return int(text)


def _slurm(options: Mapping[str, str]) -> dict[str, Any]:
    plain = {key: value for key, value in options.items() if key not in TURNED}
    found = _known("slurm", plain, SLURM_WORDS, TURNED)
    try:
        if "time" in options:
            found["timeout_min"] = max(1, round(parse_duration_s(options["time"]) / 60))
        if "memory" in options:
            found["mem_gb"] = max(1, round(parse_bytes(options["memory"]) / 2**30))
    except ValueError as error:
        raise ExecutorError(f"slurm: {error}") from error
    return found
