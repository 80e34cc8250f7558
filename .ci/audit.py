"""Are the pinned versions known to be vulnerable? `python .ci/audit.py [--tolerate-silence]`

Asks a public database of advisories about every line of constraints.txt (pip-audit). Exit code 0: every version was
asked about and none is vulnerable; 1: some are; 3: the database did not answer, or knows nothing of some of them, so
nothing was shown. With --tolerate-silence the last is said and passes: a machine without that network can still test
everything else.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = Path(__file__).parents[1] / "constraints.txt"
TIMEOUT_S = 600


def main() -> int:
    """Run pip-audit and say what it found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tolerate-silence", action="store_true", help="exit 0 where the database does not answer")
    parser.add_argument("--pins", type=Path, default=PINS, help="the pinned versions, one `name==version` a line")
    arguments = parser.parse_args()
    silence = 0 if arguments.tolerate_silence else 3
    answers = ask(arguments.pins)
    if isinstance(answers, str):
        print(f"audit: nothing is known, the database did not answer: {answers}", file=sys.stderr)
        return silence
    vulnerable = [one for one in answers if one.get("vulns")]
    for one in vulnerable:
        known = ", ".join(f"{v['id']} (mended in {', '.join(v['fix_versions']) or 'no version'})" for v in one["vulns"])
        print(f"audit: {one['name']} {one['version']} is vulnerable: {known}", file=sys.stderr)
    unknown = [str(one["name"]) for one in answers if one.get("skip_reason")]
    asked = f"{len(answers) - len(unknown)} of {len(answers)} pinned versions are known to the database"
    print(f"audit: {asked}, {len(vulnerable)} of them vulnerable")
    if vulnerable:
        return 1
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        print(f"audit: nothing is known of {', '.join(unknown[:5])}{more}", file=sys.stderr)
        return silence
    return 0


def ask(pins: Path) -> list[dict[str, object]] | str:
    """An answer for every pinned version, or why there is none."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "audit.json"
        command = [sys.executable, "-P", "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip",
                   "--progress-spinner", "off", "--format", "json", "--output", str(out)]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no answer within {TIMEOUT_S} s"
        if not out.exists() or not out.read_text():
            return (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]
        return json.loads(out.read_text())["dependencies"]


if __name__ == "__main__":
    sys.exit(main())
