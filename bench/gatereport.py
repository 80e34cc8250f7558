"""What a gate found, and how a terminal, a pull request, a CI server and a program read it: pure functions."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal
from xml.etree import ElementTree

from bench.design import GateRule
from bench.words import several

Finding = Literal["passed", "improved", "regressed", "could not measure", "skipped"]
Outcome = Literal["pass", "regressed", "could not measure"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "regressed": 1, "could not measure": 3}
MARKS: dict[Finding, str] = {
    "passed": "ok", "improved": "better", "regressed": "WORSE", "could not measure": "UNKNOWN", "skipped": "skipped"
}  # fmt: skip
HINT = "\n    hint: "
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 cannot hold."""


@dataclass(frozen=True, slots=True)
class Check:
    """One metric of one case, compared."""

    rule: GateRule
    case: str
    """`train all/s x1`; empty where a rule as a whole is meant."""
    finding: Finding
    why: str
    before: float | None = None
    after: float | None = None

    @property
    def is_unknown(self) -> bool:
        """Whether it keeps the gate from passing for want of a reading."""
        return self.finding == "could not measure" and self.rule.required


@dataclass(frozen=True, slots=True)
class GateResult:
    """Everything a gate found."""

    suite: str
    checks: tuple[Check, ...] = ()
    problems: tuple[str, ...] = ()
    """What kept the gate from comparing at all."""
    notes: tuple[str, ...] = ()
    updated: bool = False
    """The baseline was stored; nothing was compared."""

    @property
    def outcome(self) -> Outcome:
        """Regressed before could not measure before pass. Nothing compared is not a pass."""
        if any(check.finding == "regressed" for check in self.checks):
            return "regressed"
        if self.problems or any(check.is_unknown for check in self.checks):
            return "could not measure"
        compared = any(check.finding in ("passed", "improved") for check in self.checks)
        return "pass" if compared or self.updated else "could not measure"

    @property
    def exit_code(self) -> int:
        """0 pass, 1 regressed, 3 could not measure."""
        return EXIT_CODES[self.outcome]

    def to_json(self) -> str:
        """For programs."""
        return json.dumps(
            {
                "schema": 1, "suite": self.suite, "outcome": self.outcome, "updated": self.updated,
                "problems": list(self.problems), "notes": list(self.notes),
                "checks": [
                    {
                        "metric": check.rule.metric, "case": check.case, "finding": check.finding,
                        "required": check.rule.required, "why": check.why, "before": check.before, "after": check.after,
                    }
                    for check in self.checks
                ],
            },
            indent=1, ensure_ascii=False, allow_nan=False,
        )  # fmt: skip

    def to_text(self) -> str:
        """For a terminal."""
        lines = [f"gate of {self.suite}: {self._headline()}"]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  {problem.replace('; hint: ', HINT)}" for problem in self.problems]
        width = max((len(MARKS[check.finding]) for check in self.checks), default=0)
        lines += [
            f"  {MARKS[check.finding]:<{width}}  {_name(check)}: {check.why}" for check in _worst_first(self.checks)
        ]
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """For a pull request."""
        lines = [f"### Gate `{self.suite}`: {self._headline()}", ""]
        lines += [f"- {_escaped(text)}" for text in (*self.problems, *self.notes)]
        if self.checks:
            lines += ["", "| | Metric | Case | What was found |", "|---|---|---|---|"]
            lines += [
                f"| {MARKS[check.finding]} | `{check.rule.metric}` | {_escaped(check.case)} | {_escaped(check.why)} |"
                for check in _worst_first(self.checks)
            ]
        return "\n".join(lines) + "\n"

    def to_junit(self) -> str:
        """JUnit XML: a regression is a failure, what could not be measured an error."""
        failures = sum(check.finding == "regressed" for check in self.checks)
        errors = len(self.problems) + sum(check.is_unknown for check in self.checks)
        if self.outcome == "could not measure" and not errors:
            errors = 1
        problems = self.problems or (("nothing was compared",) if errors == 1 and not self._unknown() else ())
        suite = ElementTree.Element(
            "testsuite", name=_clean(f"lmbench gate {self.suite}"), tests=str(len(self.checks) + len(problems)),
            failures=str(failures), errors=str(errors),
        )  # fmt: skip
        for problem in problems:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(self.suite), name="gate")
            ElementTree.SubElement(case, "error", message=_clean(problem))
        for check in self.checks:
            case = ElementTree.SubElement(suite, "testcase", classname=_clean(self.suite), name=_clean(_name(check)))
            tag = {"regressed": "failure", "could not measure": "error", "skipped": "skipped"}.get(check.finding)
            if tag == "error" and not check.rule.required:
                tag = "skipped"
            if tag:
                ElementTree.SubElement(case, tag, message=_clean(check.why))
        ElementTree.indent(suite)
        return '<?xml version="1.0" encoding="utf-8"?>\n' + ElementTree.tostring(suite, encoding="unicode") + "\n"

    def _unknown(self) -> bool:
        return any(check.is_unknown for check in self.checks)

    def _headline(self) -> str:
        if self.updated:
            return "baseline stored"
        counts = {finding: sum(check.finding == finding for check in self.checks) for finding in MARKS}
        told = ", ".join(f"{number} {finding}" for finding, number in counts.items() if number)
        outcome = "passed" if self.outcome == "pass" else self.outcome
        return f"{outcome} ({several(len(self.checks), 'check')}{': ' + told if told else ''})"


def _name(check: Check) -> str:
    return f"{check.rule.metric} of {check.case}" if check.case else check.rule.metric


def _worst_first(checks: tuple[Check, ...]) -> list[Check]:
    order: tuple[Finding, ...] = ("regressed", "could not measure", "improved", "passed", "skipped")
    return sorted(checks, key=lambda check: order.index(check.finding))


def _clean(text: str) -> str:
    return _NOT_XML.sub("?", text)


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text).replace("\n", " ")
