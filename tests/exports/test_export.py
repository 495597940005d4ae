"""``ablation-export`` as a user meets it: files, card, refusals, the hub."""

from __future__ import annotations

import importlib.util
import json
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

import ablation
from ablation.commands import cli, export
from ablation.config import validation
from ablation.config.compose import Composer, to_plain
from ablation.config.folders import conf_dir, read_saved_config, register_components
from ablation.config.overrides import letting_in
from ablation.errors import DONE, ConfigError, InputError
from ablation.exports import hub
from ablation.exports.command import command
from tests.support.configs import compose_config

TINY = (
    *("epochs=1", "data.train_size=200", "data.val_size=100", "selection.n=50", "model=tiny_cnn"),
    *("evaluation=quick", "evaluation.n=100", "tracking.mode=disabled"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> ablation.LoadedRun:
    folder = tmp_path_factory.mktemp("runs")
    chosen = ("method=trades", "component/awp=enabled", "average=ema", "eps=8/255")
    return ablation.train([*chosen, *TINY, f"runs_dir={folder}"])


def go(*arguments: str) -> int:
    """The command, less its process."""
    with cli.searching(None):
        container = to_plain(compose("export", [letting_in(text) for text in arguments]))
    try:
        return export.run(container)
    finally:
        GlobalHydra.instance().clear()


def network(folder: Path) -> Any:
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["exported_model"] = module
    spec.loader.exec_module(module)
    return module.load()


def front(folder: Path) -> dict[str, Any]:
    _, text, _ = (folder / "README.md").read_text().split("---\n", 2)
    return dict(yaml.safe_load(text))


def test_an_export_has_the_network_and_all_that_is_known_of_it(run, tmp_path, capsys):
    out = tmp_path / "new" / "mine"
    assert go(f"run={run.path}", f"out={out}", "license=mit") == DONE
    names = {"README.md", "config.yaml", "model.py", "model.safetensors", "robustbench.json"}
    assert {path.name for path in out.iterdir()} == names
    assert [path.name for path in out.parent.iterdir()] == ["mine"]
    assert "exported to" in capsys.readouterr().out
    x = torch.rand(6, 1, 8, 8)
    assert torch.equal(network(out)(x), run.net(x))
    text = (out / "README.md").read_text()
    assert front(out)["license"] == "mit"
    assert "datasets" not in front(out)
    assert "model-index" not in front(out)  # 100 images are not the test set
    assert "Weights: `best_robust` (averaged)." in text
    for number in run.results.query("selected").itertuples():
        assert f"| {number.metric} | test | {number.value:.2f}% | 100, a part |" in text
    assert "| linf | 8/255 = 0.0314 | pgd, steps=20," in text
    assert "Awp(gamma=0.01, start=0" in text
    assert "| zero_gradient | passed |" in text
    assert "| autoattack_lowest | not run | needs aa" in text
    saved = yaml.safe_load((out / "config.yaml").read_text())
    assert saved["method"]["name"] == "trades"
    assert not {"data_dir", "runs_dir", "tracking"} & saved.keys()
    record = json.loads((out / "robustbench.json").read_text())
    assert (record["eps"], record["clean_acc"]) == ("8/255", None)


def test_the_command_on_the_card_trains_the_same(run, tmp_path):
    go(f"run={run.path}", f"out={tmp_path}/out")
    lines = (tmp_path / "out" / "README.md").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("ablation-train"))
    words = shlex.split(line)[1:]
    assert words[:3] == ["data=digits", "model=tiny_cnn", "method=trades"]
    assert compose_config(*words).train_id == run.config.train_id


@pytest.mark.parametrize(
    ("words", "shortest"),
    [
        (["method=at"], "data=digits model=tiny_cnn method=at"),
        (
            ["recipe=lma", "method=lma_at", "component/ema_logits=disabled"],
            None,
        ),
        (
            ["recipe=mwpb", "method=mart", "component/margin_weighted_epsilon=mart"],
            None,
        ),
        (
            ["method=trades", "method.terms.kl.coef=3", "norm=l2", "eps=0.5", "scale=smoke"],
            "data=digits model=tiny_cnn method=trades scale=smoke eps=0.5 norm=l2 "
            "method.terms.kl.coef=3.0",
        ),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_a_command_is_found_for_any_config(words, shortest):
    config = validation.load(compose_config(*words).container())
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        found = command(config, Composer())
    assert found is not None
    assert shortest is None or found == f"ablation-train {shortest}"
    assert len(found) < 300
    assert compose_config(*shlex.split(found)[1:]).train_id == config.train_id


def test_other_weights_can_be_chosen(run, tmp_path):
    go(f"run={run.path}", f"out={tmp_path}/out", "checkpoint=last", "weights=raw")
    x = torch.rand(6, 1, 8, 8)
    assert torch.equal(
        network(tmp_path / "out")(x), ablation.load_run(run.path, "last", "raw").net(x)
    )
    text = (tmp_path / "out" / "README.md").read_text()
    assert "None: these weights were not attacked." in text


def copy_of(run: ablation.LoadedRun, folder: Path) -> Path:
    return Path(shutil.copytree(run.path, folder / run.path.name))


def test_warnings_stand_above_the_numbers_and_keep_them_out_of_the_index(run, tmp_path):
    copy = copy_of(run, tmp_path)
    (file,) = copy.glob("evaluations/best_robust-*.json")
    record = json.loads(file.read_text())
    whole = {"attack": "auto_attack", "version": "standard", "norm": "linf", "eps": 8 / 255}
    for entry in record["entries"]:  # as if on the whole test set
        entry |= {"n": 360}
    record["entries"].append({**record["entries"][0], "metric": "aa", "params": whole})
    record["flags"] = []
    file.write_text(json.dumps(record))
    file.with_suffix(".parquet").unlink()
    go(f"run={copy}", f"out={tmp_path}/trusted")
    (result,) = front(tmp_path / "trusted")["model-index"][0]["results"]
    assert [each["name"].split(",")[0] for each in result["metrics"]] == [
        "Clean accuracy (%)",
        "AutoAttack accuracy (%)",
    ]
    text = (tmp_path / "trusted" / "README.md").read_text()
    assert "AutoAttack, reference implementation (pyautoattack), version=standard" in text
    record["flags"] = ["Square breaks more | than PGD"]
    file.write_text(json.dumps(record))
    go(f"run={copy}", f"out={tmp_path}/flagged")
    (result,) = front(tmp_path / "flagged")["model-index"][0]["results"]
    assert [each["name"] for each in result["metrics"]] == ["Clean accuracy (%)"]
    text = (tmp_path / "flagged" / "README.md").read_text()
    assert text.index(r"> - Square breaks more \| than PGD") < text.index("## Evaluation")


def test_a_damaged_number_ends_it_before_anything_is_written(run, tmp_path):
    copy = copy_of(run, tmp_path)
    (file,) = copy.glob("evaluations/best_robust-*.json")
    file.write_text(file.read_text().replace('"n": 100', '"n": 99', 1))
    with pytest.raises(InputError, match="evaluate again"):
        go(f"run={copy}", f"out={tmp_path}/out")
    assert not (tmp_path / "out").exists()


def test_all_that_is_wrong_is_said_at_once(run, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    (tmp_path / "there").symlink_to("nowhere")
    with pytest.raises(ConfigError) as error:
        go(f"run={tmp_path}", f"out={tmp_path}/there", "license=No", "push=me/mine")
    said = "\n".join(error.value.problems)
    for expected in (
        f"run={tmp_path}: no run there (config.yaml is missing)",
        f"out={tmp_path}/there: exists, and stays as it is",
        "license='No': write it as the Hugging Face hub does",
        "push=me/mine needs huggingface_hub, which is not installed: pip install 'ablation[hub]'",
    ):
        assert expected in said
    with pytest.raises(ConfigError) as error:
        go("push=mine")
    assert len(error.value.problems) == 3


def test_weights_that_are_not_there_are_named(run, tmp_path):
    copy = copy_of(run, tmp_path)
    for file in (copy / "checkpoints").glob("best_robust-average.safetensors"):
        file.unlink()
    with pytest.raises(ConfigError, match=r"weights=average: .* set weights=raw"):
        go(f"run={copy}", f"out={tmp_path}/out")
    saved = read_saved_config(copy)
    (copy / "config.yaml").write_text(yaml.safe_dump({**saved, "epochs": "many"}))
    with pytest.raises(ConfigError, match=r"its config.yaml: epochs='many'"):
        go(f"run={copy}", f"out={tmp_path}/out")


class Hub:
    """A hub that takes what it is given."""

    def __init__(self, taken: str = "", token: bool = True) -> None:
        self.taken, self.token = taken, token
        self.made: dict[str, Any] = {}
        self.files: list[str] = []

    def whoami(self) -> None:
        if not self.token:
            raise OSError("no token")

    def repo_exists(self, name: str) -> bool:
        return name == self.taken

    def create_repo(self, name: str, **settings: Any) -> str:
        self.made = {"name": name, **settings}
        return f"https://hub/{name}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        self.files = sorted(path.name for path in Path(folder_path).iterdir())


def use(monkeypatch, api: Hub) -> Hub:
    monkeypatch.setattr(hub, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(hub, "_api", lambda: api)
    return api


def test_nothing_is_sent_unless_asked_and_then_private(run, tmp_path, monkeypatch, capsys):
    api = use(monkeypatch, Hub())
    go(f"run={run.path}", f"out={tmp_path}/a")
    assert api.made == {}
    go(f"run={run.path}", f"out={tmp_path}/b", "push=me/mine")
    assert api.made == {"name": "me/mine", "repo_type": "model", "private": True, "exist_ok": False}
    assert api.files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert "sent to https://hub/me/mine (private)" in capsys.readouterr().out
    go(f"run={run.path}", f"out={tmp_path}/c", "push=me/mine", "private=false")
    assert api.made["private"] is False


@pytest.mark.parametrize(
    ("api", "why"),
    [
        (Hub(taken="me/mine"), "it exists on the hub and stays as it is"),
        (Hub(token=False), "run hf auth login"),
    ],
    ids=["taken", "no token"],
)
def test_a_hub_that_will_not_have_it_is_asked_first(run, tmp_path, monkeypatch, api, why):
    use(monkeypatch, api)
    with pytest.raises(InputError, match=why):
        go(f"run={run.path}", f"out={tmp_path}/out", "push=me/mine")
    assert api.made == {}
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_leaves_the_folder_and_says_how_to_go_on(run, tmp_path, monkeypatch):
    api = use(monkeypatch, Hub())
    monkeypatch.setattr(api, "upload_folder", lambda **_: 1 / 0)
    with pytest.raises(InputError, match=r"ZeroDivisionError.* hf upload me/mine .*out sends"):
        go(f"run={run.path}", f"out={tmp_path}/out", "push=me/mine")
    assert (tmp_path / "out" / "model.py").is_file()
