"""The console scripts: they listen for a Ctrl-C before they import what is slow."""

from __future__ import annotations

import sys

from ablation.runs.signals import end_in_imports


def train() -> None:
    """``ablation-train``."""
    end_in_imports()
    from ablation.commands.train import main

    main()


def evaluate() -> None:
    """``ablation-evaluate``."""
    end_in_imports()
    from ablation.commands.evaluate import main

    main()


def report() -> None:
    """``ablation-report``."""
    end_in_imports()
    from ablation.commands.report import main

    main()


def export() -> None:
    """``ablation-export``."""
    end_in_imports()
    from ablation.commands.export import main

    main()


def runs() -> None:
    """``ablation-runs``."""
    end_in_imports()
    from ablation.commands.runs import main

    main()


def doctor() -> None:
    """``ablation-doctor``."""
    end_in_imports()
    from ablation.commands.doctor import main

    main()


if __name__ == "__main__":  # the launcher pool
    {"train": train, "evaluate": evaluate, "report": report}[sys.argv.pop(1)]()
