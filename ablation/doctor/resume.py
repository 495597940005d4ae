"""Bits: the same command twice, and once with an interruption, trains the same network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from ablation.config.experiment import Config
from ablation.doctor.lines import Line, judged, measured
from ablation.doctor.setting import Setting, arithmetic
from ablation.doctor.stores import Shelf, Silent, tensors
from ablation.errors import InterruptedRunError
from ablation.jobs import fit
from ablation.jobs.setup import build_net, load_images
from ablation.runs.checkpoint import Snapshot

SHORT = (
    *("data.train_size=300", "data.val_size=0", "selection.metric=last", "batch_size=64"),
    *("attack.steps=3", "attack.step_size=eps/2", "runtime.device=cpu"),
)
"""Five steps an epoch, the last of a smaller batch; the device is given to what is built."""
EPOCHS, STOP = 2, 7
"""Of each phase; the run is interrupted in its second epoch."""
USUAL = ("method=at", "augment=crop_flip", "average=ema")
CASES = {
    "at, augmented, EMA": USUAL,
    "trades, AWP": ("method=trades", "component/awp=enabled"),
    "lma_at, a memory": ("method=lma_at",),
    "dyart, two phases": ("method=dyart",),
}
"""What a run can hold besides weights: averages, ascents, memories, phases."""
LOOSE = "at, deterministic=false"


@dataclass(frozen=True)
class Course:
    """A short training on the digits.

    Attributes:
        config: of the run.
        device: where it trains.
        deterministic: kernels that may differ between two runs are refused.
    """

    config: Config
    device: torch.device
    deterministic: bool = True

    def trained(self, shelf: Shelf, stop_after: int | None = None) -> Snapshot:
        """Go on from what the shelf has, to the end or for so many steps.

        Raises:
            RuntimeError: it did not stop where it had to.
        """
        images, reporter = load_images(self.config, self.device), Silent()
        method = self.config.phases[-1].method
        with arithmetic(self.config, "fp32", deterministic=self.deterministic):
            engine = fit.engine(
                self.config,
                build_net(self.config, images.train, method, self.device),
                images,
                shelf,
                reporter,
                lambda net: {},
                lambda: reporter.steps == stop_after,
                lambda row, net: None,
            )
            try:
                engine.fit()
                stopped = False
            except InterruptedRunError:
                stopped = True
        if stopped != (stop_after is not None) or shelf.saved is None:
            raise RuntimeError(f"the run ended after {reporter.steps} steps")
        return shelf.saved

    def again(self) -> Snapshot:
        """Train from the beginning."""
        return self.trained(Shelf())

    def interrupted(self) -> Snapshot:
        """Train with an interruption."""
        shelf = Shelf()
        self.trained(shelf, STOP)
        return self.trained(shelf)


def examine(setting: Setting) -> Iterator[Line]:
    """Weights, averages, optimisers and memories of three trainings."""

    def line(name: str) -> Line:
        course = course_of(setting, CASES[name])
        whole = course.again()
        changed = {
            "repeated": differing(whole, course.again()),
            "resumed": differing(whole, course.interrupted()),
        }
        text = ", ".join(
            f"{how}: {f'other bits in {len(names)}, as {names[0]}' if names else 'the same bits'}"
            for how, names in changed.items()
        )
        figures = {how: len(names) for how, names in changed.items()}
        return judged(name, not any(changed.values()), text, figures)

    yield from setting.lines(CASES, line)
    if setting.cuda:
        yield from setting.lines([LOOSE], lambda name: loose(setting))


def loose(setting: Setting) -> Line:
    """Whether the default's bits repeat, which is not promised on a GPU."""
    course = replace(course_of(setting, USUAL), deterministic=False)
    names = differing(course.again(), course.again())
    found = f"repeated: other bits in {len(names)} tensors" if names else "repeated: the same bits"
    return measured(LOOSE, f"{found} (not promised)", {"repeated": len(names)})


def course_of(setting: Setting, overrides: tuple[str, ...]) -> Course:
    """A training of two epochs a phase."""
    config = setting.configs.small(*overrides, *SHORT)
    short = tuple(replace(phase, epochs=EPOCHS) for phase in config.phases)
    return Course(replace(config, phases=short), setting.device)


def differing(ours: Snapshot, theirs: Snapshot) -> list[str]:
    """Names of the tensors that are not the same in two training states."""
    first, second = tensors(vars(ours)), tensors(vars(theirs))
    alike = {
        name for name in first.keys() & second.keys() if torch.equal(first[name], second[name])
    }
    return sorted((first.keys() | second.keys()) - alike)
