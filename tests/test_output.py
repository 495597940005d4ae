"""What a person sees never decides over a run."""

from __future__ import annotations

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import ablation
from ablation.output import Writer, lasting_output, say, warn

ROOT = Path(ablation.__file__).parent
FILES = [*ROOT.rglob("*.py"), *(ROOT.parent / "hydra_plugins").rglob("*.py")]


class Failing(io.StringIO):
    def __init__(self, error: Exception, at: str) -> None:
        super().__init__()
        self.error, self.at = error, at

    def write(self, text: str) -> int:
        if self.at == "write":
            raise self.error
        return super().write(text)

    def flush(self) -> None:
        if self.at == "flush":
            raise self.error


ERRORS = [
    BrokenPipeError(errno.EPIPE, "broken"),
    OSError(errno.ENOSPC, "full"),
    OSError(errno.EIO, "the terminal is gone"),
    ValueError("I/O operation on closed file"),
]


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("at", ["write", "flush"])
def test_a_lost_stream_costs_only_the_text(monkeypatch, error, at):
    for name, call in (("stdout", say), ("stderr", warn)):
        monkeypatch.setattr(sys, name, Failing(error, at))
        call("one")
        call("two")
        monkeypatch.setattr(sys, name, None)
        call("three")
    monkeypatch.undo()


def test_a_slow_reader_loses_one_text_and_gets_the_next():
    stream = Failing(BlockingIOError(errno.EAGAIN, "full pipe"), "write")
    writer = Writer(stream)
    writer.write("one")
    stream.at = ""
    writer.write("two")
    assert stream.getvalue() == "two"


def test_signs_that_the_stream_does_not_know_are_replaced():
    raw = io.BytesIO()
    writer = Writer(io.TextIOWrapper(raw, "ascii"))
    writer.write("70.1 ± 2")
    writer.flush()
    assert raw.getvalue() == b"70.1 ? 2"


def test_control_characters_are_shown_and_not_obeyed(capsys):
    say("a\x1b[31mb\r\x07\n\tc\x9b é±")
    assert capsys.readouterr().out == "a\\x1b[31mb\\r\\x07\n\tc\\x9b é±\n"


def test_streams_come_back():
    before = sys.stdout, sys.stderr
    with lasting_output():
        assert isinstance(sys.stdout, Writer)
    assert (sys.stdout, sys.stderr) == before


SCRIPT = """
import os, sys
from ablation.output import lasting_output, say, warn
with lasting_output():
    file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
    for n in range(20000):
        say("a line that fills a pipe")
    print("a library prints")
    warn("a warning")
    os.write(2, b"from a signal handler")
    os.write(file, b"content")
"""


@pytest.mark.parametrize(
    "how", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "> /dev/full 2>&1", "| head -1"]
)
def test_a_program_whose_output_goes_away_ends_well(tmp_path, how):
    if "/dev/full" in how and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    script, file = tmp_path / "script.py", tmp_path / "file"
    script.write_text(SCRIPT)
    line = f"set -o pipefail; {sys.executable} {script} {file} {how}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert file.read_bytes() == b"content"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_nobody_prints_past_the_writer(path):
    if path == ROOT / "output.py":
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and node.attr in ("stdout", "stderr"):
            module = node.value.id if isinstance(node.value, ast.Name) else ""
            assert module != "sys", f"line {node.lineno}"


def test_the_writer_knows_the_stream_below():
    assert not Writer(None).isatty()
    with pytest.raises(OSError, match="closed"):
        Writer(None).fileno()
    with Path(os.devnull).open("w") as stream:
        assert Writer(stream).fileno() == stream.fileno()
