"""Drafts that are looked up: the store of n-grams against counting, and when a draft ends."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lmopt.infer.lookup import KEPT_AT_FIRST, LookupDraft
from lmopt.infer.ngramstore import NgramStore
from lmopt.infer.sampling import seeded
from lmopt.techniques.decoding import Sampling

GREEDY = Sampling()


def proposed(draft, text, count):
    return draft.propose(text, count, GREEDY, seeded(0)).tokens


def counted(tokens, longest):
    """n-gram -> how often each token follows it."""
    following = defaultdict(Counter)
    for size in range(1, longest + 1):
        for end in range(size, len(tokens)):
            following[tuple(tokens[end - size : end])][tokens[end]] += 1
    return following


class TestStore:
    @given(st.lists(st.integers(0, 4), min_size=4, max_size=60), st.lists(st.integers(0, 5), min_size=1, max_size=6))
    def test_says_what_counting_says(self, tokens, text):
        found = NgramStore(np.array(tokens, np.uint16), 3).guess(text)
        following = counted(tokens, 3)
        size = next((n for n in (3, 2, 1) if n <= len(text) and tuple(text[-n:]) in following), None)
        if size is None:
            assert found is None
            return
        counts = following[tuple(text[-size:])]
        most = max(counts.values())
        assert found.size == size
        assert found.token == min(token for token, count in counts.items() if count == most)
        assert found.share == pytest.approx(most / (counts.total() + 1), rel=1e-6)

    def test_token_ids_of_every_width_and_large_ones(self):
        text = [0, 65_536, (1 << 24) - 1, 7, 0, 65_536, (1 << 24) - 1]
        store = NgramStore(np.array(text, np.uint32), 2)
        assert store.guess([0, 65_536]).token == (1 << 24) - 1
        assert store.guess([(1 << 24) - 1]).token == 7
        with pytest.raises(ValueError, match="token id 16777216: at most 16777215"):
            NgramStore(np.array([1, 1 << 24, 3], np.uint32), 1)

    def test_needs_something_to_count(self):
        with pytest.raises(ValueError, match="3 tokens hold no n-gram of 3"):
            NgramStore(np.array([1, 2, 3]), 3)

    def test_tables_are_as_large_as_what_differs(self):
        store = NgramStore(np.zeros(1000, np.uint16), 2)
        assert (store.tokens, store.nbytes) == (1000, 2 * 16)


class TestText:
    def test_proposes_what_followed_the_longest_match(self):
        assert proposed(LookupDraft(10, longest=2), [1, 2, 3, 4, 2, 5, 1, 2], 3) == [3, 4, 2]
        assert proposed(LookupDraft(10, longest=2), [1, 2, 3, 4, 2, 5, 1, 2, 9], 3) == []
        assert proposed(LookupDraft(10), [7, 7], 3) == [7, 7, 7], "a repetition goes on"
        assert proposed(LookupDraft(10), [5, 6, 5, 6], 5) == [5, 6, 5, 6, 5]

    def test_the_latest_occurrence_counts(self):
        assert proposed(LookupDraft(10), [1, 2, 9, 1, 3, 9, 1], 1) == [3]

    def test_knows_nothing_of_an_empty_past(self):
        assert proposed(LookupDraft(10), [4], 3) == []

    def test_what_it_proposes_is_certain(self):
        q_GV = LookupDraft(10).propose([7, 7], 2, GREEDY, seeded(0)).q_GV
        assert q_GV.tolist() == torch.nn.functional.one_hot(torch.tensor([7, 7]), 10).tolist()

    def test_another_text_is_read_anew(self):
        draft = LookupDraft(10)
        proposed(draft, [1, 2, 1], 1)
        assert proposed(draft, [3, 1], 1) == []
        assert proposed(draft, [3], 1) == []

    def test_sizes_are_checked(self):
        with pytest.raises(ValueError, match="n-grams of 3 to 2 tokens"):
            LookupDraft(10, longest=2, shortest=3)

    def test_shorter_matches_than_asked_for_are_none(self):
        store = NgramStore(np.array([5, 6, 5, 6, 5]), 2)
        assert proposed(LookupDraft(10, shortest=2, store=store), [8, 5], 1) == []
        assert proposed(LookupDraft(10, shortest=2, store=store), [6, 5], 1) == [6]


class TestBoth:
    STORE = NgramStore(np.array([1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4, 9, 8] * 4), 3)

    def test_the_store_continues_what_the_text_never_said(self):
        assert proposed(LookupDraft(10, store=self.STORE), [7, 1, 2], 3) == [3, 4, 1]

    def test_the_likelier_of_two_is_taken(self):
        """Behind one token of its own text .3 are expected to be kept, and the store has three of four."""
        assert KEPT_AT_FIRST[0] < 12 / 13
        assert proposed(LookupDraft(10, store=self.STORE), [1, 5, 1], 1) == [2]
        often = NgramStore(np.array([1, 2, 1, 3, 1, 4, 1, 6, 1]), 1)
        assert proposed(LookupDraft(10, store=often), [1, 5, 1], 1) == [5]


class TestWorth:
    def chain(self, row_cost, text=(1, 2, 3, 4, 5, 6, 7, 1, 2, 3), count=8):
        return len(proposed(LookupDraft(10, row_cost=row_cost), list(text), count))

    def test_a_draft_ends_where_more_is_not_expected_to_pay(self):
        """Tokens of probability .7: 1 + .7 + ... + .7^g over 1 + g c is largest at these g."""
        for row_cost in (0.03, 0.1, 0.2, 0.5, 0.75):
            speeds = [sum(0.7**i for i in range(g + 1)) / (1 + g * row_cost) for g in range(9)]
            assert self.chain(row_cost) == int(np.argmax(speeds)), row_cost
        assert self.chain(0.75) == 0
        assert self.chain(None) == 8

    def test_learns_how_often_its_tokens_are_kept(self):
        right, text, lengths = LookupDraft(10, longest=1, row_cost=0.2), [1, 2, 3, 1], list[int]()
        for _ in range(20):
            lengths.append(len(proposed(right, text, 6)))
            text = [1 + i % 3 for i in range(len(text) + lengths[-1] + 1)]
        assert lengths[0] < lengths[-1] == 6
        wrong, text, lengths = LookupDraft(99, longest=1, row_cost=0.2), [1, 2, 3, 1], []
        for fresh in range(10, 30):
            lengths.append(len(proposed(wrong, text, 6)))
            text = [*text, fresh, 1]
        assert lengths[0] > lengths[-1] == 0

    def test_a_store_that_is_wrong_here_is_trusted_less(self):
        draft = LookupDraft(99, longest=1, store=NgramStore(np.array([1, 2] * 50), 1), row_cost=0.2)
        text, lengths = [1], list[int]()
        for fresh in range(10, 60):
            lengths.append(len(proposed(draft, text, 6)))
            text = [*text, fresh, 1]
        assert lengths[0] == 6
        assert lengths[-1] == 0
