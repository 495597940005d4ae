"""Jobs of launchers that do not stop them: they save first, and none is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ablation.sweeps.relay import descendants, saving_first

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
JOB = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open(sys.argv[1], "w").write(signal.Signals(number).name)
    sys.exit(75)
signal.signal(signal.SIGUSR1, save)
print("ready", flush=True)
while True:
    time.sleep(0.05)
"""


def job(saved: Path) -> subprocess.Popen[str]:
    """A process that takes half a second to save when it is asked to stop."""
    process = subprocess.Popen(
        [sys.executable, "-c", JOB, str(saved)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "ready\n"
    return process


@LINUX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_waits_for_the_jobs_and_kills_what_has_not_begun(tmp_path, name, capsys):
    at_work, starting = job(tmp_path / "at_work"), job(tmp_path / "starting")

    def jobs() -> dict[str, int]:
        return {"a": at_work.pid} if at_work.poll() is None else {}

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), saving_first(jobs):
        signal.raise_signal(getattr(signal, name))
    assert (tmp_path / "at_work").read_text() == "SIGUSR1"
    assert at_work.returncode == 75
    assert starting.wait(10) == -signal.SIGKILL
    assert not (tmp_path / "starting").exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert f"{name}: 1 jobs save and stop" in capsys.readouterr().err


@LINUX
def test_a_second_ctrl_c_does_not_wait(tmp_path):
    stuck = job(tmp_path / "stuck")
    os.kill(stuck.pid, signal.SIGSTOP)
    threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt), saving_first(lambda: {"a": stuck.pid}):
        signal.raise_signal(signal.SIGINT)
    assert stuck.wait(10) == -signal.SIGKILL


@LINUX
def test_without_a_signal_nobody_is_touched(tmp_path):
    process = job(tmp_path / "job")
    with saving_first(lambda: {"a": process.pid}):
        assert process.pid in descendants(os.getpid())
    assert process.poll() is None
    process.kill()
    process.wait()
