"""``ablation-export``: a run's network as files that work without this package."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ablation.commands import cli
from ablation.errors import DONE
from ablation.output import say

if TYPE_CHECKING:
    from ablation.exports.export import ExportConfig


def parse(container: Mapping[str, Any]) -> tuple[ExportConfig | None, list[str]]:
    """The typed request and every problem in it."""
    from ablation.config.parser import Parser
    from ablation.exports.export import ExportConfig, request_problems  # imports torch

    parser = Parser()
    found = parser.parse(ExportConfig, dict(container), "")
    if not isinstance(found, ExportConfig):
        return None, parser.problems
    return found, parser.problems + request_problems(found)


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed request."""
    return parse(container)[1]


def run(container: Mapping[str, Any]) -> int:
    """Write an export; returns an exit code.

    Raises:
        InputError: something the user gave cannot be used.
    """
    from ablation.config.compose import Composer
    from ablation.exports.export import export

    request = cli.sound(parse(container))
    with cli.searching(None):
        folder = export(request, Composer())
    names = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"exported to {folder}: {names}")
    return DONE


def main() -> None:
    """Console script."""
    cli.run("export", run, check)


if __name__ == "__main__":
    main()
