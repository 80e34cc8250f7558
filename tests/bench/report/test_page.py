"""The report of whole, partial and hostile run folders, in every form."""

from __future__ import annotations

import csv
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bench.record import Reading, append, read, to_line
from bench.report import build, figures, terminal
from bench.report.files import tables
from bench.report.html import render
from bench.report.page import compose
from bench.report.runfolder import load
from bench.report.sections import gaps
from bench.report.tree import Figure, Paragraph, Table
from bench.study import StudyError
from bench.verdict import judge
from tests.bench.report.study_folder import NO_RAPL, Folder, write
from tests.bench.report.test_experts import with_detail
from tests.bench.synthetic import Planted, make_run

EVIL = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> {{ 7*7 }} [x](javascript:alert(3)) "
    "| `y` \\input{/etc/passwd} $z$"
)
VOID = {"meta", "link", "br", "img", "input", "hr", "path", "circle", "rect", "use"}


class Reader(HTMLParser):
    """Checks nesting, and gathers ids, links, tags and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default study with its report, all forms but the slow PDF."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "weasyprint", None)
        folder = write(tmp_path_factory.mktemp("built"))
        build(folder)
    return folder


@pytest.fixture(scope="module")
def whole(built: Path) -> str:
    """Its HTML."""
    return (built / "report.html").read_text(encoding="utf-8")


def page(folder: Path, **what: object) -> str:
    return render(compose(load(write(folder, Folder(**what)))))  # type: ignore[arg-type]


def test_the_page_is_one_well_formed_file_without_network(whole: str) -> None:
    text = whole
    found = Reader(text)
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert {"main", "nav", "header", "footer", "table", "caption", "details", "svg"} <= set(found.tags)
    assert not re.search(r"(?:src|href)=\"(?!#)", text)
    assert "@import" not in text
    assert "url(http" not in text
    assert "<html lang=" in text


def test_every_link_leads_somewhere(whole: str) -> None:
    found = Reader(whole)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)


def test_every_finished_record_is_in_the_appendix(built: Path, whole: str) -> None:
    found = Reader(whole)
    ids = [record.case.id for record in load(built).records]
    assert {f"case-{one}" for one in ids} <= set(found.ids)


def test_the_answer_comes_first(whole: str) -> None:
    text = whole.partition("<main>")[2]
    hypothesis = text.index("at least 20% less training compute than")
    assert hypothesis < text.index("INCONCLUSIVE") < text.index("Five more seeds") < text.index("The arms side by side")


def test_numbers_name_their_records(built: Path, whole: str) -> None:
    study = load(built)
    first = study.of("train", "dense", "s", 1.0)[0].case.id
    assert re.search(rf'href="#case-{first}" title="From 3 records: {first}, ', whole)


def test_equal_input_gives_equal_bytes(built: Path, tmp_path: Path) -> None:
    figures.draw.cache_clear()
    again = write(tmp_path)
    names = [path.relative_to(again) for path in build(again)]
    for name in names:
        if name.suffix != ".pdf":
            assert (built / name).read_bytes() == (again / name).read_bytes(), name
    if "report.pdf" in map(str, names):
        assert (again / "report.pdf").read_bytes().startswith(b"%PDF-")


def test_every_file_the_page_names_is_there(built: Path) -> None:
    names = ("report.html", "report.md", "tables/arms.csv", "tables/arms.tex", "tables/readings.csv")
    assert all((built / name).stat().st_size > 0 for name in names)
    linked = re.findall(r"\]\((figures/[^)]+)\)", (built / "report.md").read_text(encoding="utf-8"))
    assert linked
    assert all((built / name).stat().st_size > 0 for name in linked)


def test_without_weasyprint_the_rest_is_written_and_the_message_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "weasyprint", None)
    (tmp_path / "report.pdf").write_text("of an earlier report")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "old.csv").write_text("of an earlier report")
    written = {path.name for path in build(write(tmp_path))}
    assert {"report.html", "report.md"} <= written
    assert "report.pdf" not in written
    assert not (tmp_path / "report.pdf").exists()
    assert not (tmp_path / "tables" / "old.csv").exists()
    said = capsys.readouterr().err
    assert "Pango" in said
    assert "hint:" in said


# --- hostile text --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reported study whose every free text is an attack."""
    folder = tmp_path_factory.mktemp("hostile")
    write(
        folder,
        Folder(
            about=EVIL,
            reason=EVIL,
            machine={"cpu": EVIL, EVIL: EVIL},
            domains=(EVIL, "b"),
            suite_text=f"about: {json.dumps(EVIL)}\n",
        ),
    )
    verdict = json.loads((folder / "verdict.json").read_text())
    for arm in verdict["arms"].values():
        arm["why"] = arm["next"] = arm["outcome"] = EVIL
    (folder / "verdict.json").write_text(json.dumps(verdict))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "weasyprint", None)
        build(folder)
    return folder


