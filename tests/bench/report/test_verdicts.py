"""Real verdicts of synthetic studies, on the page: what was judged is what is read."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from bench import api
from bench.report import terminal
from bench.report.files import to_csv, to_latex
from bench.report.html import render
from bench.report.markdown import render as markdown
from bench.report.page import compose
from bench.report.panels import Forest
from bench.report.runfolder import load
from bench.report.sections import savings
from bench.report.tree import Cell, Folded, Page, Table
from bench.verdict import judge
from tests.bench.synthetic import Planted, make_run

STUDIES: dict[str, dict[str, Any]] = {
    "clear saving": {"saving": 0.35, "seeds": 4, "items": 200, "noise": 0.003, "seed_noise": 0.003},
    "economical, no sensor": {"saving": 0.15, "layout": "economical", "energy": None, "items": 200},
    "one seed": {"seeds": 1, "items": 100},
    "never reached": {"saving": -0.6, "items": 0},
    "two scales": {"scales": ("s", "m"), "items": 100},
}


def judged(folder: Path, **planted: Any) -> tuple[Page, dict[str, Any]]:
    run = make_run(folder, **planted)
    verdict = judge(run)
    (run / "verdict.json").write_text(json.dumps(verdict))
    return compose(load(run)), verdict


@pytest.fixture
def without_pdf(monkeypatch: pytest.MonkeyPatch) -> None:
    """The PDF is the slow part of a report."""
    monkeypatch.setattr("bench.report.pdf.write", lambda _page, path: path.touch())


@pytest.mark.usefixtures("without_pdf")
def test_a_verdict_that_was_changed_is_not_reported(tmp_path: Path) -> None:
    run = make_run(tmp_path, **STUDIES["clear saving"])
    verdict, looks = api.judge(run), (run / "looks.jsonl").read_bytes()
    changed = {**verdict, "arms": {**verdict["arms"], "all": {**verdict["arms"]["all"], "why": "changed by hand"}}}
    (run / "verdict.json").write_text(json.dumps(changed))
    api.report(run)
    assert "hanged by hand" not in (run / "report.md").read_text()
    assert json.loads((run / "verdict.json").read_text()) == verdict
    assert (run / "looks.jsonl").read_bytes() == looks, "the same records are no other look"


@pytest.mark.usefixtures("without_pdf")
def test_a_report_judges_nothing_that_was_not_judged(tmp_path: Path) -> None:
    run = make_run(tmp_path, **STUDIES["clear saving"])
    api.report(run)
    assert not (run / "verdict.json").exists()
    assert not (run / "looks.jsonl").exists()


def table(page: Page, name: str) -> Table:
    return next(
        block for section in page.sections for block in section.blocks if isinstance(block, Table) and block.id == name
    )


def cell(found: Table, row: int, key: str) -> Cell:
    return found.rows[row].cells[[column.key for column in found.columns].index(key)]


@pytest.mark.parametrize("planted", list(STUDIES.values()), ids=list(STUDIES))
def test_the_page_says_what_the_verdict_says(tmp_path: Path, planted: dict[str, Any]) -> None:
    page, verdict = judged(tmp_path, **planted)
    (claim,) = page.claims
    assert claim.outcome == verdict["arms"]["all"]["outcome"]
    told = verdict["arms"]["all"]
    if len(told["scales"]) == 1:
        assert claim.why.lower().rstrip(".") == told["why"].lower().rstrip(".")
    else:  # each size by itself, in every form of the report
        assert [scale for scale, _ in claim.by_size] == list(told["scales"])
        for scale, why in claim.by_size:
            assert why.lower().rstrip(".") == told["scales"][scale]["why"].lower().rstrip(".")
            assert f"<dt>{scale}</dt>" in render(page)
            assert f"- `{scale}`: " in markdown(page)
            assert f"\n{scale}: " in terminal(tmp_path).replace("\n  ", "\n")
    text = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", render(page), flags=re.S)
    assert not re.search(r"\b(None|nan|NaN|inf|null)\b", text)
    assert max(map(len, terminal(tmp_path).splitlines())) <= 100


def test_an_estimate_keeps_its_bounds(tmp_path: Path) -> None:
    page, verdict = judged(tmp_path, **STUDIES["clear saving"])
    said = verdict["arms"]["all"]["scales"]["s"]["endpoints"]["flops"]
    shown = cell(table(page, "arms"), 4, "saving_at_equal_loss")
    assert (shown.value, [shown.low, shown.high]) == (said["saving_all_in"], said["bounds"])


def test_what_is_known_on_one_side_only_reads_as_a_bound(tmp_path: Path) -> None:
    page, verdict = judged(tmp_path, **STUDIES["never reached"])
    said = verdict["arms"]["all"]["scales"]["s"]["endpoints"]["flops"]
    assert said["saving_all_in"] is None
    shown = cell(table(page, "arms"), 4, "saving_at_equal_loss")
    assert shown.text.startswith("\u2264")
    assert shown.value is None
    assert shown.high == said["bounds"][1]
    assert shown.reason is None


def test_one_sided_estimates_are_drawn_open(tmp_path: Path) -> None:
    judged(tmp_path, **STUDIES["never reached"])
    section = savings.section(load(tmp_path))
    figure = next(block for block in section.blocks if hasattr(block, "panels"))
    row = next(row for row in figure.panels[0].rows if row.name == "all")  # type: ignore[union-attr]
    assert isinstance(figure.panels[0], Forest)  # type: ignore[union-attr]
    assert row.value is None
    assert row.low is None
    assert row.high is not None


def test_one_seed_shows_numbers_without_intervals(tmp_path: Path) -> None:
    page, _ = judged(tmp_path, **STUDIES["one seed"])
    assert page.headlines[0].cell.small == "no interval"


def test_conditions_are_listed_with_their_reasons(tmp_path: Path) -> None:
    page, verdict = judged(tmp_path, **STUDIES["clear saving"])
    said = verdict["arms"]["all"]["scales"]["s"]["conditions"]
    words = {True: "shown", False: "not shown", None: "not measured"}
    assert [one.value for one in page.claims[0].conditions] == [words[one["met"]] for one in said]
    certainty = next(section for section in page.sections if section.id == "certainty")
    assert any(isinstance(block, Table) and len(block.rows) == len(said) for block in certainty.blocks)


def test_the_ledger_names_who_pays(tmp_path: Path) -> None:
    page, _ = judged(tmp_path, **STUDIES["clear saving"])
    bill = table(page, "ledger")
    names = [row.cells[0].value for row in bill.rows]
    assert cell(bill, names.index("all"), "own_preparation_s").value == 9.0
    prepared = table(page, "prepared")
    payers = {str(row.cells[1].text): row.cells[-1].text for row in prepared.rows}
    assert payers["prepare all"] == "all"
    assert any(row.cells[-1].text == "nobody: all needed it" for row in prepared.rows)


def test_what_is_made_once_a_seed_is_billed_once_a_training(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, **STUDIES["clear saving"])
    run = load(tmp_path)
    ledger = verdict["arms"]["all"]["scales"]["s"]["ledger"]
    (own,) = ledger["charged"]
    teachers = run.of("train", run.design.baseline, "s", 1.0)
    assert len(teachers) == len(run.design.seeds) == 4
    ledger["charged"] += [{**own, "case": record.case.id, "label": "teacher", "time": 3.0} for record in teachers]
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    bill = table(compose(load(tmp_path)), "ledger")
    names = [row.cells[0].value for row in bill.rows]
    assert cell(bill, names.index("all"), "own_preparation_s").value == 9.0 + 3.0


def test_without_a_sensor_energy_is_nowhere_a_number(tmp_path: Path) -> None:
    page, _ = judged(tmp_path, **STUDIES["economical, no sensor"])
    arms = table(page, "arms")
    assert all(cell(arms, row, "energy_j").reason for row in range(len(arms.rows)))
    energy = next(one for one in page.headlines if one.label.startswith("Energy"))
    assert energy.cell.reason == "no RAPL in this VM"


def test_a_currency_of_which_nothing_is_known_is_a_note_for_readers_and_rows_for_programs(tmp_path: Path) -> None:
    page, _ = judged(tmp_path, **STUDIES["economical, no sensor"])
    saved = table(page, "savings-table")
    aside = [row for row in saved.rows if row.aside]
    assert {row.cells[1].text for row in aside} == {"joules"}, "FLOPs and seconds were measured"
    assert to_csv(saved).count(",joules,") == len(aside) == len(saved.rows) - len(saved.shown)
    (note,) = saved.notes
    assert note == "not measured in joules: clean, moe and all (no RAPL in this VM)"
    for text in (markdown(page), render(page), to_latex(saved)):
        assert note in text
        assert not re.search(r">\s*joules\s*<|\| joules \||& joules", text)


def test_domains_are_shown_with_their_changes_and_outcomes(tmp_path: Path) -> None:
    page, verdict = judged(tmp_path, **STUDIES["clear saving"])
    found = table(page, "domains-judged")
    arms = [row.cells[0].text for row in found.rows]
    said = verdict["arms"]["all"]["scales"]["s"]["domains"]["wiki"]
    shown = cell(found, arms.index("all"), "bits_per_byte_change_wiki")
    assert (shown.value, [shown.low, shown.high]) == (said["change"], said["bounds"])
    assert said["outcome"] == "BETTER"
    assert shown.small.endswith("] BETTER")


def test_a_claim_point_where_a_training_diverged_was_tested_and_says_so(tmp_path: Path) -> None:
    arms = (Planted("all", role="claim", saving=0.35, diverged=(1,)), Planted("moe", saving=-0.1))
    page, _ = judged(tmp_path, arms=arms, seeds=4, items=0)
    for difference, shown, why in (row.cells[3:] for row in table(page, "claim-point").rows):
        assert difference.text.startswith(("≥", "≤")) or difference.text == "any"
        assert shown.text in ("not shown", "–")
        assert "a training diverged" in why.text.lower()
    pays = {row.cells[0].text: row.cells[-1] for row in table(page, "ledger").rows}
    assert (pays["moe"].text, pays["moe"].small) == ("never", "training itself saves nothing")
    assert "diverged counts as one that never reached the loss" in table(page, "missing-cases").caption


def test_a_claim_refuted_beside_another_is_not_said_to_have_a_bound_at_the_claim_below_it(tmp_path: Path) -> None:
    """Holm's bound of what is rejected beside what is not is the claim itself."""
    arms = (Planted("all", role="claim", saving=0.35), Planted("worse", role="claim", saving=-0.05))
    _, verdict = judged(tmp_path, arms=arms, seeds=5, items=0, energy=None)
    found = verdict["arms"]["worse"]
    assert found["outcome"] == "REFUTED"
    assert found["scales"]["s"]["endpoints"]["flops"]["bounds_adjusted"][1] == pytest.approx(0.2)
    assert "upper bound" not in found["why"]
    assert found["why"].endswith("adjusted for several claims it is still below the claimed 20%")


