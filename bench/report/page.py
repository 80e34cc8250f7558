"""The page composed: the answer first, then everything it rests on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from bench.design import ArmDesign
from bench.report import numbers
from bench.report.cells import points_cell, share_cell, tone_of
from bench.report.outcomes import ENDPOINTS, UNJUDGED, accuracy, arm_outcome, conditions, endpoint, sentence
from bench.report.panels import Tone
from bench.report.runfolder import RunFolder, mapping
from bench.report.sections import (
    ablation,
    appendix,
    arms,
    certainty,
    corpus,
    counts,
    curves,
    domains,
    experts,
    finetuning,
    gaps,
    inference,
    ledger,
    machine,
    profiles,
    sample,
    savings,
    sizes,
    tuning,
)
from bench.report.sections import (
    accuracy as accuracy_section,
)
from bench.report.tree import Cell, Claim, Headline, Page, words

PARTS = {
    "Compute efficiency": (sample, arms, curves, savings, ablation, experts, inference, ledger),
    "Downstream performance": (accuracy_section, finetuning, domains),
    "Scalability": (sizes,),
    "What it rests on": (tuning, corpus, certainty, gaps, counts, profiles, machine, appendix),
}
"""In the order of the page: the questions of the paper's section IV, then the evidence. Each module has
`section(study)`, None where it would have nothing to say."""
OF_TRAINING = (arms, curves, savings, accuracy_section, ledger, corpus, certainty)
"""Those that a study which trains nothing has nothing to say in."""


STATEMENTS = {
    "REFUTED": "The measurements speak against the claim.",
    "INCONCLUSIVE": "These measurements settle it neither way.",
    "SAVES": "It saves.",
    "COSTS": "It costs more than it saves.",
    "INFERIOR": "What it writes is not as good.",
    "UNCLEAR": "Whether it saves or costs cannot be told from these measurements.",
}
NOT_TAKEN = "A reading that the answer needs was not taken."


def compose(study: RunFolder) -> Page:
    """The whole page as a tree."""
    made = [
        (part, one.section(study))
        for part, modules in PARTS.items()
        for one in modules
        if study.design.trains or one not in OF_TRAINING
    ]
    return Page(
        title=study.design.suite,
        about=_about(study.suite_text),
        suite=study.design.suite,
        run=study.name,
        facts=_facts(study),
        hypothesis=_hypothesis(study),
        claims=_claims(study),
        headlines=_headlines(study),
        sections=tuple(replace(section, part=part) for part, section in made if section is not None),
    )


def _about(text: str) -> str:
    """The suite's own sentence about itself."""
    from bench.source import parse_text

    root = parse_text(text, "suite.yaml").root  # none where it cannot be read: the text is shown in full below
    about = None if root is None else mapping(root.plain()).get("about")
    return re.sub(r"\s+", " ", str(about)).strip() if about else ""


def _facts(study: RunFolder) -> tuple[tuple[str, Cell], ...]:
    planned = len({str(mapping(case).get("id")) for case in study.plan.get("cases") or ()})
    finished = len({record.case.id for record in study.records if record.status == "ok"})
    done = str(finished) if finished >= planned else f"{finished} of {planned}"
    return (
        ("Run", words(study.name, code=True)),
        ("Purpose", words(study.design.purpose)),
        ("Cases finished", words(done)),
        ("Seeds", words(str(len(study.design.seeds)))),
        ("Machine", words(str(study.plan.get("machine_class") or "unknown"))),
    )


def _hypothesis(study: RunFolder) -> str:
    """The hypothesis in one sentence."""
    design = study.design
    claims = [arm for arm in design.arms if arm.role == "claim"]
    if design.inference is not None and not design.trains:
        return (
            f"This study trains nothing: it measures what other ways of decoding \u201c{design.baseline}\u201d save or "
            "cost, and what becomes of the text."
        )
    if not claims:
        return (
            f"This study makes no claim: it measures what each change to \u201c{design.baseline}\u201d saves or costs."
            if design.arms
            else f"This study measures \u201c{design.baseline}\u201d alone and compares it with nothing."
        )
    drop = design.hypothesis.accuracy_drop
    margin = (
        f"{100 * drop.less_than:.3g} percentage point{'' if drop.less_than == 0.01 else 's'}"
        if drop.kind == "absolute"
        else f"{numbers.percent(drop.less_than, decimals=1)} of its accuracy"
    )
    of = " of accuracy" if drop.kind == "absolute" else ""
    currencies = {name: title.lower() for name, title, _ in ENDPOINTS}
    kinds = list(dict.fromkeys(currencies[arm.primary] for arm in claims))
    names = numbers.listing([f"\u201c{arm.name}\u201d" for arm in claims])
    verb = "needs" if len(claims) == 1 else "each need"
    references = numbers.listing(list(dict.fromkeys(f"\u201c{study.reference(arm.name)}\u201d" for arm in claims)))
    return (
        f"{names} {verb} at least {numbers.percent(design.hypothesis.saving.at_least, decimals=0)} less training "
        f"{' or '.join(kinds)} than {references} to reach the same loss, and {'loses' if len(claims) == 1 else 'lose'} "
        f"less than {margin}{of}."
    )


