"""Names and plain facts of the evaluation sets known without a network: what `check` and `plan` need, nothing heavy.

Counts are of the items that the readers in `bench.evaluate.sets` keep (duplicates and contradictions removed); a test
reads the real files and compares. A name `hub:NAME` asks for lm-evaluation-harness's own task of that name, which
needs a network or a filled Hugging Face cache.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

Family = Literal["lm", "qa", "nli"]
"""Language modelling (minimal pairs, cloze), question answering, natural-language inference."""

HUB_PREFIX = "hub:"
DERIVED = "derived"
"""Source of a set that is generated from the suite's own held-out text."""
EVALS = "pypi:evals==3.0.1.post1"
BIGBENCH = "pypi:bigbench==1.0.0"
EVALS_BYTES = 46_322_659
BIGBENCH_BYTES = 358_249_635


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is known about a set before anything is read."""

    name: str
    family: Family
    about: str
    """One plain sentence: what an item asks."""
    source: str
    """Where the file comes from, or `derived`."""
    items: int
    """Items after duplicates are removed (for a derived set: the most that are generated)."""
    choices: int
    """Answers offered by an item (the most, where it varies)."""
    chance: float
    """What guessing earns: max(mean of 1 / an item's choices, share of the commonest answer where all items offer the
    same answers)."""
    licence: str
    download_bytes: int = 0
    """Size of what is fetched once; 0 where nothing is."""


_ALL = (
    TaskFacts(
        name="heldout_cloze",
        family="lm",
        about="Which of four about equally frequent words comes next in held-out text (derived from the suite's own)",
        source=DERIVED,
        items=10_000,
        choices=4,
        chance=0.25,
        licence="as the corpus",
    ),
    TaskFacts(
        name="blimp",
        family="lm",
        about="Which of two minimally different sentences is grammatical: 67 paradigms (Warstadt et al., 1912.00582)",
        source="hub:blimp",
        items=67_000,
        choices=2,
        chance=0.5,
        licence="CC BY 4.0",
    ),
    TaskFacts(
        name="quartz",
        family="qa",
        about="Two-way questions on qualitative relations, without the background text (Tafjord et al., 1909.03553)",
        source=EVALS,
        items=3_828,
        choices=2,
        chance=0.5,
        licence="CC BY 4.0",
        download_bytes=EVALS_BYTES,
    ),
    TaskFacts(
        name="social_iqa",
        family="qa",
        about="Three-way questions on social situations (Sap et al., 1904.09728)",
        source=EVALS,
        items=2_198,
        choices=3,
        chance=1 / 3,
        licence="CC BY 4.0",
        download_bytes=EVALS_BYTES,
    ),
    TaskFacts(
        name="logiqa",
        family="qa",
        about="Four-way questions on arguments from civil-service examinations (Liu et al., 2007.08124)",
        source=EVALS,
        items=674,
        choices=4,
        chance=0.25,
        licence="MIT (evals)",
        download_bytes=EVALS_BYTES,
    ),
    TaskFacts(
        name="crepe",
        family="qa",
        about="Does a step make an event more, less or equally likely (Zhang et al., 2301.10896)",
        source=EVALS,
        items=1_520,
        choices=3,
        chance=1_176 / 1_520,
        licence="MIT (evals)",
        download_bytes=EVALS_BYTES,
    ),
    TaskFacts(
        name="corr2cause",
        family="nli",
        about="Does a causal hypothesis follow from correlations: three-way inference (Jin et al., 2306.05836)",
        source=EVALS,
        items=1_522,
        choices=3,
        chance=777 / 1_522,
        licence="MIT (evals)",
        download_bytes=EVALS_BYTES,
    ),
    TaskFacts(
        name="vitaminc",
        family="nli",
        about="Does a quotation support a claim, refute it, or neither (Schuster et al., 2103.08541)",
        source=BIGBENCH,
        items=54_668,
        choices=3,
        chance=27_242 / 54_668,
        licence="Apache-2.0 (BIG-bench)",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="strategyqa",
        family="qa",
        about="Yes-or-no questions whose reasoning steps are implicit (Geva et al., 2101.02235)",
        source=BIGBENCH,
        items=2_289,
        choices=2,
        chance=1_219 / 2_289,
        licence="Apache-2.0 (BIG-bench)",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="squad_dev",
        family="qa",
        about="Which of four answers fits a question, derived: SQuAD 1.1's own articles (Rajpurkar et al., 1606.05250)",
        source=BIGBENCH,
        items=10_537,
        choices=4,
        chance=0.2599016165258943,
        licence="CC BY-SA 4.0",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="squad_wikipedia",
        family="qa",
        about="Which of four answers fits a question, derived: newer Wikipedia articles (Miller et al., 2004.14444)",
        source=BIGBENCH,
        items=7_807,
        choices=4,
        chance=0.2590196831902971,
        licence="CC BY 4.0",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="squad_nyt",
        family="qa",
        about="Which of four answers fits a question, derived: newspaper articles (Miller et al., 2004.14444)",
        source=BIGBENCH,
        items=9_878,
        choices=4,
        chance=0.25454714179658533,
        licence="CC BY 4.0",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="squad_reddit",
        family="qa",
        about="Which of four answers fits a question, derived: posts of a forum (Miller et al., 2004.14444)",
        source=BIGBENCH,
        items=9_703,
        choices=4,
        chance=0.2586571163557663,
        licence="CC BY 4.0",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="squad_amazon",
        family="qa",
        about="Which of four answers fits a question, derived: product reviews (Miller et al., 2004.14444)",
        source=BIGBENCH,
        items=9_779,
        choices=4,
        chance=0.25602481507993297,
        licence="CC BY 4.0",
        download_bytes=BIGBENCH_BYTES,
    ),
    TaskFacts(
        name="hyperbaton",
        family="lm",
        about="Which of two orders of the same adjectives is the usual one of English (BIG-bench, 2206.04615)",
        source=BIGBENCH,
        items=50_000,
        choices=2,
        chance=0.5,
        licence="Apache-2.0 (BIG-bench)",
        download_bytes=BIGBENCH_BYTES,
    ),
)

TASKS: dict[str, TaskFacts] = {facts.name: facts for facts in _ALL}
"""Every set that is known by a plain name."""


class UnknownTask(LookupError):
    """A task's name that means nothing here; the message says what is allowed."""


