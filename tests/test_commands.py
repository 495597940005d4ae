"""Every command in the documents is one: all are planned or checked, and run at smoke scale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from torch import save

import ablation
from ablation.commands import cli, doctor, evaluate, export, flags, report, runs
from ablation.config import validation
from ablation.config.command_line import said
from ablation.config.folders import register_components
from ablation.config.overrides import alternatives, key_of
from ablation.errors import DONE, ConfigError
from ablation.sweeps.launchers import missing_extra
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table, read_request
from ablation.sweeps.search import read_search
from tests.support.documents import commands
from tests.support.sampling import some_of

pytestmark = pytest.mark.usefixtures("composed_once")

COMMANDS = commands()
BIN = Path(sys.executable).parent
MISTAKEN = "model=resnet81"
"""A word of the command that shows what mistakes are answered with."""
OF_CONTRIBUTING = ("component/logit_norm=enabled", "method=noise_at", "model=linear")
"""What the recipes of CONTRIBUTING.md make, step by step."""
NETS = """
from torch import nn


def build(depth=1):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""


@dataclass(frozen=True)
class Workshop:
    """A folder with what commands in the documents take for granted."""

    folder: Path
    runs: tuple[str, ...]

    def words(self, command: Sequence[str]) -> list[str]:
        """The words with stand-ins for what a reader fills in."""
        text = "\n".join(word for word in command if not word.startswith(OWN_IMAGES))
        text = text.replace("<name>,<name>", ",".join(self.runs[:2]))
        text = re.sub(r"runs/\*$", ",".join(f"runs/{run}" for run in self.runs), text, flags=re.M)
        for pattern, run in zip(RUNS, self.runs, strict=True):
            text = re.sub(pattern, f"runs/{run}", text)
        for pattern, other in STAND_INS:
            text = re.sub(pattern, other, text, flags=re.M)
        return text.split("\n")


OWN_IMAGES = ("...", "data=image_folder", "data=parquet", "data.name=", "data_dir=")
"""Words that are left out: images of one's own are digits here."""
RUNS = (
    r"runs/(?:<name>|a\b|[\w-]+-\.\.\.)",
    r"runs/(?:<other>|b\b)",
    r"runs/c\b",
)
"""How the documents call the three runs of the workshop."""
STAND_INS = (
    (r"^evaluation=<name>", "evaluation=quick"),
    (r"^table=<name>", "table=lma_small"),
    (r"^claims=<paper>", "claims=dose"),
    (r"^hydra/launcher=<name>", "hydra/launcher=pool"),
    (r"<user>/<name>", "me/mine"),
    (r"<team>", "me"),
    (r"^examples=<arm>,<arm>", "examples=at,trades"),
    (r"^evaluation.n=1000", "evaluation.n=100"),
    (r"^row=\$at,", "row=at_wd_0.01,"),
)


SEARCH = re.compile(r"`mine/searches/digits.yaml`.*?```yaml\n(.*?)```", re.S)
"""The search of one's own that the documents write out."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """Three runs, weights of one of them, a module with a network."""
    folder = tmp_path_factory.mktemp("workshop")
    names = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for method in ("at", "trades", "standard"):
            words = [f"method={method}", "scale=smoke", "tracking.mode=disabled"]
            names.append(ablation.train(words).path.name)
        save(ablation.load_run(f"runs/{names[0]}").net.state_dict(), "net.pt")
    (folder / "mypkg").mkdir()
    (folder / "mypkg" / "nets.py").write_text(NETS)
    search = SEARCH.search((Path(__file__).parents[1] / "docs/tables.md").read_text())
    assert search is not None
    (folder / "mine" / "searches").mkdir(parents=True)
    (folder / "mine" / "searches" / "digits.yaml").write_text(search[1])
    return Workshop(folder, tuple(names))


def forget_groups() -> None:
    """Take back the groups of ``ablation-train`` that ``ablation-report`` has as plain keys."""
    for group in ("table", "search"):
        ConfigStore.instance().repo.pop(group, None)


@pytest.fixture(autouse=True, scope="module")
def leave_no_groups() -> Iterator[None]:
    """The tests of other files in this process have their own."""
    yield
    forget_groups()


def problems_of(words: Sequence[str]) -> list[str]:
    """What is wrong with a command line, found without running it."""
    name, arguments = words[0], list(words[1:])
    register_components()
    if name == "ablation-report":
        forget_groups()
        return cli.preflight("report", report.take_in(arguments), report.check)
    if name == "ablation-evaluate":
        arguments = [cli.as_list(text, ("run", "attack_from")) for text in arguments]
        known = said(flags.split(arguments)[1])
        return cli.preflight("evaluate", arguments, lambda node: evaluate.check(node, known))
    if name == "ablation-runs":
        return cli.preflight("runs", runs.take_in(arguments), runs.check)
    if name == "ablation-export":
        found = cli.preflight("export", arguments, export.check)
        return [problem for problem in found if "pip install" not in problem]
    if name == "ablation-doctor":
        arguments = [cli.as_list(text, doctor.LISTS) for text in arguments]
        return cli.preflight("doctor", arguments, doctor.check)
    if name == "torchrun":
        arguments = arguments[arguments.index("ablation.commands.train") + 1 :]
    return [problem for problem in of_training(arguments) if "pip install" not in problem]


def of_training(arguments: list[str]) -> list[str]:
    """Of ``ablation-train``; of a table, its first row is composed."""
    cli.register(True, arguments)
    if cli.sweeping(arguments):
        arguments = [*arguments, "--multirun"]
    found = cli.preflight("config", arguments, lambda node: validation.check(node)[1], planned=True)
    given, overrides, _ = flags.split(arguments)
    if found or not given.multirun:
        return found
    own = [text for text in overrides if not key_of(text).startswith("hydra")]
    with cli.searching(None):
        try:
            if any(text.startswith("search=") for text in own):
                read_search(own)
                return []
            request = read_request(own)
            return (
                Planner(request.table, request.cli, request.rows[:1], check=False).plan().problems
            )
        except ConfigError as error:
            return list(error.problems)


@pytest.mark.parametrize("command", some_of(COMMANDS, 4), ids=" ".join)
def test_every_command_is_right(command, workshop, monkeypatch):
    monkeypatch.chdir(workshop.folder)
    if set(command) & set(OF_CONTRIBUTING):
        pytest.skip("the recipe before it makes what it names")
    found = problems_of(digits(workshop.words(command)))
    assert len(found) == (4 if MISTAKEN in command else 0), found


def digits(words: list[str]) -> list[str]:
    """A command on weights, with the images and the architecture of the workshop's."""
    if words[0] != "ablation-evaluate":
        return words
    swapped = {"data=cifar10": "data=digits", "model=resnet18": "model=tiny_cnn"}
    found = [swapped.get(word, word) for word in words]
    if "model=torch_module" in words:  # a network of the workshop's module, without weights
        found = [word for word in found if not word.startswith("checkpoint=")]
    return found


