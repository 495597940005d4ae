"""Who may import whom (read from the source, so that a breach fails before it grows)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import ablation

ROOT = Path(ablation.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

FLOORS = (
    {"text"},
    {"types", "errors", "random", "schedules", "output"},
    {"ranks", "plugins"},
    {"numerics", "data", "runs", "ascents", "averages"},
    {"models"},
    {"crafters", "terms", "weights", "budgets", "evaluation"},
    {"training"},
    {"components", "config"},
    {"jobs"},
    {"sweeps"},
    {"reports"},
    {"exports", "doctor"},
    {"commands"},
    {"api", "testing"},
)
"""Rooms of ``ablation/`` from the ground up: a file imports its own room, or a lower floor."""


def room(module: str) -> str:
    """``terms`` of ``ablation.terms.kl``."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    """``ablation.terms.kl`` of a file."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def imported(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & MODULES.keys()
            if node.module != "ablation" or names - MODULES.keys():  # its own names come when asked
                found.add(node.module)
    return found


def floor(name: str) -> int:
    """Which floor a room is on."""
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES if "." in module}
    assert rooms == {name for rooms in FLOORS for name in rooms}


@pytest.mark.parametrize("module", [name for name in MODULES if "." in name])
def test_a_file_imports_its_own_room_or_a_lower_floor(module):
    mine = room(module)
    others = {room(name) for name in imported(MODULES[module]) if name.startswith("ablation.")}
    assert [name for name in others if name != mine and floor(name) >= floor(mine)] == []


def test_no_file_imports_itself_by_way_of_others():
    graph = {
        name: {other for other in imported(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert sorted(left) == []


def users(package: str) -> set[str]:
    return {
        module
        for module, path in MODULES.items()
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


@pytest.mark.parametrize(
    ("library", "places"),
    [
        (
            "hydra",
            {
                *("ablation.config", "ablation.sweeps", "ablation.reports", "ablation.commands"),
                *("ablation.api", "ablation.testing"),
            },
        ),
        ("omegaconf", {"ablation.config", "ablation.sweeps", "ablation.commands"}),
        ("wandb", {"ablation.runs.tracking"}),
        ("torch.utils.tensorboard", {"ablation.runs.tensorboard"}),
        ("pyautoattack", {"ablation.evaluation"}),
        ("wandb_workspaces", {"ablation.reports.dashboard"}),
        ("huggingface_hub", {"ablation.exports.hub"}),
        ("matplotlib", {"ablation.reports"}),
        (
            "optuna",
            {"ablation.sweeps.trials", "ablation.sweeps.search", "ablation.reports.search"},
        ),
        (
            "pandas",
            {"ablation.evaluation", "ablation.runs", "ablation.reports", "ablation.api"},
        ),
    ],
)
def test_each_outside_library_has_its_place(library, places):
    found = users(library)
    assert found
    outside = [name for name in found if not name.startswith(tuple(places))]
    assert outside == []


SECONDS = {"pandas", "scipy.stats", "sklearn", "matplotlib", "torch._dynamo", "torchvision"}
"""What takes seconds to import, and few jobs need."""


@pytest.mark.parametrize(
    ("modules", "without"),
    [
        ("commands.cli", {"torch", "wandb"}),
        (
            "sweeps.tables,reports.comparison,reports.statistics,reports.text_tables,reports.plots",
            {"torch", "wandb"},
        ),
        ("jobs.train,jobs.evaluate", {"wandb", "pyautoattack", *SECONDS}),
    ],
    ids=["the command line", "tables and plots", "jobs"],
)
def test_what_takes_seconds_is_imported_where_it_is_needed(modules, without):
    names = ", ".join(f"ablation.{name}" for name in modules.split(","))
    code = f"import sys, {names}; print(sorted({without} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


TESTS = Path(__file__).parent


def test_no_test_module_imports_another():
    for path in TESTS.rglob("test_*.py"):
        names = {name for name in imported(path) if name.startswith("tests.")}
        assert all(name.startswith("tests.support") for name in names), path


def test_tests_lie_in_the_rooms_of_what_they_test():
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert folders <= rooms
