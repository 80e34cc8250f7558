"""What changed files can do: `python -m benchmarks.faults [--suites 5000] [--records 5000] [--judged 1500]`.

Changes committed suites and records as a hand, a disk or an adversary would (bytes, lines, values, a record hashed
anew) and reads them with `lmbench check`, `plan`, `judge` and `report`: none may end in a traceback, think for more
than ten seconds, write outside of its folder or start a program. Prints what came of it, and writes it to
benchmarks/faults.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.faulty import fuzz

OUT = Path(__file__).parent / "faults.json"


def _found(tally: fuzz.Tally, changed: int) -> dict[str, Any]:
    for line in tally.tracebacks:
        print(f"    {line}", file=sys.stderr)
    return {
        "changed": changed,
        "answers": dict(sorted(tally.codes.items())),
        "tracebacks": len(tally.tracebacks),
        "elsewhere": tally.elsewhere,
        "longest_s": round(tally.longest_s, 2),
    }


def main() -> None:
    """Change, read, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", type=int, default=5000)
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--judged", type=int, default=1500, help="of the records, changed and hashed anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    sys.dont_write_bytecode = True
    found: dict[str, Any] = {"seed": arguments.seed, "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as place:
        draw = random.Random(arguments.seed)
        found["suites"] = _found(fuzz.suites(Path(place) / "suites", arguments.suites, draw), arguments.suites)
        print(json.dumps(found["suites"]), flush=True)
        tally = fuzz.records(Path(place) / "records", arguments.records, draw, arguments.judged)
        found["records"] = _found(tally, arguments.records)
        print(json.dumps(found["records"]))
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
