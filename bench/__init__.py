"""The harness: declare, plan, run, measure, judge, report and gate a study of saved compute.

    from bench import load_suite, run, judge, report, gate

Names are imported when they are first used, so that `import bench` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.api import compare, export, gate, judge, load_suite, make_plan, report, run

__all__ = ["compare", "export", "gate", "judge", "load_suite", "make_plan", "report", "run"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("bench.api"), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
