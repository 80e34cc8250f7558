"""Offline evaluation sets: from the packages' own files to one form, an `Item` with a context and its choices.

Every reader is a pure function of the file's text. Afterwards (`distinct`): items that occur twice are kept once, items
that occur with two different answers or offer the same answer twice are dropped, and the order is that of a hash, so
that the first N items are a sample of the whole. BLiMP is a standard set: it stays whole, only its order changes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """One question. Choices follow the context after a single space."""

    id: str
    """Line or index in the source file, prefixed by a stratum where the set has fixed strata (`PARADIGM/PAIR`)."""
    passage: str | None
    """Hash of the text that several items share (they are not independent); None where each stands alone."""
    context: str
    choices: tuple[str, ...]
    target: int
    """Index of the correct choice."""


class BadSet(ValueError):
    """A file that does not hold what its reader expects: another version, or damaged."""


def distinct(items: Iterable[Item]) -> list[Item]:
    """Each question once, none with contradictory answers or with equal choices."""
    answers: dict[tuple[str, frozenset[str]], set[str]] = {}
    first: dict[tuple[str, frozenset[str]], Item] = {}
    for item in items:
        question = (item.context, frozenset(item.choices))
        answers.setdefault(question, set()).add(item.choices[item.target])
        first.setdefault(question, item)
    return [
        item
        for question, item in first.items()
        if len(answers[question]) == 1 and len(question[1]) == len(item.choices)
    ]


def in_hash_order(items: Iterable[Item]) -> list[Item]:
    """Sorted by a hash of the content, and by id where that is equal."""
    return sorted(items, key=lambda item: (_digest(item.context, *sorted(item.choices)), item.id))


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=8).hexdigest()


def _match(pattern: re.Pattern[str], text: str, where: str) -> re.Match[str]:
    found = pattern.fullmatch(text)
    if found is None:
        raise BadSet(f"{where}: unexpected form {text[:80]!r}")
    return found


def _dialogues(text: str) -> Iterator[tuple[str, str, str]]:
    """(line number, last message, ideal answer) of each line of an `evals` file."""
    for number, line in enumerate(text.splitlines(), 1):
        row = json.loads(line)
        yield str(number), row["input"][-1]["content"], row["ideal"]


_QUARTZ = re.compile(r"(?P<question>.*?)\n\n A: (?P<a>.*)\n B: (?P<b>.*)", re.DOTALL)
_BLANK = re.compile(r"_{3,}(?: +_{3,})*")


def quartz(text: str) -> Iterator[Item]:
    """Two-way questions. A blank is filled in with each choice, an open sentence is continued."""
    for number, question, ideal in _dialogues(text):
        found = _match(_QUARTZ, question, f"quartz line {number}")
        choices = tuple(found[name].strip().rstrip(".?").rstrip() for name in ("a", "b"))
        context, choices = _cloze(found["question"].strip(), choices)
        yield Item(number, None, context, choices, "AB".index(ideal))


def _cloze(question: str, choices: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
    before, blank, after = _split_blank(question)
    if blank and before:
        return before, tuple(f"{choice}{after}" for choice in choices)
    if question.endswith(("?", ".", "!")) or blank:
        return f"Question: {question}\nAnswer:", choices
    return question, choices


def _split_blank(question: str) -> tuple[str, str, str]:
    found = _BLANK.search(question)
    if found is None:
        return question, "", ""
    return question[: found.start()].rstrip(), found[0], question[found.end() :].rstrip()


_SOCIAL = re.compile(r"(?P<scene>.*) A: (?P<a>.*?); B: (?P<b>.*?); C: (?P<c>.*?)\.?", re.DOTALL)
_LAST_SENTENCE = re.compile(r"(?P<story>.*[.!?]['\"]?) +[^.!?]+[?.]", re.DOTALL)


def social_iqa(text: str) -> Iterator[Item]:
    """Three-way questions about a scene; items about the same scene share a passage."""
    for number, question, ideal in _dialogues(text):
        found = _match(_SOCIAL, question, f"social_iqa line {number}")
        story = _LAST_SENTENCE.fullmatch(found["scene"])
        passage = _digest(story["story"] if story else found["scene"])
        choices = tuple(found[name].strip() for name in ("a", "b", "c"))
        yield Item(number, passage, f"{found['scene'].strip()}\nAnswer:", choices, "ABC".index(ideal))


_LOGIQA = re.compile(
    r"\nPassage: (?P<passage>.*?)Question: (?P<question>.*?)"
    r"\nA\. A\.(?P<a>.*?)\nB\. B\.(?P<b>.*?)\nC\. C\.(?P<c>.*?)\nD\. D\.(?P<d>.*?)\nAnswer:",
    re.DOTALL,
)


def logiqa(text: str) -> Iterator[Item]:
    """Four-way questions on a passage; the file holds every item twice."""
    for number, question, ideal in _dialogues(text):
        found = _match(_LOGIQA, question, f"logiqa line {number}")
        context = f"Passage: {found['passage'].strip()}\nQuestion: {found['question'].strip()}\nAnswer:"
        choices = tuple(found[name].strip() for name in ("a", "b", "c", "d"))
        yield Item(number, _digest(found["passage"]), context, choices, "ABCD".index(ideal))


_CREPE = re.compile(
    r"(?P<story>.*) At this point, how will '(?P<step>.*)' change the likelihood of '(?P<event>.*)'\? Answer with "
    r"'more likely', 'less likely', or 'equally likely'\.",
    re.DOTALL,
)
_LIKELY = ("more likely", "less likely", "equally likely")


def crepe(text: str) -> Iterator[Item]:
    """How a step of a procedure changes the likelihood of an event; items on one goal share a passage."""
    for number, question, ideal in _dialogues(text):
        found = _match(_CREPE, question, f"crepe line {number}")
        goal = found["story"].partition(". ")[0].rstrip(".")
        context = f"{found['story']}\nQuestion: How will '{found['step']}' change the likelihood of '{found['event']}'?"
        yield Item(number, _digest(goal), f"{context}\nAnswer:", _LIKELY, _LIKELY.index(ideal))


_CORR2CAUSE = re.compile(r"Premise: (?P<premise>.*?) Hypothesis: (?P<hypothesis>.*)", re.DOTALL)
_INFERENCE = ("entailment", "neutral", "contradiction")


def corr2cause(text: str) -> Iterator[Item]:
    """Three-way inference from correlations to causes. Only 21 premises: items on one premise share a passage."""
    for number, question, ideal in _dialogues(text):
        found = _match(_CORR2CAUSE, question, f"corr2cause line {number}")
        context = f"Premise: {found['premise']}\nHypothesis: {found['hypothesis']}\nAnswer:"
        target = _INFERENCE.index(ideal.removeprefix("Answer: "))
        yield Item(number, _digest(found["premise"]), context, _INFERENCE, target)


def _examples(text: str) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """(index, input, score of each choice) of each example of a BIG-bench file."""
    for index, example in enumerate(json.loads(text)["examples"]):
        yield str(index), example["input"], example["target_scores"]


def _best(scores: Mapping[str, float], where: str) -> int:
    values = list(scores.values())
    if sorted(values)[-2:] != [0, 1]:
        raise BadSet(f"{where}: expected one correct choice, got {dict(scores)}")
    return values.index(1)


_TRUTH = ("True", "False", "Neither")


def vitaminc(text: str) -> Iterator[Item]:
    """Does a quotation support a claim, refute it, or neither; claims about one page share a passage."""
    for index, question, scores in _examples(text):
        quote, separator, claim = question.rpartition("\nClaim: ")
        if not separator:
            raise BadSet(f"vitaminc example {index}: no claim in {question[:80]!r}")
        context = f"Passage: {quote}\nClaim: {claim}\nTrue, False, or Neither?"
        target = max(range(3), key=lambda choice: scores[_TRUTH[choice]])
        yield Item(index, _digest(quote.partition(":")[0]), context, _TRUTH, target)


def strategyqa(text: str) -> Iterator[Item]:
    """Yes-or-no questions whose reasoning steps are implicit."""
    for index, question, scores in _examples(text):
        target = _best({"Yes": scores["Yes"], "No": scores["No"]}, f"strategyqa example {index}")
        yield Item(index, None, f"Question: {question.strip()}\nAnswer:", ("Yes", "No"), target)


_HYPERBATON = re.compile(r'Which sentence has the correct adjective order: a " (?P<a>.*?) " b " (?P<b>.*?) " \?')


def hyperbaton(text: str) -> Iterator[Item]:
    """Minimal pairs: the same adjectives and noun in the usual order of English and in another one."""
    for index, question, scores in _examples(text):
        found = _match(_HYPERBATON, question, f"hyperbaton example {index}")
        yield Item(index, None, "", (found["a"], found["b"]), _best(scores, f"hyperbaton example {index}"))


SQUAD_CHOICES = 4


def squad(text: str) -> Iterator[Item]:
    """Questions on a passage, asked by choice (derived): the wrong answers answer other questions on the same passage.

    A wrong answer never overlaps with one that an annotator gave. Questions without a wrong answer are left out.
    """
    for article in json.loads(text)["data"]:
        for paragraph in article["paragraphs"]:
            passage: str = paragraph["context"].strip()
            asked = [(question, _answers(question)) for question in paragraph["qas"]]
            for question, right in asked:
                wrong = _wrong_answers(question["id"], right, [answers[0] for _, answers in asked])
                if wrong:
                    choices = sorted((right[0], *wrong), key=lambda choice: _digest(question["id"], choice))
                    context = f"Passage: {passage}\nQuestion: {question['question'].strip()}\nAnswer:"
                    target = choices.index(right[0])
                    yield Item(question["id"], _digest(passage), context, tuple(choices), target)


def _answers(question: Mapping[str, Any]) -> list[str]:
    """What annotators answered, the commonest first."""
    given = Counter(answer["text"].strip() for answer in question["answers"])
    return [text for text, _ in given.most_common()]


def _wrong_answers(question: str, right: list[str], others: list[str]) -> list[str]:
    """Up to three answers to other questions, in an order drawn by hash, none part of another or of a right one."""
    taken = [answer.casefold() for answer in right]
    found: list[str] = []
    for answer in sorted(set(others), key=lambda answer: _digest(question, answer)):
        folded = answer.casefold()
        if len(found) < SQUAD_CHOICES - 1 and not any(folded in one or one in folded for one in taken):
            taken.append(folded)
            found.append(answer)
    return found


def blimp(text: str) -> Iterator[Item]:
    """Minimal pairs in 67 paradigms of 1,000; the grammatical sentence is the first choice."""
    for line in text.splitlines():
        row: dict[str, Any] = json.loads(line)
        choices = (row["sentence_good"], row["sentence_bad"])
        yield Item(f"{row['UID']}/{row['pairID']}", None, "", choices, 0)


@dataclass(frozen=True, slots=True)
class Reader:
    """How a set is read from the file that its source brings."""

    member: str | None
    """Path inside the archive; None where the file itself is the set."""
    parse: Callable[[str], Iterator[Item]]
    whole: bool = False
    """Keep every item, repeated or not."""

    def items(self, text: str) -> list[Item]:
        """The set's items from the text of its file."""
        return in_hash_order(self.parse(text)) if self.whole else in_hash_order(distinct(self.parse(text)))


