"""What each operator of a training step costs: time from a profile, FLOPs and bytes from the operators dispatched.

An operator of our own (`lmopt::...`) holds the time of everything it calls, as it holds its FLOPs; all other time
belongs to the operator that spends it. Where a device did the work, time is the device's: the program's own, and its
waiting for the device, would count the same work again. Bytes are those of an operator's tensors, read and written once
each: what must move at least, were nothing still in a cache.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import record_function
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bench.instruments.formulas import FORMULAS, known_operators
from lmopt.arch import fused

US_PER_S = 1e6
OWN = "lmopt::"
"""What names of operators and kernels of our own begin with."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one step asks of an operator."""

    flops: float
    bytes: float


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator in one training step."""

    name: str
    """`aten::mm`, `lmopt::causal_attention`, or an autograd function's name."""
    calls: float
    seconds: float
    flops: float
    bytes: float
    """Of its tensors; 0 where it was not dispatched as an operator."""

    def roof_s(self, peak_flops_per_s: float, bytes_per_s: float) -> float:
        """The least time this machine could take (Williams et al. 2009): products or memory, the slower."""
        return max(self.flops / peak_flops_per_s, self.bytes / bytes_per_s)

    def is_bound_by_products(self, peak_flops_per_s: float, bytes_per_s: float) -> bool:
        """Whether it does more FLOPs a byte than the machine's ridge."""
        return self.flops / peak_flops_per_s > self.bytes / bytes_per_s


def work_of(step: Callable[[], object]) -> dict[str, Work]:
    """FLOPs and bytes by operator of one real step."""
    traffic = _Traffic()
    counter = FlopCounterMode(display=False, custom_mapping=known_operators(FORMULAS))
    with counter, traffic, fused.watched(traffic.kernel):
        step()
    counted = {_name(packet): float(count) for packet, count in counter.get_flop_counts()["Global"].items()}
    return {name: Work(counted.get(name, 0.0), traffic.bytes.get(name, 0.0)) for name in counted | traffic.bytes}


def kernel_named(name: str, _arguments: object = None) -> AbstractContextManager[object]:
    """An event of a profile for a kernel of ours: those of autograd functions are called past torch's operators."""
    return record_function(OWN + name)


class _Traffic(TorchDispatchMode):
    """Sums the bytes of the tensors of every dispatched operator, and of every kernel of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: defaultdict[str, float] = defaultdict(float)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        out = func(*args, **(kwargs or {}))
        if not _is_view(func):
            self._add(_name(func), (args, kwargs, out))
        return out

    def kernel(self, name: str, arguments: object) -> AbstractContextManager[object]:
        """For `lmopt.arch.fused.watched`."""
        self._add(OWN + name, arguments)
        return nullcontext()

    def _add(self, name: str, values: Any) -> None:
        tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
        seen = {(tensor.data_ptr(), tensor.numel()): tensor for tensor in tensors}
        self.bytes[name] += sum(tensor.numel() * tensor.element_size() for tensor in seen.values())


def _is_view(func: Any) -> bool:
    """Whether an operator moves nothing: its results only look at its arguments' memory."""
    returns = func._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def _name(func: Any) -> str:
    """`aten.mm.default` and `aten.mm` -> `aten::mm`, as the profiler says."""
    namespace, _, rest = str(func).partition(".")
    return f"{namespace}::{rest.partition('.')[0]}"


def operators(events: Iterable[Any], work: Mapping[str, Work], steps: int) -> list[Operator]:
    """The operators of a profile's events, the most time first.

    Args:
        events: `torch.profiler.profile.events()`.
        work: what `work_of` found for one step.
        steps: how many steps were profiled.
    """
    seconds: defaultdict[str, float] = defaultdict(float)
    calls: defaultdict[str, int] = defaultdict(int)
    seen = list(events)
    launching = [event for event in seen if not _is_kernel(event)]
    on_device = len(launching) < len(seen)
    for event in launching:
        owner = _owner(event)
        name = str(owner.name)
        seconds[name] += (event.self_device_time_total if on_device else event.self_cpu_time_total) / US_PER_S
        calls[name] += owner is event
    found: list[Operator] = []
    for name, spent in seconds.items():
        if spent > 0:
            asks = work.get(name, Work(0.0, 0.0))
            found.append(Operator(name, calls[name] / steps, spent / steps, asks.flops, asks.bytes))
    return sorted(found, key=lambda one: -one.seconds)


def _owner(event: Any) -> Any:
    """The outermost operator of our own around an event, else the event itself."""
    owner, around = event, event.cpu_parent
    while around is not None:
        if str(around.name).startswith(OWN):
            owner = around
        around = around.cpu_parent
    return owner


def _is_kernel(event: Any) -> bool:
    """Whether an event is what a device did. Its time stands with the operator that launched it, too."""
    return event.device_type != DeviceType.CPU