def test_there_are_commands_of_each_kind():
    kinds = [command[0] for command in COMMANDS]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts["ablation-train"] > 50
    assert counts["ablation-report"] > 10
    assert counts["ablation-evaluate"] > 10
    assert counts["torchrun"] >= 1


NEEDED = (
    ("model=resnet81", "it is mistaken: see above"),
    ("hydra.launcher.wait=false", "needs a SLURM cluster"),
    ("hydra.launcher.gpus=[1,3]", "needs four GPUs"),
    ("hydra.launcher.ray.init.address=auto", "needs a Ray cluster"),
    ("hydra.launcher.ray.remote.num_gpus=1", "needs a GPU"),
    ("push=<user>/<name>", "needs an account: tests/exports/test_export.py"),
    ("examples=at,trades", "smoke runs collapse: tests/reports/test_examples.py"),
    ("dashboard=true", "needs W&B: tests/reports/test_dashboard.py"),
)
"""Words of commands that are checked above and not run, and why."""
SMALLER = (
    (r"^(--nproc-per-node|runtime\.devices|hydra\.launcher\.jobs)=\d+", r"\1=2"),
    (r"^seed=\d(,\d)+", "seed=0"),
    (r"^trials=\d+", "trials=2"),
    (r"^tracking\.mode=online", "tracking.mode=offline"),
    (r"^metric=aa", "metric=pgd20"),
    (r"^evaluation=autoattack", "evaluation=quick"),
)
"""What is made smaller beside the scale."""


def smoke(words: Sequence[str]) -> list[str]:
    """A command at smoke scale: a row of a table, and nothing that the scale sets."""
    text = "\n".join(words)
    for pattern, other in SMALLER:
        text = re.sub(pattern, other, text, flags=re.M)
    found = text.split("\n")
    if words[0] == "ablation-evaluate":
        return [*found, "evaluation.n=10"]
    if words[0] == "ablation-doctor":
        return [*found, "device=cpu", "only=machine"]
    if words[0] == "ablation-export":  # into a folder of its own
        return [re.sub("^out=.*", f"out=exports/{len(' '.join(words))}", word) for word in found]
    if "--help" in words or "--cfg" in words or words[0] == "ablation-runs":
        return found
    name = next((word[6:] for word in found if word.startswith("table=")), None)
    search = any(word.startswith("search=") for word in found)
    if words[0] == "ablation-report":
        return [*found, "scale=smoke"] if name or search or "claims=" in text else found
    scaled = ("data.train_size=", "batch_size=", "selection.", "evaluation.n=", "epochs=")
    found = [word for word in found if not word.startswith(scaled)]
    if name and "row=" not in text:
        arm, row = next(iter(open_table(name).arms.items()))
        found += [f"row={arm}", *(one[0] for one in map(alternatives, row.set) if len(one) > 1)]
    if name and "seed=" not in text:
        found.append("seed=0")
    if search and "trials=" not in text:
        found.append("trials=2")
    mode = [] if "tracking.mode=" in text else ["tracking.mode=disabled"]
    return [*found, "scale=smoke", *mode]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_runs(command, workshop):
    why = [reason for word, reason in NEEDED if word in command]
    launchers = [word.partition("=")[2] for word in command if word.startswith("hydra/launcher=")]
    why += [missing for name in launchers if (missing := missing_extra(name))]
    if command == ("ablation-report",):
        why.append("plans every table, for minutes: tests/reports/test_overview.py")
    if why or set(command) & set(OF_CONTRIBUTING):
        pytest.skip(why[0] if why else "the recipe before it makes what it names")
    words = smoke(digits(workshop.words(command)))
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=workshop.folder,
        env={**os.environ, "WANDB_MODE": "offline", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == DONE, done.stderr[-2000:]
