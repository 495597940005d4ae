"""Ablations of margin-based adversarial training: methods as compositions of typed parts.

The interface for Python is ``ablation.api``; its names are here, too, and imported when used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["LoadedRun", "evaluate", "load_run", "results", "train"]


if TYPE_CHECKING:
    from ablation.api import LoadedRun, evaluate, load_run, results, train
else:

    def __getattr__(name: str) -> Any:
        """Import what is asked for: the commands' ``--help`` must not wait for torch."""
        if name not in __all__:
            raise AttributeError(f"module 'ablation' has no attribute {name!r}")
        from ablation import api

        return getattr(api, name)
