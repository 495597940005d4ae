"""No key is swallowed: what a config cannot honour is refused, at every depth."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from hydra import initialize_config_dir

from ablation.commands import cli, report, train
from ablation.config import validation
from ablation.config.command_line import said
from ablation.config.compose import Composer
from ablation.config.folders import conf_dir, register_components, sweeps_dir
from ablation.errors import ConfigError
from ablation.jobs import evaluate
from ablation.sweeps.planning import Planner
from ablation.sweeps.tables import Arm, Table, load_table
from tests.support.configs import compose_plain

EVERYTHING = (
    *("method=dyart", "component/awp=enabled", "component/emr=exact", "average=ema"),
    *("evaluation=emr_adversarial_margins", "component/hypersphere=enabled"),
)
TRAIN = {
    "everything": EVERYTHING,
    "trades": ("method=trades", "evaluation=dose", "component/mail=trades"),
    "smoke": ("method=mart", "scale=smoke", "model=resnet18", "data=cifar10"),
}
STRANGER = "zzz"


def mappings(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every mapping, lists included."""
    if isinstance(node, dict):
        yield path
        for key, value in node.items():
            yield from mappings(value, (*path, key))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from mappings(value, (*path, number))


def with_entry(container: dict[str, Any], path: tuple[Any, ...], key: str, value: Any) -> Any:
    changed = copy.deepcopy(container)
    place: Any = changed
    for step in path:
        place = place[step]
    place[key] = value
    return changed


def dotted(path: tuple[Any, ...], key: str) -> str:
    text = ".".join(f"[{step}]" if isinstance(step, int) else str(step) for step in (*path, key))
    return text.replace(".[", "[")


@pytest.mark.parametrize("value", [1, {"enabled": False}, None])
@pytest.mark.parametrize("name", TRAIN)
def test_an_unknown_key_at_any_depth_of_a_run_is_told(name, value):
    container = compose_plain(*TRAIN[name])
    assert validation.check(container)[1] == []
    for path in mappings(container):
        if value is None and path == ("evaluation", "attacks"):
            continue  # clean accuracy, under another name
        problems = validation.check(with_entry(container, path, STRANGER, value))[1]
        told = (dotted(path, STRANGER), *(["average="] if path == ("average",) else []))
        assert any(problem.startswith(told) for problem in problems), path


@pytest.mark.parametrize("value", [0, False, "", [], "ema"])
def test_no_average_is_an_empty_mapping_and_nothing_else(value):
    assert "average" in str(validation.check({**compose_plain(), "average": value})[1])
    assert validation.check({**compose_plain(), "average": {}})[1] == []


@pytest.mark.parametrize("name", TRAIN)
def test_a_target_where_the_class_is_fixed_is_told(name):
    container = compose_plain(*TRAIN[name])
    for path in mappings(container):
        place: Any = container
        for step in path:
            place = place[step]
        if "_target_" in place:
            continue
        changed = with_entry(container, path, "_target_", "torch.optim.AdamW")
        problems = validation.check(changed)[1]
        # Where names are free, it is a name like any other, of what is no part.
        key = dotted(path, "_target_")
        assert any(problem.startswith(key) for problem in problems), (path, problems)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "++optim._target_=torch.optim.AdamW",
            "optim._target_='torch.optim.AdamW': the class here is Sgd or AdamW; choose from "
            "ablation.training.optim.Sgd, ablation.training.optim.AdamW",
        ),
        (
            "++model._target_=mypkg.net.MyNet",
            "always ModelConfig; remove it; a class can be chosen at model.spec._target_",
        ),
        ("++attack._target_=x", "the class here is always AttackConfig"),
        ("++selection._target_=x", "the class here is always SelectionConfig"),
        ("++data._target_=x", "chosen at data.source._target_"),
        ("++monitor._target_=x", "the class here is always MonitorConfig"),
        ("++runtime._target_=x", "the class here is always RuntimeConfig"),
        ("++method._target_=x", "chosen at method.budget._target_"),
        ("++method.terms.ce._target_=x", "chosen at method.terms.ce.term._target_"),
        ("++evaluation._target_=x", "the class here is always EvaluationConfig"),
        ("++tracking._target_=x", "the class here is always TrackingConfig"),
        ("++_target_=x", "_target_='x': the class here is always Config"),
        ("++component.awp.enabled=0", "component.awp.enabled=0: no effect"),
        ("++component.awpp.enabled=false", "no such component; did you mean awp?"),
        ("++method.terms.kl.coef=3", "method.terms.kl: method=at has no term kl, but ce; choose a"),
        ("++phases=[]", "phases=[]: built from the method; remove it"),
        ("++method.roles.robusd=ce", "method.roles.robusd=ce: no component looks for it"),
        ("++scale.keyz=1", "scale.keyz=1: unknown key; did you mean keys?"),
    ],
)
def test_what_would_be_ignored_is_refused(override, message):
    with pytest.raises(ConfigError, match="problem") as error:
        validation.load(compose_plain("method=at", override))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("component/apw=enabled", "no such group of options; did you mean component/awp?"),
        ("~component/apw", "no such group of options; did you mean component/awp?"),
        ("modell/x=y", "no such group of options; did you mean model?"),
        ("zz/qq=1", "no such group of options; choose from average, component, "),
    ],
)
def test_a_mistyped_group_is_named(override, message):
    register_components()
    for arguments in ([override], ["-m", override]):
        (problem,) = cli.preflight("config", arguments, train.check)
        assert problem.startswith(f"{override}: {message}")
        assert "hydra" not in problem