def _claims(study: RunFolder) -> tuple[Claim, ...]:
    """Outcomes of the claims; without any of the components, else of ways of decoding, else of whatever there is."""
    wanted = _trained(study)
    found: list[Claim] = [] if wanted else list(_decodings(study))
    for arm in wanted if wanted or found else study.design.arms:
        judged = study.judged(arm.name)
        outcome = arm_outcome(study, arm.name) or "NOT MEASURED"
        step = judged.get("next") or judged.get("next_step")
        found.append(
            Claim(
                name=arm.name,
                outcome=outcome.replace("_", " "),
                tone=tone_of(outcome),
                statement=_statement(study, arm.name),
                why=_why(judged),
                by_size=_by_size(judged),
                conditions=_conditions(study, arm.name),
                next_step=sentence(str(step)) if step else None,
            )
        )
    return tuple(found)


def _trained(study: RunFolder) -> list[ArmDesign]:
    """The claims; without any the components."""
    return [arm for arm in study.design.arms if arm.role == "claim"] or [
        arm for arm in study.design.arms if arm.role == "component"
    ]


def _by_size(judged: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    scales = mapping(judged.get("scales"))
    if len(scales) < 2:
        return ()
    return tuple((scale, sentence(str(mapping(one).get("why") or UNJUDGED))) for scale, one in scales.items())


def _why(judged: Mapping[str, Any]) -> str:
    """An arm's reason, without those of its sizes where these stand by themselves."""
    why = str(judged.get("why") or UNJUDGED)
    if _by_size(judged):
        whole, differ, _ = why.partition("; at ")
        return sentence(whole) if differ and why.startswith("the scales differ") else ""
    return sentence(why)


def _decodings(study: RunFolder) -> Iterator[Claim]:
    """Outcomes of ways of decoding, which are about inference alone."""
    judged = mapping(mapping((study.verdict or {}).get("inference")).get("arms"))
    for arm in study.design.inference.arms if study.design.inference is not None else ():
        found = mapping(judged.get(arm.name))
        outcome = str(found.get("outcome") or "NOT MEASURED")
        step = found.get("next")
        yield Claim(
            name=arm.name,
            outcome=outcome,
            tone=tone_of(outcome),
            statement=STATEMENTS.get(outcome, NOT_TAKEN),
            why=sentence(str(found.get("why") or UNJUDGED)),
            next_step=sentence(str(step)) if step else None,
        )


def _conditions(study: RunFolder, arm: str) -> tuple[Cell, ...]:
    """What a claim needs, each as a badge; at one scale, since several are told apart below."""
    if len(study.design.scales) != 1:
        return ()
    shown: dict[bool | None, tuple[Tone, str]] = {
        True: ("good", "shown"), False: ("open", "not shown"), None: ("none", "not measured")
    }  # fmt: skip
    return tuple(
        Cell(text=one.label, value=shown[one.met][1], tone=shown[one.met][0], small=sentence(one.why))
        for one in conditions(study, arm, study.design.scales[0])
    )


def _statement(study: RunFolder, arm: str) -> str:
    """The plain reading of an outcome."""
    at_least = numbers.percent(study.design.hypothesis.saving.at_least, decimals=0)
    outcome = (arm_outcome(study, arm) or "").upper()
    if outcome == "SUPPORTED":
        return f"The measurements support the claim: at least {at_least} is saved, and accuracy is kept."
    if outcome == "UNCLEAR" and str(study.judged(arm).get("why")).startswith("the scales differ"):
        return "Whether it saves or costs cannot be told at every size."
    return STATEMENTS.get(outcome, NOT_TAKEN)


def _headlines(study: RunFolder) -> tuple[Headline, ...]:
    """The first claim's numbers (else the first component's), large."""
    trained = _trained(study)
    if not trained or not study.design.scales:
        return ()
    arm, scale = trained[0].name, study.design.scales[-1]
    cases = savings.sources(study, arm, scale)
    change = accuracy(study, arm, scale)
    suffix = f", {arm}" if len(trained) > 1 else ""
    suffix += f" at scale {scale}" if len(study.design.scales) > 1 else ""
    headlines: list[Headline] = []
    for name, title, _ in ENDPOINTS:
        found = endpoint(study, arm, scale, name)
        cell = _with_interval(share_cell(found.value, found.bounds, found.why, cases))
        headlines.append(Headline(label=f"{title} saved at equal loss{suffix}", cell=cell))
    if trained[0].role == "claim":
        scored = [*study.of("evaluate", arm, scale), *study.of("finetune", arm, scale)]
        evaluated = tuple(record.case.id for record in scored)
        cell = _with_interval(points_cell(change.value, change.bounds, change.why, evaluated))
        headlines.append(Headline(label=f"Change in accuracy{suffix}", cell=cell))
    return tuple(headlines)


def _with_interval(cell: Cell) -> Cell:
    """A large number never stands without its interval, or without the word that there is none."""
    return cell if cell.small or cell.reason is not None or cell.value is None else replace(cell, small="no interval")
