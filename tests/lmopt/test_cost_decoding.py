import pytest

from lmopt import cost
from lmopt.cost_decoding import (
    early_exit_flops_per_token,
    plain_flops_per_token,
    token_flops,
    written_flops,
)
from lmopt.recipe import FixedBatch, Model, Moe, Recipe, Speculative
from lmopt.step import Step
from lmopt.techniques.decoding import ExitDraft, LookupDraft

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


def written(decoding, *rounds, draft=None):
    """FLOPs of a text behind 8 tokens, of the rounds (drafted, kept)."""
    steps = [Step(number, kept + 1, notes={"drafted": drafted, "kept": kept}) for number, (drafted, kept) in
             enumerate(rounds, start=2)]  # fmt: skip
    return written_flops(decoding, RECIPES[0], steps, prompt=8, draft=draft)


def plain(tokens):
    """FLOPs of so many tokens, one by one, behind 8 and the first."""
    return sum(token_flops(RECIPES[0], 9 + place).total for place in range(tokens))


def test_looked_up_drafts_that_are_all_kept_cost_no_less_than_one_by_one():
    # each of the five goes through the target once; a pass over several counts its keys for all of them alike
    assert plain(5) <= written(Speculative(draft=LookupDraft()), (4, 4)) == 5 * token_flops(RECIPES[0], 13).total


def test_a_refused_draft_costs_its_tokens_for_nothing():
    assert written(Speculative(draft=LookupDraft()), (4, 0)) == 5 * token_flops(RECIPES[0], 13).total > plain(1)


def test_self_drafts_cost_only_the_head_again():
    looked_up, own = (written(Speculative(draft=draft), (4, 4)) for draft in (LookupDraft(), ExitDraft(layer=2)))
    head, a_key = token_flops(RECIPES[0], 1).head, token_flops(RECIPES[0], 2).layer - token_flops(RECIPES[0], 1).layer
    # the first two layers read one token after the other, and so see 4 + 3 + 2 + 1 keys fewer each
    assert own == looked_up + 4 * head - 2 * 10 * a_key


def test_leaving_early():
    flops = token_flops(RECIPES[0], keys=8)
    assert early_exit_flops_per_token(flops, {4: 9}, ()) == pytest.approx(flops.total)
    # without a hope of leaving, exits only cost their heads
    assert early_exit_flops_per_token(flops, {4: 9}, (1, 2)) == pytest.approx(flops.total + 2 * flops.head)
    early = 2 * flops.layer + 2 * flops.key_value + 2 * flops.head
    assert early_exit_flops_per_token(flops, {2: 3}, (1, 2)) == pytest.approx(early)
    mixed = early_exit_flops_per_token(flops, {2: 1, 4: 1}, (1, 2))
    assert mixed == pytest.approx((early + flops.total + 2 * flops.head) / 2)
