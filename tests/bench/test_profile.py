"""A profile: FLOPs and bytes by operator, time where it belongs, limits, files, and its place in the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import DeviceType

from bench import calibrate, operators, timeline
from bench.cli import main
from bench.operators import Operator, Work
from bench.profile import QUIET, ProfileError, _operator_table, profile
from bench.report import figures
from bench.report.runfolder import load
from bench.report.sections import profiles
from bench.report.tree import Facts, Figure, Paragraph, Table
from lmopt.arch import fused
from lmopt.compute import numa, topology
from lmopt.compute.topology import Node
from tests.bench.report.study_folder import write
from tests.bench.test_calibrate import example

SUITE = """\
suite: quickstart
about: Tiny.
data: {corpus: ["pypi:evals==3.0.1.post1"], tokenizer: {vocab: 300}}
baseline: {name: dense, recipe: {batching: {sequences: 2, length: 32}}}
arms:
  - {name: spread, change: {placement: {kind: interleaved}}}
  - {name: warm, change: {batching: {kind: length_warmup, sequences: 2, length: 32, start: 16}}}
over:
  scale: [{name: xs, layers: 1, width: 32, heads: 2, tokens: 10k, context: 32}]
  seed: [0]
"""


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(calibrate, "calibrate", lambda: example("0123456789"))
    path = tmp_path / "s.yaml"
    path.write_text(SUITE)
    return path


def test_work_of_a_step_by_hand() -> None:
    a, b = torch.ones(16, 32), torch.ones(32, 8)
    work = operators.work_of(lambda: torch.mm(a, b).t().relu_())
    assert work["aten::mm"] == Work(2 * 16 * 32 * 8, 4 * (16 * 32 + 32 * 8 + 16 * 8))
    assert work["aten::relu_"] == Work(0.0, 4 * 16 * 8)  # in place: one tensor
    assert "aten::t" not in work or work["aten::t"].bytes == 0  # a view moves nothing


def test_time_inside_our_operators_is_theirs() -> None:
    ours = event("lmopt::causal_attention", 1.0)
    inner = event("aten::bmm", 4.0, ours)
    deeper = event("aten::copy_", 2.0, inner)
    events = [ours, inner, deeper, event("aten::bmm", 5.0)]
    found = operators.operators(events, {"aten::bmm": Work(10.0, 20.0)}, steps=1)
    assert [(one.name, one.calls, round(1e6 * one.seconds, 6)) for one in found] == [
        ("lmopt::causal_attention", 1, 7.0),
        ("aten::bmm", 1, 5.0),
    ]
    assert found[1].flops == 10.0


def event(name: str, self_us: float, parent: Any = None) -> Any:
    return SimpleNamespace(
        name=name, self_cpu_time_total=self_us, self_device_time_total=0.0, cpu_parent=parent,
        device_type=DeviceType.CPU,
    )  # fmt: skip


def test_time_of_a_device_is_its_kernels_once() -> None:
    product, wait = event("aten::mm", 3.0), event("cudaDeviceSynchronize", 900.0)
    product.self_device_time_total = 40.0
    kernel = event("sm90_gemm", 0.0)
    kernel.device_type, kernel.self_device_time_total = DeviceType.CUDA, 40.0
    (found,) = operators.operators([product, wait, kernel], {}, steps=1)
    assert (found.name, found.calls, round(1e6 * found.seconds, 6)) == ("aten::mm", 1, 40.0)


def test_memory_over_time_is_the_device_s_where_there_is_one(tmp_path: Path) -> None:
    events = [
        {"name": "[memory]", "ts": 10.0 + n, "args": {"Bytes": size, "Device Type": kind}}
        for n, (size, kind) in enumerate([(10**9, 0), (512, 1), (256, 1), (-(10**9), 0)])
    ]
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": events}))
    assert [size for _, size in timeline.memory_timeline(tmp_path / "t.json")] == [512, 768]


def test_the_roof_is_the_slower_of_products_and_memory() -> None:
    product = Operator("aten::mm", 1, 1.0, flops=100.0, bytes=1.0)
    copy = Operator("aten::copy_", 1, 1.0, flops=0.0, bytes=6.0)
    assert (product.roof_s(200.0, 12.0), product.is_bound_by_products(200.0, 12.0)) == (0.5, True)
    assert (copy.roof_s(200.0, 12.0), copy.is_bound_by_products(200.0, 12.0)) == (0.5, False)


def test_memory_over_time_keeps_the_peak(tmp_path: Path) -> None:
    sizes = [8] * 600 + [-8] * 600
    events = [{"name": "[memory]", "ts": 10.0 + n, "args": {"Bytes": size}} for n, size in enumerate(sizes)]
    (tmp_path / "t.json").write_text(json.dumps({"traceEvents": [{"name": "other", "ts": 0.0}, *events]}))
    points = timeline.memory_timeline(tmp_path / "t.json")
    assert len(points) == timeline.POINTS
    assert max(size for _, size in points) == 600 * 8
    assert points[0][0] >= 0
    assert [when for when, _ in points] == sorted(when for when, _ in points)


@pytest.mark.parametrize("arm", ["dense", "warm"])
def test_a_profile_leaves_its_files_and_says_where_time_goes(suite: Path, tmp_path: Path, arm: str) -> None:
    text = profile(suite, arm, steps=2, out=tmp_path / "out")
    found = json.loads((tmp_path / "out" / f"{arm}.profile.json").read_text())
    assert json.loads((tmp_path / "out" / f"{arm}.trace.json").read_text())["traceEvents"]
    names = {one["name"]: one for one in found["operators"]}
    attention = names["lmopt::causal_attention"]
    assert attention["flops"] == 2 * 2 * 2 * 32 * 32 * 32  # two sequences, two products, width 32
    assert names["aten::mm"]["flops"] > 0
    assert names["aten::mm"]["bound"] in ("products", "memory")
    assert found["step_s"] > 0
    assert found["mfu"] > 0
    assert found["peak_tensor_bytes"] > 0
    assert "aten::mm" in text
    assert "MFU" in text


def test_a_disturbed_measurement_of_the_machine_is_a_bound(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = example("0123456789").model_copy(update={"busy": True})
    assert "at most" not in profile(suite, "dense", steps=1, out=tmp_path / "quiet")
    monkeypatch.setattr(calibrate, "calibrate", lambda: disturbed)
    text = profile(suite, "dense", steps=1, out=tmp_path / "busy")
    assert re.search(r"^MFU +at most \d", text, re.MULTILINE)
    assert re.search(r"^measured bandwidth +at least \d", text, re.MULTILINE)
    assert "measured beside other work" in text
    section = shown(tmp_path, (tmp_path / "busy" / "dense.profile.json").read_text())
    assert any("beside other work" in block.text for block in section.blocks if isinstance(block, Paragraph))


@pytest.mark.skipif(fused.obstacle() is not None, reason=str(fused.obstacle()))
def test_kernels_that_are_no_operators_have_their_time_and_their_bytes(suite: Path, tmp_path: Path) -> None:
    profile(suite, "dense", steps=1, out=tmp_path)
    names = {one["name"]: one for one in json.loads((tmp_path / "dense.profile.json").read_text())["operators"]}
    norm = names["lmopt::norm_forward"]
    assert norm["calls"] == 3  # one layer's two, and the last
    assert norm["seconds"] > 0
    assert norm["bytes"] == 3 * (2 * 2 * 2 * 32 * 32 + 4 * (32 + 2 * 32))  # read, written; gains and scales in float32
    assert norm["bound"] == "memory"


def test_the_table_fits_a_terminal_and_forward_and_backward_stay_apart() -> None:
    names = ["aten::mm", "lmopt::causal_attention", "lmopt::causal_attention_backward"]
    one = {"seconds": 0.06, "calls": 281.0, "flops": 1.3e10, "bytes": 1.35e8, "bound": "products", "roof_share": 1.52}
    found = {"operators": [{"name": name} | one for name in names]}
    whole, narrow = _operator_table(found, None), _operator_table(found, 80)
    assert all(name in whole for name in names)
    assert max(map(len, narrow.split("\n"))) == 80
    assert len({line.split()[0] for line in narrow.split("\n")}) == 1 + len(names)


def test_the_profiler_s_own_lines_stay_off_the_terminal(suite: Path, tmp_path: Path) -> None:
    program = (
        "import sys\nfrom pathlib import Path\nfrom bench import calibrate\n"
        "from tests.bench.test_calibrate import example\ncalibrate.calibrate = lambda: example('0123456789')\n"
        "from bench import profile\nassert 'torch' not in sys.modules\n"
        "profile.profile(Path(sys.argv[1]), 'dense', steps=1, out=Path(sys.argv[2]))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run(
        [sys.executable, "-c", program, str(suite), str(tmp_path / "out")],
        capture_output=True, text=True, check=False, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_mistakes(suite: Path, tmp_path: Path) -> None:
    for steps in (0, 10**12):
        with pytest.raises(ProfileError, match=f"--steps must be from 1 to 1,000, got {steps}"):
            profile(suite, "dense", steps=steps)
    with pytest.raises(ProfileError, match="no run folder there"):
        profile(suite, "dense", run=tmp_path / "none")
    other = tmp_path / "other"
    other.mkdir()
    (other / "plan.json").write_text(json.dumps({"design": {"suite": "another"}}))
    with pytest.raises(ProfileError, match="holds a run of suite `another`, not of `quickstart`"):
        profile(suite, "dense", run=other)
    with pytest.raises(SystemExit) as stopped:
        main(["profile", str(suite), "--arm", "dense", "--out", str(tmp_path), "--run", str(other)])
    assert stopped.value.code == 2


# --- in the report -------------------------------------------------------------------------------


def noted(**changes: Any) -> dict[str, Any]:
    mm = {"name": "aten::mm", "calls": 84.0, "seconds": 0.02, "flops": 2e10, "bytes": 4e8, "bound": "products",
          "roof_share": 0.6}  # fmt: skip
    add = {"name": "aten::add_", "calls": 9.0, "seconds": 0.01, "flops": 0.0, "bytes": 1e8, "bound": "memory",
           "roof_share": 0.5}  # fmt: skip
    none = {"name": "_Inner", "calls": 1.0, "seconds": 0.001, "flops": 0.0, "bytes": 0.0, "bound": None,
            "roof_share": None}  # fmt: skip
    return {
        "schema": 1, "arm": "dense", "scale": "s", "step_s": 0.05, "tokens_per_s": 40_000.0, "model_flops_per_s": 4e11,
        "arithmetic": "bf16", "peak_flops_per_s": 1.6e12, "bytes_per_s": 2e10, "mfu": 0.25, "weight_bytes": 10**7,
        "peak_tensor_bytes": 5 * 2**20, "operators": [mm, add, none],
        "memory": [[0.0, 100], [1.0, 5 * 2**20], [2.0, 0]],
    } | changes  # fmt: skip


def shown(tmp_path: Path, text: str) -> Any:
    folder = write(tmp_path / "run")
    (folder / "profiles").mkdir()
    (folder / "profiles" / "dense.profile.json").write_text(text)
    return profiles.section(load(folder))


def test_the_report_shows_facts_figures_and_operators(tmp_path: Path) -> None:
    section = shown(tmp_path, json.dumps(noted()))
    facts, figure, table = section.blocks[1:]
    assert isinstance(facts, Facts)
    assert isinstance(figure, Figure)
    assert isinstance(table, Table)
    assert dict(facts.items)["Share of the measured peak"].value == 0.25
    assert [row.cells[0].text for row in table.rows] == ["aten::mm", "aten::add_", "_Inner"]
    assert table.rows[2].cells[7].reason
    for panel in figure.panels:
        drawing = figures.draw(panel, themed=True, text=True)
        assert drawing == figures.draw(panel, themed=True, text=True)
        assert f'id="{panel.id}-alt"' in drawing


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    section = shown(tmp_path, json.dumps(noted(peak_flops_per_s=None, mfu=None, memory=[], peak_tensor_bytes=None)))
    facts, figure, _ = section.blocks[1:]
    assert dict(facts.items)["Share of the measured peak"].reason
    assert all(panel.missing for panel in figure.panels)


@pytest.mark.parametrize(("text", "message"), [("{", "cannot be read"), ('{"schema": 9}', "another version")])
def test_a_damaged_profile_is_said(tmp_path: Path, text: str, message: str) -> None:
    assert message in shown(tmp_path, text).blocks[1].text


def test_no_profile_no_section(tmp_path: Path) -> None:
    assert profiles.section(load(write(tmp_path / "run"))) is None


def test_an_arm_with_a_placement_is_profiled_in_it_or_not_at_all(
    suite: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [Node(number, "0", 2**30, (10, 21)) for number in (0, 1)]
    asked: list[int] = []
    monkeypatch.setattr(numa, "pin", lambda _cpus: None)
    monkeypatch.setattr(numa, "set_policy", lambda policy, _nodes: asked.append(policy))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: frozenset([0]))
    monkeypatch.setattr(topology, "nodes", lambda: nodes)
    profile(suite, "spread", steps=1, out=tmp_path / "two")
    assert asked == [numa.MPOL_INTERLEAVE, numa.MPOL_DEFAULT]
    monkeypatch.setattr(topology, "nodes", lambda: nodes[:1])
    with pytest.raises(ProfileError, match="arm 'spread': not applicable here: one NUMA node"):
        profile(suite, "spread", steps=1, out=tmp_path / "one")
