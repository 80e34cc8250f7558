"""What a user got wrong at the command line: the exit code, the words, and values that are handed on to be told so."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence

OK, REGRESSED, INVALID, NOTHING, FAILED, IN_USE, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130
"""Exit codes: a user's mistake is 2, nothing to judge or not measurable is 3."""
EXIT_CODES = f"""exit codes:
  {OK:<9} done; of `gate`: pass
  {REGRESSED:<9} of `gate`: regressed
  {INVALID:<9} a mistake in the suite or on the command line
  {NOTHING:<9} nothing to judge or report; of `gate`: could not measure
  {FAILED:<9} of `run`: a case has no result
  {IN_USE:<9} of `run`: another process works in the run folder
  {INTERRUPTED:<9} interrupted; the same command continues
"""
"""The same for the help."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A disk, a quota or a file's limit that is used up."""
ROOM = "\n  hint: make room, then the same command continues"


def with_values(argv: Sequence[str]) -> list[str]:
    """`--budget -5min` as `--budget=-5min`: argparse takes what begins with a minus and is no number for an option, and
    says that the value is missing; whoever reads the value says what is wrong with it.
    """
    joined: list[str] = []
    for word in argv:
        is_amount = len(word) > 1 and word[0] == "-" and word[1] in "0123456789."
        if is_amount and joined and re.fullmatch(r"--[a-z][a-z-]*", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def words(error: Exception) -> str:
    """What it says, each hint on a line of its own; of a system call the file and what is wrong, without its number."""
    if isinstance(error, OSError) and error.strerror:
        what = f"{error.strerror[:1].lower()}{error.strerror[1:]}"
        hint = ROOM if error.errno in FULL else ""
        return (f"{error.filename}: {what}" if error.filename else what) + hint
    return hinted(str(error))


def hinted(text: str) -> str:
    """Each hint on a line of its own, a little within."""
    return re.sub(r"(?:; |\n *)hint: ", "\n  hint: ", text)


def code_of(error: Exception) -> int | None:
    """The exit code of a mistake that has a message of its own; None for a fault of ours, which keeps its traceback."""
    from bench.problems import SuiteError

    if isinstance(error, SuiteError):
        return INVALID
    expected = {
        "FolderInUse": IN_USE,
        "OtherRun": INVALID,
        "RecordError": NOTHING,
        "StudyError": NOTHING,
        "UnknownArm": INVALID,
        "TooFewRuns": INVALID,
        "GateError": INVALID,
        "SourceError": INVALID,
        "DataError": INVALID,
        "BudgetError": INVALID,
        "PublishError": INVALID,
        "ExportError": INVALID,
        "ExecutorError": INVALID,
        "ProfileError": INVALID,
        "UnsupportedPrecision": INVALID,
        "NoSuchNode": INVALID,
    }
    if isinstance(error, OSError):
        return INVALID
    return next((expected[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in expected), None)
