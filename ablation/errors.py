"""The errors a user can act on: each message names the key or file, the value and the remedy."""

from __future__ import annotations

from collections.abc import Sequence

from ablation.text import printable

DONE, BAD_INPUT, JOB_FAILED, INTERRUPTED = 0, 1, 3, 75
"""Exit codes of the console scripts; 75 (EX_TEMPFAIL) asks a scheduler to requeue the command."""


class InputError(Exception):
    """Input that cannot be used: nothing was started and nothing was changed."""

    def told(self) -> str:
        """What a command prints of it."""
        return f"error: {self}"


class ConfigError(InputError):
    """One or more invalid settings in the configuration.

    Args:
        problems: one line each, naming key, value and remedy.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        lines = "\n".join(f"  - {printable(problem)}" for problem in problems)
        super().__init__(f"{count} in the configuration; nothing was started:\n{lines}")

    def told(self) -> str:
        """What a command prints of them: they say themselves what they are."""
        return str(self)


class NonFiniteError(Exception):
    """A loss term or a gradient became NaN or infinite; the run is marked failed.

    Args:
        term: name of the loss term, or ``gradient``.
        detail: what is known about the step.
    """

    def __init__(self, term: str, detail: str) -> None:
        self.term = term
        super().__init__(f"{term} is not finite ({detail})")


def out_of_memory(error: BaseException) -> bool:
    """Say whether memory ran out, on a GPU or the host; the host's allocator has no own error."""
    host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return host or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


class InterruptedRunError(Exception):
    """A signal arrived; the run was saved and the same command resumes it."""


class LostRankError(InterruptedRunError):
    """Another process that trained the same run is gone; its last checkpoint is intact."""
