"""Settings of ``data`` that are null and come from the user's images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ablation.config.parser import Parser
from ablation.data import OwnImages, Source, statistics
from ablation.errors import InputError

DERIVED = ("classes", "mean", "std")
STAND_IN: Mapping[str, Any] = {"classes": 2, "mean": [0.5], "std": [0.5]}
"""Values where the images cannot be read, so that the rest of a config can still be checked."""


def completed(data: Mapping[str, Any], root: Path) -> tuple[dict[str, Any], list[str]]:
    """Fill in number of classes, mean and deviation of the images where they are null.

    Args:
        data: the node ``data`` of a composed config.
        root: the user's ``data_dir``.

    Returns:
        The node, and the problems of images that cannot be read.
    """
    wanted = [key for key in DERIVED if key in data and data[key] is None]
    if not wanted:
        return dict(data), []
    parser = Parser()
    source = parser.parse(Source, data.get("source"), "data.source")
    if parser.problems:
        return {**data, **{key: STAND_IN[key] for key in wanted}}, []  # told where all is parsed
    if not isinstance(source, OwnImages):
        remedy = "only data=image_folder and data=parquet take it from the images; set it"
        problems = [f"data.{key}=null: {remedy}" for key in wanted]
        return {**data, **{key: STAND_IN[key] for key in wanted}}, problems
    try:
        return {**data, **_of_images(source, root, wanted)}, []
    except InputError as error:
        problems = source.check(root) or [str(error)]
        return {**data, **{key: STAND_IN[key] for key in wanted}}, problems


def _of_images(source: OwnImages, root: Path, wanted: list[str]) -> dict[str, Any]:
    extent = source.extent(root)
    if extent is None:
        source.load(root)  # says what is wrong
        raise InputError(f"data_dir={root}: the images cannot be read")
    found: dict[str, Any] = {"classes": len(extent.labels)}
    if set(wanted) - {"classes"}:
        measured = statistics(source, root)
        found |= {"mean": measured.mean, "std": measured.std}
    return {key: found[key] for key in wanted}
