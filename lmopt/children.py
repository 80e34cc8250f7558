"""Python processes that ours start import what is installed, never what lies in the folder where a user runs.

`python -m` and `python -c` put the current folder first on the module path: a `json.py` beside a stranger's suite would
be run in place of the library's. Processes that we start ourselves get the interpreter's flag -P, which no environment
takes away and no foreign program inherits. Those that a library starts for us (multiprocessing, submitit, Ray) get
PYTHONSAFEPATH in their environment, for as long as it starts them.
"""

from __future__ import annotations

import os
import site
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
"""The folder that holds our packages."""


def command(module: str, *arguments: str) -> list[str]:
    """`python -P -m module arguments`, of the interpreter that runs this."""
    return [sys.executable, "-P", "-m", module, *arguments]


def environment() -> dict[str, str]:
    """This process's environment, in which our packages are found where they are not installed (a checkout)."""
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]  # an empty one is the folder
    if _is_checkout() and str(ROOT) not in paths:
        paths.append(str(ROOT))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def guarded() -> Iterator[None]:
    """What starts a Python meanwhile starts it as `command` and `environment` would."""
    wanted = {"PYTHONSAFEPATH": "1", "PYTHONPATH": environment()["PYTHONPATH"]}
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def guarded_cluster() -> Iterator[None]:
    """For `ray.init`: Ray puts the folder that is current meanwhile first on the module path of its workers."""
    before = os.getcwd()
    with guarded():
        os.chdir(ROOT if _is_checkout() else ROOT.anchor)
        try:
            yield
        finally:
            os.chdir(before)


def from_here(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run in the folder that is current now where the other machine has it too."""
    folder = os.getcwd()

    def call(*arguments: Any) -> Any:
        with suppress(OSError):
            os.chdir(folder)
        return function(*arguments)

    return call


def _is_checkout() -> bool:
    """Whether our packages lie outside the folders of installed ones, where every interpreter looks anyway."""
    return str(ROOT) not in (os.path.realpath(path) for path in [*site.getsitepackages(), site.getusersitepackages()])
