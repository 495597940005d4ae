"""Run a sweep: plan, check, launch what is open, judge every job by its run directory.

A launcher may lose jobs or raise; what counts is what the run directories say afterwards. The same
command again continues.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from socket import gethostname
from typing import Any, Protocol

from ablation.config.overrides import bare, quoted, variant
from ablation.config.surroundings import Place
from ablation.errors import BAD_INPUT, DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.output import say, warn
from ablation.runs.launches import Launch, note_launch, recorded_launches
from ablation.runs.tracking import offline_reason
from ablation.sweeps import slurm
from ablation.sweeps.claims import Claim
from ablation.sweeps.cost import describe_total, estimate
from ablation.sweeps.planning import Job, Plan, Planner, state_of
from ablation.sweeps.relay import saving_first
from ablation.sweeps.request import Request, read_request
from ablation.text import one_line, summary_table

LAST_LINES = 8
"""Of a failed job's output, in the summary."""


class Caller(Protocol):
    """The part of Hydra's sweeper that a sweep uses."""

    plan: bool
    max_batch_size: int | None

    @property
    def at_a_time(self) -> int:
        """Jobs that run side by side."""

    @property
    def dry(self) -> bool:
        """Whether the launcher only prints what it would do."""

    @property
    def waits(self) -> bool:
        """Whether the launcher returns only when its jobs have ended."""

    @property
    def foreign(self) -> bool:
        """Whether jobs run in processes on this machine that a signal to this one would lose."""

    @property
    def device(self) -> str | None:
        """Type of the device that jobs get on other machines; ``None`` if they run on this one."""

    @property
    def place(self) -> Place:
        """Where jobs run."""

    def make_launcher(self) -> Any:
        """The chosen launcher; ``launch(job_overrides, initial_job_idx)`` runs jobs."""


Epilogue = Callable[[Request, Planner], str]
"""Text to print after the last job."""


def run(caller: Caller, arguments: Sequence[str], epilogue: Epilogue) -> int:
    """Run a sweep; returns an exit code.

    Args:
        caller: Hydra's sweeper.
        arguments: task overrides.
        epilogue: makes the text printed after the last job, such as a report.
    """
    try:
        request = read_request(arguments)
        planner = Planner(request.table, request.cli, request.rows, place=caller.place)
        plan = planner.plan()
        if plan.problems:
            raise ConfigError(plan.problems)
        if caller.plan:
            say(described(plan, caller.at_a_time, caller.device))
            return DONE
        sweep = Sweep(caller, request, planner, plan, epilogue)
        return sweep.show() if caller.dry else sweep.run()
    except InputError as error:
        warn(error.told())
        return BAD_INPUT


def described(plan: Plan, at_a_time: int, device: str | None = None) -> str:
    """Describe a plan: a line per job, what waits, and what is left to compute.

    Args:
        plan: of a sweep.
        at_a_time: jobs that run side by side.
        device: see ``Caller``.
    """
    each = [[bare(text) for text in job.points[0].overrides] for job in plan.jobs]
    common = [text for text in each[0] if all(text in other for other in each)] if each else []
    rows: list[tuple[str, ...]] = [
        (f"{job.state} {job.queued}".rstrip(), job.title or "-", job.config.run_name,
         " ".join(text for text in texts if text not in common))
        for job, texts in zip(plan.jobs, each, strict=True)
    ]  # fmt: skip
    rows += [
        ("pending", f"{wait.arm}: {wait.top} of {wait.candidates} of {wait.source}", "", "")
        for wait in plan.pending
    ]
    lines = [summary_table("", rows, ("state", "row", "run", "overrides"))]
    lines.append(f"every job: {' '.join(common)}")
    lines += [f"note: {notice}" for notice in plan.notices]
    counts = {state: sum(job.state == state for job in plan.jobs) for state in STATES}
    counts["pending"] = sum(wait.top for wait in plan.pending)
    lines.append(", ".join(f"{n} {state}" for state, n in counts.items() if n) or "no jobs")
    todo = [job.config for job in plan.jobs if job.state in ("new", "partial", "failed")]
    if todo:
        found = estimate(todo, Path(todo[0].runs_dir).expanduser(), device)
        lines.append(f"left to compute: {describe_total(found, at_a_time)}")
    return "\n".join(lines)


