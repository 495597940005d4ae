"""Launchers: the pool of processes, and what the optional ones do with our jobs and settings."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobStatus
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from ablation.errors import DONE, INTERRUPTED, InputError, InterruptedRunError
from ablation.jobs import supervise
from ablation.runs.directory import Run
from ablation.sweeps.launchers import EXTRAS, missing_extra, register_launchers
from ablation.sweeps.pool import ELSEWHERE, Board, Pool, Work, ending, last_lines, slots
from hydra_plugins.ablation_plugins.pool import PoolLauncher

BIN = Path(sys.executable).parent
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells orphans")

WITNESS = """
import os, signal, sys, time
from pathlib import Path
path, answer = Path(sys.argv[1]), sys.argv[2]
count = 0
def receive(number, frame):
    global count
    count += 1
    with path.open("a") as file:
        file.write(f"{signal.Signals(number).name}\\n")
for name in ("SIGINT", "SIGTERM"):
    signal.signal(getattr(signal, name), receive)
path.write_text(f"{os.getpid()}\\n")
while answer == "never" or not count:
    time.sleep(0.02)
time.sleep(0.5 + int(path.stem))
sys.exit(75)
"""
"""A job that notes its process and the signals it gets; it saves a while, or stops never."""

PARENT = """
import sys
from pathlib import Path
from ablation.sweeps.pool import Pool, Work
folder, witness, answer = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
work = [
    Work(str(n), [sys.executable, "-c", witness, str(folder / f"{n}.signals"), answer],
         folder / f"{n}.log")
    for n in range(4)
]
try:
    Pool([{}, {}]).run(work)
except KeyboardInterrupt:
    sys.exit(75)
