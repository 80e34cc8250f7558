"""Bits per byte, domain by domain."""

from __future__ import annotations

from bench.report.cells import loss_cell
from bench.report.runfolder import RunFolder, over_seeds
from bench.report.tree import Column, Paragraph, Row, Section, Table, words

PREFIX = "bits_per_byte/"


def section(study: RunFolder) -> Section | None:
    """One column a domain; None where only the total was measured."""
    domains = sorted(
        {
            name.removeprefix(PREFIX)
            for record in study.of("train")
            for name in record.metrics
            if name.startswith(PREFIX)
        }
    )
    if not domains:
        return None
    several = len(study.design.scales) > 1
    scale_column = (Column(key="scale", label="Scale", numeric=False),) if several else ()
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms:
            records = study.of("train", arm, scale, study.full_horizon())
            if not records:
                continue
            cells = [loss_cell(over_seeds(records, metric)) for metric in _metrics(domains)]
            scale_cell = [words(scale, code=True)] if several else []
            rows.append(Row(cells=(words(arm, code=True), *scale_cell, *cells), emphasis=arm == study.design.baseline))
    table = Table(
        id="domains",
        caption="Validation bits a byte of text (lower is better), mean and standard deviation over seeds.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *scale_column,
            Column(key="bits_per_byte", label="All"),
            *(Column(key=f"bits_per_byte_{domain}", label=domain) for domain in domains),
        ),
        rows=tuple(rows),
        sortable=True,
        wide=len(domains) > 5,
    )
    lead = Paragraph(
        text="An arm that wins on average can still lose on one kind of text. Bits a byte compare across tokenizers; "
        "losses a token do not.",
    )
    return Section(id="domains", title="Domain by domain", blocks=(lead, table))


def _metrics(domains: list[str]) -> list[str]:
    return ["bits_per_byte", *(PREFIX + domain for domain in domains)]
