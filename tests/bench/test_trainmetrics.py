"""What a record says of how a training computed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.trainmetrics import kernels_detail
from lmopt.arch import fused
from lmopt.recipe import Recipe


def state(dtype: torch.dtype = torch.bfloat16, **recipe: Any) -> Any:
    shape = {"layers": 1, "width": 64, "heads": 2, "vocab": 96} | recipe.pop("model", {})
    described = Recipe.model_validate({"model": shape, "tokens": 100_000} | recipe)
    return SimpleNamespace(
        recipe=described, compute=SimpleNamespace(dtype=dtype), device=torch.device("cpu"), eager=None
    )


def test_rows_and_experts_have_kernels_where_there_are_any(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_obstacle", lambda: None)
    assert kernels_detail(state()) == {"rows": {"kernel": "fused", "reason": None}}
    sparse = kernels_detail(state(ffn={"kind": "moe"}))
    assert sparse["experts"] == {"kernel": "fused", "reason": None}
    named = kernels_detail(state(ffn={"kind": "moe", "kernel": "grouped"}))
    assert named["experts"] == {"kernel": "grouped", "reason": "the recipe names another"}
    single = kernels_detail(state(torch.float32, ffn={"kind": "moe"}))
    assert single["rows"] == {"kernel": "fused", "reason": None}
    assert single["experts"] == {"kernel": "grouped", "reason": "made for bfloat16 on a CPU, not for float32 on cpu"}


def test_why_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_obstacle", lambda: "no C++ compiler")
    assert kernels_detail(state())["rows"] == {"kernel": "torch", "reason": "no C++ compiler"}
    double = kernels_detail(state(torch.float64))["rows"]
    assert double == {"kernel": "torch", "reason": "made for bfloat16 and float32 on a CPU, not for float64 on cpu"}
    compiled = state()
    compiled.eager = object()
    assert kernels_detail(compiled)["rows"]["kernel"] == "compiled"


def test_what_has_kernels_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "_obstacle", lambda: None)
    narrow = kernels_detail(state(model={"width": 48, "heads": 4}))["rows"]  # 6 pairs a head
    assert narrow == {"kernel": "partly fused", "reason": "6 is no multiple of 16"}
    words = kernels_detail(state(model={"vocab": 100}))["rows"]
    assert words == {"kernel": "partly fused", "reason": "100 is no multiple of 16"}
    lengths = kernels_detail(state(batching={"length": 40, "sequences": 4}))["rows"]
    assert lengths == {"kernel": "partly fused", "reason": "40 is no multiple of 16"}
