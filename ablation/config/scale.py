"""``scale=smoke``: a config shrunk so that it runs end to end in seconds."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, MutableMapping
from typing import Any

from ablation.config.parser import TARGET, locate, parts


def scaled(container: Mapping[str, Any]) -> dict[str, Any]:
    """A composed config with its scale applied; ``scale`` becomes the scale's name.

    Args:
        container: plain data. ``scale`` is a mapping as in ``conf/scale``; a name alone, as in a
            saved config, has been applied before.
    """
    found = copy.deepcopy(dict(container))
    scale = found.get("scale")
    if not isinstance(scale, Mapping):
        return found
    found["scale"] = scale.get("name")
    keep: dict[str, Any] = {"val_size": None}
    if "data" in scale and isinstance(found.get("data"), Mapping):
        keep = {key: found["data"].get(key) for key in ("val_size", "split_seed", "train_size")}
        found["data"] = {**scale["data"], **keep}
        found["augment"] = scale["data"]["augment"]
    if "model" in scale and isinstance(found.get("model"), Mapping):
        found["model"] = {**scale["model"], "head": found["model"].get("head")}
    epochs = found.get("epochs")
    for key, cap in scale.get("keys", {}).items():
        if key != "selection.n" or keep["val_size"] != 0:  # none of no images
            _cap_key(found, key, cap)
    caps = scale.get("parts", {})
    for part in parts(found):
        _cap_part(part, caps)
        _squeeze(part, epochs, found.get("epochs"))
    return found


def smaller(value: Any, cap: int) -> Any:
    """The smaller number; ``None`` means all of something, anything else is left alone."""
    if value is None:
        return cap
    return min(value, cap) if type(value) in (int, float) else value


def _cap_key(container: MutableMapping[str, Any], key: str, cap: int) -> None:
    owner, name = owner_of(container, key)
    if owner is not None:
        owner[name] = smaller(owner[name], cap)


def owner_of(container: Any, key: str) -> tuple[MutableMapping[str, Any] | None, str]:
    """The mapping that holds a dotted key, ``None`` if the key is not there; its last name."""
    *path, name = key.split(".")
    for step in path:
        container = container.get(step) if isinstance(container, Mapping) else None
    held = isinstance(container, MutableMapping) and name in container
    return (container if held else None), name


def _cap_part(part: MutableMapping[str, Any], caps: Mapping[str, int]) -> None:
    """Cap the fields of a part, those at their defaults too; a wrong target is reported later."""
    try:
        fields = {field.name: field for field in dataclasses.fields(locate(str(part[TARGET])))}
    except ValueError:
        return
    for name, cap in caps.items():
        before = part.get(name, fields[name].default) if name in fields else None
        if before is not None and smaller(before, cap) != before:
            part[name] = smaller(before, cap)
            if "version" in fields:  # AutoAttack refuses other numbers under the name "standard"
                part["version"] = "custom"


def _squeeze(part: MutableMapping[str, Any], before: Any, after: Any) -> None:
    """Milestones keep their place in a shorter training."""
    if "milestones" not in part or type(before) is not int or before == after:
        return
    moved = {max(1, round(milestone * after / before)) for milestone in part["milestones"]}
    part["milestones"] = sorted(m for m in moved if m < after) or [max(1, after - 1)]
