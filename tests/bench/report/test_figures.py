"""Plots: labels apart, ids of their own, text harmless, equal bytes for equal input."""

from __future__ import annotations

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from bench.report import axes, figures, labels, painters
from bench.report.panels import Curves, Dots, Estimate, Forest, Mark, Panel, Series

EVIL = '<script>1</script> "$x_1$" &'


def curves(names: tuple[str, ...] = ("dense", "moe")) -> Curves:
    series = tuple(
        Series(name=name, style=k, ends=((1e13 * (1 + k), 4.0 + 0.001 * k), (2e13, 3.9)),
               means=((1e13, 4.0), (2e13, 3.9)), curves=(((1e12, 6.0), (1e13, 4.0)),))
        for k, name in enumerate(names)
    )  # fmt: skip
    return Curves(id="c", title="t", x_label="x", y_label="y", unit="FLOP", series=series, alt="described")


def forest(name: str = "all") -> Forest:
    rows = (
        Estimate(name=name, text="18%", style=1, value=18.0, low=10.0, high=25.0),
        Estimate(name="open", text="5%", style=2, value=5.0, low=None, high=None),
        Estimate(name="none", text="", style=3, value=None, low=None, high=None, reason="no sensor"),
    )
    marks = (Mark(value=0.0, label="0", kind="zero"), Mark(value=20.0, label="claim 20", kind="limit"))
    return Forest(id="f", title="t", x_label="x", rows=rows, marks=marks, alt="described")


def dots() -> Dots:
    rows = (("quartz", 50.0, (("dense", 0, 52.0), ("all", 1, 53.0))), ("unknown chance", None, (("dense", 0, 40.0),)))
    return Dots(id="d", title="t", x_label="x", rows=rows, alt="described")


@pytest.mark.parametrize("panel", [curves(), forest(), dots()], ids=lambda panel: type(panel).__name__)
@pytest.mark.parametrize("themed", [True, False])
def test_panels_are_well_formed_described_and_equal_for_equal_input(panel: Panel, themed: bool) -> None:
    drawing = figures.draw(panel, themed=themed, text=themed)
    figures.draw.cache_clear()
    assert drawing == figures.draw(panel, themed=themed, text=themed)
    root = ElementTree.fromstring(drawing)
    assert root.attrib["role"] == "img"
    assert root[0].tag.endswith("title")
    assert root[0].text == "described"
    assert "<style" not in drawing
    assert "DejaVu" not in drawing or not themed


@pytest.mark.parametrize("panel", [curves(), forest(), dots()], ids=lambda panel: type(panel).__name__)
def test_every_id_and_reference_is_the_panels_own(panel: Panel) -> None:
    drawing = figures.draw(panel, themed=True, text=True)
    ids = re.findall(r'\bid="([^"]+)"', drawing)
    assert len(ids) == len(set(ids))
    assert all(one.startswith(panel.id + "-") for one in ids)
    references = re.findall(r'(?:url\(#|href="#)([^")]+)', drawing)
    assert set(references) <= set(ids)


def test_only_themed_drawings_follow_the_colour_scheme() -> None:
    assert "var(--ink)" in figures.draw(forest(), themed=True, text=True)
    assert not re.search(r"#[0-9a-f]{6}", figures.draw(forest(), themed=True, text=True))
    assert "var(" not in figures.draw(forest(), themed=False, text=False)


def test_names_are_text_and_never_markup_or_mathematics() -> None:
    drawing = figures.draw(forest(EVIL), themed=True, text=True)
    assert "<script" not in drawing
    assert "$x" in "".join(ElementTree.fromstring(drawing).itertext())


