"""``ablation-train``: train and evaluate one robust classifier, or a sweep of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ablation.commands import cli


def check(container: Mapping[str, Any]) -> list[str]:
    """Problems of a composed config, the data folder's included."""
    from ablation.config import surroundings  # imports torch

    return surroundings.check(container)


def train(container: Mapping[str, Any]) -> int:
    """Run one composed config; returns an exit code."""
    from ablation.jobs import train as job

    return job.train(container)


def main() -> None:
    """Console script."""
    cli.run("config", train, check, planned=True)


if __name__ == "__main__":
    main()
