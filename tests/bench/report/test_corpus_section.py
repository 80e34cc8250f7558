"""What the report says of the training text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.report import numbers
from bench.report.runfolder import RunFolder, load
from bench.report.sections import corpus
from bench.report.tree import Paragraph, Table
from tests.bench.report.study_folder import write

CLEANED = {
    "sets": {"quiz": {"texts": 40, "cuts": 7, "documents_cut": 5, "documents_dropped": 1}},
    "missing": {"hub:piqa": "no network"},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return load(write(tmp_path_factory.mktemp("study")))


def _with(study: RunFolder, **detail: Any) -> RunFolder:
    (first,) = study.of("prepare")
    facts = {"documents_in": 1200, "documents_out": 1000, "bytes_out": 5_000_000, "dropped": {"near_duplicate": 2000}}
    return replace(study, records=(first.model_copy(update={"detail": facts | detail}),))


def test_what_was_kept_and_dropped(study: RunFolder) -> None:
    section = corpus.section(_with(study, stage="shards", tokens=1_300_000))
    assert section is not None
    (table,) = section.blocks
    assert isinstance(table, Table)
    assert [numbers.plain(cell.text) for cell in table.rows[0].cells] == [
        "shards", "dense", "1 200", "1 000", "5 000 000", "1 300 000", "2 000 near_duplicate",
    ]  # fmt: skip


def test_what_is_left_out_of_a_validation_set_is_told_apart(study: RunFolder) -> None:
    dropped = {"duplicates_validation": 200, "repeats_validation": 11}
    section = corpus.section(_with(study, stage="corpus", dropped=dropped))
    assert section is not None
    table = section.blocks[0]
    assert isinstance(table, Table)
    cell = table.rows[0].cells[-1]
    assert cell.text == "200 duplicates_validation"
    assert cell.small == "beside them 11 repeats_validation"


def test_what_was_cut_for_which_set_and_what_was_not_compared(study: RunFolder) -> None:
    section = corpus.section(_with(study, stage="corpus", decontamination=CLEANED))
    assert section is not None
    kept, cuts, warning = section.blocks
    assert isinstance(kept, Table)
    assert kept.rows[0].cells[1].text == "all arms"
    assert kept.rows[0].cells[5].reason == "nothing is tokenised at this stage"
    assert isinstance(cuts, Table)
    assert [cell.text for cell in cuts.rows[0].cells] == ["quiz", "40", "7", "5", "1"]
    assert isinstance(warning, Paragraph)
    assert warning.text == "Not compared with hub:piqa: no network"


def test_that_it_is_switched_off_is_said(study: RunFolder) -> None:
    section = corpus.section(_with(study, stage="corpus", decontamination=None))
    assert section is not None
    warning = section.blocks[1]
    assert isinstance(warning, Paragraph)
    assert warning.kind == "warning"
    assert "switched off" in warning.text


def test_records_of_older_versions_have_no_section(study: RunFolder) -> None:
    assert corpus.section(study) is None


def test_the_page_holds_it(study: RunFolder) -> None:
    from bench.report.page import compose

    page = compose(_with(study, stage="corpus", decontamination=CLEANED))
    assert "text" in [section.id for section in page.sections]


@pytest.mark.parametrize(("held", "kind", "said"), [(6_500, "warning", "9.2 times"), (600_000, "plain", "0.10 times")])
def test_how_often_the_text_was_read(study: RunFolder, held: int, kind: str, said: str) -> None:
    (text,), (train, *_) = study.of("prepare"), study.of("train", "all")
    records = (
        text.model_copy(update={"detail": {"stage": "shards", "documents_in": 9, "tokens": held}}),
        train.model_copy(update={"detail": {"tokens": 60_000}}),
    )
    cases = [{"id": train.case.id, "parents": [text.case.id]}]
    section = corpus.section(replace(study, records=records, plan={**study.plan, "cases": cases}))
    assert section is not None
    passes = section.blocks[1]
    assert isinstance(passes, Paragraph)
    assert (passes.kind, said in passes.text, "Muennighoff" in passes.text) == (kind, True, kind == "warning")
