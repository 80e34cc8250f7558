"""Batches that change while a training runs: what each step holds, the same text, the same bits when replayed."""

import itertools
import json
import os
import subprocess
import sys
import time
import weakref

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils._python_dispatch import TorchDispatchMode

from lmopt import cost, cost_memory
from lmopt.arch import matmul
from lmopt.compute import memory, noiseramp, pace
from lmopt.compute.decisions import Decision, ReplayError, sha256_of, write_decisions
from lmopt.compute.noiseramp import noise_scale
from lmopt.compute.pace import Adapting
from lmopt.data import batches
from lmopt.data.shards import Shards
from lmopt.recipe import Recipe
from lmopt.train import checkpoint, compiling, loop

VOCAB, LENGTH, SEQUENCES = 64, 16, 8


def recipe(batching=None, steps=12, **changes) -> Recipe:
    plain = {
        "model": {"layers": 1, "width": 16, "heads": 2, "vocab": VOCAB, "context": LENGTH},
        "batching": {"sequences": SEQUENCES, "length": LENGTH, **(batching or {})},
        "precision": {"kind": "fp32"},
        "optimizer": {"lr": 1e-2},
        "tokens": SEQUENCES * LENGTH * steps,
    }
    return Recipe.model_validate(plain | changes)


def text(described: Recipe, seed=0, start=0):
    tokens = np.random.default_rng(7).integers(VOCAB, size=4000).astype(np.uint16)
    return batches.build(described.batching, Shards(tokens, {}), seed=seed, start=start)


def run(described, seed=0):
    state = loop.start(described, seed=seed)
    return state, list(loop.train(state, text(described, seed)))


