"""Placement against recorded trees of two and four sockets; the kernel's calls are watched, and once made for real."""

from __future__ import annotations

import os

import pytest

from lmopt.compute import numa, topology
from lmopt.compute.numa import MPOL_BIND, MPOL_DEFAULT, MPOL_INTERLEAVE, MPOL_LOCAL, MPOL_PREFERRED, NotApplicable
from lmopt.compute.topology import NoSuchNode
from lmopt.recipe import Anywhere, Bound, FirstTouch, Interleaved
from tests.lmopt.compute.trees import EXPANDED, FOUR_SOCKETS, ONE_NODE, TWO_SOCKETS, plant


@pytest.fixture
def two(tmp_path):
    return topology.nodes(plant(TWO_SOCKETS, tmp_path))


@pytest.fixture
def four(tmp_path):
    return topology.nodes(plant(FOUR_SOCKETS, tmp_path))


@pytest.fixture
def calls(monkeypatch):
    """What the kernel was asked for, on a machine whose processors may all be used."""
    seen = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: frozenset(range(112)))
    monkeypatch.setattr(numa, "pin", lambda cpus: seen.append(("cpus", sorted(cpus))))
    monkeypatch.setattr(numa, "set_policy", lambda policy, nodes: seen.append((policy, nodes)))
    return seen


def test_two_sockets_are_read(two):
    assert [(n.node, n.cpus, n.distances) for n in two] == [(0, "0-27,56-83", (10, 21)), (1, "28-55,84-111", (21, 10))]
    assert two[1].memory_bytes == 132_116_276 * 1024
    assert two[0].cpu_numbers == frozenset([*range(28), *range(56, 84)])


def test_four_sockets_are_read(four):
    assert [n.node for n in four] == [0, 1, 2, 3]
    assert four[0].distances == (10, 21, 31, 21)
    assert four[3].memory_bytes == 0


def test_no_nodes_at_all(tmp_path):
    assert topology.nodes(tmp_path) == []


def test_bound_pins_threads_and_memory_to_one_node(two, calls):
    with numa.build(Bound(node=1), two) as placed:
        assert placed.nodes == (1,)
        assert calls == [("cpus", [*range(28, 56), *range(84, 112)]), (MPOL_BIND, (1,))]
    assert calls[2:] == [(MPOL_DEFAULT, ()), ("cpus", list(range(112)))]


def test_overflow_prefers_instead_of_binding(two, calls):
    with numa.build(Bound(node=0, overflow=True), two):
        assert calls[1] == (MPOL_PREFERRED, (0,))


def test_interleaved_takes_memory_where_there_is_some_and_processors_everywhere(four, calls):
    """An arm that had fewer processors than the others would be compared for that."""
    with numa.build(Interleaved(), four) as placed:
        assert placed.nodes == (0, 1, 2)
        assert calls == [("cpus", list(range(64))), (MPOL_INTERLEAVE, (0, 1, 2))]


def test_memory_alone_and_processors_alone(tmp_path, calls):
    expanded = topology.nodes(plant(EXPANDED, tmp_path))
    assert [one.node for one in expanded] == [0, 2, 4, 5]
    with numa.build(Interleaved(), expanded) as placed:
        assert placed.nodes == (0, 4, 5)
        assert calls == [("cpus", list(range(11))), (MPOL_INTERLEAVE, (0, 4, 5))]
    with numa.build(Interleaved(nodes=(4, 5)), expanded):
        assert calls[4:] == [("cpus", [8, 9, 10]), (MPOL_INTERLEAVE, (4, 5))]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Bound(node=5), "placement bound: NUMA node 5 has no processors"),
        (FirstTouch(nodes=(0, 5)), "placement first_touch: NUMA node 5 has no processors"),
        (Interleaved(nodes=(5,)), "placement interleaved: NUMA nodes 5 have no processors"),
        (Bound(node=2), "NUMA node 2 has no memory"),
        (Bound(node=1), r"no NUMA node 1 on this machine\nhint: it has 0, 2, 4, 5"),
    ],
)
def test_a_node_that_lacks_what_is_asked_of_it(config, message, tmp_path):
    with pytest.raises(NoSuchNode, match=message):
        topology.not_applicable(config, topology.nodes(plant(EXPANDED, tmp_path)))


