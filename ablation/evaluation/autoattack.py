"""AutoAttack and its parts, through pyautoattack (Croce and Hein, 2020, arXiv:2003.01690).

The one importer of that package, and only once an attack runs: it stays off the start-up path.
Every part is built with the parameters that the package's standard version gives it. What the
package warns about goes to its logger ``auto-attack``, where ``evaluate`` collects it as flags.

The package seeds the global generators of every device at each batch. Here it does so inside a
fork of them, with the seed of the generator it is given, so nobody else's draws move.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ablation.errors import InputError
from ablation.evaluation.attacks import (
    Attack,
    AttackBase,
    Ensemble,
    Family,
    Predict,
    check_positive,
)
from ablation.types import Norm

LOGGER = "auto-attack"
NAMES: Mapping[Norm, str] = {"linf": "Linf", "l2": "L2"}
STANDARD: Mapping[str, int] = {"n_iter": 100, "targets": 9, "queries": 5000}
"""What ``version: standard`` fixes."""


@contextmanager
def forked_rng() -> Iterator[None]:
    """Restore the global generators of the CPU and of every CUDA device in use afterwards."""
    # Asking for a device's state would start CUDA in a process that does not use it.
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(range(torch.cuda.device_count())) if used else []):
        yield


def _perturb(attack: Any, x: Tensor, y: Tensor) -> Tensor:
    """Run one of the package's attacks as its standard loop does."""
    with forked_rng(), torch.no_grad():
        x_adv: Tensor = attack.perturb(x.to(torch.float32, copy=True), y.clone())
    return x_adv.detach().to(x.dtype)


def _common(predict: Predict, x: Tensor, eps: float, norm: Norm) -> dict[str, Any]:
    """Return the arguments that all of the package's attacks share; they search in fp32."""
    return {
        "predict": lambda point: predict(point.to(x.dtype)).float(),
        "norm": NAMES[norm],
        "eps": eps,
        "verbose": False,
        "device": x.device,
    }


def _targets(wanted: int, classes: int) -> int:
    """Cap the number of targets at the number of wrong classes."""
    return min(wanted, classes - 1)


def _classes(predict: Predict, x: Tensor) -> int:
    with torch.no_grad():
        return int(predict(x[:1]).shape[1])


@dataclass(frozen=True, kw_only=True)
class PackageAttack(AttackBase):
    """Run code of pyautoattack, whose own checks of the network (``inspect``) then come first."""


