"""What the audit of pinned versions says, with a pip-audit that answers what it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PIP_AUDIT = """
import sys
from pathlib import Path
answers = Path(__file__).with_name("answers.json").read_text()
if answers == "null":
    sys.exit("no route")
Path(sys.argv[sys.argv.index("--output") + 1]).write_text(answers)
"""
FOUND = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
SAFE = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("answers", "strict", "tolerant", "said"),
    [
        ([SAFE], 0, 0, "1 of 1 pinned versions are known to the database, 0 of them vulnerable"),
        ([SAFE, FOUND], 1, 1, "a 1 is vulnerable: PYSEC-1 (mended in 2)"),
        ([FOUND, UNKNOWN], 1, 1, "a 1 is vulnerable"),
        ([SAFE, UNKNOWN], 3, 0, "nothing is known of c"),
        (None, 3, 0, "the database did not answer: no route"),
    ],
)
def test_the_audit_never_takes_silence_for_safety(answers, strict, tolerant, said, tmp_path: Path) -> None:
    (tmp_path / "pip_audit.py").write_text(PIP_AUDIT)
    (tmp_path / "answers.json").write_text(json.dumps({"dependencies": answers} if answers else None))
    for flags, expected in (([], strict), (["--tolerate-silence"], tolerant)):
        done = subprocess.run(
            [sys.executable, str(ROOT / ".ci" / "audit.py"), *flags],
            capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert said in done.stdout + done.stderr
