"""The launcher ``submitit_slurm``: a shell for ``ablation.sweeps.slurm`` and Hydra's plugin."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.ablation_plugins.pool import PoolLauncher, passed_on


class SlurmLauncher(Launcher):
    """Submits jobs as one SLURM array.

    Args:
        dry: print what sbatch would get, and submit nothing.
        wait: until the last job has ended; else return when all are in the queue.
        per_gpu: how many runs a job has, side by side on its GPU.
        **settings: of Hydra's submitit plugin.

    Attributes:
        submitted: is told a job's overrides, its id and its log, once it is in the queue.
    """

    submitted: Callable[[Sequence[str], str, Path], None] = staticmethod(lambda *_: None)

    def __init__(self, dry: bool, wait: bool, per_gpu: int, **settings: Any) -> None:
        self._dry, self._wait, self._per_gpu = dry, wait, per_gpu
        self._settings = {
            key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
            for key, value in settings.items()
        }

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Prepare what runs on the nodes; says whether this machine can submit."""
        from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher as Task

        from ablation.sweeps import slurm

        slurm.check_shared(self._per_gpu, self._settings)
        self._folder = Path(str(config.hydra.sweep.dir)).absolute()
        self._command = [*PoolLauncher.command, *passed_on(config)]
        self._task = Task(**self._settings)
        self._task.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._executor = slurm.executor(self._settings, check=not self._dry)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Submit the jobs, or show what would be submitted."""
        from ablation.output import say
        from ablation.sweeps import slurm

        size = self._per_gpu
        packs = [job_overrides[n : n + size] for n in range(0, len(job_overrides), size)]
        if self._dry:
            say(slurm.script(self._executor, len(packs)))
            return []
        if size > 1:
            return self._launch_packs(packs, initial_job_idx)
        count, state = len(job_overrides), Singleton.get_state()
        numbers = [initial_job_idx + n for n in range(count)]
        jobs = self._executor.map_array(
            self._task,
            [list(overrides) for overrides in job_overrides],
            ["hydra.sweep.dir"] * count,
            numbers,
            [f"job_id_for_{n}" for n in numbers],
            [state] * count,
        )
        for overrides, job in zip(job_overrides, jobs, strict=True):
            self.submitted(overrides, job.job_id, Path(job.paths.stdout))
        return [_result(job) for job in jobs] if self._wait else []

    def _launch_packs(
        self, packs: Sequence[Sequence[Sequence[str]]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Submit jobs of several runs each."""
        from ablation.sweeps.slurm import Pack

        firsts = [initial_job_idx + self._per_gpu * n for n in range(len(packs))]
        given = [[list(overrides) for overrides in pack] for pack in packs]
        jobs = self._executor.map_array(
            Pack(self._command, self._folder, self._per_gpu), given, firsts
        )
        for pack, first, job in zip(packs, firsts, jobs, strict=True):
            for number, overrides in enumerate(pack, first):
                self.submitted(overrides, job.job_id, self._folder / f"{number}.log")
        if not self._wait:
            return []
        return [one for pack, job in zip(packs, jobs, strict=True) for one in _results(pack, job)]


def _result(job: Any) -> JobReturn:
    """What a job returned, when it has ended; one that was killed costs only itself."""
    try:
        result: JobReturn = job.results()[0]
    except Exception as error:  # submitit's own, or what the job raised
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    return result


def _results(pack: Sequence[Sequence[str]], job: Any) -> list[JobReturn]:
    """What the runs of a job returned."""
    try:
        codes: list[int] = job.results()[0]
    except Exception as error:  # submitit's own, or what the job raised
        return [JobReturn(status=JobStatus.FAILED, _return_value=error) for _ in pack]
    return [
        JobReturn(status=JobStatus.FAILED if code else JobStatus.COMPLETED, _return_value=code)
        for code in codes
    ]