def test_twenty_labels_do_not_overlap() -> None:
    drawing = figures.draw(curves(tuple(f"arm-{k:02}" for k in range(20))), themed=True, text=True)
    places = sorted(float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>arm-', drawing))
    assert len(places) == 20
    assert min(b - a for a, b in pairwise(places)) > 9.5


def test_a_far_bound_does_not_press_estimates_flat() -> None:
    """A row known on one side only, hundreds of percent away, is an arrow at the edge; others keep their scale."""
    near = Estimate(name="near", text="20%", style=1, value=20.0, low=10.0, high=30.0)
    far = Estimate(name="far", text="\u2265 \u2212308%", style=1, value=None, low=-308.0, high=None)
    marks = (Mark(value=0.0, label="0", kind="zero"),)
    panel = Forest(id="f", title="t", x_label="x", rows=(far, near), marks=marks, alt="a")
    low, high = painters._forest_limits(panel)
    assert -60 < low < 0 < 30 < high < 60
    alone = Forest(id="f", title="t", x_label="x", rows=(far,), marks=marks, alt="a")
    assert painters._forest_limits(alone)[0] < -308
    assert figures.draw(panel, themed=False, text=True)


def test_spread_keeps_the_order_and_the_gap_and_stays_near() -> None:
    assert labels.spread([5.0, 50.0], 10, 0, 100) == [5.0, 50.0]
    assert labels.spread([50.0, 50.0, 50.0], 10, 0, 100) == [40.0, 50.0, 60.0]
    assert labels.spread([52.0, 50.0], 10, 0, 100) == [56.0, 46.0]
    assert labels.spread([99.0, 98.0], 10, 0, 100) == [100.0, 90.0]
    assert labels.spread([], 10, 0, 100) == []


def test_a_narrow_label_is_not_pushed_as_far_as_a_wide_one() -> None:
    """`0`, `claim 20`, `target 30`: the wide pair is parted, and the zero stays over its line."""
    assert labels.spread([0.0, 50.0, 60.0], [25, 50], 0, 200) == [0.0, 30.0, 80.0]
    assert labels.spread([0.0, 50.0, 60.0], 50, 0, 200) == [0.0, 50.0, 100.0]


def test_long_names_keep_both_ends() -> None:
    assert labels.shorten("clean", 13) == "clean"
    short = labels.shorten("clean-and-moe-and-bf16-v2", 13)
    assert len(short) == 13
    assert short.startswith("clean-")
    assert short.endswith("6-v2")


def test_wide_letters_leave_room_for_fewer():
    """In a narrow window what is wider than its place is cut off at the right."""
    assert labels.shorten("without-int8", 13) == "w/o int8"
    assert labels.shorten("without-length_warmup", 13) == "w/o length_…"
    assert labels.shorten("without-length_warmup", 28) == "without-length_warmup"
    assert labels.shorten("m" * 8, 13) == "m" * 8
    wide = labels.shorten("mmmmmm-wwwwww", 13)
    assert wide == "mmmm…wwww"
    assert labels.shorten("m" * 9, 13) == "mmmm…mmmm"
    assert labels.shorten("iiiiii-llllll", 13) == "iiiiii-llllll"


def test_the_same_arm_number_gives_the_same_mark_and_neighbours_differ() -> None:
    looks = [(axes.colour(k), axes.marker(k)) for k in range(20)]
    assert len(set(looks)) == 20


def test_one_point_one_curve_and_equal_costs_are_drawn() -> None:
    alone = Series(name="dense", style=0, ends=((1e13, 4.0),), means=((1e13, 4.0),))
    panel = Curves(id="c", title="t", x_label="x", y_label="y", unit="J", series=(alone,), alt="a")
    ElementTree.fromstring(figures.draw(panel, themed=False, text=False))


def test_an_exploded_arm_does_not_press_the_others_flat() -> None:
    calm = Series(name="dense", style=0, ends=((1e13, 4.0), (2e13, 3.8)), means=((1e13, 4.0), (2e13, 3.8)))
    wild = Series(name="hot", style=1, ends=((2e13, 40_000.0),), means=((2e13, 40_000.0),))
    panel = Curves(id="c", title="t", x_label="x", y_label="y", unit="J", series=(calm, wild), alt="a")
    assert (panel.range, panel.beyond) == ((3.8, 4.0), ("hot",))
    drawing = figures.draw(panel, themed=False, text=True)
    assert "hot \u2191" in drawing
    assert "e+0" not in drawing  # no tick of thousands
    assert curves().beyond == ()


def test_paths_are_written_short_and_mean_the_same():
    marker = "M 1.52 2.00 L 3.00 -4.50 L 5 6 z M 0.004 0 L 1 10.0 Q 1 2 3 4 L 2 2 L 3 3.10 "
    assert figures._short_path(marker) == "M1.52 2L3-4.5 5 6zM0.004 0L1 10Q1 2 3 4L2 2 3 3.1"
    curve = "M 0 0.06 " + "L 10.04 -100.96 " * 20
    assert figures._short_path(curve) == "M0 0.1L" + " ".join(["10-101"] * 20)


def test_letters_drawn_as_outlines_keep_their_size():
    """matplotlib draws them 64 times as large and scales by 1/64."""
    assert figures._compact('<path d="M 1 1" transform="scale(0.015625)"/>').endswith('transform="scale(0.015625)"/>')
    moved = '<g transform="translate(12.345678 9.876543) scale(0.0825 -0.0825)"/>'
    assert figures._compact(f"<g>{moved}</g>").count("translate(12.34 9.87) scale(0.0825 -0.0825)") == 1