STATES = ("done", "partial", "running", "queued", "failed", "new")


class Sweep:
    """One run of a sweep, from its first plan to its exit code."""

    def __init__(
        self,
        caller: Caller,
        request: Request,
        planner: Planner,
        plan: Plan,
        epilogue: Epilogue,
    ) -> None:
        self._caller, self._request, self._planner, self._plan = caller, request, planner, plan
        self._epilogue = epilogue
        self._tried: set[tuple[str, ...]] = set()  # keys of jobs
        self._logs: dict[str, Path] = {}

    def run(self) -> int:
        """Launch until nothing is open, then say how it went."""
        stopped = False
        self._announce()
        self._note_done()
        self._check_tracking()
        while not stopped and (batch := self._open()):
            try:
                self._launch(batch)
            except KeyboardInterrupt:
                stopped = True
            self._plan = self._planner.plan()
            if self._plan.problems:
                raise ConfigError(self._plan.problems)
            self._note_done()
        return self._conclude(stopped)

    def show(self) -> int:
        """Print what the launcher would do, and by which number it calls which job."""
        batch = self._open()
        self._announce()
        if batch:
            self._caller.make_launcher().launch([self._command(job) for job in batch], 0)
        lines = [f"# {n}: {job.title or '-'}, {job.config.run_name}" for n, job in enumerate(batch)]
        say("\n".join([*lines, "nothing was submitted"]))
        return DONE

    def _announce(self) -> None:
        done = sum(job.state == "done" for job in self._plan.jobs)
        waiting = sum(wait.top for wait in self._plan.pending)
        later = f", {waiting} more when they are chosen" if waiting else ""
        title = self._request.name or "sweep"
        lines = [f"{title}: {len(self._plan.jobs)} jobs, {done} done{later}"]
        lines += [f"note: {notice}" for notice in self._plan.notices]
        say("\n".join(lines))

    def _check_tracking(self) -> None:
        """Say once, not in every job, that tracking will be offline."""
        asked = {str(job.config.tracking): job.config.tracking for job in self._open()}
        for config in asked.values():
            why = offline_reason(config)
            if why is not None:
                os.environ["WANDB_MODE"] = "offline"  # of the jobs, too
                warn(f"warning: tracking offline ({why}); each job says what to sync")

    def _open(self) -> list[Job]:
        """Jobs to launch now: not done, not tried yet, no two of them in one directory."""
        found: dict[str, Job] = {}
        for job in self._plan.jobs:
            ready = job.state in ("new", "partial") or (job.state == "failed" and job.config.retry)
            if ready and job.key not in self._tried:
                found.setdefault(job.config.run_name, job)
        return list(found.values())[: self._caller.max_batch_size]

    def _launch(self, batch: Sequence[Job]) -> None:
        """Hand jobs to the launcher; whatever it raises, the run directories tell the truth."""
        launcher = self._caller.make_launcher()
        claims = {job.key: Claim(job.run, partial(state_of, job.config)) for job in batch}
        at_start = hasattr(launcher, "describe")  # else all are claimed now
        todo = [job for job in batch if at_start or not claims[job.key].take()]
        commands = {tuple(self._command(job)): job for job in todo}
        self._logs |= {job.config.run_name: self._log(job) for job in todo}
        if at_start:
            launcher.describe = lambda overrides: (
                commands[tuple(overrides)].title,
                self._log(commands[tuple(overrides)]),
                claims[commands[tuple(overrides)].key],
            )
        if hasattr(launcher, "submitted"):
            launcher.submitted = lambda overrides, job_id, log: self._submitted(
                commands[tuple(overrides)], job_id, log
            )
        try:
            if todo:
                with (
                    saving_first(partial(at_work, todo)) if self._caller.foreign else nullcontext()
                ):
                    launcher.launch([list(command) for command in commands], initial_job_idx=0)
        except Exception as error:
            warn(f"the launcher gave up: {type(error).__name__}: {one_line(error)}")
        finally:
            for claim in claims.values():
                claim.release()
        for job in todo if self._caller.waits else ():
            slurm.forget_submitted(job.run)
        # Those that run elsewhere may come up again, if they are left unfinished there.
        self._tried |= {key for key, claim in claims.items() if claim.lost != "running"}

    def _submitted(self, job: Job, job_id: str, log: Path) -> None:
        """A job is in SLURM's queue."""
        slurm.note_submitted(job.run, job_id)
        self._logs[job.config.run_name] = log
        say(f"{job.title or job.config.run_name}: SLURM job {job_id} (log {log})")

    def _command(self, job: Job) -> list[str]:
        """The job's overrides, and who asked for it."""
        return [*job.points[0].overrides, f"++launch={quoted(asdict(self._launch_of(job)))}"]

    def _launch_of(self, job: Job) -> Launch:
        arms = sorted({point.arm for point in job.points} - {""})
        changed = variant(self._request.cli, self._planner.axes) if self._request.name else []
        row = " ".join([job.points[0].arm, *job.points[0].grid, *changed])
        group = f"{self._request.name}/{row}" if self._request.name else ""
        return Launch(job.config.train_id, self._request.name, arms, changed, group)

    def _log(self, job: Job) -> Path:
        return self._request.runs_dir / ".sweep" / f"{job.config.run_name}.log"

    def _note_done(self) -> None:
        """Runs that were there already serve this table, too: reports and tags look there."""
        for job in self._plan.jobs if self._request.name else ():
            if job.state == "done":
                note_served(job, self._launch_of(job))

    def _conclude(self, stopped: bool) -> int:
        """The summary and the exit code."""
        jobs = self._plan.jobs
        counts = {state: sum(job.state == state for job in jobs) for state in STATES}
        text = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
        lines = ["", f"{self._request.name or 'sweep'}: {text}"]
        lines += [f"pending: {w.arm} waits for all of {w.source}" for w in self._plan.pending]
        failed = [job for job in jobs if job.state in ("failed", "partial", "new")]
        for job in failed if not stopped else []:
            lines += self._failure(job)
        left = counts["running"] + counts["queued"]
        if left:
            lines.append(f"{_standing(counts)}: the same command again looks anew")
        say("\n".join(lines))
        if not stopped and left < len(jobs):
            say(self._epilogue(self._request, self._planner))
        if stopped:
            warn("stopped; the same command again continues")
            return INTERRUPTED
        if failed:
            return JOB_FAILED
        return INTERRUPTED if left and self._caller.waits else DONE

    def _failure(self, job: Job) -> list[str]:
        """A failed job: its error, the remedy and the last lines of its output."""
        run = job.run
        status = run.status()
        error = status.error if status is not None and status.error else "it did not start"
        lines = [f"FAILED {job.title or job.config.run_name}: {error}", f"  run {run.path}"]
        if job.state == "failed" and not job.config.retry:
            lines.append("  retry=true goes on from its last good checkpoint")
        log = self._logs.get(job.config.run_name)
        if log is not None and log.is_file():
            said = log.read_text("utf-8", "replace").splitlines()
            tail = [line for line in said if not line.startswith("# ")][-LAST_LINES:]
            lines += [f"  {log}:", *(f"    {line}" for line in tail)]
        return lines


def _standing(counts: Mapping[str, int]) -> str:
    """How many jobs are in the hands of others."""
    running, queued = counts["running"], counts["queued"]
    found = [f"{running} job{' still runs' if running == 1 else 's still run'} elsewhere"]
    found += [f"{queued} job{' is' if queued == 1 else 's are'} in SLURM's queue"]
    return ", ".join(text for n, text in zip((running, queued), found, strict=True) if n)


def at_work(jobs: Sequence[Job]) -> dict[str, int]:
    """The runs among these that a process of this machine trains or evaluates, with its id."""
    found = {}
    for job in jobs:
        status = job.run.status()
        if status is not None and status.state == "running" and status.host == gethostname():
            found[job.config.run_name] = status.pid
    return found


def note_served(job: Job, launch: Launch) -> None:
    """Record in a finished run that a table uses it."""
    run = job.run
    served = any(
        (entry["table"], entry["overrides"]) == (launch.table, launch.overrides)
        and set(launch.arms) <= set(entry["arms"])
        for entry in recorded_launches(run)
    )
    if served:
        return
    try:
        with run.reopen():
            note_launch(run, launch)
    except InputError as error:  # another process is at it, or somebody else's directory
        warn(f"warning: {error}")
