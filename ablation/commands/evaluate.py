"""``ablation-evaluate``: attack a finished run, or any checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

from ablation.commands import cli, flags
from ablation.config.command_line import Said, said


def check(container: Mapping[str, Any], known: Said) -> list[str]:
    """Problems of a composed config; ``known`` is what the command line says of code."""
    from ablation.jobs import evaluate as assess  # imports torch

    return assess.check(container, known)


def evaluate(container: Mapping[str, Any], known: Said) -> int:
    """Run one evaluation; returns an exit code."""
    from ablation.jobs import evaluate as assess

    return assess.run(container, known)


def main() -> None:
    """Console script."""
    sys.argv[1:] = [cli.as_list(text, ("run", "attack_from")) for text in sys.argv[1:]]
    _, overrides, _ = flags.split(sys.argv[1:])
    known = said(overrides)
    cli.run("evaluate", partial(evaluate, known=known), partial(check, known=known))


if __name__ == "__main__":
    main()
