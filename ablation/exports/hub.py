"""Send an export to the Hugging Face hub; the only place that knows ``huggingface_hub``."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ablation.errors import InputError
from ablation.text import first_line

NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""``user/name``, as the hub has it."""


def hub_problems(name: str) -> list[str]:
    """Why nothing can be sent there, as far as this machine can tell; one line each."""
    if not NAME.fullmatch(name):
        return [f"push={name}: write it as <user>/<name>"]
    if find_spec("huggingface_hub") is None:
        return [
            f"push={name} needs huggingface_hub, which is not installed: "
            "pip install 'ablation[hub]'"
        ]
    return []


def check_login(name: str) -> None:
    """Make sure that the hub knows the user, and nothing of this name yet.

    Raises:
        InputError: no token, no network, or the name is taken: what is there stays as it is.
    """
    api = _api()
    try:
        api.whoami()
        taken = api.repo_exists(name)
    except Exception as error:  # the library's own, many of them
        raise InputError(
            f"push={name}: the hub does not let us in ({first_line(error)}); run hf auth login"
        ) from error
    if taken:
        raise InputError(f"push={name}: it exists on the hub and stays as it is; choose another")


def push(name: str, folder: Path, private: bool) -> str:
    """Make a model repository and upload a folder into it.

    Args:
        name: ``user/name``.
        folder: with the files.
        private: whether only the user sees it.

    Returns:
        Its address.

    Raises:
        InputError: the hub refused; the folder is as it was.
    """
    api = _api()
    try:
        place = str(api.create_repo(name, repo_type="model", private=private, exist_ok=False))
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="ablation-export")
    except Exception as error:
        raise InputError(
            f"push={name}: the hub refused ({first_line(error)}); the export is in {folder}, and "
            f"hf upload {name} {folder} sends it later"
        ) from error
    return place


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi()
