"""The flags of a command line: Hydra's, told apart from overrides and held against each other."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

PASSIVE = ("help", "hydra_help", "version", "cfg", "info", "shell_completion")
"""Flags with which nothing is run."""
COMPLETION = ("install", "uninstall", "query")
SHELLS = ("bash", "fish", "zsh")
"""What ``-sc`` does, and for which shells."""


def split(arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Take a command line apart.

    Returns:
        The flags; the overrides; what is neither, one line each.
    """
    parser = _parser()
    try:
        flags, rest = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        return parser.parse_args([]), [], [str(error)]
    overrides = [text for text in rest if not text.startswith("-")]
    unknown = [f"{text}: no such flag; --help shows what there is"
               for text in rest if text.startswith("-")]  # fmt: skip
    return flags, overrides, unknown


def passive(flags: argparse.Namespace) -> bool:
    """Check that something will only be shown."""
    return any(getattr(flags, name) for name in PASSIVE)


def problems(flags: argparse.Namespace, planned: bool) -> list[str]:
    """What is wrong with the flags of a command line, one line each.

    Args:
        flags: taken apart.
        planned: a sweep goes to our own planner, which knows one primary config.
    """
    found = []
    if flags.experimental_rerun is not None:
        found.append(
            "--experimental-rerun: a pickle may run any code; give the overrides of the run again"
        )
    if flags.config_path is not None:
        found.append("--config-path: our own options are always read; write --config-dir <folder>")
    if flags.config_dir is not None and not Path(flags.config_dir).is_dir():
        found.append(f"--config-dir {flags.config_dir}: no such folder")
    if flags.config_name is not None and planned and flags.multirun:
        found.append(
            f"--config-name {flags.config_name}: a sweep starts from conf/config.yaml; put what "
            f"differs into an option, or run one config at a time"
        )
    shown = [name for name in ("cfg", "info", "multirun", "run") if getattr(flags, name)]
    if len(shown) > 1:
        found.append(f"{' and '.join(f'--{name}' for name in shown)}: give one of them")
    if flags.resolve and not (flags.cfg or flags.help):
        found.append("--resolve: goes with --cfg")
    if flags.package and not flags.cfg:
        found.append(f"--package {flags.package}: goes with --cfg")
    return found


def completion_problems(words: Sequence[str]) -> list[str]:
    """What is wrong with the words beside ``-sc``, one line each."""
    asked = [word.partition("=") for word in words]
    if [what in COMPLETION and shell in SHELLS for what, _, shell in asked] == [True]:
        return []
    given = " ".join(["-sc", *words])
    return [f"{given}: write -sc {'|'.join(COMPLETION)}={'|'.join(SHELLS)}"]


def _parser() -> argparse.ArgumentParser:
    """Hydra's flags under Hydra's names, none of which may be shortened."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for names in (
        *(("--help", "-h"), ("--hydra-help",), ("--version",), ("--resolve",), ("--run", "-r")),
        *(("--multirun", "-m"), ("--shell-completion", "-sc")),
    ):
        parser.add_argument(*names, action="store_true")
    for names in (
        *(("--package", "-p"), ("--config-path", "-cp"), ("--config-name", "-cn")),
        *(("--config-dir", "-cd"), ("--experimental-rerun",)),
    ):
        parser.add_argument(*names)
    parser.add_argument("--cfg", "-c", choices=("job", "hydra", "all"))
    whole = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
    parser.add_argument("--info", "-i", nargs="?", const="all", choices=whole)
    return parser