def same_bits(one, two):
    pairs = zip(one.model.parameters(), two.model.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


WARMUP = {"kind": "length_warmup", "start": 4, "share": 0.5}
RAMP = {"kind": "batch_ramp", "start": 2, "share": 0.5}
NOISE = {"kind": "noise_ramp", "start": 2, "micro_sequences": 1, "every": 2}
ADAPTIVE = {"kind": "adaptive", "every": 2}


@pytest.fixture(autouse=True)
def _memory_never_ran_out(monkeypatch):
    monkeypatch.setattr(memory, "_spares", False)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- phases --------------------------------------------------------------------------------------


def test_a_fixed_batch_is_one_phase():
    (phase,) = recipe().phases(0.5)
    assert (phase.steps, phase.portions, phase.length) == (6, 1, LENGTH)


def test_lengths_double_and_the_budget_is_kept():
    described = recipe(WARMUP, steps=100)
    assert [(p.length, p.portions) for p in described.phases(1.0)] == [(4, 1), (8, 2), (16, 4)]
    spent = [p.steps * SEQUENCES * p.length for p in described.phases(1.0)]
    assert sum(spent) == pytest.approx(described.tokens, abs=SEQUENCES * LENGTH)
    assert spent[0] == pytest.approx(spent[1], rel=0.05)
    assert spent[0] + spent[1] == pytest.approx(0.5 * described.tokens, rel=0.05)
    assert described.trained_tokens(1.0) == sum(spent)


def test_batches_double_and_the_budget_is_kept():
    described = recipe(RAMP, steps=100)
    assert [p.portions for p in described.phases(1.0)] == [1, 2, 4]
    assert described.trained_tokens(1.0) == pytest.approx(described.tokens, abs=SEQUENCES * LENGTH)


@pytest.mark.parametrize("change", [WARMUP, {**WARMUP, "start": 2}, RAMP, {**RAMP, "start": 1}])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_short_trainings_keep_the_budget_to_half_a_step(change, share, steps):
    described = recipe({**change, "share": share}, steps=steps)
    assert abs(described.trained_tokens(1.0) - described.tokens) <= SEQUENCES * LENGTH / 2
    assert all(phase.steps for phase in described.phases(1.0))
    assert len(described.phases(1e-9)) == 1


@pytest.mark.parametrize("change", [{**WARMUP, "start": LENGTH}, {**RAMP, "start": SEQUENCES}])
def test_without_a_ramp_it_is_the_fixed_batch_to_the_bit(change):
    described = recipe(change)
    plain, steps = run(recipe())
    same, same_steps = run(described)
    assert same_bits(plain, same)
    assert [s.loss for s in steps] == [s.loss for s in same_steps]


def test_short_sequences_are_the_windows_cut():
    state = loop.start(recipe(WARMUP, steps=20), seed=0)
    window = next(text(state.recipe))
    batch = loop._next_batch(state, pace.Update(1, 4, None), iter([window]))
    assert batch.inputs_BL.shape == (SEQUENCES, 4)
    assert torch.equal(batch.inputs_BL.flatten(), window[:, :-1].flatten())
    assert torch.equal(batch.targets_BL.flatten(), window[:, 1:].flatten())


@pytest.mark.parametrize("change", [WARMUP, RAMP, NOISE])
def test_every_token_of_the_order_is_seen_once_as_in_fixed(change):
    described = recipe(change, steps=20)
    seen = []
    state = loop.start(described, seed=0)

    def watched():
        for portion in text(described):
            seen.append(portion)
            yield portion

    steps = list(loop.train(state, watched()))
    rows = torch.cat(seen)
    expected = torch.cat(list(itertools.islice(text(recipe()), 40)))[: len(rows)]
    assert torch.equal(rows, expected)
    assert sum(s.tokens for s in steps) == rows.shape[0] * LENGTH == state.pace.total_tokens
    assert sum(state.pace.tokens_by_length(state.yielded_tokens).values()) == state.yielded_tokens


@pytest.mark.parametrize("change", [WARMUP, RAMP])
def test_the_learning_rate_follows_tokens(change):
    described = recipe(change, steps=50)
    _, steps = run(described)
    _, plain = run(recipe(steps=50))
    done = list(itertools.accumulate(s.tokens for s in steps))
    by_tokens = {tokens: s.notes["lr"] for tokens, s in zip(done, steps, strict=True)}
    compared = [
        (s.notes["lr"], by_tokens[s.index * SEQUENCES * LENGTH])
        for s in plain
        if s.index * SEQUENCES * LENGTH in by_tokens
    ]
    assert len(compared) > 5
    for one, two in compared:
        assert two == pytest.approx(one, rel=0.05)


@pytest.mark.parametrize("change", [WARMUP, RAMP, NOISE, ADAPTIVE])
def test_same_seed_same_bits_and_resumed_too(change, tmp_path):
    described = recipe(change, steps=20)
    whole, steps = run(described, seed=3)
    again, _ = run(described, seed=3)
    stopped = loop.start(described, seed=3)
    first = list(itertools.islice(loop.train(stopped, text(described, 3)), 7))
    checkpoint.save(stopped, tmp_path)
    resumed = checkpoint.load(tmp_path, described)
    second = list(loop.train(resumed, text(described, 3, start=resumed.pace.portions)))
    if change is not ADAPTIVE:  # its sizes follow the clock: only a replay has the same bits
        assert same_bits(whole, again)
        assert [s.loss for s in first + second] == [s.loss for s in steps]
        assert same_bits(whole, resumed)
    assert len(first) + len(second) == len(steps)
    assert not same_bits(whole, run(described, seed=4)[0])


def test_shorter_sequences_cost_less_attention():
    fixed, warm = recipe(steps=100), recipe(WARMUP, steps=100)
    assert cost.training_flops(fixed, 1.0) == pytest.approx(
        cost.train_flops_per_token(fixed).executed * fixed.tokens, rel=1e-12
    )
    forward = cost.forward_flops(fixed, LENGTH)
    less = cost.training_flops(fixed, 1.0) / fixed.trained_tokens(1.0) - cost.training_flops(
        warm, 1.0
    ) / warm.trained_tokens(1.0)
    # a quarter of the tokens at a quarter of the length, a quarter at half: 3/16 + 1/8 of attention saved
    assert less == pytest.approx(3 * forward.attention / LENGTH * 0.3125, rel=0.05)


# --- noise ---------------------------------------------------------------------------------------


def test_noise_scale_is_found_again():
    """Gradients G + noise / sqrt(b) have |G_b|^2 = |G|^2 + tr S / b: both come back exactly."""
    signal, noise = 4.0, 100.0
    found = noise_scale(2, (signal + noise / 2) ** 0.5, 16, (signal + noise / 16) ** 0.5)
    assert found == (pytest.approx(signal), pytest.approx(noise))


def test_batches_grow_when_noise_exceeds_them_and_never_beyond():
    growing = noiseramp.GrowingWithNoise(recipe(NOISE, steps=40), 1.0, recipe(NOISE).batching)
    sizes = []
    while not growing.finished:
        update = growing.next()
        sizes.append(update.portions)
        b = update.portions * 2
        growing.took(update, torch.tensor((1 + 5 / 1) ** 0.5), torch.tensor((1 + 5 / b) ** 0.5))  # scale 5
    assert sizes[:2] == [1, 1]
    assert max(sizes) == 4  # 2 < 5, 4 < 5, 8 > 5: the batch of 8 is the limit
    assert sizes == sorted(sizes[:-1]) + sizes[-1:]
    quiet = noiseramp.GrowingWithNoise(recipe(NOISE, steps=40), 1.0, growing.config)
    for _ in range(10):
        quiet.took(quiet.next(), torch.tensor(1.01), torch.tensor(1.0))
    assert quiet.size == 1


def test_the_most_steps_there_can_be_fall_as_batches_grow():
    growing = noiseramp.GrowingWithNoise(recipe(NOISE, steps=40), 1.0, recipe(NOISE).batching)
    assert (growing.most_steps, growing.may_grow) == (growing.total_steps, True)
    known = []
    while not growing.finished:
        update = growing.next()
        growing.took(update, torch.tensor(6.0**0.5), torch.tensor((1 + 5 / (2 * update.portions)) ** 0.5))
        known.append((growing.most_steps, growing.may_grow))
    assert known == sorted(known, reverse=True)
    assert known[-1] == (growing.step, False)
    assert growing.step < growing.total_steps
    assert all(steps == growing.step for steps, may_grow in known if not may_grow)


class ReadEveryStep(noiseramp.GrowingWithNoise):
    """The same pace in its plainest form: norms are read and averaged as soon as they are there."""

    def took(self, update, small_norm=None, norm=None):
        sequences, smoothing = update.portions * self.batching.portion, self.config.smoothing
        now = noise_scale(self.config.micro_sequences, float(small_norm), sequences, float(norm))
        if self.step:
            now = [smoothing * past + (1 - smoothing) * new for past, new in zip(self.means, now, strict=True)]
        self.means = self.signal, self.noise = now
        pace.Scheduled.took(self, update)
        most, scale = self.config.sequences // self.batching.portion, self.noise / self.signal
        if self.step % self.config.every or self.size >= most:
            return
        if self.noise > 0 and (self.signal <= 0 or scale > sequences):
            self.size *= 2
            facts = {"signal": self.signal, "noise": self.noise, "batch_sequences": float(sequences)}
            why = "the gradient's noise scale exceeds the batch"
            self.decisions.append(Decision(self.step, self.size, self.config.micro_sequences, why, facts))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_norms_that_wait_on_the_device_give_the_same_decisions_to_the_bit(every, monkeypatch):
    described = recipe(NOISE | {"every": every, "sequences": 32}, steps=30)
    late, steps = run(described)
    monkeypatch.setattr(noiseramp, "GrowingWithNoise", ReadEveryStep)
    at_once, same_steps = run(described)
    assert isinstance(at_once.pace, ReadEveryStep)
    assert len(late.pace.decisions) > 1
    assert late.pace.decisions == at_once.pace.decisions
    assert [step.loss for step in steps] == [step.loss for step in same_steps]
    assert same_bits(late, at_once)
    assert late.pace.state() == at_once.pace.state()


class Asked(TorchDispatchMode):
    """Counts readings of a single number of a tensor."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_norms_are_read_when_a_decision_is_due_and_no_sooner(monkeypatch):
    counts, read, took = [], [], noiseramp.GrowingWithNoise.took
    tolist = torch.Tensor.tolist

    def watched(self, update, small_norm=None, norm=None):
        with Asked() as asked, monkeypatch.context() as here:
            here.setattr(torch.Tensor, "tolist", lambda numbers: read.append(self.step) or tolist(numbers))
            took(self, update, small_norm, norm)
        counts.append(asked.count)

    monkeypatch.setattr(noiseramp.GrowingWithNoise, "took", watched)
    run(recipe(NOISE | {"every": 4, "sequences": 64}, steps=10))
    assert len(counts) >= 12
    assert set(counts) == {0}
    assert read == [step for step in range(1, len(counts) + 1) if step % 4 == 0]


def test_norms_do_not_pile_up_where_decisions_are_far_apart(monkeypatch):
    monkeypatch.setattr(noiseramp, "UNREAD", 3)
    described = recipe(NOISE | {"every": 10**6}, steps=40)
    growing = noiseramp.GrowingWithNoise(described, 1.0, described.batching)
    for number in range(7):
        growing.took(growing.next(), torch.tensor(2.0), torch.tensor(1.0))
        assert len(growing._unread) == (number + 1) % 3


def test_decisions_replay_to_the_same_bits(tmp_path):
    described = recipe(NOISE, steps=30)
    state, steps = run(described)
    path = tmp_path / "batching.jsonl"
    write_decisions(state.pace.decisions, path)
    replayed, again = run(recipe({**NOISE, "replay": str(path), "sha256": sha256_of(path)}, steps=30))
    assert same_bits(state, replayed)
    assert [s.tokens for s in again] == [s.tokens for s in steps]
    assert replayed.total_steps == len(steps)
    assert not replayed.pace.may_grow
    assert [(d.step, d.portions) for d in replayed.pace.decisions] == [
        (d.step, d.portions) for d in state.pace.decisions
    ]


def test_other_decisions_than_those_that_were_named_are_refused(tmp_path):
    path = tmp_path / "batching.jsonl"
    write_decisions([Decision(0, 1, 1, "begin")], path)
    named = recipe({**NOISE, "replay": str(path), "sha256": sha256_of(path)})
    loop.start(named, seed=0)
    write_decisions([Decision(0, 1, 1, "another beginning")], path)
    with pytest.raises(ReplayError, match="holds other decisions than it did"):
        loop.start(named, seed=0)
    with pytest.raises(ValueError, match="sha256 is that of a file to `replay`"):
        recipe({**NOISE, "sha256": "0" * 64})


# --- memory and speed ----------------------------------------------------------------------------


class Machine:
    """Free memory and a clock that the test moves."""

    def __init__(self, sequences: float):
        self.described = recipe(ADAPTIVE, steps=1000)
        needs = cost_memory.bytes_by_micro(self.described, (1, 2))
        self.first, self.each = cost_memory.memory_parts(self.described)[1], needs[2] - needs[1]
        self.held = needs[1] - self.first
        self.now_s = 0.0
        self.free(sequences, first=True)

    def free(self, sequences: float, first=False):
        share = self.described.batching.memory_share
        activations = self.first + (sequences - 1) * self.each
        self.free_bytes = int(activations / share) + (self.held if first else 0)

    def pace(self, config=None) -> Adapting:
        return Adapting(
            self.described, 1.0, config or self.described.batching,
            free_bytes=lambda: self.free_bytes, clock=lambda: self.now_s,
        )  # fmt: skip

    def steps(self, adapting: Adapting, count: int, seconds=lambda micro: 1.0) -> list[int]:
        sizes = []
        for _ in range(count):
            update = adapting.next()
            adapting._used_bytes = 0  # `free_bytes` says what is free beside the step's own
            self.now_s += seconds(update.micro)
            sizes.append(update.micro)
            adapting.took(update)
            adapting._used_bytes = 0
        return sizes


def test_it_begins_with_what_fits():
    assert Machine(100).pace().micro == 8
    assert Machine(4.5).pace().micro == 4
    assert Machine(0.1).pace().micro == 1


def test_what_an_earlier_training_left_counts_as_free(monkeypatch):
    machine = Machine(0.1)
    monkeypatch.setattr(memory, "give_back", lambda: machine.free(4.5, first=True))
    assert machine.pace().micro == 4


def test_a_neighbour_that_takes_memory_makes_it_shrink_and_grow_back():
    machine = Machine(100)
    adapting = machine.pace()
    assert machine.steps(adapting, 1) == [8]
    machine.free(2.5)
    assert machine.steps(adapting, 2) == [2, 2]
    machine.free(100)
    assert machine.steps(adapting, 2) == [8, 8]
    assert [d.why for d in adapting.decisions][-1] == "memory is free again"
    assert any(d.why == "less memory is free" and d.micro == 2 for d in adapting.decisions)


def test_a_neighbour_that_takes_cores_makes_smaller_parts_pay():
    machine = Machine(100)
    adapting = machine.pace()
    machine.steps(adapting, 1)
    machine.free(100)
    machine.steps(adapting, 40, lambda micro: 1 / micro)
    assert adapting._best == 8
    machine.steps(adapting, 200, lambda micro: micro)  # caches are shared now: small parts are faster
    assert adapting._best < 8
    machine.steps(adapting, 400, lambda micro: 1 / micro)
    assert adapting._best == 8


def test_where_memory_is_tight_a_trial_ends_where_it_began():
    """What a step let go of stays with the process: free is what the largest size so far has left."""
    machine, sizes = Machine(8.1), []
    room, kept = machine.free_bytes, 0
    adapting = machine.pace()
    for _ in range(40):
        update = adapting.next()
        sizes.append(update.micro)
        machine.now_s += 1 / update.micro
        adapting.took(update)
        kept = max(kept, machine.first + (update.micro - 1) * machine.each)
        machine.free_bytes = room - machine.held - kept
    assert sizes[0] == sizes[-1] == 8
    assert 4 in sizes
    assert sizes.count(8) > 30


@pytest.mark.parametrize(("gpu", "size"), [(False, 4), (True, 8)])
def test_what_goes_back_to_the_system_by_itself_is_not_counted_twice(gpu, size, monkeypatch):
    """Once memory ran out a CPU keeps nothing of a step for the next one."""
    machine = Machine(100)
    adapting = machine.pace()
    monkeypatch.setattr(memory, "_spares", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    adapting.took(adapting.next())
    machine.free(4.5)
    assert adapting.allowed() == size


def test_what_the_caller_does_between_two_steps_is_not_timed():
    machine = Machine(100)
    undisturbed, disturbed = machine.pace(), machine.pace()
    machine.free(100)
    machine.steps(undisturbed, 40)
    for step in range(40):
        machine.steps(disturbed, 1)
        pause_s = 50.0 * (step % 7 == 3)
        machine.now_s += pause_s
        disturbed.away(pause_s)
    assert disturbed._speeds == undisturbed._speeds != {}
    assert disturbed.decisions == undisturbed.decisions


def test_the_first_step_at_a_size_is_not_timed():
    machine = Machine(100)
    adapting, last = machine.pace(), [0]
    machine.free(100)

    def seconds(micro: int) -> float:
        is_first, last[0] = micro != last[0], micro
        return 30.0 if is_first else 2.0

    machine.steps(adapting, 60, seconds)
    assert len(adapting._speeds) > 1
    assert set(adapting._speeds.values()) == {SEQUENCES * LENGTH / 2.0}


def test_the_loop_says_what_time_was_not_its_own(monkeypatch):
    state = loop.start(recipe(ADAPTIVE, steps=4), seed=0)
    away = []
    monkeypatch.setattr(state.pace, "away", away.append)
    monkeypatch.setattr(compiling, "_compile", lambda *_: 70.0)
    state.eager = state.loss
    for step in loop.train(state, text(state.recipe)):
        time.sleep(0.02 * step.index)
    compiled, taken = [s for s in away if s == 70.0], [s for s in away if s != 70.0]
    assert len(compiled) >= 1  # once a shape
    assert len(taken) == 4
    assert all(s >= 0.02 * (index + 1) for index, s in enumerate(taken))


def test_running_out_of_memory_keeps_the_batch(monkeypatch):
    plain, steps = run(recipe(steps=5))
    state = loop.start(recipe(ADAPTIVE, steps=5), seed=0)
    real = state.loss

    def small(inputs, targets):
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("no")
        return real(inputs, targets)

    state.loss = small
    ours = list(loop.train(state, text(state.recipe)))
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in steps], rel=1e-5)
    assert state.pace.micro <= 2
    assert any(d.why == "memory ran out" for d in state.pace.decisions)
    for a, b in zip(state.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=0)


def test_a_replay_has_the_bits_of_a_training_that_ran_out_of_memory(tmp_path, monkeypatch):
    """Kernels that take less sum in another order: from the step on at which memory ran out, and in a replay alike."""
    used, product = [], matmul._product
    monkeypatch.setattr(matmul, "mkl_is_slow", lambda: True)
    monkeypatch.setattr(matmul, "MIN_WORK", 1)
    monkeypatch.setattr(matmul, "_product", lambda a, b: used.append(state.step) or product(a, b))
    state = loop.start(recipe(ADAPTIVE, steps=9), seed=0)
    real = state.loss

    def small(inputs, targets):
        if len(inputs) > 2 and state.step >= 4:
            raise torch.OutOfMemoryError("no")
        return real(inputs, targets)

    state.loss = small
    steps = loop.train(state, text(state.recipe))
    first = list(itertools.islice(steps, 7))
    checkpoint.save(state, tmp_path)
    monkeypatch.setattr(memory, "_spares", False)  # a process of its own
    resumed = checkpoint.load(tmp_path, state.recipe)
    second = list(loop.train(resumed, text(state.recipe, start=resumed.pace.portions)))
    assert set(used) == {0, 1, 2, 3}
    path = tmp_path / "batching.jsonl"
    write_decisions(resumed.pace.decisions, path)
    monkeypatch.setattr(memory, "_spares", False)
    replayed, again = run(recipe({**ADAPTIVE, "replay": str(path), "sha256": sha256_of(path)}, steps=9))
    assert [step.loss for step in first + second] == [step.loss for step in again]
    assert same_bits(resumed, replayed)


def failing_above(state, most: int, error: Exception) -> None:
    real = state.loss

    def small(inputs, targets):
        if len(inputs) > most:
            raise error
        return real(inputs, targets)

    state.loss = small


@pytest.mark.parametrize(
    "said",
    [
        "could not create a primitive",
        "could not create a memory object",
        "could not execute a primitive",
        "std::bad_alloc",
        "can't allocate memory",
    ],
)
def test_kernels_that_refuse_for_want_of_memory_make_it_shrink(said):
    state = loop.start(recipe(ADAPTIVE, steps=3), seed=0)
    failing_above(state, 2, RuntimeError(said))
    assert len(list(loop.train(state, text(state.recipe)))) == 3
    assert state.pace.micro == 2


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("can't allocate memory: 8 bytes")], ids=repr
)
def test_memory_that_runs_out_in_the_pass_that_compiles_makes_it_shrink_too(error):
    state = loop.start(recipe(ADAPTIVE, steps=3), seed=0)
    failing_above(state, 2, error)
    state.eager = state.loss  # as if it were compiled
    state.recipe = state.recipe.model_copy(update={"compile": True})
    ours = list(loop.train(state, text(state.recipe)))
    assert ["compile_time_s" in step.notes for step in ours] == [True, False, False]
    assert state.pace.micro == 2
    _, plain = run(recipe(steps=3))
    assert [s.loss for s in ours] == pytest.approx([s.loss for s in plain], rel=1e-5)


def test_want_of_memory_is_not_told_as_a_failure_of_the_compiler():
    state = loop.start(recipe(), seed=0)
    failing_above(state, 0, RuntimeError("can't allocate memory: 8 bytes"))
    state.eager = state.loss
    with pytest.raises(RuntimeError, match=r"^can't allocate memory: 8 bytes$"):
        next(loop.train(state, text(state.recipe)))


def test_a_refusal_that_no_smaller_size_mends_is_shown_as_it_was():
    state = loop.start(recipe(ADAPTIVE), seed=0)
    failing_above(state, 0, RuntimeError("could not create a primitive"))
    with pytest.raises(RuntimeError, match=r"^could not create a primitive$"):
        next(loop.train(state, text(state.recipe)))
    state = loop.start(recipe(ADAPTIVE), seed=0)
    failing_above(state, 2, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        next(loop.train(state, text(state.recipe)))


def test_what_the_larger_size_took_is_given_back_before_the_smaller_one(monkeypatch):
    state = loop.start(recipe(ADAPTIVE, steps=1), seed=0)
    real, held, seen = state.loss, [], []

    def small(inputs, targets):
        if len(inputs) > 4:
            kept = torch.ones(1)
            held.append(weakref.ref(kept))
            raise torch.OutOfMemoryError("no")
        return real(inputs, targets)

    state.loss = small
    monkeypatch.setattr(memory, "economise", lambda: seen.append([one() for one in held]))
    list(loop.train(state, text(state.recipe)))
    assert seen == [[None]]


LIMITED = """
import resource, torch
from lmopt.recipe import Recipe
from lmopt.train import loop
model = {"layers": 4, "width": 256, "heads": 4, "vocab": 4096, "context": 256}
batching = {"kind": "adaptive", "sequences": 16, "length": 256, "every": 1000}
described = Recipe(model=model, batching=batching, precision={"kind": "fp32"}, tokens=16 * 256 * 3)
state = loop.start(described, seed=0)
taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + (256 << 20), resource.RLIM_INFINITY))
steps = list(loop.train(state, iter(torch.randint(4096, (3, 16, 257)))))
print(len(steps), state.pace.micro)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="address space is limited on Linux")
def test_a_training_goes_on_where_addresses_are_short():
    alone = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}  # what others reserve, and when, is chance
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, env=alone)
    assert done.returncode == 0, done.stderr
    steps, micro = map(int, done.stdout.split())
    assert steps == 3
    assert micro < 16


