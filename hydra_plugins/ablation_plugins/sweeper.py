"""The sweeper ``arms``: a thin shell, because Hydra loads it at every start."""

import sys
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

SLURM = "hydra_plugins.ablation_plugins.slurm.SlurmLauncher"
"""The launcher whose jobs run on other machines."""
POOL = "hydra_plugins.ablation_plugins.pool.PoolLauncher"
"""The launcher whose jobs get a GPU each."""
FOREIGN = (
    "hydra_plugins.hydra_joblib_launcher.",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
)
"""Launchers that kill their jobs at a Ctrl-C, or leave them running."""


class ArmsSweeper(Sweeper):
    """Table sweeps and plain ones: plan all jobs, check them all, launch what is not done.

    Args:
        plan: print the plan and start nothing.
        max_batch_size: jobs handed to the launcher at once; ``None`` means all.
    """

    def __init__(self, plan: bool, max_batch_size: int | None) -> None:
        self.plan, self.max_batch_size = plan, max_batch_size

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Keep what the launcher needs; it is made when there is something to launch."""
        assert config is not None  # noqa: S101  the base class allows it
        self.config: DictConfig = config
        self._context, self._task = hydra_context, task_function

    @property
    def at_a_time(self) -> int:
        """Jobs that the launcher runs side by side, where its settings say so."""
        settings = self.config.hydra.launcher
        found = settings.get("jobs") or settings.get("n_jobs") or 1
        return max(1, int(found))

    @property
    def dry(self) -> bool:
        """Whether the launcher only prints what it would do."""
        return self._switch("dry", False)

    @property
    def waits(self) -> bool:
        """Whether the launcher returns only when its jobs have ended."""
        return self._switch("wait", True)

    @property
    def foreign(self) -> bool:
        """Whether jobs run in processes on this machine that a signal to this one would lose."""
        return str(self.config.hydra.launcher._target_).startswith(FOREIGN)

    @property
    def device(self) -> str | None:
        """Type of the device that jobs get on other machines; ``None`` if they run on this one."""
        from ablation.sweeps import slurm

        settings = self.config.hydra.launcher
        return slurm.device_of(settings) if settings._target_ == SLURM else None

    @property
    def place(self) -> Any:
        """Where jobs run, see ``ablation.config.surroundings.Place``."""
        settings = self.config.hydra.launcher
        if settings._target_ == SLURM:
            return "elsewhere"
        return "pool" if settings._target_ == POOL and settings.gpus is not None else "here"

    def _switch(self, name: str, default: bool) -> bool:
        from ablation.errors import InputError

        value = self.config.hydra.launcher.get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"hydra.launcher.{name}={value}: true or false")
        return value

    def make_launcher(self) -> Any:
        """The launcher that the command line chose."""
        return Plugins.instance().instantiate_launcher(
            hydra_context=self._context, task_function=self._task, config=self.config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the sweep and leave with its exit code: Hydra would drop a returned one."""
        from ablation.config.overrides import key_of

        if any(key_of(text) == "search" for text in arguments):
            from ablation.reports.search import after_search
            from ablation.sweeps import search

            sys.exit(search.run(self, arguments, after_search))
        from ablation.reports.epilogue import after_sweep
        from ablation.sweeps import sweep

        sys.exit(sweep.run(self, arguments, after_sweep))
