"""Configs that are put together from options composed one by one are those that Hydra composes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from ablation.commands.cli import searching
from ablation.config import grafts
from ablation.config.folders import register_components
from ablation.config.grafts import Grafts
from ablation.config.overrides import repository
from tests.support.options import COMPONENTS, completed, options
from tests.support.sampling import some_pairs

GROUPS = (
    "method",
    "recipe",
    "model",
    "optim",
    "data",
    "schedule",
    "average",
    "evaluation",
    "scale",
)
SHARE, SLOW = 2400, 12
"""Of all pairs of options, one in so many is compared, by default and where slow tests run."""


class Asked:
    """Grafts that know every option, and how often Hydra is asked."""

    def __init__(self) -> None:
        self.times = 0
        files = repository(GlobalHydra.instance().config_loader())
        self.grafts = Grafts(self._compose, files.load_config)

    def _compose(self, choices: Sequence[str]) -> DictConfig:
        self.times += 1
        return compose("config", list(choices))

    def same(self, *choices: str) -> bool:
        """Put together, whatever it takes, and as Hydra composes it."""
        self.grafts._combined = 1000
        return raw(self.grafts.config(choices)) == raw(compose("config", list(choices)))


def raw(config: DictConfig) -> str:
    """With the order of keys."""
    return OmegaConf.to_yaml(config)


@pytest.fixture
def asked() -> Iterator[Asked]:
    register_components()
    with searching(None):
        yield Asked()


def pairs() -> list[tuple[str, ...]]:
    chosen = [f"{group}={option}" for group in GROUPS for option in options(group)] + COMPONENTS
    return [(a, b) for a, b in combinations(chosen, 2) if a.split("=")[0] != b.split("=")[0]]


@pytest.mark.parametrize("share", [SHARE, pytest.param(SLOW, marks=pytest.mark.slow)])
def test_every_pair_of_options_is_as_hydra_composes_it(asked: Asked, share: int) -> None:
    assert [pair for pair in pairs()[::share] if not asked.same(*pair)] == []


def test_many_options_at_once_are_as_hydra_composes_them(asked: Asked) -> None:
    choices = ("recipe=emr", "method=dyart", "component/awp=enabled", "average=ema", "model=cnn")
    assert asked.same(*choices)
    assert asked.same(*reversed(choices))
    assert asked.same("method=trades", *completed("component/mail=trades"), "scale=smoke")


def test_hydra_is_asked_for_options_and_not_for_combinations(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grafts, "PATIENCE", 1)
    components = [f"component/{name}=enabled" for name in ("awp", "emr", "igr", "mail", "mma")]
    methods = [f"method={name}" for name in ("at", "trades", "mart", "standard", "elsayed")]
    for choices in product(methods, components):
        asked.grafts.config(choices)
    assert asked.times < 18  # of 25, with no option before


def test_few_configs_ask_once_each(asked: Asked) -> None:
    for name in ("awp", "emr", "awp", "emr"):
        asked.grafts.config(["method=trades", f"component/{name}=enabled"])
    assert asked.times == 2


EVERYWHERE = "# @package _global_\n"
OPTIONS = {
    "sets what is the default": (EVERYWHERE + "optim: {lr: 0.1}\n", "optim=adamw"),
    "sets a key of a component": (
        EVERYWHERE + "component: {awp: {gamma: 0.5}}\n",
        "component/awp=enabled",
    ),
    "chooses another": (
        EVERYWHERE + "defaults: [{override /optim: adamw}]\n",
        "optim=sgd_clipped",
    ),
    "chooses one that sets": (
        EVERYWHERE + "defaults: [{override /method: dyart}]\n",
        "optim=sgd",
    ),
    "is of another package": ("# @package optim\nlr: 0.5\n", "optim=adamw"),
    "places another": (EVERYWHERE + "defaults: [/optim/sgd@optim]\n", "optim=adamw"),
    "is plain": ("start: 3\n", "optim=adamw"),
}


@pytest.mark.parametrize(("group", "kind"), some_pairs(["method", "recipe"], list(OPTIONS), 2))
def test_options_of_ones_own_folder_are_as_hydra_composes_them(kind, group, tmp_path):
    text, other = OPTIONS[kind]
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(text)
    register_components()
    with searching(str(tmp_path)):
        found = Asked()
        chosen = (f"{group}=mine", other)
        if kind == "chooses one that sets" and group == "method":
            pytest.skip("an option that replaces itself")
        assert found.same(*chosen)
        assert found.same(*reversed(chosen))


def test_what_is_kept_is_bounded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grafts, "KEPT", 2)
    for name in COMPONENTS[:6]:
        asked.grafts.config(["method=dyart", name])
    assert sum(len(choices) > 1 for choices in asked.grafts._composed) == 2
