"""Publishing a study: what goes along, what stays behind, what is refused."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from bench.record import RecordError, read
from bench.report import publication, publish
from bench.report.publication import PublishError
from bench.report.runfolder import load
from tests.bench.report.study_folder import write


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a report, and with things that must stay behind."""
    folder = write(tmp_path / "run")
    (folder / "tables").mkdir()
    for name in ("report.html", "report.md", "tables/arms.csv"):
        (folder / name).write_text(f"this is {name}")
    case = folder / "cases" / "0123456789abcdef"
    case.mkdir(parents=True)
    (case / "items.parquet").write_bytes(b"items")
    (case / "log").write_text("chatter")
    (case / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_study_and_its_report_are_copied_without_anything_large(run: Path, tmp_path: Path) -> None:
    copies = publish(run, "first", tmp_path / "root")
    names = {str(copy.relative_to(tmp_path / "root")) for copy in copies}
    study, shown = "results/reference/first", "reports/first"
    assert {f"{study}/records.jsonl", f"{study}/plan.json", f"{study}/suite.yaml", f"{study}/verdict.json",
            f"{study}/environment.json", f"{study}/cases/0123456789abcdef/items.parquet",
            f"{shown}/report.html", f"{shown}/report.md"} <= names  # fmt: skip
    assert not any(name.endswith((".svg", ".csv")) for name in names), "they can be written again from the records"
    assert not any("log" in name.rsplit("/", 1)[-1] or name.endswith(".safetensors") for name in names)
    assert all(copy.read_bytes() for copy in copies)


def test_a_published_study_can_be_published_again_from_where_it_lies(run: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    publish(run, "first", root)
    there = root / "results" / "reference" / "first"
    for name in ("report.html", "report.md", "report.pdf"):
        (there / name).write_text("drawn again")
    before = (there / "records.jsonl").read_bytes()
    publish(there, "first", root)
    assert (there / "records.jsonl").read_bytes() == before
    assert (root / "reports" / "first" / "report.pdf").read_text() == "drawn again"
    assert not list((root / "reports").glob(".*"))


def test_large_records_are_packed_and_read_as_before(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "PACKED_ABOVE_BYTES", 100)
    root = tmp_path / "root"
    there = root / "results" / "reference" / "first"
    for source in (run, there):  # packed, then published again from where it lies
        for name in ("report.html", "report.md", "report.pdf"):
            (source / name).write_text("drawn")
        publish(source, "first", root)
        assert not (there / "records.jsonl").exists()
        assert (there / "records.jsonl.xz").stat().st_size < (run / "records.jsonl").stat().st_size
        assert read(there / "records.jsonl") == read(run / "records.jsonl")
        assert load(there).records == load(run).records


def test_packed_records_that_are_damaged_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl.xz").write_bytes(lzma.compress(b"{}\n")[:-9])
    with pytest.raises(RecordError, match=r"records\.jsonl\.xz: cannot be unpacked .*hint"):
        read(tmp_path / "records.jsonl")


def test_publishing_again_replaces_what_was_there(run: Path, tmp_path: Path) -> None:
    publish(run, "first", tmp_path / "root")
    stale = tmp_path / "root" / "reports" / "first" / "stale.csv"
    stale.write_text("old")
    publish(run, "first", tmp_path / "root")
    assert not stale.exists()


def test_too_much_is_refused_before_anything_is_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publication, "MAX_TOTAL_BYTES", 1000)
    with pytest.raises(PublishError, match=r"in all.*hint:"):
        publish(run, "first", tmp_path / "root")
    assert not (tmp_path / "root").exists()


def test_the_pdf_stays_behind_where_it_alone_is_too_much(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = sum(copy.stat().st_size for copy in publish(run, "first", tmp_path / "root"))
    (run / "report.pdf").write_bytes(b"x" * 1000)
    with_it = publish(run, "first", tmp_path / "root")
    assert any(copy.name == "report.pdf" for copy in with_it)
    assert publication.left_out(run, with_it) is None
    monkeypatch.setattr(publication, "MAX_TOTAL_BYTES", without + 999)
    copies = publish(run, "first", tmp_path / "root")
    assert not any(copy.name == "report.pdf" for copy in copies)
    assert "report.pdf was left out" in str(publication.left_out(run, copies))


def test_a_figure_of_the_markdown_is_told_in_words(run: Path, tmp_path: Path) -> None:
    (run / "report.md").write_text("# A\n\n![Loss: dense \\[3.1\\] (nats).](figures/loss.svg)\n\nText.\n")
    publish(run, "first", tmp_path)
    shown = (tmp_path / "reports" / "first" / "report.md").read_text()
    assert shown == "# A\n\n*Figure: Loss: dense \\[3.1\\] (nats).*\n\nText.\n"


def test_other_published_studies_count_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    total = sum(copy.stat().st_size for copy in publish(run, "first", tmp_path / "root"))
    monkeypatch.setattr(publication, "MAX_TOTAL_BYTES", int(1.5 * total))
    publish(run, "first", tmp_path / "root")  # replaces itself
    with pytest.raises(PublishError, match="are there already"):
        publish(run, "second", tmp_path / "root")


def test_large_item_tables_stay_behind(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publication, "MAX_ITEMS_BYTES", 2)
    assert not any(copy.suffix == ".parquet" for copy in publish(run, "first", tmp_path / "root"))


@pytest.mark.parametrize("name", ["", "../escape", "a/b", "Upper", ".hidden", "x" * 65])
def test_only_plain_names_are_taken(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(PublishError, match="is no name"):
        publish(run, name, tmp_path / "root")


def test_a_run_without_a_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishError, match=r"report\.html"):
        publish(write(tmp_path / "run"), "first", tmp_path / "root")