def test_an_arm_that_changes_otherwise_at_each_size_is_told_at_each(tmp_path: Path) -> None:
    make_run(tmp_path, scales=("s", "m"), items=0)
    plan = json.loads((tmp_path / "plan.json").read_text())
    plan["arms"]["moe"]["s"]["change"] = "ffn.hidden: default -> 56; 88% of the FLOPs"
    plan["arms"]["moe"]["m"]["change"] = "model.width: 32 -> 24; ffn.hidden: default -> 152; 88% of the FLOPs"
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    shown = {row.cells[0].text: row.cells[3].text for row in table(compose(load(tmp_path)), "changes").rows}
    assert shown["moe"] == (
        "at s: ffn.hidden: default -> 56; at m: model.width: 32 -> 24; ffn.hidden: default -> 152; 88% of the FLOPs"
    )
    assert shown["all"] == plan["arms"]["all"]["s"]["change"]


def test_a_seed_of_a_tuning_trial_is_printed_as_a_whole_number(tmp_path: Path) -> None:
    page, _ = judged(tmp_path, items=0, tuned=True)
    blocks = (block for section in page.sections for block in section.blocks)
    folded = next(block for block in blocks if isinstance(block, Folded) and block.id == "records-fold")
    records = next(block for block in folded.blocks if isinstance(block, Table) and block.id == "records")
    seeds = {row.cells[4].text for row in records.rows}
    assert seeds <= {"–", "0", "1", "2", "1000000"}
    assert "1000000" in seeds


def test_a_size_that_nothing_could_be_carried_to_is_named(tmp_path: Path) -> None:
    _, verdict = judged(tmp_path, scales=("s", "m", "l"), seeds=1, items=0)
    asked = {"params": 1e9, "tokens": 2e10, "flops": 1.2e20}
    verdict["sizes"] |= {"targets": [asked]}
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    for row in table(compose(load(tmp_path)), "sizes-savings-table").rows:
        assert row.cells[2].reason is None
        assert "parameters and" in row.cells[2].text
