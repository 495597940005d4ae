"""Plug-ins: what an installed package brings is found, checked and named; nothing else is."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra

from ablation import plugins
from ablation.commands import cli, train
from ablation.commands.cli import searching
from ablation.config.evaluations import evaluation_ids
from ablation.config.folders import check_plugins, register_components, tables_dirs
from ablation.config.hydra_node import reads_other_files
from ablation.config.overrides import groups
from ablation.errors import ConfigError, InputError
from ablation.evaluation import Request, evaluate
from ablation.runs import provenance
from ablation.sweeps.launchers import register_launchers
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table
from ablation.testing import check_data
from tests.support.configs import compose_config
from tests.support.plugins import Installer, forget, installing

ROOT = Path(__file__).parents[1]
PARTS = """
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ablation.data import Extent, ImageSet
from ablation.evaluation import AttackBase


@dataclass(frozen=True)
class Stay(AttackBase):
    kind: ClassVar[str] = "stay"
    family: ClassVar[Any] = "black box"

    def __call__(self, predict, x, y, eps, norm, rng):
        return x

    def describe(self, eps, classes):
        return {"queries": 0}


@dataclass(frozen=True)
class Noise:
    def check(self, root):
        return []

    def extent(self, root):
        return Extent(20, 10, 1, (4, 4), (0, 1))

    def load(self, root):
        return tuple(ImageSet(torch.zeros(n, 1, 4, 4, dtype=torch.uint8), torch.arange(n) % 2)
                     for n in (20, 10))


class Plain:
    pass
"""
FILES = {
    "parts.py": PARTS,
    "conf/evaluation/stay.yaml": """# An attack that does not move.
defaults: [quick]
attacks:
  stay: {_target_: lab_parts.parts.Stay}
""",
    "conf/data/noise.yaml": """# Black images.
name: noise
source: {_target_: lab_parts.parts.Noise}
classes: 2
mean: [0.5]
std: [0.5]
val_size: 0
split_seed: 0
train_size: null
drop_last: false
eps: 0.1
augment: none
""",
    "launchers/three.yaml": """# Three jobs at a time.
