"""Changes to a source file, and tests run on one of them without starting Python anew."""

from __future__ import annotations

import ast
import contextlib
import difflib
import gc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import os
import re
import signal
import sys
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OPERATORS = re.compile(
    "core/("
    "NumberReplacer|AddNot|Replace(TrueWithFalse|FalseWithTrue|AndWithOr|OrWithAnd)"
    "|Replace(BreakWithContinue|ContinueWithBreak)"
    "|ReplaceUnaryOperator_(USub_UAdd|Delete_(Not|Invert))"
    "|ReplaceBinaryOperator_"
    "(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Add|Pow_Mul|BitAnd_BitOr|BitOr_BitAnd)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is"
    "|Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt))"
    ")$"
)
"""Operators of Cosmic Ray: each operation becomes its opposite, each bound moves by one. Other
replacements end in a TypeError, or where these do."""
FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Mutant:
    """A changed source: file, line before and after, text, and the lines of its statement."""

    file: str
    before: str
    after: str
    source: str
    lines: range


def mutants(path: Path) -> Iterator[Mutant]:
    """Make every change to a file that could change what it computes."""
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator, operator_names

    source = path.read_text()
    tree, nodes = ast.parse(source), list(ast_nodes(get_ast(source)))
    silent = list(silences(tree))
    for operator in (get_operator(name)() for name in operator_names() if OPERATORS.match(name)):
        places = [(node, *place) for node in nodes for place in operator.mutation_positions(node)]
        for occurrence, (node, start, _) in enumerate(places):
            star = node.type == "operator" and node.parent.type == "parameters"  # of keywords
            if not star and not any(first <= start < last for first, last in silent):
                changed = mutate_code(source, operator, occurrence)
                yield described(path, source, changed, statement(tree, start[0]))


def silences(tree: ast.AST) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Give the spans whose change says nothing: types, errors, decorators, ``strict=``."""
    for node in ast.walk(tree):
        spans = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        spans += getattr(node, "decorator_list", [])
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            spans.append(node)
        if isinstance(node, ast.Raise) or (isinstance(node, ast.keyword) and node.arg == "strict"):
            spans.append(node)
        for span in filter(None, spans):
            yield (span.lineno, span.col_offset), (span.end_lineno, span.end_col_offset)


def statement(tree: ast.AST, line: int) -> range:
    """Give the lines of the innermost statement around a line."""
    spans = [
        range(node.lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.stmt)
    ]
    return min((span for span in spans if line in span), key=len)


def described(path: Path, source: str, changed: str, lines: range) -> Mutant:
    """Name a change by the lines that differ."""
    compared = list(difflib.ndiff(source.splitlines(), changed.splitlines()))
    before, after = (
        " ".join(line[2:].strip() for line in compared if line.startswith(sign))
        for sign in ("- ", "+ ")
    )
    return Mutant(str(path.relative_to(ROOT)), before, after, changed, lines)


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a changed source instead of the file's."""

    source = ""

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source."""
        return compile(self.source, self.path, "exec")


@dataclass(frozen=True)
class Finder:
    """Finds the changed source of one module of ``ablation``."""

    mutant: Mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module if it is the changed one."""
        file = ROOT / self.mutant.file
        if name != ".".join(file.relative_to(ROOT).with_suffix("").parts):
            return None
        loader = Changed(name, str(file))
        loader.source = self.mutant.source
        return importlib.util.spec_from_file_location(name, file, loader=loader)


class Recorder:
    """Plugin of pytest that writes, per test, its seconds and the lines of ``ablation`` it ran.

    Args:
        output: where to.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._lines = set[tuple[str, int]]()
        self._shared: dict[str, set[tuple[str, int]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        """Trace a test with its fixtures."""
        folder = f"{ROOT / 'ablation'}/"

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            if not frame.f_code.co_filename.startswith(folder):
                return None
            self._lines.add((frame.f_code.co_filename, frame.f_lineno))
            return trace

        self._lines = set()
        began = time.monotonic()
        sys.settrace(trace)
        result = yield
        sys.settrace(None)
        seconds = time.monotonic() - began
        names = getattr(item, "fixturenames", ())
        lines = self._lines.union(*(self._shared.get(name, ()) for name in names))
        seen = [(str(Path(file).relative_to(ROOT)), line) for file, line in sorted(lines)]
        with self.output.open("a") as file:
            file.write(json.dumps([item.nodeid, seconds, seen]) + "\n")
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
        """Note the lines of a fixture: a later test that shares it runs them by itself."""
        others, self._lines = self._lines, set()
        try:
            return (yield)
        finally:
            self._shared[fixturedef.argname] = self._lines
            self._lines = self._lines | others


class Brief:
    """Plugin of pytest: an example that fails is enough, without a search for the shortest."""

    def pytest_collection(self) -> None:
        """Set what hypothesis does, after ``conftest`` and before the tests are read."""
        from hypothesis import Phase, settings

        phases = (Phase.explicit, Phase.generate)
        settings.register_profile(
            "brief", deadline=None, database=None, derandomize=True, phases=phases
        )
        settings.load_profile("brief")


def run(tests: Sequence[str], seconds: float, plugin: Recorder | Finder) -> int | None:
    """Run tests in a process of their own; gives pytest's status, or ``None`` after ``seconds``."""

    def child() -> None:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if isinstance(plugin, Finder):
            sys.meta_path.insert(0, plugin)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        gc.freeze()  # pytest collects garbage at its end: not that of the packages
        options = ["-pno:cacheprovider", "-Wignore::pytest.PytestAssertRewriteWarning"]
        stop = ["-x"] if isinstance(plugin, Finder) else []
        sys.exit(pytest.main([*options, *stop, *tests], plugins=[plugin, Brief()]))

    process = FORK.Process(target=child)
    process.start()
    process.join(seconds)
    assert process.pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.join()
    return process.exitcode if (process.exitcode or 0) >= 0 else None
