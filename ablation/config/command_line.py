"""Keys that decide which code is imported: a person sets them on the command line, no file does.

Option files, table files and saved configs come from others. So what a composed config names
counts only if the command line says the same, word by word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException

from ablation.config.overrides import alternatives, parsed

CODE = ("model.target", "model.kwargs")
"""The keys, with what lies below them."""

Said = Collection[tuple[str, str]]
"""Keys and values, as ``leaves`` gives them."""


def said(overrides: Sequence[str]) -> Said:
    """What a command line sets of ``CODE``; of a sweep every value.

    Args:
        overrides: in Hydra's grammar; others are told elsewhere.
    """
    found: set[tuple[str, str]] = set()
    for text in overrides:
        try:
            if _is_code(str(parsed(text).key_or_group)):
                for one in alternatives(text):
                    override = parsed(one)
                    found |= set(leaves(override.value(), str(override.key_or_group)))
        except HydraException:
            continue
    return found


def unsaid(container: Mapping[str, Any], known: Said) -> list[str]:
    """Keys of ``CODE`` that a composed config has and no command line said, one line each."""
    model = container.get("model")
    node = model if isinstance(model, Mapping) else {}
    every = {key: node.get(key.removeprefix("model.")) for key in CODE}
    return [
        f"{key}={value}: it decides which code runs, so only the command line may set it, to a "
        f"plain value; write {key}=<value> there"
        for place, entry in every.items()
        for key, value in leaves(entry, place)
        if (key, value) not in known
    ]


def leaves(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Every plain value below a key, with its dotted key; nothing of null and empty mappings."""
    if isinstance(value, Mapping):
        for name, entry in value.items():
            yield from leaves(entry, f"{key}.{name}")
    elif value is not None:
        yield key, repr(value)


def _is_code(key: str) -> bool:
    return any(f"{key}.".startswith(f"{place}.") for place in CODE)
