"""What the row of a control arm says beyond its saving: who does better than the smaller model, how equals differ."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from bench.claimpoint import Difference, difference
from bench.design import ArmDesign
from bench.study import Study
from bench.words import finite, interval, several, signless


def words(study: Study, arm: ArmDesign, scale: str, claims: Mapping[str, Difference], alpha: float) -> str:
    """To follow an arm's reason; empty where it is no control of the study.

    Args:
        claims: loss of each claim arm at its claim point minus the smaller model's at horizon 1.0.
        alpha: one-sided.
    """
    said: list[str] = []
    if arm.name == study.design.controls.get("smaller"):
        said += _against_claims(claims, alpha)
    if arm.name == study.design.controls.get("aa"):
        said.append(_apart(study, arm, scale))
    return "".join(f"; {one}" for one in said)


def _against_claims(claims: Mapping[str, Difference], alpha: float) -> Iterator[str]:
    for name, found in claims.items():
        effect = found.effect
        if effect is None:
            yield f"whether this smaller dense model does as well as {name} is not measured: {found.reason}"
            continue
        if effect.upper(alpha) < 0:
            verdict = f"does worse than {name} at its claim point"
        elif effect.lower(alpha) > 0:
            verdict = f"does better than {name} at its claim point"
        else:
            verdict = f"does as well as {name} at its claim point, as far as this study can tell"
        value = finite(effect.value)
        shown = "a training diverged" if value is None else f"{signless(value, 4)} nats"
        bounds = [finite(effect.lower(alpha)), finite(effect.upper(alpha))]
        yield (
            f"this smaller dense model of the same FLOPs a token {verdict} "
            f"(loss of {name} minus its own: {shown} {interval(bounds, 1.0, 4)})"
        )


def _apart(study: Study, arm: ArmDesign, scale: str) -> str:
    """How far two models that differ in nothing but the draw of their initial weights end apart."""
    squares: list[float] = []
    for seed in study.design.seeds:
        mine = study.at("train", arm.name, scale, seed, 1.0)
        theirs = study.at("train", study.reference(arm), scale, seed, 1.0)
        value = difference(mine, theirs, "val_loss") if mine is not None and theirs is not None else None
        if value is not None and value.exact:
            squares.append(value.low**2)
    if not squares:
        return "how far two equal models end apart is not measured: no seed has both losses"
    apart = math.sqrt(math.fsum(squares) / len(squares))
    over = several(len(squares), "seed")
    return f"two equal models end {signless(apart, 4)} nats apart (root mean square over {over})"
