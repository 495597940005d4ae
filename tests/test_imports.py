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
PARTS = ("crafters", "budgets", "terms", "weights", "ascents", "averages")


def imported(path: Path) -> set[str]:
    """Every module a file imports, at the top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def area(path: Path) -> str:
    """``terms`` for ablation/terms/kl.py, ``engine`` for ablation/engine.py."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def users(package: str) -> set[str]:
    return {
        area(path)
        for path in FILES
        if any(name == package or name.startswith(package + ".") for name in imported(path))
    }


@pytest.mark.parametrize("part", PARTS)
def test_parts_import_types_functional_and_their_own_kind(part):
    pure = ("ablation.functional", "ablation.boundary", "ablation.penalties")
    allowed = ("ablation.types", *pure, f"ablation.{part}")
    for path in (ROOT / part).glob("*.py"):
        ours = {name for name in imported(path) if name.startswith("ablation.")}
        assert all(name.startswith(allowed) for name in ours), path


@pytest.mark.parametrize("core", ["method", "engine", "step"])
def test_the_core_imports_no_part(core):
    names = imported(ROOT / f"{core}.py")
    assert not any(name.startswith(f"ablation.{part}") for name in names for part in PARTS)


def test_each_outside_library_has_its_place():
    entry_points = {"cli", "train", "evaluate", "report"}
    assert users("hydra") <= {*entry_points, "compose", "launchers", "planning", "sweep"}
    assert users("omegaconf") <= {*entry_points, "compose", "config", "launchers"}
    assert users("wandb") == {"tracking"}
    assert users("pyautoattack") == {"evaluation"}
    assert users("wandb_workspaces") == {"dashboard"}
    assert users("matplotlib") == {"plots"}
    assert users("pandas") <= {"evaluation", "runs", "statistics", "render", "tracking"}


@pytest.mark.parametrize(
    "modules",
    ["cli", "tables,comparison,statistics,render,plots"],
    ids=["the command line", "tables and plots"],
)
def test_these_start_without_torch_and_wandb(modules):
    names = ", ".join(f"ablation.{name}" for name in modules.split(","))
    code = f"import sys, {names}; print(sorted({{'torch', 'wandb'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
