"""Pre-registration of a confirming study: what is fixed before its first run, written once and held to ever after.

Seeds may be added later (judging makes each look after the first cost more); taking one away would be choosing among
results, and so would any other change of the suite.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from bench.casefolder import write_atomically
from bench.plainjson import parse
from bench.plan import Plan
from bench.registered import NAME, content


class NotRegistered(ValueError):
    """A confirming study that is not the one registered in its folder."""


def register(folder: Path, plan: Plan) -> None:
    """Fix a confirming study in its run folder, or hold it to what was fixed there; other studies are left alone.

    Raises:
        NotRegistered: it differs from what was registered, or the folder holds records from before any registration.
    """
    if plan.design.purpose != "confirm":
        return
    path = folder / NAME
    if path.exists():
        _hold(path, plan)
        return
    if (folder / "records.jsonl").exists():
        raise NotRegistered(
            f"{folder} holds records of a confirming study that was never registered; hint: run into another --out"
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_atomically(path, json.dumps({"time": when, **content(plan.run, plan.design)}, indent=1))


def _hold(path: Path, plan: Plan) -> None:
    try:
        held: dict[str, Any] = parse(path.read_text())
        seeds = {int(seed) for seed in held["seeds"]}
    except (ValueError, KeyError, TypeError) as error:
        raise NotRegistered(f"{path}: not a registration ({error}); hint: run into another --out") from error
    now = content(plan.run, plan.design)
    changed = [name for name in ("suite", "arms", "horizons", "run") if held.get(name) != now[name]]
    if changed:
        name = changed[0]
        said = "the suite" if name == "run" else f"its {name}" if name != "suite" else "its name"
        raise NotRegistered(
            f"{path}: this study was registered on {held.get('time')}, and {said} changed since "
            f"({held.get(name)} -> {now[name]}); hint: a changed hypothesis is a new study: choose another --out"
        )
    dropped = sorted(seeds - set(plan.design.seeds))
    if dropped:
        listed = ", ".join(map(str, dropped))
        raise NotRegistered(
            f"{path}: seed {listed} was registered and is gone; hint: seeds may be added, never dropped"
        )