_EVALS = "evals/registry/data"
_BIGBENCH = "bigbench-1.0.0/bigbench/benchmark_tasks"
READERS: dict[str, Reader] = {
    "quartz": Reader(f"{_EVALS}/quartz/samples.jsonl", quartz),
    "social_iqa": Reader(f"{_EVALS}/theory_of_mind/socialiqa/test.jsonl", social_iqa),
    "logiqa": Reader(f"{_EVALS}/logiqa/logiqa.jsonl", logiqa),
    "crepe": Reader(f"{_EVALS}/crepe/samples.jsonl", crepe),
    "corr2cause": Reader(f"{_EVALS}/corr2cause/corr2cause.jsonl", corr2cause),
    "vitaminc": Reader(f"{_BIGBENCH}/vitaminc_fact_verification/task.json", vitaminc),
    "strategyqa": Reader(f"{_BIGBENCH}/strategyqa/task.json", strategyqa),
    "hyperbaton": Reader(f"{_BIGBENCH}/hyperbaton/task.json", hyperbaton),
    **{
        f"squad_{name}": Reader(f"{_BIGBENCH}/squad_shifts/{file}.json", squad)
        for name, file in (
            ("dev", "squaddev_v1.1"),
            ("wikipedia", "new_wiki_v1.0"),
            ("nyt", "nyt_v1.0"),
            ("reddit", "reddit_v1.0"),
            ("amazon", "amazon_reviews_v1.0"),
        )
    },
    "blimp": Reader(None, blimp, whole=True),
}
"""Every set that is read from a package or an imported file."""