def find(name: str) -> TaskFacts | None:
    """The facts of a set; None for a `hub:` name, of which nothing is known before it is fetched.

    Raises:
        UnknownTask: neither a known name nor a `hub:` name.
    """
    if name in TASKS:
        return TASKS[name]
    if name.startswith(HUB_PREFIX) and len(name) > len(HUB_PREFIX):
        return None
    close = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"write {HUB_PREFIX}{name} for a task of lm-evaluation-harness"
    raise UnknownTask(f"unknown task {name!r}; known: {', '.join(sorted(TASKS))}\nhint: {hint}")


_HUB_FAMILIES: tuple[tuple[Family, tuple[str, ...]], ...] = (
    ("lm", ("blimp", "lambada", "wikitext", "hellaswag", "storycloze", "xstorycloze")),
    ("nli", ("anli", "cb", "mnli", "qnli", "rte", "sglue_rte", "snli", "wnli", "xnli", "afrixnli", "hans")),
)
"""Beginnings of names of lm-evaluation-harness's tasks; every other one counts as question answering."""


def family_of(name: str) -> Family:
    """The family that a task is averaged in.

    Raises:
        UnknownTask: as `find`.
    """
    facts = find(name)
    if facts is not None:
        return facts.family
    plain = name.removeprefix(HUB_PREFIX)
    for family, beginnings in _HUB_FAMILIES:
        if any(plain == beginning or plain.startswith(f"{beginning}_") for beginning in beginnings):
            return family
    return "qa"
