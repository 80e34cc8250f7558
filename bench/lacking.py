"""What a valid suite needs and this machine lacks, found without torch and before any work: said, never refused.

A suite is right or wrong wherever it is read; a package may be installed tomorrow, and cases may run elsewhere.
"""

from __future__ import annotations

from bench.suite import Suite
from bench.toolchain import likely_device, toolchain
from lmopt.data import needs
from lmopt.data.spec import Holdout
from lmopt.techniques.precision import BF16_CAPABILITY


def lacking(suite: Suite, gpu: tuple[str, tuple[int, int]] | None = None) -> tuple[str, ...]:
    """A sentence, with a hint on its own line, for each part that cannot work here.

    Parts are sources, data steps, number formats and compiled steps.

    Args:
        gpu: name and compute capability of the one that cases run on; None where they run on the processor, or where
            nobody says.
    """
    data, found = suite.data, dict[str, list[str]]()
    for options in (*data.corpus, *(entry for entry in data.validation if not isinstance(entry, Holdout))):
        if said := needs.of_source(options):
            found.setdefault(f"source {options.source}: {said}", [])
    for arm in suite.all_arms():
        for step in suite.resolve(arm.name, suite.over.scale[0].name).data:
            if said := needs.of_step(step):
                arms = found.setdefault(f"data step {step.kind}: {said}", [])
                arms += [arm.name] if arm.name not in arms else []
    if said := _no_bfloat16(gpu):
        for arm in suite.all_arms():
            precision = suite.resolve(arm.name, suite.over.scale[0].name).precision
            if precision.arithmetic == "bf16":
                found.setdefault(f"precision {precision.kind}: {said}", []).append(arm.name)
    if said := _uncompilable():
        compiled = [arm.name for arm in suite.all_arms() if _is_compiled(suite, arm.name)]
        if compiled:
            found[f"compile: true: {said}"] = compiled
    return tuple(f"not here: {_of_arms(arms)}{said}" for said, arms in found.items())


def _is_compiled(suite: Suite, arm: str) -> bool:
    """Whether an arm insists: `auto` goes on without a compiler."""
    return any(suite.resolve(arm, scale.name).compile is True for scale in suite.over.scale)


def _no_bfloat16(gpu: tuple[str, tuple[int, int]] | None) -> str | None:
    """Why this GPU, if there is one, trains in float32 alone; None where it does not."""
    if gpu is None or gpu[1] >= BF16_CAPABILITY:
        return None
    newer = ".".join(map(str, BF16_CAPABILITY))
    return (
        f"{gpu[0]} has no bfloat16 arithmetic (compute capability {newer} or newer has)"
        "\nhint: use precision {kind: fp32} on this device"
    )


def _uncompilable() -> str | None:
    found = toolchain(likely_device())
    return None if found.works else f"{found.reason}\nhint: {found.hint}"


def _of_arms(arms: list[str]) -> str:
    return f"arm{'s' if len(arms) > 1 else ''} {', '.join(arms)}, " if arms else ""
