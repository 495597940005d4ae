"""``ablation-evaluate``: attack a finished run, or any checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from ablation.commands import cli


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config."""
    from ablation.jobs import evaluate as assess  # imports torch

    return assess.check(container)


def evaluate(container: Mapping[str, Any]) -> int:
    """Run one evaluation; returns an exit code."""
    from ablation.jobs import evaluate as assess

    return assess.run(container)


def main() -> None:
    """Console script."""
    sys.argv[1:] = [cli.as_list(text, ("run",)) for text in sys.argv[1:]]
    cli.run("evaluate", evaluate, check)


if __name__ == "__main__":
    main()
