"""A Ctrl-C before there is anything to save."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ablation.errors import INTERRUPTED

SWALLOWS = """
import os, signal
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    pass  # as numpy does while it is loaded
print("imported")
"""


def python(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program that has installed the handler."""
    return subprocess.run(
        [
            *(sys.executable, "-c"),
            f"from ablation.runs.signals import end_in_imports\nend_in_imports()\n{text}",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_ctrl_c_during_an_import_ends_the_process_in_our_words(tmp_path):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    done = python("import sys\nsys.path.insert(0, '.')\nimport swallows\nprint('on')", tmp_path)
    assert done.returncode == INTERRUPTED
    assert (done.stdout, done.stderr) == ("", "stopped before anything started\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_elsewhere_it_stays_an_exception(tmp_path):
    text = "import os, signal\ntry:\n  os.kill(os.getpid(), signal.SIGINT)\n"
    done = python(f"{text}except KeyboardInterrupt:\n  print('caught')", tmp_path)
    assert (done.returncode, done.stdout) == (0, "caught\n")
