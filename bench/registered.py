"""What a confirming study fixed before its first run, and how what is judged differs from it.

A claim whose endpoint, thresholds, arms or controls are not those that were registered has been chosen after the fact:
it is said, and decides nothing in either direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from bench.design import Design
from bench.plainjson import parse

NAME = "registered.json"
FIXED = ("suite", "layout", "horizons", "hypothesis", "controls", "tuned")
"""Of the design, beside arms and seeds, which have rules of their own."""


def content(run: str, design: Design) -> dict[str, Any]:
    """What is registered of a study."""
    plain = design.model_dump(mode="json")
    of_arm = ("name", "role", "primary", "against", "parallel")
    return {
        "run": run, "purpose": "confirm", "suite": design.suite, "arms": [arm.name for arm in design.arms],
        "horizons": list(design.horizons), "seeds": list(design.seeds), "layout": design.layout,
        "hypothesis": plain["hypothesis"], "controls": plain["controls"], "tuned": design.tuned,
        "declared": [{name: arm[name] for name in of_arm} for arm in plain["arms"]],
    }  # fmt: skip


def read(folder: Path) -> Mapping[str, Any] | None:
    """The registration of a run folder, None where there is none.

    Raises:
        ValueError: a file that is none, with its path and what to do.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        held = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: not a registration ({error}); hint: put back the file that the run wrote") from error
    seeds = held.get("seeds") if isinstance(held, dict) else None
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"{path}: not a registration (no list of seeds); hint: put back the file that the run wrote")
    arms = held.get("declared", [])
    if not isinstance(arms, list) or not all(isinstance(arm, dict) for arm in arms):
        raise ValueError(f"{path}: not a registration (no list of arms); hint: put back the file that the run wrote")
    return cast("Mapping[str, Any]", held)


def deviations(held: Mapping[str, Any] | None, run: str, design: Design, first_look: str | None) -> Iterator[str]:
    """What would have to have been otherwise, each in words that follow 'if'; nothing for a study that explores.

    Args:
        held: the registration; what an older one does not hold is not compared.
        first_look: when the records were first judged (ISO 8601, UTC).
    """
    if held is None:
        if design.purpose == "confirm":
            yield "the study had been registered before its first run"
        return
    if design.purpose != "confirm":
        yield f"it had stayed the confirming study that was registered on {held.get('time')} (it says {design.purpose})"
    time = held.get("time")
    if first_look is not None and isinstance(time, str) and time > first_look:
        yield f"it had been registered (on {time}) before its first look (on {first_look})"
    now = content(run, design)
    for name in FIXED:
        if name in held and held[name] != now[name]:
            yield f"its {name} were as registered ({_difference(held[name], now[name])})"
    yield from _arms(held, now)
    dropped = sorted(set(held["seeds"]) - set(design.seeds))
    if dropped:
        yield f"no registered seed had been dropped ({', '.join(map(str, dropped))})"


def _arms(held: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if held.get("arms") != now["arms"]:
        yield f"its arms were those registered ({_difference(held.get('arms'), now['arms'])})"
        return
    declared = {str(arm.get("name")): arm for arm in held.get("declared", ())}
    for arm in now["declared"]:
        before = declared.get(arm["name"], arm)
        changed = [name for name in arm if before.get(name) != arm[name]]
        if changed:
            name = changed[0]
            yield f"the {name} of {arm['name']} were as registered ({before.get(name)}, now {arm[name]})"


def _difference(before: Any, now: Any, name: str = "") -> str:
    """`saving.at_least 0.2, now 0.1`: the first place where two values differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*cast("dict[str, Any]", before), *cast("dict[str, Any]", now)]):
            if before.get(key) != now.get(key):
                return _difference(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    shown = (", ".join(map(str, value)) if isinstance(value, list) else str(value) for value in (before, now))
    return f"{name} {', now '.join(shown)}".strip()
