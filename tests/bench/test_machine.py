"""The fingerprint, against recorded /proc and /sys trees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import machine
from bench.api import this_machine
from bench.instruments.nvml import Nvml
from tests.bench.instruments.fakes import FakeGpu, FakeNvml

CPU = """processor\t: {n}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz
stepping\t: 8
microcode\t: 0x2b
physical id\t: {socket}
core id\t\t: {core}
flags\t\t: fpu avx2 avx512f avx512_bf16 amx_tile amx_bf16 amx_int8{extra}
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sockets, two cores each, two threads a core; no control group."""
    blocks = [CPU.format(n=n, socket=n // 4, core=n // 2, extra="") for n in range(8)]
    write(tmp_path / "proc/cpuinfo", "\n".join(blocks))
    write(tmp_path / "proc/meminfo", "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:    8388608 kB\n")
    write(tmp_path / "proc/loadavg", "1.50 0.75 0.25 2/300 4242\n")
    write(tmp_path / "proc/sys/kernel/osrelease", "6.8.0-test\n")
    write(tmp_path / "proc/self/cgroup", "0::/user.slice\n")
    for node in (0, 1):
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        write(folder / "cpulist", f"{4 * node}-{4 * node + 3}\n")
        write(folder / "distance", "10 21\n" if node == 0 else "21 10\n")
        write(folder / "meminfo", f"Node {node} MemTotal:       8388608 kB\n")
    write(tmp_path / "sys/devices/system/node/online", "0-1\n")
    return tmp_path


def no_gpu() -> Nvml:
    return Nvml(FakeNvml(starts=False))


def two_gpus() -> Nvml:
    return Nvml(FakeNvml([FakeGpu("GPU-0"), FakeGpu("GPU-1")]), environment={})


def test_what_the_hardware_is(root: Path) -> None:
    facts = machine.fingerprint(root, nvml=no_gpu())
    assert facts["cpu"]["model"] == "Intel(R) Xeon(R) Platinum 8480C CPU @ 2.00GHz"
    assert facts["cpu"]["flags"] == ["avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8"]
    assert facts["cores"] == {"logical": 8, "physical": 4, "sockets": 2, "usable": 8}
    assert facts["memory_bytes"] == 16 * 2**30
    assert facts["kernel"] == "6.8.0-test"
    assert facts["load"] == [1.5, 0.75, 0.25]
    assert facts["virtual"] is False
    assert facts["gpus"] == []
    assert facts["packages"]["torch"]


def test_nodes_and_distances(root: Path) -> None:
    assert machine.numa(root) == [
        {"node": 0, "cpus": "0-3", "memory_bytes": 8 * 2**30, "distances": [10, 21]},
        {"node": 1, "cpus": "4-7", "memory_bytes": 8 * 2**30, "distances": [21, 10]},
    ]
    write(root / "proc/self/status", "Name:\tpython\nMems_allowed_list:\t1\n")
    assert machine.numa(root)[0]["allowed"] is False
    assert "allowed" not in machine.numa(root)[1]


def test_a_guest_says_so(root: Path) -> None:
    write(root / "proc/cpuinfo", CPU.format(n=0, socket=0, core=0, extra=" hypervisor"))
    assert machine.fingerprint(root, nvml=no_gpu())["virtual"] is True


def test_capability_of_the_device_that_cases_run_on() -> None:
    gpus = [FakeGpu("GPU-0", "Tesla T4", capability=(7, 5)), FakeGpu("GPU-1")]
    assert machine.device_capability(Nvml(FakeNvml(gpus), environment={})) == ("Tesla T4", (7, 5))
    second = Nvml(FakeNvml(gpus), environment={"CUDA_VISIBLE_DEVICES": "1"})
    assert machine.device_capability(second) == ("NVIDIA H200", (9, 0))
    assert machine.device_capability(Nvml(FakeNvml(gpus), environment={"CUDA_VISIBLE_DEVICES": ""})) is None
    assert machine.device_capability(Nvml(FakeNvml([FakeGpu("GPU-0", dead=True)]), environment={})) is None


def test_memory_of_the_device_that_cases_run_on() -> None:
    gpus = [FakeGpu("GPU-0", free_bytes=70), FakeGpu("GPU-1", free_bytes=20)]
    assert machine.device_memory_bytes(Nvml(FakeNvml(gpus), environment={})) == 70
    assert machine.device_memory_bytes(Nvml(FakeNvml(gpus), environment={"CUDA_VISIBLE_DEVICES": "1"})) == 20
    assert machine.device_memory_bytes(Nvml(FakeNvml(gpus), environment={"CUDA_VISIBLE_DEVICES": ""})) is None
    assert machine.device_memory_bytes(Nvml(FakeNvml(starts=False))) is None


def test_a_study_is_planned_for_the_memory_of_its_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory_bytes", lambda *_: 500)
    monkeypatch.setattr(machine, "device_memory_bytes", lambda: 70)
    assert this_machine(calibrate=False).memory_bytes == 70
    monkeypatch.setattr(machine, "device_memory_bytes", lambda: None)
    assert this_machine(calibrate=False).memory_bytes == 500


def test_gpus_and_driver(root: Path) -> None:
    facts = machine.fingerprint(root, nvml=two_gpus())
    assert facts["gpus"] == ["NVIDIA H200", "NVIDIA H200"]
    assert facts["driver"] == "580.1"
    assert machine.machine_class(facts) == "2x-nvidia-h200"


def test_the_class_of_a_cpu_machine(root: Path) -> None:
    found = machine.machine_class(machine.fingerprint(root, nvml=no_gpu()))
    assert found == "intel-xeon-platinum-8480c-f6m143-8c"
    assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", found)


@pytest.mark.parametrize(
    ("files", "cpus", "memory"),
    [
        ({"user.slice/cpu.max": "300000 100000", "user.slice/memory.max": str(2**30)}, 3.0, 2**30),
        ({"user.slice/cpu.max": "max 100000", "user.slice/memory.max": "max"}, None, None),
        ({"cpu.max": "150000 100000", "memory.max": str(2**31)}, 1.5, 2**31),
    ],
)
def test_limits_of_a_control_group(root: Path, files: dict[str, str], cpus: float | None, memory: int | None) -> None:
    for name, text in files.items():
        write(root / "sys/fs/cgroup" / name, text + "\n")
    assert machine.cgroup_limits(root) == {"cpus": cpus, "memory_bytes": memory}


def test_limits_of_version_1(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/job\n2:cpu,cpuacct:/job\n0::/\n")
    write(root / "sys/fs/cgroup/memory/job/memory.limit_in_bytes", str(2**30))
    write(root / "sys/fs/cgroup/memory/job/memory.usage_in_bytes", str(2**28))
    write(root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "400000")
    write(root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000")
    assert machine.cgroup_limits(root) == {"cpus": 4.0, "memory_bytes": 2**30}
    assert machine.available_memory_bytes(root) == 2**30 - 2**28
    assert machine.fingerprint(root, nvml=no_gpu())["cores"]["usable"] == 4


def test_no_limit_of_version_1_is_none(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/\n2:cpu:/\n")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1")
    write(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000")
    assert machine.cgroup_limits(root) == {"cpus": None, "memory_bytes": None}
    assert machine.available_memory_bytes(root) == 8 * 2**30


def test_the_environment_is_equal_for_equal_machines_only(root: Path) -> None:
    first = machine.env_id(machine.fingerprint(root, nvml=no_gpu()))
    assert re.fullmatch(r"[0-9a-f]{10}", first)
    write(root / "proc/loadavg", "9.00 9.00 9.00 2/300 4242\n")
    assert machine.env_id(machine.fingerprint(root, nvml=no_gpu())) == first
    write(root / "proc/sys/kernel/osrelease", "6.9.0\n")
    assert machine.env_id(machine.fingerprint(root, nvml=no_gpu())) != first


def test_an_empty_tree_has_no_facts_and_no_error(tmp_path: Path) -> None:
    facts = machine.fingerprint(tmp_path, nvml=no_gpu())
    assert facts["memory_bytes"] is None
    assert facts["numa"] == []
    assert machine.available_memory_bytes(tmp_path) is None
    assert machine.machine_class(facts)


def test_this_machine_without_names_or_paths() -> None:
    import getpass
    import socket

    facts = machine.fingerprint()
    text = json.dumps(machine.environment(facts, []))
    assert json.loads(text)["env"] == machine.env_id(facts)
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd())):
        if len(private) > 4:
            assert private not in text
    if len(getpass.getuser()) > 4:
        assert getpass.getuser() not in text


def test_the_fingerprint_imports_no_torch() -> None:
    code = "import sys; from bench import machine, calibrate; machine.fingerprint(); calibrate.cached()"
    check = f"{code}; sys.exit(' '.join({{'torch', 'pandas'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
