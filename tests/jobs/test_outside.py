"""``ablation-evaluate model=torch_module``: anyone's network, named on the command line alone."""

from __future__ import annotations

import json
import sys

import pytest
import torch
import yaml
from torch.nn.functional import cross_entropy

from ablation.config.command_line import said
from ablation.data import Digits
from ablation.errors import DONE, ConfigError, InputError
from ablation.jobs import evaluate
from ablation.models import Mlp, build_model
from ablation.models.outside import build_outside
from ablation.reports import groups
from tests.support.jobs import plain

KUANGLIU = "tests.support.kuangliu:ResNet"
NET = (
    *("model=torch_module", f"model.target={KUANGLIU}", "data=digits"),
    *("++model.kwargs.blocks=[1,1]", "++model.kwargs.width=4", "++model.kwargs.channels=1"),
)
SMALL = {"blocks": [1, 1], "width": 4, "channels": 1}
QUICK = ("evaluation=quick", "evaluation.n=20", "~evaluation.attacks.pgd20")


def asked(tmp_path, *overrides):
    """A request, and what the command line says of code."""
    container = plain(tmp_path / "runs", *overrides, config_name="evaluate")
    return container, said(overrides)


def problems(tmp_path, *overrides):
    return evaluate.check(*asked(tmp_path, *overrides))


def test_a_network_with_its_weights_is_attacked(tmp_path, capsys):
    theirs = build_outside(KUANGLIU, SMALL)
    held = {f"module.{name}": value for name, value in theirs.state_dict().items()}
    torch.save({"net": held, "acc": 93.0, "epoch": 3}, tmp_path / "ckpt.pth")
    request = asked(tmp_path, *NET, *QUICK, f"checkpoint={tmp_path}/ckpt.pth")
    assert evaluate.check(*request) == []
    assert evaluate.run(*request) == DONE
    (folder,) = (tmp_path / "runs").glob("digits-torch_module-ckpt-*")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["network"] == {"target": KUANGLIU, "kwargs": SMALL, "normalize": False}
    entries = {e["metric"]: e for e in json.loads((folder / "result.json").read_text())["entries"]}
    assert entries["fgsm"]["n"] == entries["clean"]["n"] == 20
    record = json.loads((folder / "robustbench.json").read_text())
    assert (record["dataset"], record["architecture"]) == ("digits", "ResNet")
    assert record["clean_acc"] is record["autoattack_acc"] is record["authors"] is None
    capsys.readouterr()
    assert evaluate.run(*request) == DONE  # it is there
    assert "attack " not in capsys.readouterr().out
    assert groups._trained(folder, config) is None  # no training: reports pass over it


def test_a_network_may_come_ready(tmp_path, capsys):
    request = asked(tmp_path, *NET, *QUICK, "model.name=mine", "model.normalize=true")
    assert evaluate.check(*request) == []
    assert evaluate.run(*request) == DONE
    assert "no checkpoint=, so it is attacked as it is built" in capsys.readouterr().out
    assert evaluate.run(*request) == DONE
    (folder,) = (tmp_path / "runs").glob("*")  # the same weights both times
    assert folder.name.startswith("digits-mine-as_built-")


def test_normalisation_and_arguments_are_part_of_what_is_attacked(tmp_path):
    for more in ((), ("model.normalize=true",), ("++model.kwargs.width=8",)):
        assert evaluate.run(*asked(tmp_path, *NET, *QUICK, *more)) == DONE
    assert len(list((tmp_path / "runs").glob("*"))) == 3


@pytest.fixture(scope="module")
def normalising(tmp_path_factory):
    """Weights of ``model=mlp`` that were trained on digits with 1 subtracted, divided by 0.2."""
    data, _ = Digits().load(tmp_path_factory.getbasetemp())
    torch.manual_seed(0)
    net = build_model(Mlp(hidden=1, width=32), channels=1, size=(8, 8), classes=10)
    adam = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(100):
        adam.zero_grad()
        torch.autograd.backward(cross_entropy(net((data.images / 255 - 1) / 0.2), data.labels))
        adam.step()
    path = tmp_path_factory.mktemp("weights") / "net.pt"
    torch.save(net.state_dict(), path)
    return path


