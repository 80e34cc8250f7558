"""Which of NVML's devices is the one that CUDA calls `cuda:0`, so that a case is charged for the GPU it ran on alone.

CUDA itself says it best, by UUID, but only where this process uses CUDA already: nothing here imports torch or starts
CUDA. Everywhere else CUDA_VISIBLE_DEVICES is read as CUDA reads it.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = ("GPU-", "MIG-")
"""Beginnings of UUIDs as NVML writes them; PyTorch leaves them out."""


def index_of(device: str) -> int:
    """CUDA's number of a device: 1 of `cuda:1`, 0 of `cuda`."""
    return int(device.partition(":")[2] or 0)


def visible_devices(
    uuids: Sequence[str], environment: Mapping[str, str], slices: Mapping[str, int] | None = None
) -> list[int]:
    """NVML indices of the devices that CUDA shows this process, in CUDA's order.

    CUDA_VISIBLE_DEVICES holds indices or beginnings of UUIDs; as in CUDA, the list ends at the first entry that
    names no device. CUDA numbers unlike devices fastest first unless CUDA_DEVICE_ORDER=PCI_BUS_ID; NVML numbers them
    by PCI bus.

    Args:
        uuids: of NVML's devices, by index.
        environment: of this process.
        slices: UUIDs of MIG slices -> index of the device that each is cut from.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return list(range(len(uuids)))
    found: list[int] = []
    for entry in (part.strip() for part in wanted.split(",")):
        matches = _named(entry, uuids, slices or {})
        if len(matches) != 1 or matches[0] in found:
            break
        found.append(matches[0])
    return found


def _named(entry: str, uuids: Sequence[str], slices: Mapping[str, int]) -> list[int]:
    """Devices that an entry of CUDA_VISIBLE_DEVICES may mean."""
    if entry.isdigit():
        return [int(entry)] if int(entry) < len(uuids) else []
    if entry.startswith("MIG-GPU-"):  # before driver 470: the device's own UUID, then numbers of the slice
        entry = entry.removeprefix("MIG-").partition("/")[0]
    elif entry.startswith("MIG-"):
        return [index for uuid, index in slices.items() if uuid.startswith(entry)]
    return [n for n, uuid in enumerate(uuids) if uuid.startswith(entry)] if entry.startswith("GPU-") else []


def is_certain(names: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether the order above is surely CUDA's: like devices, one order for both, or devices named by UUID."""
    by_number = any(part.strip().isdigit() for part in environment.get("CUDA_VISIBLE_DEVICES", "0").split(","))
    return len(set(names)) <= 1 or environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or not by_number


def running_uuid(index: int) -> str | None:
    """UUID of a CUDA device as PyTorch writes it; None where this process has not started CUDA, or torch is too old."""
    torch: Any = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return None
        return str(torch.cuda.get_device_properties(index).uuid)
    except (AttributeError, AssertionError, RuntimeError):
        return None


def with_uuid(wanted: str, uuids: Sequence[str], slices: Mapping[str, int]) -> int | None:
    """NVML's index of the device with this UUID, or of that from which this slice is cut; None if there is none."""
    known = dict(slices) | {uuid: index for index, uuid in enumerate(uuids)}
    return next((index for uuid, index in known.items() if _bare(uuid) == _bare(wanted)), None)


def digest(uuid: str) -> str:
    """Eight hex digits that tell a device from others without saying whose it is."""
    return hashlib.sha256(uuid.encode()).hexdigest()[:8]


def _bare(uuid: str) -> str:
    return next((uuid.removeprefix(kind) for kind in KINDS if uuid.startswith(kind)), uuid).lower()
