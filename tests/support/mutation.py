"""Mutation testing: does a test fail when a line of the mathematics is changed?

``make mutate modules="averages terms/kl"`` changes one operator, number or comparison at a time,
runs the tests that should notice, and prints the changes that none did. Those known to be
equivalent are listed, with the reason, in ``equivalent_mutants.yaml``. A module takes minutes, a
room half an hour; it is no part of ``make test``. Files stay as they are: a change lives in memory.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

os.environ["OMP_NUM_THREADS"] = "1"  # before torch, as in ``conftest``

from tests.support.mutants import ROOT, Finder, Mutant, Recorder, mutants, run

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.yaml")
TESTS = {
    "averages": "tests/test_averages.py",
    "weights": "tests/training/test_methods.py tests/components/test_mail.py",
    "ascents": "tests/test_ascents.py tests/training/test_methods.py",
    "schedules": "tests/test_schedules.py",
    "budgets": "tests/test_budgets.py",
    "terms": "tests/terms tests/training/test_methods.py",
    "terms/effective_margin": "tests/components/test_emr.py",
    "terms/input_gradient": "tests/components/test_emr.py",
    "crafters": "tests/crafters tests/numerics/test_boundary.py "
    "tests/terms/test_searched_margin.py tests/training/test_methods.py",
    "numerics": "tests/numerics tests/terms",
    "numerics/margins": "tests/numerics/test_margins.py",
    "numerics/modes": "tests/numerics/test_modes.py tests/training/test_step.py",
    "numerics/penalties": "tests/numerics/test_penalties.py tests/components/test_emr.py",
    "numerics/precision": "tests/numerics/test_precision.py",
    "training/memory": "tests/training/test_memory.py",
    "training": "tests/training tests/components/test_burn_in.py tests/terms/test_taylor_margin.py",
    "evaluation": "tests/evaluation",
    "evaluation/attacks": "tests/evaluation/test_attacks.py tests/evaluation/test_families.py",
    "evaluation/autoattack": "tests/evaluation/test_attacks.py tests/evaluation/test_families.py",
    "evaluation/checks": "tests/evaluation/test_checks.py",
    "evaluation/judge": "tests/evaluation/test_resume.py tests/evaluation/test_fast_attacks.py "
    "tests/evaluation/test_transfer.py tests/evaluation/test_evaluate.py",
    "evaluation/evaluate": "tests/evaluation/test_evaluate.py tests/evaluation/test_ladders.py "
    "tests/evaluation/test_transfer.py tests/evaluation/test_loss_rise.py",
    "evaluation/ladders": "tests/evaluation/test_ladders.py",
    "evaluation/measures": "tests/numerics/test_margins.py",
    "evaluation/probes": "tests/evaluation/test_checks.py tests/evaluation/test_families.py",
}
"""Module or room -> the tests that should notice; whatever else would is not asked."""
HEAVY = (
    *("torch", "torch._dynamo", "torchvision", "pyautoattack", "numpy", "pandas", "pyarrow"),
    *("sklearn.datasets", "scipy.stats", "matplotlib.pyplot", "hydra", "omegaconf", "hypothesis"),
)
"""Packages imported once, before the processes fork."""
CHUNKS = (1.0, 5.0, 20.0)
"""Seconds of tests that a change is given, one after the other until a test fails."""
SLACK = 30.0
"""Seconds that tests may take on top of three times their own; after it, a loop does not end."""


class Timed(NamedTuple):
    """A test: its id, how long it takes, and the files and lines that it runs."""

    id: str
    seconds: float
    lines: frozenset[tuple[str, int]]

    def reaches(self, mutant: Mutant) -> bool:
        """Whether the test runs the statement that is changed."""
        return any((mutant.file, line) in self.lines for line in mutant.lines)


def source_of(module: str) -> Path:
    """Give the file or folder of ``terms/kl`` or ``terms``."""
    path = ROOT / "ablation" / module
    return path if path.is_dir() else path.with_suffix(".py")


def tests_of(module: str) -> tuple[str, ...]:
    """Give the tests of a module: its own entry in ``TESTS``, or its room's.

    Raises:
        SystemExit: there is no such module, or no test is named for it.
    """
    for name in (module, module.partition("/")[0]):
        if name in TESTS and source_of(module).exists():
            return tuple(TESTS[name].split())
    raise SystemExit(f"modules={module}: give modules or rooms of {', '.join(TESTS)}")


@cache
def timed(tests: tuple[str, ...]) -> list[Timed]:
    """Run the tests once on the files as they are.

    Raises:
        SystemExit: one of them fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "tests")
        if run(tests, 1200, Recorder(output)) != 0:
            raise SystemExit(f"{' '.join(tests)}: a test fails before anything is changed")
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [Timed(name, seconds, frozenset(map(tuple, seen))) for name, seconds, seen in rows]


def chunks(mutant: Mutant, tests: Sequence[Timed]) -> Iterator[list[Timed]]:
    """Give the tests to run on a change: first those of its lines, of its file, fast ones."""
    mirrored = f"test_{Path(mutant.file).name}"
    remaining = sorted(tests, key=lambda t: (t.reaches(mutant), mirrored in t.id, -t.seconds))
    for limit in CHUNKS:
        chunk: list[Timed] = []
        while remaining and (not chunk or sum(t.seconds for t in chunk) < limit):
            chunk.append(remaining.pop())
        if chunk:
            yield chunk


def survives(mutant: Mutant, tests: Sequence[Timed]) -> bool:
    """Whether every test passes on the changed file."""
    return all(
        run([t.id for t in chunk], SLACK + 3 * sum(t.seconds for t in chunk), Finder(mutant)) == 0
        for chunk in chunks(mutant, tests)
    )


def listed() -> set[tuple[str, str, str]]:
    """Read the changes known to be equivalent: file, line before, line after."""
    known = yaml.safe_load(EQUIVALENT.read_text())
    return {
        (file, *change.split(" => "))
        for file, groups in known.items()
        for group in groups
        for change in group["changes"].splitlines()
    }


def say(text: str) -> None:
    """Print at once: a module takes minutes."""
    sys.stdout.write(text)
    sys.stdout.flush()


def main(modules: list[str]) -> int:
    """Print the changes that nobody noticed; 1 if one of them is not known as equivalent."""
    if not modules:
        raise SystemExit('modules: give some, as in make mutate modules="averages terms/kl"')
    wanted = [(module, tests_of(module)) for module in modules]
    for package in HEAVY:
        importlib.import_module(package)
    known, holes = listed(), 0
    for module, tests in wanted:
        for source in sorted(source_of(module).rglob("*.py")) or [source_of(module)]:
            held, tried, equivalent, unnoticed = timed(tests), 0, 0, 0
            for mutant in mutants(source):
                tried += 1
                if (mutant.file, mutant.before, mutant.after) in known:
                    equivalent += 1
                elif survives(mutant, held):
                    unnoticed += 1
                    say(f"{mutant.file}: {mutant.before} => {mutant.after}\n")
            holes += unnoticed
            noticed = tried - equivalent - unnoticed
            say(
                f"{source.relative_to(ROOT)}: {tried} changes, {noticed} noticed, "
                f"{equivalent} equivalent, {unnoticed} not noticed\n"
            )
    return int(holes > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
