"""Versions of libraries and the commit of this program, recorded with every result."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from ablation.plugins import installed

PACKAGES = (
    *("ablation", "torch", "torchvision", "numpy", "safetensors", "hydra-core", "omegaconf"),
    *("pyautoattack", "wandb"),
)


@cache
def versions() -> Mapping[str, str]:
    """Versions of everything that can change a result, by name."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {plugin.distribution: plugin.version for plugin in installed()}


@cache
def git_state() -> dict[str, Any] | None:
    """Commit of this program's source and whether it was changed; ``None`` outside a checkout.

    An installed copy inside somebody's repository is not tracked there, hence the first question.
    """
    here = Path(__file__).resolve()
    try:
        known = _git(here.parent, "ls-files", "--error-unmatch", here.name)
        asked = _git(here.parent, "--no-optional-locks", "status", "--porcelain=v2", "--branch")
    except (OSError, subprocess.SubprocessError):
        return None
    lines = asked.stdout.splitlines()
    commit = next((x.split()[-1] for x in lines if x.startswith("# branch.oid")), None)
    if known.returncode or asked.returncode or commit is None:
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603
        ["git", *arguments],  # noqa: S607
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=5,
        check=False,
    )
