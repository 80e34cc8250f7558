"""Number formats: what products run in, what stays float32, and a clear refusal."""

import pytest
import torch

from lmopt.compute import precision
from lmopt.compute.precision import UnsupportedPrecision
from lmopt.recipe import Bf16, Fp32


@pytest.mark.parametrize(("config", "dtype"), [(Fp32(), torch.float32), (Bf16(), torch.bfloat16)])
def test_products_run_in_the_format_and_weights_stay_float32(config, dtype):
    compute = precision.build(config)
    linear = torch.nn.Linear(8, 8, bias=False)
    with compute.forward():
        y = linear(torch.randn(4, 8))
    assert y.dtype == compute.dtype == dtype
    y.sum().backward()
    assert linear.weight.dtype == linear.weight.grad.dtype == torch.float32
    assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32  # outside: as before


def test_a_gpu_without_bfloat16_is_refused_before_work(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    with pytest.raises(UnsupportedPrecision, match=r"Tesla T4 has no bfloat16(.|\n)*hint: .*fp32"):
        precision.build(Bf16(), "cuda")
    assert precision.build(Fp32(), "cuda").dtype == torch.float32
