"""A case in a fresh process: `python -P -m bench.executors.child WORKER FOLDER`. It dies with whoever started it."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from bench.process import die_with_parent


def main() -> None:
    """Do the case and leave with the worker's exit code."""
    die_with_parent()
    code: int = importlib.import_module(sys.argv[1]).work(Path(sys.argv[2]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # threads of libraries must not keep a finished case alive


if __name__ == "__main__":
    main()