@dataclass(frozen=True)
class ApgdCe(PackageAttack):
    """Ascend cross-entropy with AutoPGD.

    First step 2 eps, halved at checkpoints, momentum 0.75. Checkpoints at 22% of ``n_iter``, then
    at intervals shorter by 3% down to 6%. An example is broken if any iterate breaks it.

    Args:
        n_iter: gradient steps per restart.
        restarts: uniform starts scaled to the surface of the ball.
    """

    kind: ClassVar[str] = "apgd_ce"
    family: ClassVar[Family] = "adaptive steps"

    n_iter: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, restarts=self.restarts)

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives its seed."""
        return _perturb(_apgd("ce", self, predict, x, eps, norm, rng), x, y)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps, classes
        return {**APGD, "steps": self.n_iter, "restarts": self.restarts, "loss": "ce"}


@dataclass(frozen=True)
class ApgdDlr(PackageAttack):
    """Ascend the untargeted DLR loss with AutoPGD; stands in for APGD-T with three classes.

    DLR = -(z_y - max_{j!=y} z_j) / (z_(1) - z_(3)), z_(i) the i-th largest logit.

    Args:
        n_iter: gradient steps per restart.
        restarts: uniform starts scaled to the surface of the ball.
    """

    kind: ClassVar[str] = "apgd_dlr"
    family: ClassVar[Family] = "adaptive steps"

    n_iter: int = 100
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, restarts=self.restarts)

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives its seed."""
        return _perturb(_apgd("dlr", self, predict, x, eps, norm, rng), x, y)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``.

        Raises:
            InputError: fewer than three classes.
        """
        del eps
        if classes < 3:
            raise InputError(
                f"apgd_dlr: the DLR loss needs 3 classes, the model has {classes}; "
                "use ApgdCe or FabT"
            )
        return {**APGD, "steps": self.n_iter, "restarts": self.restarts, "loss": "dlr"}


APGD: Mapping[str, Any] = {"step_size": "adaptive", "start": "uniform"}
"""What every APGD says of itself."""


def _apgd(
    loss: Literal["ce", "dlr"],
    attack: ApgdCe | ApgdDlr,
    predict: Predict,
    x: Tensor,
    eps: float,
    norm: Norm,
    rng: torch.Generator,
) -> Any:
    from pyautoattack.autopgd_base import APGDAttack

    return APGDAttack(
        **_common(predict, x, eps, norm),
        loss=loss,
        n_iter=attack.n_iter,
        n_restarts=attack.restarts,
        eot_iter=1,
        rho=0.75,
        seed=rng.initial_seed(),
        logger=logging.getLogger(LOGGER),
    )


@dataclass(frozen=True)
class ApgdT(PackageAttack):
    """Ascend the targeted DLR loss with AutoPGD, once per target: the highest rivals' logits.

    DLR-T = -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), so it needs four classes.

    Args:
        n_iter: gradient steps per target.
        targets: classes attacked, at most; capped at the number of wrong classes.
    """

    kind: ClassVar[str] = "apgd_t"
    family: ClassVar[Family] = "adaptive steps"

    n_iter: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, targets=self.targets)

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives its seed."""
        from pyautoattack.autopgd_base import APGDAttack_targeted

        attack = APGDAttack_targeted(
            **_common(predict, x, eps, norm),
            n_iter=self.n_iter,
            n_restarts=1,
            n_target_classes=_targets(self.targets, _classes(predict, x)),
            eot_iter=1,
            rho=0.75,
            seed=rng.initial_seed(),
            logger=logging.getLogger(LOGGER),
        )
        return _perturb(attack, x, y)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``.

        Raises:
            InputError: fewer than four classes.
        """
        del eps
        if classes < 4:
            raise InputError(
                f"apgd_t: the targeted DLR loss needs 4 classes, the model has {classes}; "
                "use FabT, ApgdCe or AutoAttack, which makes do without it"
            )
        targets = _targets(self.targets, classes)
        return {
            **APGD,
            "steps": self.n_iter,
            "restarts": 1,
            "loss": "dlr_targeted",
            "targets": targets,
        }


@dataclass(frozen=True)
class FabT(PackageAttack):
    """Search for the nearest boundary point towards each target (FAB).

    Projects onto the linearised boundary again and again (Croce and Hein, 2020, arXiv:1907.02044).
    Starts at the image; an example is broken if a misclassified point within eps was found.

    Args:
        n_iter: steps per target.
        targets: classes attacked, at most; capped at the number of wrong classes.
    """

    kind: ClassVar[str] = "fab_t"
    family: ClassVar[Family] = "minimum norm"

    n_iter: int = 100
    targets: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, targets=self.targets)

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives its seed."""
        from pyautoattack.fab_pt import FABAttack_PT

        attack = FABAttack_PT(
            **_common(predict, x, eps, norm),
            n_iter=self.n_iter,
            n_restarts=1,
            targeted=True,
            n_target_classes=_targets(self.targets, _classes(predict, x)),
            alpha_max=0.1,
            eta=1.05,
            beta=0.9,
            seed=rng.initial_seed(),
        )
        return _perturb(attack, x, y)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps
        targets = _targets(self.targets, classes)
        return {"steps": self.n_iter, "start": "clean", "restarts": 1, "targets": targets}


