"""What is lost when things break: `python -m benchmarks.faults [--only NAME ...] [--out benchmarks/faults.json]`.

Does to real runs of a tiny study what machines and people do: kill -9 at a hundred random moments (of the runner, of
the process of a case or the server that forks it, of a rank under torchrun), full and read-only disks, checkpoints and
records that are half there or changed, a clock that jumps, sensors that fail, cases that hang, memory that ends,
SIGTERM, several runners on one folder, ten thousand changed suites and records. Counts what was lost, what is there
twice, what was not noticed, and whether the end is the same to the last bit as without the fault. An hour on one
core; mounting small disks and limiting memory need root, and are left out with the reason where they may not be done.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.faulty import fuzz, kills, machines, storage

HERE = Path(__file__).parent
Scenario = Callable[[Path, random.Random], dict[str, Any]]


def _fuzzed(tally: fuzz.Tally) -> dict[str, Any]:
    for line in tally.tracebacks[:20]:
        print(f"    {line}", file=sys.stderr)
    return {
        "answers": dict(sorted(tally.codes.items())),
        "tracebacks": len(tally.tracebacks),
        "files_elsewhere": len(tally.elsewhere),
        "longest_s": round(tally.longest_s, 1),
    }


SCENARIOS: dict[str, Scenario] = {
    "kill_runner": lambda place, draw: kills.of_runners(place, 20, draw),
    "kill_worker": lambda place, draw: kills.of_workers(place, 60, draw),
    "kill_rank": lambda place, draw: kills.of_ranks(place, 20, draw),
    "full_disk": lambda place, _: storage.full_disk(place),
    "read_only": lambda place, _: storage.read_only(place),
    "harmed_checkpoints": storage.checkpoints,
    "harmed_records": storage.records,
    "clock": lambda place, _: machines.clocks(place),
    "sensors": lambda place, _: machines.sensors(place),
    "hung": lambda place, _: machines.hung(place),
    "memory": lambda place, _: machines.memory(place),
    "sigterm": machines.sigterm,
    "rivals": lambda place, _: machines.rivals(place),
    "fuzzed_suites": lambda place, draw: _fuzzed(fuzz.suites(place / "fuzz", 5000, draw)),
    "fuzzed_records": lambda place, draw: _fuzzed(fuzz.records(place / "fuzz", 5000, draw, judged=1500)),
}


def main() -> None:
    """Run the scenarios and write what was found; what was measured before and is not asked for stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--out", type=Path, default=HERE / "faults.json")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    os.environ["PYTHONPATH"] = str(HERE.parent)
    sys.dont_write_bytecode = True
    known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"scenarios": {}}
    for name in arguments.only:
        begun_s = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"faults-{name}-") as place:
            try:
                found = SCENARIOS[name](Path(place), random.Random(f"{arguments.seed} {name}"))
            except PermissionError as error:
                found = {"not_measured": f"this user may not: {error}"}
        found["took_s"] = round(time.monotonic() - begun_s)
        known["scenarios"][name] = found
        print(f"{name}: {json.dumps(found)}", flush=True)
        known["machine"] = {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps(known, indent=1) + "\n")


if __name__ == "__main__":
    main()
