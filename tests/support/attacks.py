"""Attacks of an evaluation that was not run: what the checks read of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ablation.evaluation import (
    ApgdCe,
    ApgdDlr,
    ApgdT,
    Attack,
    AutoAttack,
    FabT,
    Fgsm,
    Pgd,
    Spsa,
    Square,
)
from ablation.evaluation.results import Attacked, Verdict
from ablation.types import Norm

ATTACKS: tuple[Attack, ...] = (
    *(Fgsm(), Pgd(1, 1.0), Spsa(1, 1), ApgdCe(), ApgdDlr(), ApgdT(), FabT(), Square()),
    AutoAttack(),
)
KINDS = {attack.kind: attack for attack in ATTACKS}


def attacked(
    metric: str,
    kind: str,
    *,
    eps: float = 0.1,
    norm: Norm = "linf",
    chosen: Tensor | None = None,
    **params: Any,
) -> Attacked:
    """An attack of this kind with recorded ``params``; what it broke is for a table to say."""
    attack = KINDS[kind]
    parts = attack.parts(10) if isinstance(attack, AutoAttack) else {metric: attack}
    seen = torch.arange(100) if chosen is None else chosen
    verdict = Verdict(
        seen, torch.ones(len(seen)).bool(), parts, *(torch.full((len(seen),), -1) for _ in range(2))
    )
    facts = {"attack": kind, "eps": eps, "norm": norm, **params}
    return Attacked(metric, attack, eps, norm, facts, verdict)