"""


def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that must come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    """Does the process run? A zombie, which nobody has waited for yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def python(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def pool(works: dict[str, list[str]], folder: Path, places: int = 1) -> tuple[list[int], str]:
    """Exit codes and what was shown."""
    out = io.StringIO()
    work = [Work(title, command, folder / f"{title}.log") for title, command in works.items()]
    return Pool([{}] * places, out).run(work), out.getvalue()


def test_a_job_is_made_when_a_place_is_free_for_it(tmp_path):
    """The next depends on how those before it ended."""
    made: list[int] = []

    def works():
        for number in range(3):
            made.append(len(list(tmp_path.glob("*.done"))))
            code = f"open(r'{tmp_path}/{number}.done', 'w').close()"
            yield Work(str(number), python(code), tmp_path / f"{number}.log")

    assert Pool([{}], io.StringIO()).stream(works(), 3) == [0, 0, 0]
    assert made == [0, 1, 2]


def test_an_unwanted_job_is_told_once_to_save_and_stop(tmp_path):
    def unwanted():
        return (tmp_path / "0.signals").is_file()

    path = tmp_path / "0.signals"
    work = [Work("bad", python(WITNESS, path, "saves"), tmp_path / "bad.log", None, unwanted),
            Work("good", python("pass"), tmp_path / "good.log", None, lambda: False)]  # fmt: skip
    out = io.StringIO()
    assert Pool([{}], out).run(work) == [75, 0]
    assert path.read_text().splitlines()[1:] == ["SIGTERM"]
    assert "bad: stopped after" in out.getvalue()
    assert "good: done" in out.getvalue()


def sweep_config(folder: Path, *hydra: str, own: str | None = None) -> DictConfig:
    """What a launcher reads of Hydra's config."""
    sources = [{"provider": "main", "path": "conf"}]
    sources += [{"provider": "command-line", "path": own}] if own else []
    node = {
        "sweep": {"dir": str(folder)},
        "runtime": {"config_sources": sources},
        "overrides": {"hydra": list(hydra)},
    }
    return OmegaConf.create({"hydra": node})


def launcher(folder: Path, code: str, *hydra: str, own: str | None = None) -> PoolLauncher:
    found = PoolLauncher(jobs=1, gpus=None, per_gpu=1)
    found.command = python(code)
    config = sweep_config(folder, *hydra, own=own)
    found.setup(hydra_context=None, task_function=None, config=config)  # type: ignore[arg-type]
    return found


# What a pool does with its jobs


def test_a_raising_and_a_killed_job_cost_only_themselves(tmp_path):
    works = {
        "raises": python("raise ValueError('no good')"),
        "killed": python("import os; print('on my way'); os.kill(os.getpid(), 9)"),
        "exits": python("import sys; sys.exit(7)"),
        "good": python("print('fine')"),
    }
    codes, shown = pool(works, tmp_path, places=2)
    assert codes == [1, -9, 7, 0]
    assert "[1/4] raises: FAILED (exit 1) after 0:0" in shown
    assert "[2/4] killed: FAILED (killed by SIGKILL) after 0:0" in shown
    assert "[3/4] exits: FAILED (exit 7)" in shown
    assert "[4/4] good: done in 0:0" in shown
    assert (tmp_path / "good.log").read_text().endswith("fine\n")


def test_a_failed_job_shows_its_last_lines_at_once(tmp_path):
    seen = tmp_path / "seen"

    class Person(io.StringIO):
        def write(self, text: str) -> int:
            if "FAILED" in text:
                seen.touch()
            return super().write(text)

    lines = "print('\\n'.join(f'line {n}' for n in range(20))); raise SystemExit(3)"
    wait = f"import os, time\nwhile not os.path.exists({str(seen)!r}): time.sleep(0.05)"
    work = [
        Work("fails", python(lines), tmp_path / "0.log"),
        Work("waits", python(wait), tmp_path / "1.log"),  # until somebody read of the other
    ]
    out = Person()
    assert Pool([{}, {}], out).run(work) == [3, 0]
    assert [line for line in out.getvalue().splitlines() if line.startswith("    ")] == [
        f"    line {n}" for n in range(12, 20)
    ]


def test_the_lines_of_an_earlier_attempt_are_kept_but_not_shown(tmp_path):
    for word in ("first", "second"):
        _, shown = pool({"job": python(f"print('{word}'); raise SystemExit(3)")}, tmp_path)
    assert "second" in shown
    assert "    first" not in shown
    log = (tmp_path / "job.log").read_text().splitlines()
    assert [line for line in log if not line.startswith("#")] == ["first", "second"]
    assert [line.partition(" ")[2][:2] for line in log if line.startswith("#")] == ["20", "20"]
    assert f"{sys.executable} -c" in log[0]


def test_a_job_that_cannot_start_costs_only_itself(tmp_path):
    codes, shown = pool({"missing": ["./no-such-program"], "good": python("")}, tmp_path)
    assert codes == [-1, 0]
    assert "[1/2] missing: FAILED to start" in shown


class Turn:
    """Says who else has a job: before its process starts, and after that failed."""

    def __init__(self, before: str | None, after: str | None = None) -> None:
        self.before, self.after, self.held = before, after, True

    def take(self) -> str | None:
        return self.before

    def elsewhere(self, pid: int | None = None) -> str | None:
        assert pid is not None
        return self.after

    def release(self) -> None:
        self.held = False


def test_jobs_of_others_are_neither_started_nor_failed(tmp_path):
    fails = python("import sys; print('it ran'); sys.exit(1)")
    turns = {
        "theirs": Turn("running elsewhere (pid 7)"),
        "refused": Turn(None, "running elsewhere (pid 8)"),
        "bad": Turn(None),
    }
    work = [Work(name, fails, tmp_path / f"{name}.log", turn) for name, turn in turns.items()]
    out = io.StringIO()
    assert Pool([{}], out).run(work) == [ELSEWHERE, ELSEWHERE, 1]
    shown = out.getvalue()
    assert "[1/3] theirs: running elsewhere (pid 7)" in shown
    assert not (tmp_path / "theirs.log").exists()
    assert "[2/3] refused: running elsewhere (pid 8)" in shown
    assert shown.count("FAILED") == 1
    assert not any(turn.held for turn in turns.values())


def test_where_there_is_no_terminal_a_line_now_and_then_says_how_far_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("ablation.sweeps.pool.LINE_SECONDS", 0.0)
    slow = "import time; print('epoch 1/5\\nepoch 2/5'); time.sleep(0.5)"
    works = {"bad": python("raise SystemExit(1)"), "good": python(""), "last": python(slow)}
    _, shown = pool(works, tmp_path)
    assert "\n0 done, 1 running, 2 left\n" in shown
    assert "\n  [3/3] last: epoch 2/5\n" in shown
    assert "\n1 done, 1 running, 1 failed, 0 left, eta 0:" in shown


def test_where_there_is_no_terminal_the_lines_become_rare(monkeypatch):
    now = 0.0
    monkeypatch.setattr("ablation.sweeps.pool.time.monotonic", lambda: now)
    out, said = io.StringIO(), []
    board = Board(out)
    for _ in range(12 * 60):
        now += 60
        board.progress(lambda: ["1 running", "[1/1] a: epoch 2/5"])
        said += [now] if out.getvalue() else []
        out.seek(out.truncate(0))
    assert len(said) < 90  # of twelve hours
    assert max(b - a for a, b in itertools.pairwise(said)) == 600


def test_on_a_terminal_the_line_of_progress_stays_below(monkeypatch):
    now = 0.0
    monkeypatch.setattr("ablation.sweeps.pool.time.monotonic", lambda: now)
    monkeypatch.setattr("ablation.sweeps.pool.drawable", lambda stream: True)
    out = io.StringIO()
    board = Board(out)
    for second, text in ((1.0, "1 running"), (1.5, "not looked at"), (2.0, "1 running")):
        now = second
        board.progress(lambda text=text: [text, "epoch 2/5"])  # type: ignore[misc]
    board.event("a job: done")
    now = 3.0
    board.progress(lambda: ["2 running"])
    board.close()
    assert out.getvalue() == "1 running; epoch 2/5\r\x1b[Ka job: done\n2 running\r\x1b[K"


def test_two_jobs_are_never_on_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,1")
    note = (
        "import os, time; began = time.monotonic(); time.sleep(0.1);"
        "print(os.environ['CUDA_VISIBLE_DEVICES'], began, time.monotonic())"
    )
    work = [Work(str(n), python(note), tmp_path / f"{n}.log") for n in range(6)]
    out = io.StringIO()
    assert Pool(slots(None, "auto"), out).run(work) == [0] * 6
    spans: dict[str, list[tuple[float, float]]] = {}
    for one in work:
        device, began, ended = one.log.read_text().splitlines()[-1].split()
        spans.setdefault(device, []).append((float(began), float(ended)))
    assert sorted(spans) == ["1", "GPU-aa"]
    for times in spans.values():
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(sorted(times)))
    events = [line.split()[2] for line in out.getvalue().splitlines()]
    assert events[:2] == ["started", "started"]  # side by side


