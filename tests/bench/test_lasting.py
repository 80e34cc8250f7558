"""A run whose messages nobody hears any more goes on, and ends as it would have."""

from __future__ import annotations

import io
import os
import subprocess
import sys

import pytest

from bench.lasting import lasting

SPEAKS = """
import os, sys
from bench import cli
from bench.display import open_display
display = open_display()
for _ in range(3):
    display.note("a word")
display._stream.write("and half a")
code = cli.main(["check", "there/is/none.yaml"])
print("done")
sys.exit(code)
"""


@pytest.mark.parametrize("heard", ["deaf", "full", "closed"])
def test_neither_words_nor_exit_code_depend_on_who_listens(heard: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    if heard == "full":
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    redirect = ["sh", "-c", 'exec "$@" 2>&-', "sh"] if heard == "closed" else []
    done = subprocess.run(
        [*redirect, sys.executable, "-c", SPEAKS], stdout=subprocess.PIPE, stderr=writer, text=True, timeout=60
    )
    os.close(writer)
    assert (done.returncode, done.stdout) == (2, "done\n")


def test_what_is_heard_is_written_and_other_faults_are_not_hidden() -> None:
    stream = io.StringIO()
    print("a word", file=lasting(stream), flush=True)
    assert stream.getvalue() == "a word\n"
    assert lasting(shown := lasting(stream)) is shown
    stream.close()
    with pytest.raises(ValueError, match="closed"):
        lasting(stream).write("x")