def test_no_text_of_a_suite_or_record_becomes_markup(hostile: Path) -> None:
    found = Reader((hostile / "report.html").read_text(encoding="utf-8"))
    assert found.open == []
    assert found.tags.count("script") == 1
    assert "img" not in found.tags
    assert not any(name.startswith("on") for name, _ in found.attributes)
    assert "alert(1)" in found.text
    assert "{{ 7*7 }}" in found.text


def test_no_text_becomes_markdown_or_html_in_it(hostile: Path) -> None:
    text = re.sub(r"```.*?```", "", (hostile / "report.md").read_text(), flags=re.S)
    text = re.sub(r"(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    assert "<script" not in text
    assert "<img" not in text
    assert "[x](javascript" not in text
    assert set(re.findall(r"<(/?\w+)", text)) <= {"sup", "/sup", "details", "/details", "summary", "/summary"}


def test_markdown_rows_keep_their_columns(hostile: Path) -> None:
    widths: list[int] = []
    for line in (hostile / "report.md").read_text().splitlines():
        if line.startswith("|"):
            bars = len(re.findall(r"(?<!\\)\|", line))
            if line.startswith("|-"):
                assert widths[-1] == bars
            elif widths:
                widths.append(bars)
            widths = widths or [bars]
        else:
            assert len(set(widths)) <= 1
            widths = []


def test_figures_hold_no_markup_from_names(hostile: Path) -> None:
    drawings = list((hostile / "figures").glob("*.svg"))
    assert drawings
    assert not any("<script" in path.read_text(encoding="utf-8") for path in drawings)


# --- missing readings ----------------------------------------------------------------------------


def test_a_missing_reading_says_so_with_its_reason_and_never_as_a_number(whole: str) -> None:
    text = re.sub(r"\s+", " ", Reader(whole).text)
    assert f"not measured: {NO_RAPL}" in text
    assert not re.search(r"\b(None|nan|NaN|inf|null)\b", text)


def test_csv_leaves_missing_values_empty_with_the_reason_beside(built: Path) -> None:
    rows = list(csv.DictReader((built / "tables" / "arms.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["arm"] for row in rows] == ["dense", "all", "moe", "fp32"]
    assert all(row["energy_j"] == "" for row in rows)
    assert rows[0]["energy_j_missing_because"] == NO_RAPL
    assert float(rows[1]["saving_at_equal_loss_low"]) == pytest.approx(0.10)
    assert float(rows[0]["train_flops_per_token"]) == pytest.approx(9.1e6)


def test_energy_is_drawn_where_it_was_measured(whole: str, tmp_path: Path) -> None:
    assert '<title id="loss-s-joules-alt">' not in whole
    assert '<title id="loss-s-joules-alt">' in page(tmp_path, energy=True)


# --- odd studies ---------------------------------------------------------------------------------

ODD = {
    "no arms": {"arms": ()},
    "one seed": {"seeds": (0,)},
    "not judged": {"judged": False},
    "nothing finished": {"keep": 0.0},
    "half finished": {"keep": 0.5},
    "two scales": {"scales": ("s", "m")},
    "no domains": {"domains": ()},
    "components only": {"arms": (("moe", "component"),)},
    "two claims": {"arms": (("all", "claim"), ("some", "claim"))},
    "long names": {"arms": tuple((f"{k}{'-very-long' * 6}", "claim" if k == 0 else "component") for k in range(3))},
    "twenty arms": {"arms": tuple((f"arm-{k:02}", "claim" if k == 0 else "component") for k in range(20))},
    "broken suite": {"suite_text": "about: [unclosed\n\tand: tabs"},
    "no machine": {"machine": {}},
}


@pytest.mark.parametrize("what", list(ODD.values()), ids=list(ODD))
def test_odd_studies_are_reported(tmp_path: Path, what: dict[str, object]) -> None:
    found = Reader(page(tmp_path, **what))
    assert found.open == []
    assert len(found.ids) == len(set(found.ids))
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert not re.search(r"\b(None|nan|NaN|inf|null)\b", found.text)
    for width in (200, 60, 40, 1):
        lines = terminal(tmp_path, width).splitlines()
        assert max(map(len, lines)) <= max(40, min(width, 100))


def test_what_was_not_run_is_listed(tmp_path: Path) -> None:
    text = Reader(page(tmp_path, keep=0.5)).text
    assert "without a result" in text
    assert "not run" in text


def test_a_failed_attempt_stays_listed_and_links_lead_to_the_last(tmp_path: Path) -> None:
    write(tmp_path)
    again = load(tmp_path).of("train", "all", "s", 1.0)[0]
    lines = (tmp_path / "records.jsonl").read_text().splitlines(keepends=True)
    failed = again.model_copy(update={"status": "failed", "reason": "killed: out of memory", "metrics": {}})
    second = again.model_copy(update={"attempt": 2})
    kept = [line for line in lines if again.case.id not in line]
    added = [to_line(one) + "\n" for one in (failed, second)]
    (tmp_path / "records.jsonl").write_text("".join(kept + added))
    found = Reader(render(compose(load(tmp_path))))
    assert {f"case-{again.case.id}", f"case-{again.case.id}-1"} <= set(found.ids)
    assert {link.removeprefix("#") for link in found.links} <= set(found.ids)
    assert "killed: out of memory" in found.text


def test_one_seed_is_warned_about(tmp_path: Path) -> None:
    assert "With one seed there is no spread to judge by" in page(tmp_path, seeds=(0,))


def test_a_study_that_was_not_judged_says_so_first(tmp_path: Path) -> None:
    text = page(tmp_path, judged=False).partition("<main>")[2]
    assert "NOT MEASURED" in text
    assert "The study has not been judged." in text
    assert text.index("The study has not been judged.") < text.index("The arms side by side")


@pytest.mark.parametrize("file", ["plan.json", "records.jsonl"])
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, file: str) -> None:
    write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(StudyError, match=r"hint:"):
        build(tmp_path)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "verdict.json").write_text("{")
    with pytest.raises(StudyError, match=r"verdict\.json: not JSON"):
        build(tmp_path)


def test_records_of_another_run_are_not_reported(tmp_path: Path) -> None:
    record = load(write(tmp_path)).records[0]
    stray = record.model_copy(update={"case": record.case.model_copy(update={"id": "0" * 16})})
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write(to_line(stray) + "\n")
    with pytest.raises(StudyError, match="another suite or run"):
        build(tmp_path)


@pytest.mark.parametrize("kept", [None, -1, 0])
def test_a_verdict_is_shown_for_the_records_it_was_drawn_from(tmp_path: Path, kept: int | None) -> None:
    records = load(write(tmp_path)).records
    look = {"time": "2026-01-01T00:00:00Z", "records": [record.sha256 for record in records], "outcomes": {}}
    (tmp_path / "looks.jsonl").write_text(json.dumps(look) + "\n")
    (tmp_path / "records.jsonl").write_text("".join(to_line(record) + "\n" for record in records[:kept]))
    found = load(tmp_path)
    assert (found.verdict is not None) == (kept is None)
    assert any("drawn from other records" in text for text in found.absent) == (kept is not None)
    assert render(compose(found))


def test_a_sign_that_differs_between_currencies_is_flagged(whole: str) -> None:
    assert "\u201call\u201d saves training FLOPs but costs more training time." in whole


def test_the_forms_agree(built: Path, whole: str) -> None:
    """The saving of the claim arm reads the same in HTML, Markdown and on the terminal."""
    assert "18.0%" in whole
    assert "18.0%" in (built / "report.md").read_text(encoding="utf-8")
    assert "18.0%" in terminal(built)


def test_every_table_has_a_cell_for_each_column(tmp_path: Path) -> None:
    for what in ODD.values():
        for table in tables(compose(load(write(tmp_path / str(len(list(tmp_path.iterdir()))), Folder(**what))))):  # type: ignore[arg-type]
            assert all(len(row.cells) == len(table.columns) for row in table.rows), table.id
            keys = [column.key for column in table.columns]
            assert len(keys) == len(set(keys)), table.id


def test_the_terminal_shows_no_control_characters(tmp_path: Path) -> None:
    write(tmp_path)
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    verdict["arms"]["all"]["why"] = "\x1b[31mred\x07 and\rback"
    (tmp_path / "verdict.json").write_text(json.dumps(verdict))
    assert all(letter.isprintable() or letter == "\n" for letter in terminal(tmp_path))


def test_the_grid_of_every_arm_is_shown_with_its_cost_and_its_warnings(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", items=0, tuned=True)
    verdict = judge(run)
    verdict["tuning"]["s"]["arms"]["moe"]["edges"] = {"lr": "highest"}
    (run / "verdict.json").write_text(json.dumps(verdict))
    page = compose(load(run))
    (section,) = (one for one in page.sections if one.id == "tuning")
    said = [block.text for block in section.blocks if isinstance(block, Paragraph)]
    assert said[1:] == [
        "The best learning rate of moe at scale s is the highest that was tried (0.002): the grid may be too narrow."
    ]
    chosen, grid = (block for block in section.blocks if isinstance(block, Table))
    assert {row.cells[0].text: row.cells[3].value for row in chosen.rows} == dict.fromkeys(
        ("dense", "clean", "moe", "all"), 0.002
    )
    assert len(grid.rows) == 4 * 3
    assert sum(row.cells[-1].text == "yes" for row in grid.rows) == 4
    (figure,) = (block for block in section.blocks if isinstance(block, Figure))
    assert figure.panels[0].missing is None
    assert "How hard each arm was tuned" in render(page)


def test_arms_that_chose_the_same_end_of_their_grid_are_told_at_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", items=0, tuned=True)
    verdict = judge(run)

    def told(*arms: str) -> list[str]:
        for arm in arms:
            verdict["tuning"]["s"]["arms"][arm]["edges"] = {"lr": "lowest"}
        (run / "verdict.json").write_text(json.dumps(verdict))
        (section,) = (one for one in compose(load(run)).sections if one.id == "tuning")
        return [block.text for block in section.blocks if isinstance(block, Paragraph)][1:]

    end = "at scale s is the lowest that was tried (0.002): the grid may be too narrow."
    assert told("dense", "moe") == [f"The best learning rate of dense and moe {end}"]
    assert told("clean", "all") == [f"The best learning rate of all 4 arms {end}"]


def test_a_study_without_trials_has_no_section_on_them(tmp_path: Path) -> None:
    page = compose(load(write(tmp_path)))
    assert not [one for one in page.sections if one.id == "tuning"]


def test_an_arm_that_was_not_timed_says_why(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", arms=[Planted("part", saving=0.1)], items=0, layout="economical")
    plan = json.loads((folder / "plan.json").read_text())
    untimed = {case["id"] for case in plan["cases"] if case["kind"] == "timing"}
    plan["cases"] = [case for case in plan["cases"] if case["id"] not in untimed]
    (folder / "plan.json").write_text(json.dumps(plan))
    lines = (folder / "records.jsonl").read_text().splitlines(keepends=True)
    (folder / "records.jsonl").write_text("".join(one for one in lines if not any(case in one for case in untimed)))
    (folder / "verdict.json").write_text(json.dumps(judge(folder)))
    assert "no timing case was planned" in terminal(folder)


def test_an_arm_whose_compiler_failed_is_named_with_the_reason(tmp_path: Path) -> None:
    detail = {"compiled": {"is": False, "reason": "BackendCompilerFailed: no ptxas"}}
    (first, *_) = gaps.section(load(with_detail(tmp_path, detail))).blocks
    assert first.text.startswith("Not compiled: moe (BackendCompilerFailed: no ptxas).")
    elsewhere = with_detail(tmp_path / "cpu", {"compiled": {"is": False, "reason": None}})
    assert not any("Not compiled" in getattr(block, "text", "") for block in gaps.section(load(elsewhere)).blocks)


def test_readings_missing_alike_but_for_a_number_are_told_once(tmp_path: Path) -> None:
    run = write(tmp_path)
    path = run / "records.jsonl"
    records = read(path)
    path.unlink()
    for number, record in enumerate(records):
        short = Reading(value=None, unit="J", reason=f"window of 0.{number + 1} s is shorter than 1 s")
        append(path, record.model_copy(update={"metrics": {**record.metrics, "energy_j": short}}))
    (missing, *_) = gaps.section(load(run)).blocks
    (row,) = [row for row in missing.rows if row.cells[0].text == "energy_j"]
    assert (row.cells[1].text, row.cells[1].small) == (
        "window of 0.1 s is shorter than 1 s",
        "and alike with other numbers",
    )
    assert row.cells[3].value == len(records)


def test_ways_of_decoding_without_a_reading_are_listed_as_they_ran(tmp_path: Path) -> None:
    run = load(write(tmp_path))
    first = run.records[0]
    short = {"decode_j_per_token": Reading(value=None, unit="J/token", reason="no RAPL in this VM")}
    ways = ["plain", "exit", "int8", "drafted", "lookup", "again", "self-drafted", "both"]
    records = tuple(
        first.model_copy(update={"case": first.case.model_copy(update={"arm": way}), "metrics": short}) for way in ways
    )
    (missing, *_) = gaps.section(replace(run, records=records)).blocks
    assert missing.rows[0].cells[2].text == "plain, exit, int8, drafted, lookup, again, self-drafted and both"


def test_a_study_of_timing_arms_alone_has_an_answer(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", arms=[Planted("fp32", role="timing", step_ratio=1.8)], items=0)
    (folder / "verdict.json").write_text(json.dumps(judge(folder)))
    text = terminal(folder)
    assert "COSTS: fp32. It costs more than it saves. A token takes" in text


def test_what_is_not_measured_is_not_said_twice(tmp_path: Path) -> None:
    """`not measured` stands beside the reason, so the reason does not begin with it."""
    folder = make_run(tmp_path / "run", items=0)
    (folder / "verdict.json").write_text(json.dumps(judge(folder)))
    shown = render(compose(load(folder)))
    assert "accuracy was not measured" in terminal(folder)  # within the claim's sentence it is said
    assert "not measured: accuracy was not measured" not in shown


def test_names_in_tables_break_on_a_telephone(whole: str) -> None:
    """A name that may not break made its table wider than the screen, and the table's own caption was cut."""
    (rule,) = re.findall(r"@media screen and \(max-width: 34rem\) \{(.*)\}\n", whole)
    assert "table code" in rule
    assert "white-space: normal" in rule