def test_a_size_that_failed_comes_back_when_clearly_more_is_free():
    machine = Machine(100)
    adapting = machine.pace()
    machine.steps(adapting, 1)
    machine.free(8.5)
    adapting.next()
    assert adapting.back_off(8, torch.OutOfMemoryError("no")) == 4
    assert machine.steps(adapting, 1) == [4]
    machine.free(9)
    assert set(machine.steps(adapting, 20)) <= {4, 2}, "hardly more is free than when it failed"
    machine.free(40)
    assert machine.steps(adapting, 1) == [8]
    assert adapting.decisions[-1].why == "memory is free again"


def test_beside_a_size_that_failed_it_grows_back_to_the_largest_that_did_not():
    machine = Machine(100)
    adapting = machine.pace()
    machine.steps(adapting, 1)
    machine.free(100)
    assert adapting.back_off(8, torch.OutOfMemoryError("no")) == 4
    assert machine.steps(adapting, 2) == [4, 4]
    machine.free(1.5)
    assert machine.steps(adapting, 2) == [1, 1]
    machine.free(100)
    assert machine.steps(adapting, 2) == [4, 4]
    assert adapting.decisions[-1].why == "memory is free again"
    machine.free(1000)
    assert machine.steps(adapting, 2) == [8, 8]


