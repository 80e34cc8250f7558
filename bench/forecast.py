"""The plan as a person reads it: what will be run, what each arm is, what it will cost here and what will not fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.case import TUNING, Case
from bench.plan import Plan
from bench.words import several
from lmopt.quantities import human_bytes, human_count, human_seconds


def render(plan: Plan) -> str:
    """Several small tables of plain text."""
    parts = [_headline(plan), _arms(plan), _cases(plan), _totals(plan), *plan.notes, _misfits(plan)]
    return "\n\n".join(part for part in parts if part)


def columns(rows: Iterable[Sequence[str]], numeric_from: int = 1) -> str:
    """Rows of words as aligned columns; those from `numeric_from` on are aligned to the right."""
    table = [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = (
        "  ".join(
            cell.ljust(width) if i < numeric_from else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )
    return "\n".join(line.rstrip() for line in lines)


def _headline(plan: Plan) -> str:
    design = plan.design
    axes = (
        f"{len(design.arms) + 1} arms, seeds {_list(design.seeds)}, horizons {_list(design.horizons)}, "
        f"{design.layout} layout"
    )
    if design.inference is not None and not design.trains:
        axes = f"{len(design.inference.arms)} ways of decoding one model that is there"
    return (
        f"{design.suite}: {len(plan.cases)} cases, {axes}, purpose {design.purpose}\n"
        f"run {plan.run} on {plan.machine_class}"
    )


def _list(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _arms(plan: Plan) -> str:
    trains = plan.design.trains
    roles: dict[str, str] = {arm.name: arm.role for arm in plan.design.arms}
    roles[plan.design.baseline] = "reference" if trains else "checkpoint"
    flops = "train FLOP/token" if trains else "read FLOP/token"
    rows = [("arm" if trains else "model", "role", "scale", "params", "active", flops, "change" if trains else "")]
    for name, scales in plan.arms.items():
        for scale, facts in scales.items():
            rows.append(
                (
                    name,
                    roles[name],
                    scale,
                    human_count(facts.params_total),
                    human_count(facts.params_active),
                    human_count(facts.train_flops_per_token if trains else facts.infer_flops_per_token),
                    facts.change if trains else "",
                )
            )
    head = columns((row[:6] for row in rows), numeric_from=3).split("\n")
    return "\n".join(f"{line}  {row[6]}".rstrip() for line, row in zip(head, rows, strict=True))


def _cases(plan: Plan) -> str:
    rows = [("case", "id", "FLOP", "memory", "time", "disk")]
    for case in plan.cases:
        estimate = case.estimate
        flops = estimate.train_flops if estimate.generate_flops is None else estimate.generate_flops
        rows.append(
            (
                case.label + (f" ({case.purpose})" if case.purpose not in (case.kind, *TUNING) else ""),
                case.id,
                "" if flops is None else f"{flops:.3g}",
                "" if estimate.peak_memory_bytes is None else human_bytes(estimate.peak_memory_bytes),
                "" if estimate.time_s is None else human_seconds(estimate.time_s),
                "" if not estimate.disk_bytes else human_bytes(estimate.disk_bytes),
            )
        )
    return columns(rows, numeric_from=2)


def _totals(plan: Plan) -> str:
    memory = max((case.estimate.peak_memory_bytes or 0 for case in plan.cases), default=0)
    if not plan.design.trains:
        flops = sum(case.estimate.generate_flops or 0 for case in plan.cases)
        return f"in all: nothing is trained; {flops:.3g} FLOP of timed texts, what is judged on top; peak memory " + (
            human_bytes(memory)
        )
    flops = sum(case.estimate.train_flops or 0 for case in plan.cases)
    times = [case.estimate.time_s for case in plan.cases if case.kind in ("train", "finetune", "timing")]
    known = [time_s for time_s in times if time_s is not None]
    disk = max((case.estimate.disk_bytes or 0 for case in plan.cases), default=0)
    time = f"about {human_seconds(sum(known))}" if known and len(known) == len(times) else "not known (no calibration)"
    tuning = [case for case in plan.cases if case.purpose in TUNING]
    n_trials = sum(case.purpose == "tune" for case in tuning)
    sources = f" and {several(len(tuning) - n_trials, 'source')}" if len(tuning) > n_trials else ""
    spent = sum(case.estimate.train_flops or 0 for case in tuning)
    of_trials = f" ({spent:.3g} of them in {several(n_trials, 'trial')}{sources})" if tuning else ""
    finetuning = sum(case.estimate.train_flops or 0 for case in plan.cases if case.kind == "finetune")
    of_trials += f" ({finetuning:.3g} of them in fine-tuning)" if finetuning else ""
    return (
        f"in all: {flops:.3g} training FLOP{of_trials}; training and timing {time}, preparation and evaluation on top; "
        f"peak memory {human_bytes(memory)}; checkpoint {human_bytes(disk)}"
    )


def _misfits(plan: Plan) -> str:
    misfits: list[Case] = [case for case in plan.cases if not case.fits]
    lines = [f"does not fit: {case.label}: {case.reason}" for case in misfits]
    return "\n".join([*lines, *(f"{case.label}: {case.reason}" for case in plan.cases if not case.applies)])