@pytest.mark.parametrize("config", [Bound(node=0), FirstTouch(nodes=(0,))])
def test_processors_that_this_process_may_not_run_on(config, tmp_path):
    """Slurm keeps a job to processors and leaves it all memory."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text("Cpus_allowed_list:\t28-55\nMems_allowed_list:\t\nThreads:\t1\n")
    there = topology.nodes(plant(TWO_SOCKETS, tmp_path))
    assert [one.runs for one in there] == [False, True]
    assert all(one.allowed for one in there)  # an empty list says nothing
    assert topology.not_applicable(Bound(node=1), there) is None
    with pytest.raises(NoSuchNode, match="processors"):
        topology.not_applicable(config, there)


def test_what_the_kernel_would_not_write_is_passed_over(tmp_path):
    plant(TWO_SOCKETS, tmp_path)
    place = tmp_path / "sys/devices/system/node"
    (place / "node1x").mkdir()
    (place / "node0/distance").write_text("10 far")
    first, _ = topology.nodes(tmp_path)
    assert first.distances == (10,)


@pytest.mark.parametrize("said", ["(null)", "4 5", "0-6:2/4", "a-b", "0,,1"])
def test_a_list_that_cannot_be_read_says_nothing(said, tmp_path):
    plant(TWO_SOCKETS | {"node1/cpulist": f"{said}\n", "node1/numastat": "numa_hit 5\n\nunknown\n"}, tmp_path)
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/status").write_text(f"Cpus_allowed_list:\t{said}\nMems_allowed_list:\t{said}\n")
    first, second = topology.nodes(tmp_path)
    assert (first.cpus, second.cpus) == ("0-27,56-83", "")
    assert first.allowed
    assert first.runs
    assert numa.allocation_counts(tmp_path)[1] == {"numa_hit": 5}


def kept_to(nodes: str, root):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/status").write_text(f"Name:\tpython\nMems_allowed:\tff\nMems_allowed_list:\t{nodes}\n")
    return topology.nodes(plant(FOUR_SOCKETS, root))


def test_memory_that_this_process_may_not_take_is_not_there(tmp_path, calls):
    """As Slurm keeps a job to nodes: the kernel would take the others out of the mask without a word."""
    there = kept_to("0,2-3", tmp_path)
    with numa.build(Interleaved(), there) as placed:
        assert placed.nodes == (0, 2)
    assert (MPOL_INTERLEAVE, (0, 2)) in calls
    with pytest.raises(NoSuchNode, match=r"may take no memory of NUMA node 1\nhint: its cpuset allows 0, 2"):
        topology.not_applicable(Bound(node=1), there)


def test_kept_to_one_node_nothing_would_change(tmp_path):
    reason = topology.not_applicable(Interleaved(), kept_to("1", tmp_path))
    assert reason is not None
    assert "this process may take memory of one of 4 NUMA nodes (its cpuset)" in reason


def test_first_touch_spreads_threads_and_leaves_memory_to_them(four, calls):
    with numa.build(FirstTouch(nodes=(0, 2)), four):
        assert calls == [("cpus", [*range(16), *range(32, 48)]), (MPOL_LOCAL, ())]


def test_left_as_it_was_when_the_work_fails(two, calls):
    with pytest.raises(ZeroDivisionError), numa.build(Bound(), two):
        1 / 0  # noqa: B018
    assert calls[-2:] == [(MPOL_DEFAULT, ()), ("cpus", list(range(112)))]


def test_left_as_it_was_when_the_kernel_refuses(two, calls, monkeypatch):
    def refuse(policy, _nodes):
        raise numa.PlacementError(f"memory policy {policy} refused")

    monkeypatch.setattr(numa, "set_policy", refuse)
    with pytest.raises(numa.PlacementError, match="policy 2 refused"), numa.build(Bound(), two):
        pass
    assert calls[-1] == ("cpus", list(range(112)))


def test_anywhere_asks_for_nothing(two, calls):
    with numa.build(Anywhere(), two) as placed:
        assert placed.nodes == ()
    assert calls == []


def test_a_node_that_does_not_exist_on_a_machine_of_one(tmp_path):
    with pytest.raises(NoSuchNode, match=r"placement bound: no NUMA node 7 on this machine\nhint: it has 0$"):
        numa.build(Bound(node=7), topology.nodes(plant(ONE_NODE, tmp_path)))


@pytest.mark.parametrize("config", [Bound(), FirstTouch(), Interleaved()])
def test_on_one_node_it_is_not_applicable(config, tmp_path):
    one = topology.nodes(plant(ONE_NODE, tmp_path))
    with pytest.raises(NotApplicable, match="not applicable here: one NUMA node"):
        numa.build(config, one)
    with pytest.raises(NotApplicable, match="shows no NUMA nodes"):
        numa.build(config, [])
    assert topology.not_applicable(Anywhere(), one) is None


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Bound(node=2), r"placement bound: no NUMA node 2 on this machine\nhint: it has 0, 1"),
        (Interleaved(nodes=(0, 7)), "placement interleaved: no NUMA node 7"),
    ],
)
def test_a_node_that_does_not_exist(two, config, message):
    with pytest.raises(NoSuchNode, match=message):
        numa.build(config, two)


def test_a_node_without_memory(four):
    with pytest.raises(NoSuchNode, match="NUMA node 3 has no memory"):
        numa.build(Bound(node=3), four)


def test_processors_that_this_process_may_not_use(two, calls, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: frozenset([0, 1]))
    with pytest.raises(numa.PlacementError, match="none of the processors of nodes"), numa.build(Bound(node=1), two):
        pass


def test_masks_have_a_bit_a_node():
    mask = numa.node_mask((0, 3, 65))
    assert (mask[0], mask[1], mask[2]) == (0b1001, 0b10, 0)


def test_where_pages_lie(tmp_path):
    maps = tmp_path / "numa_maps"
    maps.write_text(
        "7f2a bind:1 anon=512 dirty=512 N0=12 N1=500 kernelpagesize_kB=4\n"
        "7f3b default file=/lib/x.so mapped=3 N0=3 kernelpagesize_kB=4\n"
        "7f4c default anon=1 N1=1 kernelpagesize_kB=2048\n"
        "7f5d default stack=1\n"
    )
    by_node = numa.bytes_by_node(maps)
    assert by_node == {0: 15 * 4096, 1: 500 * 4096 + 2 * 2**20}
    assert numa.remote_bytes(by_node, [1]) == 15 * 4096
    assert numa.bytes_by_node(tmp_path / "none") == {}


def test_allocation_counts(tmp_path):
    counts = numa.allocation_counts(plant(TWO_SOCKETS, tmp_path))
    assert counts[1]["numa_miss"] == 1250
    assert counts[0]["other_node"] == 24404


def test_cpu_lists():
    assert topology.parse_list("0-3,8") == [0, 1, 2, 3, 8]
    assert topology.parse_list("") == []


@pytest.mark.skipif(not topology.nodes(), reason="the kernel shows no NUMA nodes")
def test_the_kernel_takes_what_it_is_told():
    """On any machine, one node or more: bind to the first node, touch memory, and go back."""
    first = topology.nodes()[0].node
    before = os.sched_getaffinity(0)
    numa.set_policy(MPOL_BIND, (first,))
    try:
        assert len(bytearray(1 << 20)) == 1 << 20
        numa.pin(before)
        with pytest.raises(numa.PlacementError, match="refused"):
            numa.set_policy(MPOL_BIND, (numa.MASK_BITS - 1,))
    finally:
        numa.set_policy(MPOL_DEFAULT, ())
    assert os.sched_getaffinity(0) == before