def test_jobs_that_share_a_gpu_see_it_and_go_to_different_ones_first(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa,MIG-bb")
    note = "import os, time; print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(2)"
    work = [Work(str(n), python(note), tmp_path / f"{n}.log") for n in range(4)]
    out = io.StringIO()
    assert Pool(slots(None, "auto", 2), out).run(work) == [0] * 4
    seen = [one.log.read_text().splitlines()[-1] for one in work]
    assert seen == ["GPU-aa", "MIG-bb", "GPU-aa", "MIG-bb"]
    events = [line.split()[2] for line in out.getvalue().splitlines()]
    assert events[:4] == ["started"] * 4


# Places


@pytest.mark.parametrize(
    ("visible", "jobs", "gpus", "expected"),
    [
        ("4,5", None, "auto", ["4", "5"]),
        ("4,5", 1, "auto", ["4"]),
        ("GPU-aa, MIG-bb", None, "auto", ["GPU-aa", "MIG-bb"]),
        ("4,5,6", None, [2, 0], ["6", "4"]),
        ("4", None, [0, 0], ["4", "4"]),
        ("4", None, ["GPU-cc"], ["GPU-cc"]),
    ],
)
def test_a_place_has_a_gpu_of_its_own(monkeypatch, visible, jobs, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots(jobs, gpus)] == expected


@pytest.mark.parametrize(
    ("jobs", "gpus", "expected"),
    [
        (None, "auto", ["4,5", "6,7"]),
        (1, "auto", ["4,5"]),
        (None, [4, 3, 0], ["8,7"]),
    ],
)
def test_a_place_has_several_gpus_where_a_job_takes_them(monkeypatch, jobs, gpus, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in slots(jobs, gpus, per_job=2)] == expected


@pytest.mark.parametrize(
    ("jobs", "per_job", "message"),
    [
        (None, 3, "each takes 3 GPUs of its own (runtime.devices), and there are 2"),
        (2, 2, "jobs=2: each takes 2 GPUs of its own"),
        (None, 0, "gpus_per_job=0: a number from 1"),
    ],
)
def test_more_gpus_than_there_are_cannot_be_had(monkeypatch, jobs, per_job, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError) as error:
        slots(jobs, "auto", per_job=per_job)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("jobs", "gpus", "per_gpu", "message"),
    [
        (0, "auto", 1, "jobs=0: a number from 1, or null"),
        ("many", "auto", 1, "jobs=many: a number from 1, or null"),
        (3, "auto", 1, "there are 2 places on GPUs; more jobs can share one: "
         "hydra.launcher.per_gpu=2"),
        (7, "auto", 3, "there are 6 places on GPUs; more jobs can share one: "
         "hydra.launcher.per_gpu=4"),
        (None, [0, 2], 1, "there is no GPU 2, 2 are visible"),
        (None, [-1], 1, "there is no GPU -1"),
        (None, "all", 1, "gpus=all: auto, null, or a list"),
        (None, "auto", 0, "per_gpu=0: a number of jobs from 1"),
        (None, "auto", True, "per_gpu=True: a number of jobs from 1"),
        (None, None, 2, "no GPU is assigned (hydra.launcher.gpus=None, 2 visible)"),
    ],
)  # fmt: skip
def test_places_that_cannot_be_had_are_refused(monkeypatch, jobs, gpus, per_gpu, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(InputError) as error:
        slots(jobs, gpus, per_gpu)
    assert message in str(error.value)


@pytest.mark.parametrize("visible", ["", "-1"])
def test_without_gpus_jobs_share_the_cores(monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert slots(None, "auto") == [{"OMP_NUM_THREADS": "2"}] * 4
    assert slots(16, "auto") == [{"OMP_NUM_THREADS": "1"}] * 16
    assert slots(1, None) == [{}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert slots(4, "auto") == [{}] * 4


def test_endings_have_names():
    assert ending(3) == "exit 3"
    assert ending(-15) == "killed by SIGTERM"
    assert ending(-250) == "killed by signal 250"


def test_a_log_that_is_gone_has_no_last_lines(tmp_path):
    assert last_lines(tmp_path / "none.log") == []


# Signals


def start_parent(folder: Path, answer: str = "saves") -> tuple[subprocess.Popen[bytes], list[int]]:
    """A pool of two places and four jobs in a process group of its own, once two jobs run."""
    parent = subprocess.Popen(
        python(PARENT, folder, WITNESS, answer),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    files = [folder / "0.signals", folder / "1.signals"]
    until(lambda: all(path.is_file() and path.read_text() for path in files))
    return parent, [int(path.read_text().split()[0]) for path in files]


@LINUX
@pytest.mark.parametrize("to_group", [True, False], ids=["a terminal's", "kill's"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_reaches_running_jobs_once_and_starts_no_other(tmp_path, to_group, name):
    parent, children = start_parent(tmp_path)
    (os.killpg if to_group else os.kill)(parent.pid, getattr(signal, name))
    assert parent.wait(30) == INTERRUPTED
    for n in (0, 1):
        assert (tmp_path / f"{n}.signals").read_text().split()[1:] == [name]
    assert not any(map(alive, children))
    assert not (tmp_path / "2.log").exists()


@LINUX
def test_a_second_ctrl_c_kills_jobs_that_do_not_stop(tmp_path):
    parent, children = start_parent(tmp_path, "never")
    parent.send_signal(signal.SIGINT)
    until(lambda: all((tmp_path / f"{n}.signals").read_text().endswith("INT\n") for n in (0, 1)))
    assert parent.poll() is None
    assert all(map(alive, children))
    parent.send_signal(signal.SIGINT)
    assert parent.wait(30) == INTERRUPTED
    assert not any(map(alive, children))


@LINUX
def test_jobs_of_a_killed_pool_save_and_stop(tmp_path):
    parent, children = start_parent(tmp_path)
    parent.kill()
    parent.wait()
    until(lambda: not any(map(alive, children)))
    for n in (0, 1):
        assert (tmp_path / f"{n}.signals").read_text().split()[1:] == ["SIGTERM"]


@LINUX
def test_an_error_of_the_pool_leaves_no_job_behind(tmp_path):
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            if "done" in text:
                raise BrokenPipeError
            return super().write(text)

    signals = tmp_path / "0.signals"
    wait = (
        f"import time, pathlib\nwhile not pathlib.Path({str(signals)!r}).exists(): time.sleep(.05)"
    )
    work = [
        Work("runs", python(WITNESS, signals, "saves"), tmp_path / "0.log"),
        Work("ends", python(wait), tmp_path / "1.log"),
    ]
    with pytest.raises(BrokenPipeError):
        Pool([{}, {}], Broken()).run(work)
    pid, *received = signals.read_text().split()
    assert not alive(int(pid))
    assert received == ["SIGTERM"]


def test_handlers_come_back_after_a_pool(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    pool({"good": python("")}, tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


# The launcher


ECHO = "import sys; print(sys.argv[1:]); sys.exit('bad' in sys.argv)"


def test_the_launcher_names_jobs_and_logs_as_it_is_told(tmp_path, capfd):
    found = launcher(tmp_path, ECHO)
    found.describe = lambda overrides: (
        f"title of {overrides[0]}",
        tmp_path / f"{overrides[0]}.x",
        None,
    )
    good, bad = found.launch([["good"], ["bad"]], initial_job_idx=0)
    assert (good.status, bad.status) == (JobStatus.COMPLETED, JobStatus.FAILED)
    assert good.return_value == 0
    with pytest.raises(ChildProcessError, match="title of bad: exit 1"):
        _ = bad.return_value
    shown = capfd.readouterr().out
    assert f"[2/2] title of bad: started (log {tmp_path / 'bad.x'})" in shown


def test_without_being_told_the_overrides_are_the_title(tmp_path, capfd):
    launcher(tmp_path, ECHO).launch([["lr=0.1", "seed=3"]], initial_job_idx=5)
    assert "[1/1] lr=0.1 seed=3: started" in capfd.readouterr().out
    assert "['lr=0.1', 'seed=3']" in (tmp_path / "5.log").read_text()


def test_jobs_get_their_parents_config_folder_and_what_it_says_of_single_jobs(tmp_path):
    given = [
        *("hydra/launcher=pool", "hydra.launcher.jobs=2", "hydra.sweeper.plan=false"),
        *("hydra.sweep.dir=x", "hydra.mode=MULTIRUN", "+hydra.job.env_set.A=1"),
    ]
    found = launcher(tmp_path, ECHO, *given, own="/my/conf")
    found.launch([["seed=3"]], initial_job_idx=0)
    expected = ["--config-dir", "/my/conf", "+hydra.job.env_set.A=1", "seed=3"]
    assert str(expected) in (tmp_path / "0.log").read_text()


def test_our_settings_take_the_place_of_hydras_and_the_plugins():
    register_launchers()
    options = ConfigStore.instance().list("hydra/launcher")
    ours = {"basic", "pool", "joblib", "submitit_local", "submitit_slurm", "ray"}
    assert ours <= {name.removesuffix(".yaml") for name in options}
    basic = ConfigStore.instance().load("hydra/launcher/basic.yaml").node
    assert basic._target_.endswith("PoolLauncher")
    assert basic.jobs == 1


@pytest.mark.parametrize("name", ["basic", "pool", *EXTRAS])
def test_every_launcher_takes_its_settings(name):
    if missing_extra(name):
        pytest.skip(f"the extra of {name} is not installed")
    register_launchers()
    node = ConfigStore.instance().load(f"hydra/launcher/{name}.yaml").node
    settings = {str(key): value for key, value in node.items_ex(resolve=False)}
    launcher = get_class(settings.pop("_target_"))
    inspect.signature(launcher).bind(**settings)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("ablation.sweeps.launchers.find_spec", lambda name: None)
    assert missing_extra("basic") is None
    assert missing_extra("joblib") is None
    assert missing_extra("ray") == (
        "hydra/launcher=ray is not installed: pip install 'ablation[ray]'"
    )
    assert "pip install 'ablation[slurm]'" in str(missing_extra("submitit_slurm"))
    monkeypatch.setattr("ablation.sweeps.launchers.find_spec", lambda name: object())
    assert [missing_extra(name) for name in EXTRAS] == [None] * len(EXTRAS)


# Signals of a scheduler


def interrupted_by(*numbers: signal.Signals) -> Callable[[Callable[[], bool]], None]:
    """Work that stops at the first signal, and is done when it is tried again."""
    left = [numbers]

    def work(stop: Callable[[], bool]) -> None:
        for number in left.pop() if left else ():
            os.kill(os.getpid(), number)
        if stop():
            raise InterruptedRunError("stopped and saved")

    return work


@pytest.fixture
def handled(monkeypatch, tmp_path):
    """Installs a handler for each given signal; the list of what they saw."""
    seen: list[tuple[str, str]] = []
    before = {}

    def install(run: Run, **answers: type[BaseException] | None) -> list[tuple[str, str]]:
        for name, answer in answers.items():

            def handler(number, frame, answer=answer):
                state = json.loads((run.path / "status.json").read_text())["state"]
                seen.append((signal.Signals(number).name, state))
                if answer is not None:
                    raise answer

            number = getattr(signal, name)
            before[number] = signal.signal(number, handler)
        return seen

    yield install
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "digits-cnn-at-s0-aaaaaaaaaa", "aaaaaaaaaa")


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2"])
def test_a_schedulers_handler_gets_its_signal_when_the_run_is_saved(run, handled, name):
    seen = handled(run, **{name: SystemExit})
    with run.open("{}"), pytest.raises(SystemExit):
        supervise.supervised(run, interrupted_by(getattr(signal, name)))
    assert seen == [(name, "interrupted")]
    assert run.status().state == "interrupted"


def test_a_job_goes_on_when_its_scheduler_lets_the_signal_pass(run, handled):
    seen = handled(run, SIGTERM=None)
    with run.open("{}"):
        assert supervise.supervised(run, interrupted_by(signal.SIGTERM)) == DONE
    assert seen == [("SIGTERM", "interrupted")]
    assert run.status().state == "done"


def test_of_several_signals_none_is_lost(run, handled):
    seen = handled(run, SIGTERM=None, SIGUSR2=SystemExit)
    with run.open("{}"), pytest.raises(SystemExit):
        supervise.supervised(run, interrupted_by(signal.SIGTERM, signal.SIGUSR2))
    assert [name for name, _ in seen] == ["SIGTERM", "SIGUSR2"]


def test_a_persons_ctrl_c_goes_to_no_scheduler(run, handled):
    seen = handled(run, SIGINT=SystemExit, SIGTERM=SystemExit)
    with run.open("{}"):
        code = supervise.supervised(run, interrupted_by(signal.SIGINT, signal.SIGTERM))
    assert (code, seen) == (INTERRUPTED, [])


def test_without_a_scheduler_a_stopped_run_is_just_interrupted(run):
    with run.open("{}"):
        assert supervise.supervised(run, interrupted_by(signal.SIGTERM)) == INTERRUPTED


# Real jobs

QUICK = ("tracking.mode=disabled", "attack.steps=1", "selection.every=60", "evaluation.n=9")


def train(*arguments: str, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    """``ablation-train``, its output in ``cwd/out``."""
    with (cwd / "out").open("w") as out:
        return subprocess.Popen(
            [str(BIN / "ablation-train"), *arguments],
            cwd=cwd,
            env={**os.environ, **environment},
            start_new_session=True,  # its signals are not ours
            text=True,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def statuses(folder: Path) -> dict[str, dict[str, object]]:
    """By seed, of the runs that have begun to train."""
    paths = folder.glob("runs/*/metrics.jsonl")
    found = {path.parent.name.split("-")[3]: path.parent / "status.json" for path in paths}
    return {seed: json.loads(path.read_text()) for seed, path in found.items()}


def epochs(folder: Path, seed: int) -> list[int]:
    (path,) = folder.glob(f"runs/*-s{seed}-*/metrics.jsonl")
    return [json.loads(line)["epoch"] for line in path.read_text().splitlines()]


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("name", ["pool", "joblib"])
def test_a_killed_worker_loses_no_finished_run_and_the_same_command_completes(tmp_path, name):
    number = "hydra.launcher.jobs=2" if name == "pool" else "hydra.launcher.n_jobs=2"
    command = ("-m", f"hydra/launcher={name}", number, "seed=0,1,2", "epochs=60", *QUICK)
    sweep = train(*command, cwd=tmp_path)
    until(lambda: "s2" in statuses(tmp_path), 180)  # so that one is done
    os.kill(int(str(statuses(tmp_path)["s2"]["pid"])), signal.SIGKILL)
    assert sweep.wait(180) == 3, (tmp_path / "out").read_text()
    states = [status["state"] for status in statuses(tmp_path).values()]
    assert "done" in states
    if name == "pool":
        assert states.count("done") == 2
        assert "FAILED (killed by SIGKILL)" in (tmp_path / "out").read_text()
    assert train(*command, cwd=tmp_path).wait(180) == DONE, (tmp_path / "out").read_text()
    assert [status["state"] for status in statuses(tmp_path).values()] == ["done"] * 3
    assert all(epochs(tmp_path, seed) == list(range(60)) for seed in range(3))


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("name", ["pool", "joblib"])
@pytest.mark.parametrize("whose", ["kill's", "a terminal's"])
def test_ctrl_c_on_real_jobs_saves_them_and_the_same_command_completes(tmp_path, name, whose):
    own = tmp_path / "own" / "method"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("defaults: [at, _self_]\nname: mine\n")
    command = (
        *("--config-dir", str(own.parent), "-m", f"hydra/launcher={name}"),
        "hydra.launcher.jobs=2" if name == "pool" else "hydra.launcher.n_jobs=2",
        *("method=mine", "seed=0,1,2", "epochs=60", *QUICK),
    )
    sweep = train(*command, cwd=tmp_path)
    until(lambda: len(statuses(tmp_path)) == 2, 180)
    if whose == "kill's":
        sweep.send_signal(signal.SIGINT)
    else:  # it reaches the whole group, the launcher's workers too
        os.killpg(sweep.pid, signal.SIGINT)
    assert sweep.wait(60) == INTERRUPTED, (tmp_path / "out").read_text()
    found = list(statuses(tmp_path).values())
    assert {str(status["state"]) for status in found} <= {"interrupted", "done"}
    assert any("stopped after step" in str(status["error"]) for status in found)
    assert not any(Path(f"/proc/{status['pid']}").exists() for status in found)
    assert train(*command, cwd=tmp_path).wait(300) == DONE, (tmp_path / "out").read_text()
    assert all(epochs(tmp_path, seed) == list(range(60)) for seed in range(3))


# Launchers of the extras


@pytest.mark.extra
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"),
    [("submitit_local", "hydra_plugins.hydra_submitit_launcher"),
     ("ray", "hydra_plugins.hydra_ray_launcher")],
)  # fmt: skip
def test_an_extras_launcher_runs_our_jobs(tmp_path, name, module):
    pytest.importorskip(module)
    sweep = train(
        *("-m", f"hydra/launcher={name}", "seed=0,1", "epochs=2", *QUICK),
        cwd=tmp_path,
        RAY_AUTH_MODE="disabled",
    )
    assert sweep.wait(300) == DONE, (tmp_path / "out").read_text()
    assert {name: s["state"] for name, s in statuses(tmp_path).items()} == dict.fromkeys(
        ["s0", "s1"], "done"
    )


SLURM = {
    "sbatch": """
cp "$1" "$FAKE/script"
[ -e "$FAKE/only_text" ] && exit 1
while :; do
    rm -f "$FAKE/requeued"
    SLURM_JOB_ID=7 SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 \\
        SLURM_LOCALID=0 SLURM_JOB_NODELIST=here sh "$FAKE/script"
    [ -e "$FAKE/requeued" ] || break
done > "$FAKE/out" 2>&1 &
echo Submitted batch job 7
""",
    "srun": """
while [ "${1#-}" != "$1" ]; do
    [ "$1" = --output ] && { log=$(echo "$2" | sed 's/%j/7/g; s/%t/0/g'); shift; }
    shift
done
exec "$@" >> "$log" 2>&1
""",
    "scontrol": 'touch "$FAKE/requeued"',
    "sacct": 'echo "JobID|State|NodeList"; echo "7|RUNNING|here"',
}
"""A cluster of one job: it runs a script at once, and again if that was put back in the queue."""


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.mark.extra
@pytest.mark.slow
def test_what_slurm_is_asked_for(slurm, tmp_path):
    (slurm / "only_text").touch()
    sweep = train("-m", "hydra/launcher=submitit_slurm", "seed=0,1", *QUICK, cwd=tmp_path)
    assert sweep.wait(120) == 3
    text = (slurm / "script").read_text()
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines() if "#SBATCH" in line}
    assert {
        *("array=0-1%2", "time=1440", "signal=USR2@120", "requeue", "open-mode=append"),
        *("gpus-per-node=1", "cpus-per-task=4", "ntasks-per-node=1", "nodes=1"),
        *("job-name=ablation",),
    } <= asked
    assert not any(line.startswith(("error=", "mem=", "partition=")) for line in asked)


@pytest.mark.extra
@pytest.mark.slow
def test_a_dry_launcher_shows_what_slurm_would_be_asked_for(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    monkeypatch.setenv("PATH", str(BIN))  # no SLURM here
    asked = ("-m", "hydra/launcher=submitit_slurm", "seed=0,1", *QUICK)
    partition = "hydra.launcher.partition=a100"
    assert train(*asked, "hydra.launcher.dry=true", partition, cwd=tmp_path).wait(120) == DONE
    text = (tmp_path / "out").read_text()
    for line in ("array=0-1%2", "partition=a100", "gpus-per-node=1", "signal=USR2@120"):
        assert f"#SBATCH --{line}" in text
    assert "submitit.core._submit" in text
    assert "# 1: seed=1, digits-tiny_cnn-at-s1-" in text
    assert not (tmp_path / "runs").exists()
    assert train(*asked, cwd=tmp_path).wait(120) == 1
    assert "srun is not on this machine" in (tmp_path / "out").read_text()


@pytest.mark.extra
@pytest.mark.slow
def test_jobs_are_submitted_once_and_the_same_command_shows_the_table(slurm, tmp_path):
    (slurm / "squeue").write_text('#!/bin/sh\n[ -e "$FAKE/over" ] || echo "7|RUNNING"\n')
    (slurm / "squeue").chmod(0o755)
    asked = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.wait=false", "seed=0", *QUICK)
    assert train(*asked, cwd=tmp_path).wait(120) == DONE
    assert "1 job is in SLURM's queue" in (tmp_path / "out").read_text()
    script = (slurm / "script").stat().st_mtime_ns
    assert train(*asked, cwd=tmp_path).wait(120) == DONE
    assert (slurm / "script").stat().st_mtime_ns == script
    until(lambda: [s for s in statuses(tmp_path).values() if s["state"] == "done"], 120)
    (slurm / "over").touch()
    assert train(*asked, cwd=tmp_path).wait(120) == DONE
    assert "sweep: 1 done" in (tmp_path / "out").read_text()


@pytest.mark.extra
@pytest.mark.slow
def test_runs_that_share_a_job_are_saved_queued_again_and_finished_together(
    slurm, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")  # as the cluster would set it
    asked = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.per_gpu=2", "seed=0,1")
    sweep = train(*asked, "epochs=60", "runtime.device=cpu", *QUICK, cwd=tmp_path)
    until(lambda: len(statuses(tmp_path)) == 2, 300)
    before = {name: status["pid"] for name, status in statuses(tmp_path).items()}
    (log,) = tmp_path.glob("runs/.sweep/submitit/*/*.out")
    pack = parent_of(int(str(before["s0"])))
    assert parent_of(int(str(before["s1"]))) == pack
    for number in (signal.SIGTERM, signal.SIGUSR2):
        os.kill(pack, number)
    assert sweep.wait(300) == DONE, (tmp_path / "out").read_text()
    assert "array" not in (slurm / "script").read_text()
    assert "Requeued job" in log.read_text()
    assert all(statuses(tmp_path)[name]["pid"] != pid for name, pid in before.items())
    for seed in (0, 1):
        assert epochs(tmp_path, seed) == list(range(60))
    started = [p.read_text().splitlines()[0] for p in tmp_path.glob("runs/.sweep/*.log")]
    assert all("CUDA_VISIBLE_DEVICES=3" in line for line in started)
    assert len(started) == 2


def parent_of(pid: int) -> int:
    """Number of the process that started another (Linux)."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.extra
@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("name", ["submitit_slurm", "submitit_local"])
def test_a_preempted_job_saves_is_queued_again_and_goes_on(slurm, tmp_path, name):
    sweep = train("-m", f"hydra/launcher={name}", "seed=0", "epochs=60", *QUICK, cwd=tmp_path)
    until(lambda: statuses(tmp_path), 120)
    before = int(str(statuses(tmp_path)["s0"]["pid"]))
    for number in (signal.SIGTERM, signal.SIGUSR2):  # what SLURM sends
        os.kill(before, number)
    assert sweep.wait(200) == DONE, (tmp_path / "out").read_text()
    (log,) = tmp_path.glob("runs/.sweep/submitit/*/*.out")
    assert "stopped after step" in log.read_text()
    assert "Requeued job" in log.read_text()
    assert statuses(tmp_path)["s0"]["pid"] != before
    assert epochs(tmp_path, 0) == list(range(60))
