"""The launcher ``pool``: a shell for ``ablation.sweeps.pool``, which Hydra's scan never loads."""

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

if TYPE_CHECKING:
    from ablation.sweeps.pool import Turn
    from ablation.sweeps.trials import Trial

OF_THE_SWEEP = ("hydra.launcher", "hydra/launcher", "hydra.sweep", "hydra/sweeper", "hydra.mode")
"""Beginnings of overrides that are not for a single job."""


class PoolLauncher(Launcher):
    """Runs every job in a process of its own, some at a time, on this machine.

    Args:
        jobs: how many at a time; ``None`` means as many as GPUs have places, or without GPUs one
            per two cores.
        gpus: ``auto`` means all visible ones, a list some of them: each job has its own; ``None``
            assigns none.
        per_gpu: how many jobs share a GPU.
        gpus_per_job: how many GPUs each job gets.

    Attributes:
        command: what runs one job; the job's overrides follow.
        describe: from a job's overrides to its title, its log file and whose turn it is.
    """

    command: Sequence[str] = (sys.executable, "-m", "ablation.commands.scripts", "train")
    describe: Callable[[Sequence[str]], tuple[str, Path, "Turn | None"]] | None = None

    def __init__(self, jobs: int | None, gpus: Any, per_gpu: int, gpus_per_job: int = 1) -> None:
        self._jobs, self._gpus, self._per_gpu = jobs, gpus, per_gpu
        self._per_job = gpus_per_job

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Find the places that jobs can have."""
        from ablation.sweeps.pool import slots

        del hydra_context, task_function
        listed = self._gpus is None or isinstance(self._gpus, str)
        gpus = self._gpus if listed else list(self._gpus)
        self._slots = slots(self._jobs, gpus, self._per_gpu, self._per_job)
        self._sweep_dir = Path(str(config.hydra.sweep.dir))
        self._options = passed_on(config)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Run the jobs; one that fails costs nothing but itself.

        Raises:
            KeyboardInterrupt: a signal stopped them; what ran was saved.
        """
        from ablation.sweeps.pool import ELSEWHERE, Pool, Work, ending

        work = []
        for index, overrides in enumerate(job_overrides, initial_job_idx):
            title, log, turn = " ".join(overrides), self._sweep_dir / f"{index}.log", None
            if self.describe is not None:
                title, log, turn = self.describe(overrides)
            work.append(Work(title, [*self.command, *self._options, *overrides], log, turn))
        codes = [0 if code == ELSEWHERE else code for code in Pool(self._slots).run(work)]
        return [
            JobReturn(
                overrides=overrides,
                status=JobStatus.FAILED if code else JobStatus.COMPLETED,
                _return_value=ChildProcessError(f"{one.title}: {ending(code)}") if code else 0,
            )
            for overrides, one, code in zip(job_overrides, work, codes, strict=True)
        ]

    def stream(self, trials: "Iterable[Trial]", total: int) -> None:
        """Run the trials of a search, each made when a place is free; it judges them itself.

        Raises:
            KeyboardInterrupt: a signal stopped them; what ran was saved.
        """
        from ablation.sweeps.pool import Pool, Work

        command = [*self.command, *self._options]
        work = (
            Work(each.title, [*command, *each.overrides], each.log, each, each.unwanted)
            for each in trials
        )
        Pool(self._slots).stream(work, total)


def passed_on(config: DictConfig) -> list[str]:
    """What a job needs of its parent's command line beside its own overrides."""
    folders = [
        str(source.path) for source in config.hydra.runtime.config_sources
        if source.provider == "command-line"
    ]  # fmt: skip
    flags = [text for folder in folders for text in ("--config-dir", folder)]
    given = config.hydra.overrides.hydra
    return flags + [text for text in given if not text.lstrip("+~").startswith(OF_THE_SWEEP)]
