"""The launcher ``submitit_slurm``: a shell for ``ablation.sweeps.slurm`` and Hydra's plugin."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SlurmLauncher(Launcher):
    """Submits jobs as one SLURM array.

    Args:
        dry: print what sbatch would get, and submit nothing.
        wait: until the last job has ended; else return when all are in the queue.
        **settings: of Hydra's submitit plugin.

    Attributes:
        submitted: is told a job's overrides, its id and its log, once it is in the queue.
    """

    submitted: Callable[[Sequence[str], str, Path], None] = staticmethod(lambda *_: None)

    def __init__(self, dry: bool, wait: bool, **settings: Any) -> None:
        self._dry, self._wait = dry, wait
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

        self._task = Task(**self._settings)
        self._task.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._executor = slurm.executor(self._settings, check=not self._dry)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> list[JobReturn]:
        """Submit the jobs, or show what would be submitted."""
        from ablation.output import say
        from ablation.sweeps import slurm

        if self._dry:
            say(slurm.script(self._executor, len(job_overrides)))
            return []
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


def _result(job: Any) -> JobReturn:
    """What a job returned, when it has ended; one that was killed costs only itself."""
    try:
        result: JobReturn = job.results()[0]
    except Exception as error:  # submitit's own, or what the job raised
        return JobReturn(status=JobStatus.FAILED, _return_value=error)
    return result