def test_what_memory_took_from_it_outlives_a_checkpoint():
    machine = Machine(100)
    adapting = machine.pace()
    machine.steps(adapting, 1)
    machine.free(2.5)
    machine.steps(adapting, 1)
    adapting.back_off(2, torch.OutOfMemoryError("no"))
    machine.steps(adapting, 1)
    resumed = machine.pace()
    resumed.restore(json.loads(json.dumps(adapting.state())))
    assert machine.steps(resumed, 1) == [1]
    machine.free(100)
    assert machine.steps(resumed, 1) == [8]


def test_other_kinds_let_it_pass():
    state = loop.start(recipe(), seed=0)

    def never(*_):
        raise torch.OutOfMemoryError("no")

    state.loss = never
    with pytest.raises(torch.OutOfMemoryError):
        next(loop.train(state, text(state.recipe)))


def test_not_even_one_sequence():
    state = loop.start(recipe(ADAPTIVE), seed=0)

    def never(*_):
        raise torch.OutOfMemoryError("no")

    state.loss = never
    with pytest.raises(MemoryError, match="with a single sequence of 16 tokens: no"):
        next(loop.train(state, text(state.recipe)))


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "batch_ramp", "start": 3}, "start (3) doubled some times must give sequences (8)"),
        ({"kind": "batch_ramp", "start": 16}, "start (16) doubled some times must give sequences (8)"),
        ({"kind": "batch_ramp", "start": 2, "micro_sequences": 4}, "micro_sequences (4) must divide start (2)"),
        ({"kind": "length_warmup", "start": 5}, "start (5) doubled some times must give length (16)"),
        ({"kind": "length_warmup", "start": 1}, "sequences (8) must be a multiple of length / start (16)"),
        ({"kind": "noise_ramp", "start": 2, "micro_sequences": 2}, "micro_sequences (2) must be fewer than start (2)"),
    ],
)
def test_ramps_that_do_not_divide(change, message):
    with pytest.raises(ValidationError) as error:
        recipe(change)
    assert message in str(error.value)


