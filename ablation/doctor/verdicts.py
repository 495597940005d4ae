"""The same network attacked on the CPU and on the device: how many verdicts differ?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from ablation.doctor.lines import Line, judged
from ablation.doctor.setting import CPU, Setting, Trainee
from ablation.evaluation import (
    ApgdCe,
    ApgdDlr,
    ApgdT,
    Attack,
    FabT,
    FastApgdCe,
    FastApgdT,
    FastFabT,
    FastSquare,
    Fgsm,
    Pgd,
    Request,
    Spsa,
    Square,
    evaluate,
)
from ablation.models import Net

EPS = 0.1
IMAGES, ALLOWED = 300, 3
"""Images, and how many of their verdicts roundings may change. A GPU also draws other numbers: as
many more may differ as do between two seeds on the CPU."""
ATTACKS: Mapping[str, Attack | None] = {
    "clean": None,
    "fgsm": Fgsm(),
    "pgd": Pgd(20, 0.25),
    "cw": Pgd(20, 0.25, loss="cw"),
    "spsa": Spsa(samples=16, iterations=10),
    "apgd_ce": ApgdCe(20),
    "apgd_dlr": ApgdDlr(20),
    "apgd_t": ApgdT(20, 3),
    "fab_t": FabT(20, 3),
    "square": Square(200),
    "fast_apgd_ce": FastApgdCe(20),
    "fast_apgd_t": FastApgdT(20, 3),
    "fast_fab_t": FastFabT(20, 3),
    "fast_square": FastSquare(200),
}
"""Every kind, shortened."""


def examine(setting: Setting) -> Iterator[Line]:
    """A line for every attack."""
    config = setting.configs.small("method=at")
    batch = setting.pupil.batch(1, CPU)
    host = Trainee(config, batch, weights=setting.pupil.weights).net.eval()
    there = copy.deepcopy(host).to(setting.device)

    def line(name: str) -> Line:
        ours, theirs = robust(setting, there, name, 0), robust(setting, host, name, 0)
        another = robust(setting, host, name, 1)
        differ, limit = int((ours != theirs).sum()), ALLOWED + int((another != theirs).sum())
        share = f"{100 * ours.mean():.1f}% correct, {100 * theirs.mean():.1f}% on the CPU"
        text = f"{share}; {differ} of {len(ours)} differ (at most {limit})"
        figures = {"correct": 100 * float(ours.mean()), "differ": differ, "allowed": limit}
        return judged(name, differ <= limit, text, figures)

    yield from setting.lines(ATTACKS, line)


def robust(setting: Setting, net: Net, name: str, seed: int) -> npt.NDArray[np.bool_]:
    """Verdicts of an attack, [N]."""
    images, labels = setting.pupil.images[:IMAGES], setting.pupil.labels[:IMAGES]
    request = Request({name: ATTACKS[name]}, EPS, seed=seed, diagnose=False)
    column = "clean_correct" if name == "clean" else f"{name}_robust"
    return evaluate(net, images, labels, request).examples[column].to_numpy(bool)