@dataclass(frozen=True)
class Square(PackageAttack):
    """Search at random with squares, without gradients (Andriushchenko et al., arXiv:1912.00049).

    The squares shrink at fixed numbers of queries (``resc_schedule=False``), as in AutoAttack.

    Args:
        queries: forward passes per example, at most.
    """

    kind: ClassVar[str] = "square"
    family: ClassVar[Family] = "black box"

    queries: int = 5000

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(queries=self.queries)

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Search as ``Attack`` says; ``rng`` gives its seed."""
        from pyautoattack.square import SquareAttack

        attack = SquareAttack(
            **_common(predict, x, eps, norm),
            n_queries=self.queries,
            n_restarts=1,
            p_init=0.8,
            resc_schedule=False,
            seed=rng.initial_seed(),
        )
        return _perturb(attack, x, y)

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps, classes
        return {"queries": self.queries, "start": "stripes", "restarts": 1, "loss": "margin"}


@dataclass(frozen=True)
class AutoAttackBase(AttackBase):
    """Run four attacks in turn, each on what is still robust (arXiv:2003.01690).

    ``evaluate`` runs the parts itself, with the batches and seeds of the package's own loop, so
    that it knows which of them broke an example. With fewer than four classes the targeted DLR
    loss does not exist: APGD-DLR stands in with three, nothing with two, and a flag says so.

    Args:
        version: ``standard``, or ``custom`` to change the numbers below.
        n_iter: steps of APGD and FAB.
        targets: of APGD-T and FAB-T, at most; capped at the number of wrong classes.
        queries: of Square.
    """

    version: Literal["standard", "custom"] = "standard"
    n_iter: int = STANDARD["n_iter"]
    targets: int = STANDARD["targets"]
    queries: int = STANDARD["queries"]

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(n_iter=self.n_iter, targets=self.targets, queries=self.queries)
        changed = [name for name, value in STANDARD.items() if getattr(self, name) != value]
        if self.version == "standard" and changed:
            name = changed[0]
            raise ValueError(
                f"{name}={getattr(self, name)}: the standard version has {STANDARD[name]}; "
                "set version: custom"
            )

    def parts(self, classes: int) -> Mapping[str, Attack]:
        """Return the parts in order; logs a warning where the standard set is not possible."""
        middle = {3: "apgd_dlr"}.get(classes, "apgd_t" if classes > 3 else None)
        if classes < 4:
            logging.getLogger(LOGGER).warning(
                "not the standard AutoAttack: with %d classes the targeted DLR loss does not "
                "exist; %s",
                classes,
                "APGD-DLR was run instead of APGD-T" if middle else "APGD-T was left out",
            )
        whole = self._all()
        return {name: whole[name] for name in ("apgd_ce", middle, "fab_t", "square") if name}

    def _all(self) -> Mapping[str, Attack]:
        """Return the five attacks that may be parts."""
        raise NotImplementedError

    def __call__(
        self, predict: Predict, x: Tensor, y: Tensor, eps: float, norm: Norm, rng: torch.Generator
    ) -> Tensor:
        """Run all parts on one batch; see ``Attack``."""
        x_adv, rows = x.clone(), torch.arange(len(x), device=x.device)
        for part in self.parts(_classes(predict, x)).values():
            moved = part(predict, x[rows], y[rows], eps, norm, rng)
            with torch.no_grad():
                wrong = predict(moved).argmax(1) != y[rows]
            x_adv[rows[wrong]] = moved[wrong]
            rows = rows[~wrong]
            if not len(rows):
                break
        return x_adv

    def describe(self, eps: float, classes: int) -> dict[str, Any]:
        """State the settings; see ``Attack``."""
        del eps
        return {
            "version": self.version if classes > 3 else "custom",
            "steps": self.n_iter,
            "targets": _targets(self.targets, classes),
            "queries": self.queries,
            "restarts": 1,
        }


@dataclass(frozen=True)
class AutoAttack(AutoAttackBase):
    """Run the package's APGD-CE, APGD-T, FAB-T and Square: the reference."""

    kind: ClassVar[str] = "auto_attack"
    family: ClassVar[Family] = "ensemble"

    def _all(self) -> Mapping[str, Attack]:
        return {
            "apgd_ce": ApgdCe(self.n_iter),
            "apgd_dlr": ApgdDlr(self.n_iter),
            "apgd_t": ApgdT(self.n_iter, self.targets),
            "fab_t": FabT(self.n_iter, self.targets),
            "square": Square(self.queries),
        }


def is_inspected(attack: object) -> bool:
    """Tell whether the package's own checks of the network come before an attack."""
    return isinstance(attack, (PackageAttack, Ensemble))


def inspect(predict: Predict, x: Tensor, y: Tensor) -> None:
    """Run the package's own checks of a model on one batch; findings go to its logger.

    Randomised outputs, outputs that are probabilities, and gradients inside the forward pass.

    Args:
        predict: the network.
        x: images [N, C, H, W], right and wrong ones.
        y: labels [N].
    """
    from pyautoattack import checks

    logger = logging.getLogger(LOGGER)
    checks.check_randomized(predict, x, y, bs=len(x), logger=logger)
    checks.check_range_output(predict, x, logger=logger)
    # The package counts calls in a global that it never resets, and it drops the trace function
    # of a debugger or of a coverage run.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    tracer = sys.gettrace()
    try:
        checks.check_dynamic(predict, x, False, logger=logger)
    finally:
        sys.settrace(tracer)
