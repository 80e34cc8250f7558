"""Inside the child: do one case and leave its outcome in the case folder.

Whatever goes wrong becomes an outcome with a reason; only a request to stop (SIGTERM) leaves none, because the case
is then continued later.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import traceback
from pathlib import Path
from types import FrameType

from bench import finetune, generation, interruption, machine, measure, timing
from bench.casefolder import Job, Outcome, write_atomically
from bench.company import Company
from bench.instruments.table import open_sensors
from bench.interruption import Interrupted
from lmopt.compute import memory
from lmopt.compute.numa import NotApplicable
from lmopt.train.loop import Diverged

for _late in ("torch._dynamo", "codecarbon.external.hardware", "codecarbon.external.ram"):
    importlib.import_module(_late)
"""What torch and the sensors import when first used: a second of each case, unless cases are forked with it."""

CASES = {
    "prepare": measure.prepare,
    "train": measure.train,
    "finetune": finetune.finetune,
    "evaluate": measure.evaluate,
    "timing": timing.timing,
    "generate": generation.generate,
}


def work(folder: Path) -> int:
    """Run the case of a folder; returns the exit code."""
    signal.signal(signal.SIGTERM, _ask_to_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = Job.model_validate_json((folder / "case.json").read_text())
    memory.limit_process(job.memory_limit_bytes)
    with Company(job.case.id) as company:
        outcome = _outcome(job, folder)
        if outcome is None:
            return interruption.EXIT_CODE
        detail = {**outcome.detail, "company": company.found()}
    found = outcome.model_copy(update={"detail": detail, "env": job.env or _noted_machine(folder)})
    write_atomically(folder / "outcome.json", found.model_dump_json())
    return 0


def _outcome(job: Job, folder: Path) -> Outcome | None:
    """What the case found, or why it failed; None where it was asked to stop and will be continued."""
    try:
        return CASES[job.case.kind](job, folder)
    except Interrupted:
        return None
    except Diverged as error:
        return Outcome(status="diverged", reason=str(error))
    except NotApplicable as error:
        return Outcome(status="not_applicable", reason=str(error))
    except Exception as error:  # noqa: BLE001 - the boundary of a case: the reason goes into its record
        traceback.print_exc()
        return Outcome(status="failed", reason=_reason(error))


def _reason(error: Exception) -> str:
    """What a record says of an error; one for want of memory always with a hint."""
    if not memory.may_have_run_out(error):
        return f"{type(error).__name__}: {error}"
    is_sure, has_hint = memory.ran_out(error), "hint: " in str(error)
    said = f"out of memory: {error}" if is_sure else f"{type(error).__name__}: {error} (out of memory, perhaps)"
    return said if has_hint else f"{said}; hint: lower batching.micro_sequences, or a smaller model"


def _noted_machine(folder: Path) -> str:
    """Fingerprint of this machine, which the runner could not know; what it stands for is written beside the case."""
    facts = machine.fingerprint()
    write_atomically(folder / "machine.json", json.dumps(machine.environment(facts, open_sensors()), indent=1))
    return machine.env_id(facts)


def _ask_to_stop(_number: int, _frame: FrameType | None) -> None:
    interruption.requested.set()


if __name__ == "__main__":
    import sys

    os._exit(work(Path(sys.argv[1])))
