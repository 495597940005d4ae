"""Running jobs as the command line does, and stopping them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ablation.config.validation import load
from ablation.errors import DONE, INTERRUPTED
from ablation.jobs import train as job
from ablation.runs.directory import Run
from ablation.runs.state_dicts import load_weights_file
from tests.support.configs import compose_plain


def plain(tmp_path: Path, *overrides: str, config_name: str = "config") -> dict[str, Any]:
    base = QUICK if config_name == "config" else ()
    return compose_plain(*base, f"runs_dir={tmp_path}", *overrides, config_name=config_name)


def run_of(container: dict[str, Any]) -> Run:
    config = load(container)
    return Run(config.run_dir, config.train_id)


def metrics(run: Run) -> list[dict[str, Any]]:
    """Without the clock's columns."""
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "images_per_second")}
        for row in run.read_metrics()
    ]


def weights(run: Run) -> dict[str, bytes]:
    found = {}
    for path in (run.path / "checkpoints").glob("*.safetensors"):
        tensors, _ = load_weights_file(path)
        found[path.name] = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    return found


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """As if a signal arrived during that step."""
    from ablation.training.engine import Engine

    original = Engine._after_step

    def after(self: Engine, *arguments: Any) -> None:
        if self.position.step + 1 == steps:
            self._stop = lambda: True
        original(self, *arguments)

    monkeypatch.setattr(Engine, "_after_step", after)


def finish_interrupted(
    monkeypatch: pytest.MonkeyPatch, container: dict[str, Any], steps: int
) -> Run:
    """Stop a run during a step, and let the same command finish it."""
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        assert job.train(container) == INTERRUPTED
        status = run_of(container).status()
        assert status is not None
        assert status.state == "interrupted"
    assert job.train(container) == DONE
    return run_of(container)


QUICK = (
    "epochs=3",
    "attack.steps=2",
    "selection.attack.steps=2",
    "selection.n=40",
    "evaluation.n=50",
    "data.train_size=400",
    "tracking.mode=disabled",
    "runtime.device=cpu",
)
