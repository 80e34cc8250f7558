"""What `lmbench data ...` takes. Light, like all that `lmbench --help` reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(actions: Any) -> tuple[argparse.ArgumentParser, ...]:
    """Add the actions to a group of subparsers; returns those that can print JSON."""
    fetch = actions.add_parser("fetch", help="download a source into the cache")
    fetch.add_argument(
        "source", nargs="+", metavar="SOURCE", help="pypi:NAME==VERSION, npm:NAME@VERSION, deb:NAME, hf:OWNER/NAME"
    )
    fetch.add_argument("--limit", type=_size, metavar="SIZE", help="of hf: sources: how much text, as the suite has it")
    fetch.add_argument("--field", default="text", metavar="FIELD", help="of hf: sources: the field of the text (text)")
    fetch.add_argument(
        "--domain-field", metavar="FIELD", help="of hf: sources: the field of the domain, if the suite has it"
    )
    build = actions.add_parser("build", help="build the corpus of a suite, with each arm's data steps")
    build.add_argument("suite", type=Path, metavar="SUITE")
    build.add_argument("--out", type=Path, required=True, metavar="DIR")
    build.add_argument("--workers", type=_count, default=1, metavar="N", help="processes (1); the output is the same")
    build.add_argument(
        "--memory",
        type=_size,
        default="1GiB",
        metavar="SIZE",
        help="for the tables of an arm's data steps together (1GiB); the rest of them lies on disk",
    )
    describe = actions.add_parser("describe", help="documents, bytes and tokens a domain; what was dropped and why")
    describe.add_argument("folder", type=Path, metavar="DIR")
    inspect = actions.add_parser("inspect", help="show some documents of a built corpus")
    inspect.add_argument("folder", type=Path, metavar="DIR")
    inspect.add_argument("--count", type=_count, default=5, metavar="N")
    inspect.add_argument("--dropped", action="store_true", help="documents that a step dropped, with its reason")
    inspect.add_argument("--reason", metavar="REASON", help="only those dropped for this reason")
    inspect.add_argument("--domain", metavar="DOMAIN", help="only those of this domain")
    bring = actions.add_parser("import", help="put a file you have into the cache under a hub name")
    bring.add_argument("name", metavar="NAME")
    bring.add_argument("file", type=Path, metavar="FILE")
    return describe, inspect


def _count(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 is needed, not {text!r}")
    return int(text)


def _size(text: str) -> int:
    """Bytes of `256MB` or `1GiB`."""
    from lmopt.quantities import parse_bytes

    try:
        return int(parse_bytes(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
