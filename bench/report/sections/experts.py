"""What the routers of sparse arms did: how even the load was, what was dropped, how sure the choice."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean

from bench.record import Record
from bench.report import numbers
from bench.report.runfolder import RunFolder, mapping, number
from bench.report.tree import Cell, Column, Paragraph, Row, Section, Table, absent, words

COLUMNS = (
    Column(key="params_total", label="Parameters", hint="All experts."),
    Column(key="params_active", label="Active", hint="Those that one token's forward pass reads."),
    Column(key="load_max", label="Largest load", hint="The busiest expert of any layer over an even share."),
    Column(key="load_min", label="Smallest load", hint="The idlest expert of any layer over an even share."),
    Column(key="drop_rate", label="Dropped", hint="Share of slots that found their expert full, mean over layers."),
    Column(key="router_entropy_nats", label="Entropy", hint="Of the router's probabilities, nats a token."),
)


def section(study: RunFolder) -> Section | None:
    """One row a sparse arm and scale; None where no arm has a router."""
    several = len(study.design.scales) > 1
    rows: list[Row] = []
    for scale in study.design.scales:
        for arm in study.arms:
            records = [one for one in study.of("train", arm, scale, study.full_horizon()) if _layers(one)]
            if records:
                scale_cell = [words(scale, code=True)] if several else []
                rows.append(Row(cells=(words(arm, code=True), *scale_cell, *_cells(study, arm, scale, records))))
    if not rows:
        return None
    table = Table(
        id="experts",
        caption="Sparse arms in the last step of training, mean over seeds.",
        columns=(
            Column(key="arm", label="Arm", numeric=False),
            *((Column(key="scale", label="Scale", numeric=False),) if several else ()),
            *COLUMNS,
        ),
        rows=tuple(rows),
    )
    lead = Paragraph(
        text="A load of 1 is an even share of the slots. An expert far below it learns little, one far above it is "
        "what the others wait for, and with a capacity what it cannot take is dropped."
    )
    return Section(id="experts", title="Experts and routers", blocks=(lead, table))


def _layers(record: Record) -> list[dict[str, float]]:
    """What each layer's router said of itself, by name; empty for a dense model."""
    layers: dict[str, dict[str, float]] = defaultdict(dict)
    for key, value in mapping(record.detail.get("router")).items():
        layer, _, name = key.partition("/")
        known = number(value)
        if known is not None:
            layers[layer][name] = known
    return list(layers.values())


def _cells(study: RunFolder, arm: str, scale: str, records: Sequence[Record]) -> list[Cell]:
    planned, sources = study.planned(arm, scale), tuple(record.case.id for record in records)
    layers = [_layers(record) for record in records]
    found = {
        "load_max": _over(max(_loads(one), default=None) for one in layers),
        "load_min": _over(min(_loads(one), default=None) for one in layers),
        "drop_rate": _over(_mean(one, "drop_rate") for one in layers),
        "router_entropy_nats": _over(_mean(one, "router_entropy") for one in layers),
    }
    return [
        *(_count(number(planned.get(key))) for key in ("params_total", "params_active")),
        _ratio(found["load_max"], sources),
        _ratio(found["load_min"], sources),
        _share(found["drop_rate"], sources),
        _ratio(found["router_entropy_nats"], sources),
    ]


def _loads(layers: Iterable[dict[str, float]]) -> list[float]:
    """Every expert's load over an even share, all layers."""
    found: list[float] = []
    for layer in layers:
        shares = [value for name, value in layer.items() if name.startswith("load/")]
        found += [share * len(shares) for share in shares]
    return found


def _mean(layers: Iterable[dict[str, float]], name: str) -> float | None:
    return _over(layer.get(name) for layer in layers)


def _over(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _count(value: float | None) -> Cell:
    return absent("the plan does not say") if value is None else Cell(text=numbers.si(value, ""), value=value)


def _ratio(value: float | None, sources: tuple[str, ...]) -> Cell:
    if value is None:
        return absent("its records do not hold it")
    return Cell(text=numbers.fixed(value, 2), value=value, sources=sources)


def _share(value: float | None, sources: tuple[str, ...]) -> Cell:
    if value is None:
        return absent("its records do not hold it")
    return Cell(text=numbers.percent(value, decimals=1), value=value, sources=sources)
