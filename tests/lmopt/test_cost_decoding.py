import pytest

from lmopt import cost
from lmopt.cost_decoding import (
    early_exit_flops_per_token,
    plain_flops_per_token,
    self_speculative_flops_per_token,
    speculative_flops_per_token,
    token_flops,
)
from lmopt.recipe import FixedBatch, Model, Moe, Recipe

RECIPES = [
    Recipe(model=Model(layers=4, width=32, heads=4, vocab=61, context=64), batching=FixedBatch(length=32), tokens="1M"),
    Recipe(
        model=Model(layers=4, width=32, heads=4, kv_heads=2, vocab=61, context=64),
        ffn=Moe(experts=4, top_k=2),
        batching=FixedBatch(length=32),
        tokens="1M",
    ),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_tokens_that_see_all_cost_what_the_full_forward_costs(recipe):
    assert 32 * token_flops(recipe, keys=32).total == pytest.approx(cost.forward_flops(recipe, 32).total)


def test_mean_of_plain_tokens_is_that_of_each():
    each = [token_flops(RECIPES[0], keys=10 + i).total for i in range(1, 8)]
    assert plain_flops_per_token(RECIPES[0], prompt=10, new=7) == pytest.approx(sum(each) / 7)


def test_key_value_products_are_a_part_of_the_projections():
    dense, grouped = (token_flops(recipe, 1).key_value for recipe in RECIPES)
    assert dense == 2 * 2 * 32 * 32
    assert grouped == dense / 2


def test_speculation_never_lowers_flops():
    # ten checks of 4 drafts, all kept: 50 tokens, each through the target once and 40 through the draft
    assert speculative_flops_per_token(100.0, 10.0, drafted=40, checks=10, tokens=50) == 100 + 8
    # none kept: five target tokens for each that comes out
    assert speculative_flops_per_token(100.0, 10.0, drafted=40, checks=10, tokens=10) == 500 + 40


def test_self_drafts_cost_only_the_head_again():
    flops = token_flops(RECIPES[0], keys=8)
    all_kept = self_speculative_flops_per_token(flops, 2, drafted=40, checks=10, tokens=50)
    assert all_kept == pytest.approx(flops.total + 0.8 * flops.head)
    with pytest.raises(ValueError, match="exit layer 4 of 4"):
        self_speculative_flops_per_token(flops, 4, drafted=1, checks=1, tokens=1)


def test_leaving_early():
    flops = token_flops(RECIPES[0], keys=8)
    assert early_exit_flops_per_token(flops, {4: 9}, ()) == pytest.approx(flops.total)
    # without a hope of leaving, exits only cost their heads
    assert early_exit_flops_per_token(flops, {4: 9}, (1, 2)) == pytest.approx(flops.total + 2 * flops.head)
    early = 2 * flops.layer + 2 * flops.key_value + 2 * flops.head
    assert early_exit_flops_per_token(flops, {2: 3}, (1, 2)) == pytest.approx(early)
    mixed = early_exit_flops_per_token(flops, {2: 1, 4: 1}, (1, 2))
    assert mixed == pytest.approx((early + flops.total + 2 * flops.head) / 2)
