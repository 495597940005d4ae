"""Wrong values in every key of every command: a line each, no traceback, no hang, no file."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ablation.commands import report
from ablation.config import surroundings
from ablation.errors import ConfigError
from ablation.jobs import evaluate
from tests.support.configs import compose_plain
from tests.support.sampling import some_of

COMMANDS = {
    "train": (
        surroundings.check,
        ("method=dyart", "component/awp=enabled", "average=ema", "evaluation=emr_figure3"),
    ),
    "trades": (
        surroundings.check,
        ("method=trades", "schedule=piecewise", "evaluation=dose", "model=resnet18"),
    ),
    "evaluate": (evaluate.check, ("data=digits", "model=mlp", "checkpoint=net.pt")),
    "report": (report.check, ("table=demo",)),
}
WRONG: tuple[Any, ...] = (
    *(-1, 0, 10**9, 10**30, 10**400, -(10**400), 1e308, float("nan"), float("-inf")),
    *("", "text", "a\nb", "$(true)", "../../x", "\x1b[31m", "9" * 5000, "eps/", "1/0", "1/1e-320"),
    *(None, True, [], {}, [None], [[[]]], {"a": {}}, {"_target_": None}, {"_target_": "os.system"}),
    *({"_target_": "ablation."}, {"_target_": "ablation..x"}, {"_target_": "ablation.errors.x"}),
)


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value, mappings and lists included."""
    if path:
        yield path
    entries: Any = node.items() if isinstance(node, dict) else ()
    for key, value in enumerate(node) if isinstance(node, list) else entries:
        yield from leaves(value, (*path, key))


def changed(container: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    found: Any = copy.deepcopy(container)
    place = found
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return dict(found)


@pytest.mark.parametrize("name", some_of(COMMANDS, 2))
def test_no_value_of_any_key_traces_back_or_hangs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check, overrides = COMMANDS[name]
    config_name = name if name in ("evaluate", "report") else "config"
    container = compose_plain(*overrides, config_name=config_name)
    paths = [path for path in leaves(container) if "component" not in path[:-1] or "awp" in path]
    for number, path in enumerate(paths):
        for value in WRONG[number % 4 :: 4] if len(path) > 1 else WRONG:
            start = time.monotonic()
            try:
                problems = check(changed(container, path, value))
            except Exception as error:
                raise AssertionError(f"{path} = {str(value)[:40]!r}") from error
            assert time.monotonic() - start < 60, (path, value)  # a hang, not a speed
            text = str(ConfigError(problems))
            assert len(text.splitlines()) == 1 + len(problems)
            assert "\x1b" not in text
    assert list(tmp_path.iterdir()) == []
