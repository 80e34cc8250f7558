"""Stochastic rounding: only to a neighbour, right on average, exact where nothing needs rounding."""

import pytest
import torch

from lmopt.compute.rounding import stochastic_bfloat16, stochastic_integer


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_upper_neighbour_comes_up_as_often_as_it_is_near(share, sign):
    lower, spacing = 1.0, 2.0**-7  # bfloat16 has 7 bits behind the leading one
    x = torch.full((20_000,), sign * (lower + share * spacing))
    rounded = stochastic_bfloat16(x).float()
    assert set(rounded.unique().tolist()) <= {sign * lower, sign * (lower + spacing)}
    assert (rounded.abs() > lower).float().mean().item() == pytest.approx(share, abs=0.012)  # 3.5 standard errors


def test_what_bfloat16_holds_stays():
    x = torch.randn(1000).bfloat16()
    special = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), 3e38, 1e-38]).bfloat16()
    x = torch.cat([x, special])
    assert torch.equal(stochastic_bfloat16(x.float()), x)
    assert stochastic_bfloat16(torch.tensor([float("nan")])).isnan().all()


def test_integers_are_right_on_average():
    rounded = stochastic_integer(torch.full((20_000,), -2.3))
    assert set(rounded.unique().tolist()) == {-3.0, -2.0}
    assert rounded.mean().item() == pytest.approx(-2.3, abs=0.012)


def test_the_generator_decides():
    x = torch.randn(1000)
    torch.manual_seed(1)
    first = stochastic_bfloat16(x)
    assert not torch.equal(first, stochastic_bfloat16(x))
    torch.manual_seed(1)
    assert torch.equal(first, stochastic_bfloat16(x))
