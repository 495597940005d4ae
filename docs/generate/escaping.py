"""Extension of griffe: formulas in docstrings stand in the reference as they are written."""

from __future__ import annotations

import re
from typing import Any

import griffe

from docs.generate.markdown import escaped

NAME = re.compile(r"^ +[\w\\*]+:", re.M)
"""A parameter at the beginning of its entry, which is no text."""


class Escaping(griffe.Extension):  # type: ignore[misc]
    """Escapes what Markdown would take for its own, code excepted."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring before it is parsed."""
        if obj.docstring is not None:
            text = escaped(obj.docstring.value)
            obj.docstring.value = NAME.sub(lambda found: found[0].replace("\\", ""), text)
