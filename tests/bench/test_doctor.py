"""The doctor: every section, broken plug-ins by name, and missing parts with a way to get them."""

from __future__ import annotations

import importlib.metadata
import json
import sys
from typing import Any

import pytest
import torch

from bench import doctor
from bench.doctor import render, report
from lmopt import recipe
from lmopt.arch import matmul

FACTS: dict[str, Any] = {"cpu": {"flags": []}, "numa": [], "gpus": []}


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return report()


def test_every_section_is_there_as_plain_data(found: dict[str, Any]) -> None:
    assert json.loads(json.dumps(found)) == found
    for section in doctor.SECTIONS:
        assert found[section], section
        for check in found[section]:
            assert set(check) == {"name", "works", "reason", "hint"}
            assert isinstance(check["works"], bool)
            assert check["reason"]


def test_what_does_not_work_says_what_would(found: dict[str, Any]) -> None:
    for section in ("sensors", "parts"):
        for check in found[section]:
            assert check["works"] or check["hint"], check


def test_the_text_names_everything(found: dict[str, Any]) -> None:
    text = render(found)
    for section, title in doctor.SECTIONS.items():
        assert f"\n{title}\n" in text
        for check in found[section]:
            assert check["name"] in text
            if check["hint"]:
                assert f"hint: {check['hint']}" in text
    assert found["env"] in text


def test_every_technique_is_listed(found: dict[str, Any]) -> None:
    names = {check["name"] for check in found["techniques"]}
    assert {f"{seam}.{config.model_fields['kind'].default}" for seam, config in recipe.techniques()} <= names


def test_a_package_that_brings_the_same_modules_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's small distribution is what the extra installs."""

    def version(name: str) -> str:
        if name != "mlflow-skinny":
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    works = {check["name"]: check["works"] for check in doctor._parts()}
    assert works["mlflow"]
    assert not works["ray"]
    assert {"submitit", "tensorboard", "wandb"} <= set(works)


def test_columns_are_as_wide_as_their_names(found: dict[str, Any]) -> None:
    lines = [line for line in render(found).splitlines() if line.endswith("  built in")]
    assert len({line.index("  built in") + len("  built in") for line in lines}) == 1


class FakeEntry:
    """An entry point that loads what it is given, or raises it."""

    dist = None

    def __init__(self, name: str, loads: Any) -> None:
        self.name = name
        self.value = "elsewhere:Thing"
        self._loads = loads

    def load(self) -> Any:
        if isinstance(self._loads, Exception):
            raise self._loads
        return self._loads


class NoBuilder(recipe.Technique):
    builder = "lmopt.nowhere:build"
    kind: str = "lost"


class Working(recipe.Technique):
    builder = "math:sqrt"
    kind: str = "root"


@pytest.mark.parametrize(
    ("entry", "works", "reason"),
    [
        (FakeEntry("ffn.mine", SyntaxError("line 3")), False, "SyntaxError: line 3"),
        (FakeEntry("ffn.mine", dict), False, "is not a Technique"),
        (FakeEntry("nose.mine", Working), False, "no seam 'nose'"),
        (FakeEntry("ffn.lost", NoBuilder), False, "lmopt.nowhere"),
        (FakeEntry("ffn.root", Working), True, "unknown package"),
    ],
)
def test_techniques_of_other_packages(
    entry: FakeEntry, works: bool, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda **_group: [entry])
    last = doctor._techniques()[-1]
    assert (last["name"], last["works"]) == (entry.name, works)
    assert reason in last["reason"]
    assert works or last["hint"]


@pytest.mark.parametrize(
    ("flags", "works", "reason"),
    [
        (["avx512_bf16", "amx_bf16"], True, "AMX"),
        (["avx512_bf16"], True, "no AMX"),
        (["bf16"], True, "Arm"),
        (["avx2"], False, "slower than fp32"),
    ],
)
def test_bf16_units(flags: list[str], works: bool, reason: str) -> None:
    check = doctor._bf16({**FACTS, "cpu": {"flags": flags}}, "cpu")
    assert check["works"] is works
    assert reason in check["reason"]


@pytest.mark.parametrize(("slow", "reason"), [(True, "oneDNN"), (False, torch.backends.cpu.get_cpu_capability())])
def test_who_multiplies_float32(slow: bool, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "mkl_is_slow", lambda: slow)
    check = doctor._fp32()
    assert check["works"]
    assert reason in check["reason"]


def test_a_kernel_that_raises_is_a_finding() -> None:
    def broken() -> None:
        raise RuntimeError("not on this device\nstack of C++ calls")

    check = doctor._runs("int8", broken, "fine")
    assert not check["works"]
    assert check["reason"] == "RuntimeError: not on this device"


def test_one_node_is_not_pretended_to_be_two() -> None:
    node = {"node": 0, "cpus": "0-3", "memory_bytes": 1, "distances": [10, 21]}
    assert doctor._numa({**FACTS, "numa": [node]})["reason"] == "one NUMA node: placement is not applicable here"
    for kept in ({"memory_bytes": 0}, {"allowed": False}):
        check = doctor._numa({**FACTS, "numa": [node, {**node, "node": 1, **kept}]})
        assert not check["works"]
        assert "one of 2 NUMA nodes" in check["reason"]


def test_two_nodes_need_no_library_but_a_kernel_call_that_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    node = {"node": 0, "cpus": "0-3", "memory_bytes": 1, "distances": [10, 21]}
    two = {**FACTS, "numa": [node, {**node, "node": 1}]}
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    check = doctor._numa(two)
    assert check["works"]
    assert check["hint"] is None
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    check = doctor._numa(two)
    assert not check["works"]
    assert "numactl" in check["hint"]


def test_without_a_compiler_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _name: None)
    check = doctor._compiles("cpu")
    assert not check["works"]
    assert "g++" in check["hint"]


def test_on_cuda_the_compiler_is_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: object())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == "gcc" else None)
    assert doctor._compiles("cuda")["works"]
    monkeypatch.setattr("shutil.which", lambda _name: None)
    assert "apt-get install gcc" in doctor._compiles("cuda")["hint"]
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert "pip install triton" in doctor._compiles("cuda")["hint"]


@pytest.mark.parametrize(
    ("error", "hint"),
    [(ImportError("no module"), "pip install"), (OSError("cannot load library 'pango-1.0-0'"), "libharfbuzz-subset0")],
)
def test_pdf_without_its_parts(error: Exception, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        print("a page of advice")
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    check = doctor._weasyprint()
    assert not check["works"]
    assert hint in check["hint"]


def test_a_package_that_is_absent() -> None:
    check = doctor._package("no-such-package-here", "nothing", "pip install it")
    assert not check["works"]
    assert check["hint"] == "pip install it"


def test_without_torch_the_rest_is_still_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = report()
    (device,) = found["device"]
    assert (device["name"], device["works"]) == ("torch", False)
    assert "pip install torch" in device["hint"]
    assert "none can run without torch" in render(found)
    assert any(check["works"] for check in found["sensors"])


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModuleNotFoundError("no module"), "not installed"), (OSError("libgomp.so.1: gone"), "libgomp")],
)
def test_a_torch_that_cannot_be_imported(error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_name: str) -> None:
        raise error

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    check = doctor._torch()
    assert not check["works"]
    assert reason in check["reason"]
    assert "pip install torch" in check["hint"]


def test_a_technique_without_torch_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_technique: recipe.Technique) -> None:
        raise LookupError("cannot load") from ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(doctor.recipe, "builder", fail)
    assert doctor._technique("ffn.root", Working)["reason"] == "built in: needs torch"
