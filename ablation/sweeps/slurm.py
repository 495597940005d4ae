"""SLURM: job arrays by submitit, and which jobs wait in the queue.

Imports submitit, an extra, only to submit.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.errors import InputError
from ablation.runs.directory import Run
from ablation.runs.files import atomic_write_text
from ablation.sweeps.pool import Pool, Work, check_per_gpu, slots
from ablation.text import one_line

QUERY_SECONDS = 60
"""Time for an answer of squeue, which asks a busy controller."""
ENDED = (
    *("COMPLETED", "COMPLETING", "FAILED", "CANCELLED", "TIMEOUT", "DEADLINE"),
    *("NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL"),
)
"""States in which squeue may still list a job that is over."""


def ticket_path(run: Run) -> Path:
    """The file with the job id under which a run was submitted, beside the run directories."""
    return run.path.parent / ".sweep" / f"{run.path.name}.slurm"


def note_submitted(run: Run, job_id: str) -> None:
    """Keep under which id a run waits in the queue.

    Args:
        run: need not exist yet.
        job_id: ``7``, or ``7_0`` in an array.

    Raises:
        InputError: the note cannot be written.
    """
    atomic_write_text(ticket_path(run), f"{job_id}\n")


def forget_submitted(run: Run) -> None:
    """The run's job is over."""
    ticket_path(run).unlink(missing_ok=True)


def queued(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """Which runs have a job in SLURM's queue, waiting or running.

    Args:
        runs: those that may have one.

    Returns:
        By the run's name its job, as ``7_0 PENDING``; what the user should know, one line each.
    """
    tickets = {run.path.name: _ticket(run) for run in runs}
    tickets = {name: ticket for name, ticket in tickets.items() if ticket}
    if not tickets:
        return {}, []
    try:
        states = _states({ticket.partition("_")[0] for ticket in tickets.values()})
    except FileNotFoundError:
        few = "job was" if len(tickets) == 1 else "jobs were"
        return {}, [f"{len(tickets)} {few} submitted to SLURM before; squeue, which knows whether "
                    f"they still wait, is not on this machine"]  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        why = " ".join(str(getattr(error, "stderr", None) or error).split())
        waiting = {name: f"{ticket} UNKNOWN" for name, ticket in tickets.items()}
        return waiting, [f"squeue does not answer ({why}): what was submitted counts as queued"]
    found = {name: f"{ticket} {states.get(ticket, '')}" for name, ticket in tickets.items()}
    return {name: job for name, job in found.items() if job.split()[1:]}, []


def _ticket(run: Run) -> str:
    try:
        return ticket_path(run).read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def _states(ids: set[str]) -> dict[str, str]:
    """States of these jobs, by id and index in the array, as far as they are not over."""
    command = [
        "squeue",
        "--noheader",
        "--array",
        "--format=%i|%T",
        f"--jobs={','.join(sorted(ids))}",
    ]
    try:
        said = subprocess.run(  # noqa: S603
            [*command, f"--jobs={','.join(sorted(ids))}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=QUERY_SECONDS,
        ).stdout
    except subprocess.CalledProcessError as error:
        if "Invalid job id" in error.stderr:  # it knows none of them any more
            return {}
        raise
    lines = [line.strip().partition("|") for line in said.splitlines() if "|" in line]
    return {job: state for job, _, state in lines if state not in ENDED}


def device_of(settings: Mapping[str, Any]) -> str:
    """Type of the device that jobs get: ``cuda`` or ``cpu``.

    Args:
        settings: of the launcher.
    """
    asked = (settings.get(key) for key in ("gpus_per_node", "gpus_per_task", "gres"))
    return "cuda" if any(asked) else "cpu"


def check_shared(per_gpu: int, settings: Mapping[str, Any]) -> None:
    """Check how many runs share a job's GPU.

    Raises:
        InputError: no number, or the job does not get one GPU.
    """
    check_per_gpu(per_gpu)
    if per_gpu == 1:
        return
    if device_of(settings) == "cpu":
        raise InputError(
            f"hydra.launcher.per_gpu={per_gpu}: jobs get no GPU; set hydra.launcher.gpus_per_node=1"
        )
    count = settings.get("gpus_per_node")
    if isinstance(count, int) and count > 1:
        raise InputError(
            f"hydra.launcher.per_gpu={per_gpu}: a job's runs share one GPU, and it asks for "
            f"{count} (hydra.launcher.gpus_per_node, which is runtime.devices unless it is set); "
            "set one of the two to 1"
        )


def executor(settings: Mapping[str, Any], check: bool = True) -> Any:
    """What submits jobs with these settings.

    Args:
        settings: of the launcher, in the names of ``hydra/launcher=submitit_slurm``.
        check: that this machine has SLURM.

    Raises:
        InputError: it has not, or a setting is wrong.
    """
    from submitit.slurm.slurm import SlurmExecutor

    class Anywhere(SlurmExecutor):  # type: ignore[misc]  # an extra without types
        @classmethod
        def affinity(cls) -> int:
            return 1

    given = {key: value for key, value in settings.items() if value is not None}
    folder, timeouts = given.pop("submitit_folder"), given.pop("max_num_timeout")
    try:
        found = (SlurmExecutor if check else Anywhere)(folder, max_num_timeout=timeouts)
        found.update_parameters(**found._convert_parameters(given))
    except RuntimeError as error:
        raise InputError(
            "hydra/launcher=submitit_slurm: srun is not on this machine; hydra.launcher.dry=true "
            "shows what would be submitted"
        ) from error
    except (TypeError, ValueError) as error:
        raise InputError(f"hydra/launcher=submitit_slurm: {one_line(error)}") from error
    return found


@dataclass(frozen=True)
class Pack:
    """What a node runs where several runs share a GPU: each in a process of its own.

    Attributes:
        command: what runs one of them; its overrides follow.
        logs: folder for their output.
        per_gpu: how many a GPU has at a time.
    """

    command: Sequence[str]
    logs: Path
    per_gpu: int

    def __call__(self, jobs: Sequence[Sequence[str]], first: int) -> list[int]:
        """Run jobs, and return their exit codes.

        Args:
            jobs: the overrides of each.
            first: the first one's number in the sweep.

        Raises:
            KeyboardInterrupt: a signal stopped them, and nobody puts the job back in the queue.
        """
        work = [
            Work(_title(overrides), [*self.command, *overrides], self.logs / f"{number}.log")
            for number, overrides in enumerate(jobs, first)
        ]
        pool = Pool(slots(None, "auto", self.per_gpu))
        try:
            return pool.run(work)
        except KeyboardInterrupt:
            if pool.signal is not None:
                handler = signal.getsignal(pool.signal)
                if callable(handler):  # submitit's: requeues if SLURM asked, and does not return
                    handler(pool.signal, None)
            raise

    def checkpoint(self, *args: Any) -> Any:
        """Say what to run when the job is back: all of them, and those that are done know it."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)


def _title(overrides: Sequence[str]) -> str:
    """What a person reads of a job's overrides."""
    return " ".join(each.lstrip("+") for each in overrides if not each.startswith("++launch="))


def script(executor: Any, jobs: int) -> str:
    """The text that sbatch gets, for an array if there are several jobs."""
    if jobs > 1:
        executor.parameters["map_count"] = jobs
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))
