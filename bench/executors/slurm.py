"""Cases as Slurm jobs, through submitit: each a job of its own with a GPU or a whole node to itself.

The `local` and `debug` clusters of submitit run the same on this machine, for trying things out. Run folders must lie
on a file system that all nodes see. A job that the scheduler takes back is tried again, from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import shlex
import signal
import sys
from pathlib import Path
from typing import Any, Literal, get_args

import submitit
from submitit.core.utils import FailedJobError, UncompletedJobError

from bench import interruption
from bench.executors import ExecutorError, Exit, attend
from lmopt import children

LOST = ("NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "REQUEUED", "TIMEOUT", "CANCELLED")
"""States of a job that did not fail by itself."""

PYTHON = f"{shlex.quote(sys.executable)} -P"
"""In a job's script, since `sbatch --export=NONE` leaves out the environment that says the same (`lmopt.children`)."""

Cluster = Literal["slurm", "local", "debug"]
CLUSTERS = get_args(Cluster)


class SlurmExecutor:
    """Submits jobs and remembers them."""

    is_remote = True

    def __init__(
        self,
        folder: Path,
        *,
        cluster: Cluster = "slurm",
        slots: int = 8,
        worker: str = "bench.worker",
        **parameters: Any,
    ) -> None:
        """Nothing is submitted yet.

        Args:
            folder: where submitit keeps its own files.
            cluster: `slurm`, or submitit's `local` and `debug`.
            slots: jobs that may be submitted at once.
            worker: the module whose `work(folder)` does a case.
            parameters: submitit's, for example `timeout_min=240, gpus_per_node=1, slurm_partition="gpu"`.

        Raises:
            ExecutorError: there is no Slurm here, or it does not know a parameter.
        """
        if cluster not in CLUSTERS:
            raise ExecutorError(f"slurm: cluster is {cluster!r}, allowed: {', '.join(CLUSTERS)}")
        self.slots = slots if cluster == "slurm" else 1
        self._worker = worker
        self._running: list[SlurmRunning] = []
        if cluster == "slurm" and not parameters.get("gpus_per_node"):
            parameters.setdefault("slurm_exclusive", True)  # a node without GPUs is the device: nobody beside us on it
        try:
            self._executor: Any = submitit.AutoExecutor(folder=folder, cluster=cluster, slurm_python=PYTHON)
            self._executor.update_parameters(**parameters)
        except (RuntimeError, NameError, TypeError, ValueError) as error:
            raise ExecutorError(
                f"slurm: {error}; hint: submit from a machine that has sbatch, or see docs/executors.md"
            ) from error

    def start(self, folder: Path) -> SlurmRunning:
        """Submit the case whose folder this is.

        Raises:
            ExecutorError: sbatch refused it.
        """
        ticket = attend.prepare(folder)
        try:
            with children.guarded():
                job = self._executor.submit(attend.attend, self._worker, str(folder.resolve()), ticket)
        except (RuntimeError, OSError, FailedJobError) as error:
            raise ExecutorError(f"slurm: the job was refused: {error}") from error
        running = SlurmRunning(job, folder)
        self._running.append(running)
        return running

    def close(self) -> None:
        """Take back what still runs."""
        for running in self._running:
            if running.poll() is None:
                running.kill()
        self._running.clear()


class SlurmRunning(attend.Attended):
    """A job."""

    def __init__(self, job: Any, folder: Path) -> None:
        super().__init__(folder)
        self._job = job

    def is_done(self) -> bool:
        return bool(self._job.done())

    def end(self) -> Exit:
        """A job that the scheduler or a node took away is a lost case."""
        asked = attend.was_asked(self.folder)
        try:
            code, number = self._job.result()
        except FailedJobError as error:  # the attendant itself failed: its message says why
            return Exit(None, None, reason=str(error).strip().splitlines()[-1])
        except UncompletedJobError:
            state = str(self._job.state).split()[0]
            lost = not asked and (state in LOST or state == "INTERRUPTED")
            return Exit(None, signal.SIGKILL, lost=lost, reason=f"its job ended as {state} without a result")
        return Exit(code, number, lost=code == interruption.EXIT_CODE and not asked)

    def cancel(self) -> None:
        with contextlib.suppress(RuntimeError, OSError):
            self._job.cancel(check=False)
