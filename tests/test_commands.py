"""Every command in the documents is one: all are planned or checked, and run at smoke scale."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import save

import ablation
from ablation.commands import cli, evaluate, flags, report
from ablation.config import validation
from ablation.config.command_line import said
from ablation.config.folders import conf_dir, register_components, register_files, sweeps_dir
from ablation.config.overrides import key_of
from ablation.errors import BAD_INPUT, DONE, ConfigError
from ablation.sweeps.launchers import EXTRAS, register_launchers
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import read_request
from ablation.sweeps.search import read_search
from ablation.sweeps.spaces import search_names
from ablation.sweeps.tables import table_names
from tests.support.documents import commands

COMMANDS = commands()
BIN = Path(sys.executable).parent
MISTAKEN = "model=resnet81"
"""A word of the command that shows what mistakes are answered with."""
OF_CONTRIBUTING = ("component/logit_norm=enabled", "method=noise_at", "model=linear")
"""What the recipes of CONTRIBUTING.md make; ``tests/test_contract.py`` has the parts as they are."""
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
        text = "\n".join(word for word in command if word != "...")
        for pattern, run in zip(RUNS, self.runs, strict=True):
            text = re.sub(pattern, f"runs/{run}", text)
        for pattern, other in STAND_INS:
            text = re.sub(pattern, other, text, flags=re.M)
        return text.split("\n")


RUNS = (
    r"runs/(?:<name>|a\b|\w+-\w+-at-s0-\.\.\.)",
    r"runs/(?:<other>|b\b)",
    r"runs/c\b",
)
"""How the documents call the three runs of the workshop."""
STAND_INS = (
    (r"^evaluation=<name>", "evaluation=quick"),
    (r"^table=<name>", "table=demo"),
    (r"^claims=<paper>", "claims=dose"),
    (r"^hydra/launcher=<name>", "hydra/launcher=pool"),
    (r"<team>", "me"),
    (r"^examples=<arm>,<arm>", "examples=at,trades"),
    (r"^data_dir=(?:\.\.\.|<.*>)", "data_dir=images"),
)


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
    return Workshop(folder, tuple(names))


def problems_of(words: Sequence[str]) -> list[str]:
    """What is wrong with a command line, found without running it."""
    name, arguments = words[0], list(words[1:])
    register_components()
    if name == "ablation-report":
        return cli.preflight("report", report.take_in(arguments), report.check)
    if name == "ablation-evaluate":
        arguments = [cli.as_list(text, ("run", "attack_from")) for text in arguments]
        known = said(flags.split(arguments)[1])
        return cli.preflight("evaluate", arguments, lambda node: evaluate.check(node, known))
    if name == "torchrun":
        arguments = arguments[arguments.index("ablation.commands.train") + 1 :]
    return [problem for problem in of_training(arguments) if "pip install" not in problem]


def of_training(arguments: list[str]) -> list[str]:
    """Of ``ablation-train``; of a table, its first row is composed."""
    register_launchers()
    register_files("table", table_names([sweeps_dir()]))
    register_files("search", search_names([sweeps_dir()]))
    if cli.sweeping(arguments):
        arguments = [*arguments, "--multirun"]
    found = cli.preflight(
        "config", arguments, lambda node: validation.check(node)[1], planned=True
    )
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
            return Planner(request.table, request.cli, request.rows[:1], check=False).plan().problems
        except ConfigError as error:
            return list(error.problems)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
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