def test_a_limit_that_the_plan_takes_for_enough_is_enough():
    needed = cost_memory.peak_memory_bytes(recipe(ADAPTIVE))
    assert loop.start(recipe({**ADAPTIVE, "memory": needed}), seed=0).pace.micro == 1
    with pytest.raises(ValueError, match="less than a training with one sequence"):
        loop.start(recipe({**ADAPTIVE, "memory": needed - 1}), seed=0)


def test_a_limit_below_one_sequence_is_said_before_work():
    with pytest.raises(ValueError, match=r"batching.memory \(1000 B\) is less than (.|\n)*one sequence(.|\n)*hint:"):
        loop.start(recipe({**ADAPTIVE, "memory": 1000}), seed=0)


def growing(*pairs: tuple[int, int]) -> str:
    """A file of decisions from (step, portions)."""
    lines = [{"step": step, "portions": portions, "micro": 1, "why": ""} for step, portions in pairs]
    return "".join(json.dumps(line) + "\n" for line in lines)


@pytest.mark.parametrize(
    ("text_of_file", "message"),
    [
        (None, "batching.replay: .*No such file"),
        ("nonsense\n", "not a decision"),
        ('{"step": 4, "portions": 1, "micro": 1, "why": ""}\n', "no decision for the first step"),
        ('{"step": 0, "portions": "x", "micro": 1, "why": ""}\n', "not a decision .*whole numbers"),
        ('{"step": 0, "portions": true, "micro": 1, "why": ""}\n', "not a decision .*whole numbers"),
        ("[1]\n", "not a decision"),
        ('{"step": 0, "portions": 1, "micro": -2, "why": ""}\n', "jsonl:1: not a decision .*micro 1 or more"),
        ('{"step": 0, "portions": 1, "micro": 0, "why": ""}\n', "jsonl:1: not a decision .*micro 1 or more"),
        ('{"step": -3, "portions": 1, "micro": 2, "why": ""}\n', "jsonl:1: not a decision .*0 or more"),
        (2 * '{"step": 0, "portions": 1, "micro": 2, "why": ""}\n', "jsonl:2: step 0 stands behind step 0"),
        ("[" * 100_000, "not a decision"),
        ('{"step": 0, "portions": 1, "micro": 1}\n', "it needs step, portions, micro, why"),
        ("\udcff", "not a file of decisions"),
        ('{"step": 0, "portions": 8, "micro": 1, "why": ""}\n', "takes 16 sequences.*doubles up to 8 and never"),
        ('{"step": 0, "portions": 3, "micro": 1, "why": ""}\n', "begins with 2, doubles"),
        ('{"step": 0, "portions": 2, "micro": 1, "why": ""}\n', "step 0 .*begins with 2, doubles"),
        (growing((0, 1), (2, 2), (4, 1)), "step 4 .*never shrinks\nhint: it was written by another recipe"),
        (growing((0, 1), (4, 4)), "step 4 takes 8 sequences.*begins with 2, doubles"),
        (growing((0, 1), (3, 2)), "step 3 .*it decides every 2 steps"),
        ('{"step": 0, "portions": 1, "micro": 2, "why": ""}\n', "does not fit this recipe: it has 1 at once"),
        ('{"step": 0, "portions": 1, "micro": null, "why": ""}\n', "it has 1 at once"),
        ('{"step": 0, "portions": 1, "micro": 1, "why": 7}\n', "why must be text, got 7"),
        ('{"step": 0, "portions": 1, "micro": 1, "why": "", "facts": [1]}\n', "facts must be finite numbers"),
        ('{"step": 0, "portions": 1, "micro": 1, "why": "", "facts": {"a": NaN}}\n', "facts must be finite"),
        ('{"step": 0, "portions": 1, "micro": 1, "why": "", "facts": {"a": "b"}}\n', "facts must be finite"),
        ('{"step": 0, "portions": 1, "portions": 2, "micro": 1, "why": ""}\n', "gives a key twice"),
        ('{"step": 0, "portions": 1, "micro": 1, "why"', "jsonl:1: not a decision"),
    ],
)
def test_replay_of_what_is_none(tmp_path, text_of_file, message):
    path = tmp_path / "batching.jsonl"
    if text_of_file is not None:
        path.write_bytes(text_of_file.encode("utf-8", "surrogateescape"))
    with pytest.raises(ReplayError, match=message):
        loop.start(recipe({**NOISE, "replay": str(path)}), seed=0)


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        (Decision(0, 2, 4, ""), "its batch is always 8"),
        (Decision(0, 1, 3, ""), "may have 1, 2, 4 at once"),
        (Decision(0, 1, 8, ""), "takes 8 sequences, 8 at once.* may have 1, 2, 4 at once"),
        (Decision(0, 1, None, ""), "may have 1, 2, 4 at once"),
    ],
)
def test_an_adaptive_training_replays_only_what_it_could_decide(tmp_path, decision, message):
    path = tmp_path / "batching.jsonl"
    write_decisions([decision], path)
    with pytest.raises(ReplayError, match=message):
        loop.start(recipe({**ADAPTIVE, "micro_sequences": 4, "replay": str(path)}), seed=0)
