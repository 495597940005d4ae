"""What a person sees: one writer, which never decides over a run.

A reader that went away (``| head``), a closed stream and a full disk cost only the text.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from ablation.text import printable

LAYOUT = "\n\t"
"""Control characters that shape what we print."""


class Writer(io.TextIOBase):
    """A text stream that survives the loss of the one below.

    Args:
        stream: the one below; ``None`` where Python found it closed.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of the stream below."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Say whether a person watches."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Descriptor of the stream below.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise io.UnsupportedOperation("closed")
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Write what the stream can take."""
        if self._stream is not None:
            try:
                self._stream.write(text)
            except UnicodeEncodeError:
                self.write(text.encode(self.encoding, "replace").decode(self.encoding))
            except (OSError, ValueError) as error:
                self._lost(error)
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self._lost(error)

    def _lost(self, error: Exception) -> None:
        """Send the rest, and what Python flushes at exit, to nowhere."""
        if isinstance(error, BlockingIOError):  # the reader is slow: only this text is lost
            return
        stream, self._stream = self._stream, None
        with suppress(OSError, ValueError, AttributeError):
            number = cast(TextIO, stream).fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def say(text: str) -> None:
    """A line or some to stdout, at once; control characters are shown, not obeyed."""
    _put(sys.stdout, text)


def warn(text: str) -> None:
    """A line or some to stderr, at once; control characters are shown, not obeyed."""
    _put(sys.stderr, text)


def out() -> TextIO:
    """Stdout, made to last."""
    return cast(TextIO, Writer(sys.stdout))


def err() -> TextIO:
    """Stderr, made to last."""
    return cast(TextIO, Writer(sys.stderr))


def _put(stream: TextIO | None, text: str) -> None:
    writer = Writer(stream)
    writer.write(f"{printable(text, LAYOUT)}\n")
    writer.flush()


@contextmanager
def lasting_output() -> Iterator[None]:
    """Make stdout and stderr last for everybody, libraries too, until the context ends.

    A closed standard descriptor is opened to nowhere: else the next file would get its number,
    and what is meant for a person would go into it.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = out(), err()
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
