"""/sys/devices/system/node of machines with several sockets, as files and their text."""

from __future__ import annotations

from pathlib import Path

Tree = dict[str, str]

TWO_SOCKETS: Tree = {  # 2 x 28 cores with two threads each; the second threads are numbered behind all first ones
    "online": "0-1\n",
    "node0/cpulist": "0-27,56-83\n",
    "node0/distance": "10 21\n",
    "node0/meminfo": "Node 0 MemTotal:       131587308 kB\nNode 0 MemFree:        103224240 kB\n",
    "node0/numastat": "numa_hit 8129405\nnuma_miss 0\nnuma_foreign 1250\ninterleave_hit 27302\nlocal_node 8105001\n"
    "other_node 24404\n",
    "node1/cpulist": "28-55,84-111\n",
    "node1/distance": "21 10\n",
    "node1/meminfo": "Node 1 MemTotal:       132116276 kB\nNode 1 MemFree:        127020136 kB\n",
    "node1/numastat": "numa_hit 5511200\nnuma_miss 1250\nnuma_foreign 0\ninterleave_hit 27298\nlocal_node 5480110\n"
    "other_node 32340\n",
}

FOUR_SOCKETS: Tree = {  # a ring: the socket across is two hops away; node 3's memory is not fitted
    "online": "0-3\n",
    **{
        f"node{n}/{name}": text
        for n, (cpus, distance, memory_kb) in enumerate(
            [
                ("0-15", "10 21 31 21", 65_806_212),
                ("16-31", "21 10 21 31", 66_057_048),
                ("32-47", "31 21 10 21", 66_057_048),
                ("48-63", "21 31 21 10", 0),
            ]
        )
        for name, text in {
            "cpulist": f"{cpus}\n",
            "distance": f"{distance}\n",
            "meminfo": f"Node {n} MemTotal:       {memory_kb} kB\n",
        }.items()
    },
}

EXPANDED: Tree = {  # numbers with a gap; node 2 has processors alone, node 5 is memory alone behind CXL
    "online": "0,2,4-5\n",
    "node0/cpulist": "0-3\n",
    "node0/meminfo": "Node 0 MemTotal:       65806212 kB\n",
    "node2/cpulist": "4-7\n",
    "node2/meminfo": "Node 2 MemTotal:              0 kB\n",
    "node4/cpulist": "8-10\n",  # processor 11 is offline
    "node4/meminfo": "Node 4 MemTotal:       66057048 kB\n",
    "node5/cpulist": "\n",
    "node5/meminfo": "Node 5 MemTotal:      132116276 kB\n",
    **{f"node{n}/distance": text for n, text in zip((0, 2, 4, 5), (
        "10 12 21 24\n", "12 10 21 26\n", "21 21 10 14\n", "24 26 14 10\n"), strict=True)},
}  # fmt: skip

ONE_NODE: Tree = {
    "online": "0\n",
    "node0/cpulist": "0-1\n",
    "node0/distance": "10\n",
    "node0/meminfo": "Node 0 MemTotal:       24607412 kB\n",
}


def plant(tree: Tree, root: Path) -> Path:
    """Write a tree under `root` and return `root`."""
    for name, text in tree.items():
        path = root / "sys/devices/system/node" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