def test_a_mistyped_group_of_a_table_is_named():
    with (
        initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())),
        pytest.raises(ConfigError, match=r"component/apw=enabled: .* did you mean component/awp\?"),
    ):
        Composer().plain(["component/apw=enabled"])


def test_the_fixed_class_may_be_named():
    container = compose_plain("evaluation=emr_adversarial_margins")
    measure = container["evaluation"]["attacks"]["margin_adv_train"]
    assert measure["attack"]["_target_"] == "ablation.evaluation.Pgd"
    assert validation.check(container)[1] == []
    measure["attack"]["_target_"] = "ablation.evaluation.Fgsm"
    assert "is always Pgd" in str(validation.check(container)[1])


@pytest.mark.parametrize(
    ("name", "parse"), [("evaluate", evaluate.parse), ("report", report.check)]
)
def test_other_commands_swallow_no_key_either(name, parse):
    container = compose_plain(*(["data=cifar10"] if name == "evaluate" else []), config_name=name)
    for path in mappings(container):
        for key in (STRANGER, "_target_"):
            found = parse(with_entry(container, path, key, "x"))
            problems = found[1] if isinstance(found, tuple) else found
            if path and "_target_" in _at(container, path) and key == "_target_":
                continue
            assert any(problem.startswith(dotted(path, key)) for problem in problems), (path, key)


def _at(container: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        container = container[step]
    return container


MODULE = ("model=torch_module", "model.target=somebodys_code_x.nets:build")
NOT_TRAINED = "a network from outside is attacked (ablation-evaluate model=torch_module), not"


def test_no_training_no_saved_config_and_no_table_names_code(tmp_path):
    container = compose_plain(*MODULE)
    for more in ({}, {"scale": "smoke"}, {"model": {"target": "x", "_target_": "y"}}):
        found = validation.check({**container, **more})[1]
        assert len(found) == 1
        assert NOT_TRAINED in found[0]
    saved = {**compose_plain(), "model": container["model"]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(saved))
    asked = compose_plain(f"run={tmp_path}", config_name="evaluate")
    known = said(MODULE)  # even with the command line's word for it
    assert any(NOT_TRAINED in problem for problem in evaluate.check(asked, known))
    bare = {"weights": "0", "data": "0", "network": {"target": "somebodys_code_x.nets:build"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(bare))
    assert any("unknown key" in problem for problem in evaluate.check(asked, known))
    table = Table("Mine", {"at": Arm([*MODULE])}, set=["data=digits"], axes={"seed": [0]})
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        plan = Planner(table, [f"++runs_dir={tmp_path}"], check=False).plan()
    assert any(NOT_TRAINED in problem for problem in plan.problems)
    assert not [name for name in sys.modules if name.startswith("somebodys_code_x")]


def test_a_place_for_a_part_takes_no_code_of_others_in_an_evaluation(tmp_path):
    options = ("data=digits", "model=tiny_cnn", "checkpoint=x.pt")
    container = compose_plain(*options, config_name="evaluate")
    for path in (("model", "spec"), ("data", "source"), ("evaluation", "attacks", "aa")):
        changed = with_entry(container, path, "_target_", "somebodys_code_x.nets.Build")
        found = evaluate.check(changed, said(["model.target=somebodys_code_x.nets:build"]))
        assert any("only classes under ablation. may be named" in problem for problem in found)


@pytest.mark.parametrize("name", ["dose_table1", "emr_table3", "demo"])
def test_table_files_swallow_no_key_either(name, tmp_path):
    table = yaml.safe_load((sweeps_dir() / f"{name}.yaml").read_text("utf-8"))
    free = {("axes",), ("unavailable",)}  # any key, any row
    for path in mappings(table):
        if path in free:
            continue
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(with_entry(table, path, STRANGER, 1)), "utf-8")
        with pytest.raises(ConfigError, match=STRANGER):
            load_table(file)
