"""Extension of griffe: formulas in docstrings stand in the reference as they are written."""

from __future__ import annotations

from typing import Any

import griffe

from docs.generate.markdown import escaped


class Escaping(griffe.Extension):  # type: ignore[misc]
    """Escapes what Markdown would take for its own, code excepted."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change a docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = escaped(obj.docstring.value)