@pytest.mark.parametrize("outside", [False, True])
def test_weights_with_the_wrong_normalisation_are_told(tmp_path, normalising, capsys, outside):
    model = ["model=mlp", "model.spec.hidden=1", "model.spec.width=32"]
    if outside:
        model = ["model=torch_module", "model.target=tests.jobs.test_outside:small_mlp"]
    constants = ("data=digits", "data.mean=[1.0]", "data.std=[0.2]")
    given = (*model, *constants, *QUICK, f"checkpoint={normalising}")
    hint = "set what the weights were trained with"
    assert evaluate.run(*asked(tmp_path, *given, "model.normalize=false")) == DONE
    told = capsys.readouterr().err
    assert hint in told
    assert "model.normalize=true 9" in told  # and so many percent
    assert evaluate.run(*asked(tmp_path, *given, "model.normalize=true")) == DONE
    assert hint not in capsys.readouterr().err
    assert evaluate.run(*asked(tmp_path, *given, "model.normalize=true", "data.mean=[0.1]")) == DONE
    assert len(list((tmp_path / "runs").glob("*"))) == 3  # three networks, three results
    for folder in (tmp_path / "runs").glob("*"):
        assert yaml.safe_load((folder / "config.yaml").read_text())["network"]


def small_mlp():
    """The network of ``normalising``, as anyone may build it."""
    return build_model(Mlp(hidden=1, width=32), channels=1, size=(8, 8), classes=10)


def test_the_record_has_the_numbers_of_the_whole_test_set(tmp_path):
    request = asked(tmp_path, *NET, "evaluation=quick", "~evaluation.attacks.pgd20", "eps=8/255")
    assert evaluate.run(*request) == DONE
    (folder,) = (tmp_path / "runs").glob("*")
    record = json.loads((folder / "robustbench.json").read_text())
    clean = json.loads((folder / "result.json").read_text())["entries"][0]
    assert record["clean_acc"] == f"{clean['value']:.2f}"
    assert (record["eps"], record["threat_model"]) == ("8/255", "Linf")
    assert record["autoattack_acc"] is None  # FGSM is none


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("model=torch_module", "data=digits"),
            "model.target is missing: set model.target=<module",
        ),
        ((*NET, "model.target=nowhere.at_all:x"), "there is no module nowhere"),
        ((*NET, "model.target=tests.support.kuangliu"), "write <module>:<class or function>"),
        ((*NET, "++model.head=linear"), "model.head='linear': unknown key"),
        ((*NET, "model.name=a/b"), "it names a folder"),
        ((*NET, "checkpoint=nowhere.pt"), "checkpoint=nowhere.pt: no such file"),
        ((*NET, "run=runs/x"), "run=runs/x: no run there"),
        (NET[:1] + NET[1:2], "checkpoint= needs data=<name>"),
        ((*NET, "evaluation=emr_margins"), "no train or val images"),
        ((*NET, "attack_from=runs/x"), "only another run is attacked"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(tmp_path, overrides, message):
    found = problems(tmp_path, *overrides)
    assert any(message in problem for problem in found), found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("++model.kwargs.depth=3", "it fails (TypeError"),
        ("++model.kwargs.channels=3", "does not take images [2, 1, 8, 8]"),
        ("++model.kwargs.classes=7", "returns [2, 7] for images [2, 1, 8, 8]; the data has 10"),
    ],
)
def test_a_network_that_does_not_fit_the_images_leaves_nothing(tmp_path, override, message):
    with pytest.raises(InputError) as error:
        evaluate.run(*asked(tmp_path, *NET, *QUICK, override))
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_only_what_the_command_line_says_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module_x.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "evil_module_x:build"
    container, _ = asked(tmp_path, *NET, f"model.target={target}")
    for known in ((), said(NET)):
        found = evaluate.check(container, known)
        assert any(
            problem.startswith(f"model.target='{target}': it decides which code runs")
            for problem in found
        )
        with pytest.raises(ConfigError):
            evaluate.run(container, known)
    assert "evil_module_x" not in sys.modules
    container, known = asked(tmp_path, *NET)
    container["model"]["kwargs"]["repo"] = "somebody/elses"  # as an option file would
    found = evaluate.check(container, known)
    assert len(found) == 1
    assert found[0].startswith("model.kwargs.repo='somebody/elses': it decides")


@pytest.mark.parametrize(
    "text",
    [
        "model.target=a.b:c",
        "++model.target='a.b:c'",
        "+model.target=x:y,a.b:c",
        'model.target="a.b:c"',
        "model.target=choice(a.b:c,d:e)",
    ],
)
def test_every_way_to_write_a_target_counts(text):
    assert ("model.target", "'a.b:c'") in said([text])


def test_arguments_in_one_mapping_count_each():
    known = said(["model.kwargs={depth: 28, act: relu, inner: {a: [1, 2]}}", "lr=1", "=", "~model"])
    assert known == {
        ("model.kwargs.depth", "28"),
        ("model.kwargs.act", "'relu'"),
        ("model.kwargs.inner.a", "[1, 2]"),
    }