_target_: hydra_plugins.ablation_plugins.pool.PoolLauncher
jobs: 3
gpus: null
per_gpu: 1
""",
}


@pytest.fixture
def install(tmp_path, monkeypatch) -> Iterator[Installer]:
    with installing(tmp_path, monkeypatch) as installer:
        yield installer


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    forget()


def problem() -> str:
    with pytest.raises(InputError) as found:
        check_plugins()
    return str(found.value)


def test_the_files_in_the_documentation_are_those_of_the_example():
    text = (ROOT / "docs/plugins.md").read_text("utf-8")
    shown = dict(re.findall(r"^`(\S+)`\n\n```\w+\n(.*?)\n```$", text, re.DOTALL | re.MULTILINE))
    folder = ROOT / "examples/plugin"
    assert shown == {name: (folder / name).read_text("utf-8").strip() for name in shown}
    assert {"pyproject.toml", "ablation_example/terms.py"} < shown.keys()


def test_without_plugins_nothing_is_found():
    assert plugins.installed() == ()
    assert plugins.versions(["ablation.terms.KL", "os.system"]) == {}


def test_the_example_is_found_and_not_imported(install):
    install.example()
    (found,) = plugins.installed()
    assert (found.distribution, found.version) == ("ablation-example", "0.1.0")
    check_plugins()
    assert "ablation_example" not in sys.modules
    with searching(None):
        loader = GlobalHydra.instance().config_loader()
        assert loader.get_group_options("component/logit_norm") == ["disabled", "enabled"]
        assert "linear" in loader.get_group_options("model")
        assert "component/logit_norm" in groups(loader)
        assert reads_other_files(loader)
    assert "ablation_example" not in sys.modules


def test_a_component_and_a_model_of_a_plugin_are_parts_like_ours(install):
    install.example()
    config = compose_config("method=trades", "component/logit_norm=enabled", "model=linear")
    assert "logit_norm" in config.phases[-1].method.terms
    assert type(config.model.spec).__module__ == "ablation_example.models"
    changed = compose_config("component/logit_norm=enabled", "component.logit_norm.coef=1/2")
    assert changed.container()["component"]["logit_norm"]["coef"] == 0.5
    with pytest.raises(ConfigError, match=r"logit_norm\.coeff=1: unknown key; did you"):
        compose_config("component/logit_norm=enabled", "++component.logit_norm.coeff=1")
    with pytest.raises(ConfigError, match=r"no effect, component\.logit_norm is disabled"):
        compose_config("++component.logit_norm.coef=1")


def test_who_uses_a_plugin_has_its_version_in_the_identity_and_nobody_else(install):
    before = compose_config("method=trades").train_id
    install.example()
    assert compose_config("method=trades").train_id == before
    config = compose_config("component/logit_norm=enabled")
    assert config.identity()["plugins"] == {"ablation-example": "0.1.0"}
    before = config.train_id
    (found,) = plugins.installed()
    newer = dataclasses.replace(found, version="0.2.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "installed", lambda: (newer,))
        assert dataclasses.replace(config).train_id != before
    provenance.versions.cache_clear()
    assert provenance.versions()["ablation-example"] == "0.1.0"
    provenance.versions.cache_clear()


def test_a_table_of_a_plugin_is_planned_like_ours(install):
    install.example()
    assert len(tables_dirs()) == 2
    with searching(None):
        plan = Planner(open_table("logit_norm"), check=False).plan()
    assert plan.problems == []
    assert [job.config.model.name for job in plan.jobs] == ["linear", "linear"]


def test_attack_data_and_launcher_of_a_plugin(install):
    before = evaluation_ids(compose_config())
    install("lab-parts", FILES)
    assert evaluation_ids(compose_config()) == before
    config = compose_config("data=noise", "evaluation=stay", "selection.metric=last")
    check_data(config)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    images, labels = torch.rand(4, 1, 4, 4), torch.arange(4) % 2
    found = evaluate(net, images, labels, Request(config.evaluation.attacks, 0.1, n=4))
    values = {entry.metric: entry.value for entry in found.entries}
    assert values["stay"] == values["clean"]
    register_components()
    register_launchers()
    assert cli.preflight("config", ["hydra/launcher=three", "-m", "seed=0,1"], train.check) == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("lab_parts.parts.Plain", "it is not a dataclass"),
        ("lab_parts.parts.Nowhere", "there is no such class"),
        ("lab_parts.elsewhere.Stay", "there is no such class"),
        ("lab_parts.parts.AttackBase", "it is no Attack"),
        ("lab_parts.broken.Stay", "plug-in lab-parts 1.0: lab_parts.broken cannot be imported "),
        ("lab_parts.borrowed.Foreign", "it is a class of lab_parts_2; only classes under ablation"),
        ("lab_parts_2.Foreign", "only classes under ablation., lab_parts. may be named"),
    ],
)
def test_what_is_no_part_of_a_plugin_is_refused(install, target, message):
    foreign = "from dataclasses import dataclass\n\n@dataclass\nclass Foreign:\n    pass\n"
    install(
        "lab-parts", {**FILES, "broken.py": "1 / 0", "borrowed.py": "from lab_parts_2 import *"}
    )
    (install._place / "lab_parts_2.py").write_text(foreign)
    with pytest.raises(ConfigError) as error:
        compose_config(f"+evaluation.attacks.mine={{_target_:{target}}}")
    assert message in str(error.value)


def test_a_class_of_a_package_that_is_no_plugin_is_refused():
    assert find_spec("yaml") is not None
    with pytest.raises(ConfigError, match="those of plug-ins once they are installed"):
        compose_config("+evaluation.attacks.mine={_target_:yaml.YAMLObject}")


COMPONENT = "# Mine.\n_target_: lab_parts.parts.Stay\n"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"conf/component/awp/enabled.yaml": COMPONENT},
            "conf/component/awp/enabled.yaml has the name of a file of ablation; rename it, or pip "
            "uninstall lab-parts",
        ),
        ({"conf/config.yaml": "seed: 1"}, "conf/config.yaml has the name of a file of ablation"),
        ({"tables/demo.yaml": "title: x"}, "tables/demo.yaml has the name of a file of ablation"),
        ({"tables/searches/lma.yaml": "x: 1"}, "tables/searches/lma.yaml has the name of a file"),
        ({"conf/modell/x.yaml": "a: 1"}, "conf/modell: no such group; did you mean model?"),
        ({"conf/hydra/help/x.yaml": "a: 1"}, "hydra: options of Hydra are not read here"),
        ({"conf/model/x.yaml": "a: [1"}, "conf/model/x.yaml: "),
        ({"conf/component/mine/enabled.yaml": COMPONENT}, "conf/component/mine: add disabled.yaml"),
    ],
)
def test_files_that_would_hide_ours_or_break_are_told(install, files, message):
    install("lab-parts", files)
    found = problem()
    assert message in found
    assert "plug-in lab-parts 1.0: " in found
    assert "pip uninstall lab-parts" in found


def test_two_plugins_of_one_option_are_told(install):
    option = {"conf/model/mine.yaml": "# Mine.\nname: mine\n"}
    install("lab-one", option)
    install("lab-two", option)
    assert (
        "plug-in lab-two 1.0: conf/model/mine.yaml has the name of a file of lab-one" in problem()
    )


def test_a_launcher_that_would_hide_ours_is_told(install):
    install("lab-parts", {"launchers/pool.yaml": FILES["launchers/three.yaml"]})
    with pytest.raises(
        ConfigError, match=r"launchers/pool.yaml has the name of a file of ablation"
    ):
        register_launchers()


@pytest.mark.parametrize("entry", ["no_such_package", "lab_parts:main", "ablation", "lab_parts.no"])
def test_an_entry_point_that_names_no_package_of_its_own_is_told(install, entry):
    install("lab-parts", {}, entry=entry)
    assert f"plug-in lab-parts 1.0: its entry point ablation.plugins names '{entry}'" in problem()


def test_a_package_inside_another_is_found(install):
    install("lab-parts", {"inner/__init__.py": ""}, entry="lab_parts.inner")
    assert plugins.owner("lab_parts.inner.parts.X") is not None
    assert plugins.owner("lab_parts.parts.X") is None
    assert "lab_parts" not in sys.modules


def test_a_command_with_a_broken_plugin_ends_with_one_message(install, monkeypatch, capsys):
    install("lab-parts", {"conf/component/awp/enabled.yaml": COMPONENT})
    monkeypatch.setattr(sys, "argv", ["ablation-train", "epochs=1"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 1
    assert "rename it, or pip uninstall lab-parts" in capsys.readouterr().err


def test_a_plugins_option_may_not_reach_hydras_node(install):
    evil = "# @package _global_\nhydra: {job: {name: evil}}\n"
    install("lab-parts", {"conf/recipe/evil.yaml": evil})
    register_components()
    found = cli.preflight("config", ["recipe=evil"], train.check)
    assert any("an option file may not set it" in text for text in found)


def test_other_hydra_applications_see_no_plugins(install):
    install("lab-parts", {}, entry="no_such_package")  # not even a broken one
    found = create_config_search_path("pkg://tests").get_path()
    assert "ablation-plugin" not in [entry.provider for entry in found]
    with initialize(version_base="1.3", config_path=None):
        assert compose(overrides=["+a=1"]).a == 1
