"""Mutation testing: does a test fail when a line of the mathematics is changed?

``make mutate modules="averages terms/kl"`` changes one operator, number or comparison at a time in
a copy of the project, runs the tests that should notice, and prints the changes that none did.
Those known to be equivalent are listed, with the reason, in ``equivalent_mutants.yaml``. A module
takes minutes, a room hours; it is no part of ``make test``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COPIED = ("ablation", "conf", "hydra_plugins", "multirun_sweeps", "tests", "pyproject.toml")
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
TESTS = {
    "averages": "tests/test_averages.py",
    "weights": "tests/training/test_methods.py tests/components/test_mail.py",
    "ascents": "tests/training/test_methods.py tests/training/test_step.py",
    "schedules": "tests/test_schedules.py",
    "budgets": "tests/training",
    "terms": "tests/terms tests/components tests/training",
    "crafters": "tests/numerics tests/training tests/components",
    "numerics": "tests/numerics tests/terms",
    "training/memory": "tests/training/test_memory.py",
    "training": "tests/training tests/components",
    "evaluation": "tests/evaluation",
}
"""Module or room -> the tests that should notice; whatever else would is not asked."""
POINTLESS = (
    "core/ReplaceBinaryOperator_BitOr_.*",  # annotations, and unions of dicts
    "core/ReplaceBinaryOperator_.*_(RShift|LShift|BitOr|BitAnd|BitXor|FloorDiv|Mod)",
    "core/ReplaceUnaryOperator_.*_(Invert|Not)",
    "core/(ExceptionReplacer|RemoveDecorator|ZeroIterationForLoop)",
    "core/ReplaceComparisonOperator_(Is.*|.*_Is(Not)?)",
)
"""Operators whose changes end in a TypeError at once, or say nothing."""
HARMLESS = re.compile(r"^@dataclass\(|strict=(True|False)\)")
"""Lines whose change says nothing: frozen classes, and lengths that zip checks."""
SECONDS = 300.0
"""A test run that takes longer has noticed: a loop no longer ends."""


def cosmic_ray(folder: Path, tool: str, *arguments: str) -> str:
    """Run a command of Cosmic Ray in the copy, and give its output."""
    program = Path(sys.executable).with_name(tool)
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    command = [str(program), *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def tests_of(module: str) -> str:
    """Give the tests of a module: its own entry in ``TESTS``, or its room's.

    Raises:
        SystemExit: there is no such module, or no test is named for it.
    """
    for name in (module, module.partition("/")[0]):
        if name in TESTS and source_of(module).exists():
            return TESTS[name]
    raise SystemExit(f"modules={module}: give modules or rooms of {', '.join(TESTS)}")


def source_of(module: str) -> Path:
    """Give the file or folder of ``terms/kl`` or ``terms``."""
    path = ROOT / "ablation" / module
    return path if path.is_dir() else path.with_suffix(".py")


def survivors(module: str) -> Iterator[dict[str, str]]:
    """Try every change to a module or room, and yield those that no test noticed."""
    tests, source = tests_of(module), source_of(module).relative_to(ROOT)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for entry in COPIED:
            copy = shutil.copytree if (ROOT / entry).is_dir() else shutil.copy
            copy(ROOT / entry, folder / entry)
        settings = folder / "cosmic-ray.toml"
        command = f"{sys.executable} -m pytest -q -x -n 0 -p no:cacheprovider {tests}"
        settings.write_text(
            f"[cosmic-ray]\nmodule-path = {json.dumps(str(source))}\ntimeout = {SECONDS}\n"
            f'excluded-modules = []\ntest-command = "{command}"\n'
            '[cosmic-ray.distributor]\nname = "local"\n'
            f"[cosmic-ray.filters.operators-filter]\nexclude-operators = {json.dumps(POINTLESS)}\n"
        )
        cosmic_ray(folder, "cosmic-ray", "init", settings.name, "session.sqlite")
        cosmic_ray(folder, "cr-filter-operators", "session.sqlite", settings.name)
        cosmic_ray(folder, "cosmic-ray", "baseline", settings.name)
        cosmic_ray(folder, "cosmic-ray", "exec", settings.name, "session.sqlite")
        for line in cosmic_ray(folder, "cosmic-ray", "dump", "session.sqlite").splitlines():
            item, result = json.loads(line)
            if result and result["test_outcome"] == "survived":
                mutant = described(item, result)
                if not HARMLESS.search(mutant["before"]):
                    yield mutant


def described(item: dict[str, Any], result: dict[str, Any]) -> dict[str, str]:
    """Name a change by its file, the line before and the line after."""
    lines = result["diff"].splitlines()
    before, after = (
        " ".join(x[1:].strip() for x in lines if x.startswith(sign) and not x.startswith(3 * sign))
        for sign in "-+"
    )
    return {"file": item["mutations"][0]["module_path"], "before": before, "after": after}


def say(text: str) -> None:
    """Print at once: a module takes minutes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(modules: list[str]) -> int:
    """Print the changes that nobody noticed; 1 if one of them is not known as equivalent."""
    if not modules:
        raise SystemExit('modules: give some, as in make mutate modules="averages terms/kl"')
    listed = {
        (entry["file"], entry["before"], entry["after"])
        for entry in yaml.safe_load(EQUIVALENT.read_text())
    }
    holes = 0
    for module in modules:
        for mutant in survivors(module):
            if tuple(mutant.values()) not in listed:
                holes += 1
                say(yaml.safe_dump([mutant], sort_keys=False, width=1000))
        say(f"# {module}: done\n")
    return int(holes > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
