"""``ablation-runs`` as a user meets it: what it lists, compares, archives, deletes and refuses."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hydra import compose
from hydra.core.global_hydra import GlobalHydra

from ablation.commands import cli, runs
from ablation.config.compose import to_plain
from ablation.config.overrides import letting_in
from ablation.errors import BAD_INPUT, DONE, JOB_FAILED, ConfigError, InputError
from ablation.reports.run_list import bytes_of, seconds_of, span
from ablation.runs.directory import Run
from ablation.runs.launches import Launch
from ablation.runs.status import utc_now
from tests.support.archives import unpack
from tests.support.configs import compose_config
from tests.support.fake_runs import fake_run


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """AT and TRADES for a table, one failed run with AWP."""
    folder: Path = tmp_path_factory.mktemp("original")
    for method, extra, state in (
        ("at", [], "done"),
        ("trades", ["seed=1"], "done"),
        ("trades", ["component/awp=enabled", "eps=8/255"], "failed"),
    ):
        config = compose_config(f"method={method}", *extra, f"runs_dir={folder}")
        launch = Launch(config.train_id, "demo", [method]) if state == "done" else None
        run = fake_run(config, {"clean": 90.0}, state=state, launch=launch)
        for epoch in range(3):
            run.log({"epoch": epoch})
    return folder


@pytest.fixture
def place(original, tmp_path) -> Path:
    """A copy, to do with as one likes."""
    return Path(shutil.copytree(original, tmp_path / "runs"))


def go(folder: Path, *arguments: str) -> int:
    texts = runs.take_in([*arguments, f"runs_dir={folder}"])
    with cli.searching(None):
        container = to_plain(compose("runs", [letting_in(text) for text in texts]))
    try:
        return runs.run(container)
    finally:
        GlobalHydra.instance().clear()


def named(folder: Path, part: str) -> Run:
    (path,) = (p for p in folder.iterdir() if part in p.name)
    return Run.at(path)


def test_runs_are_listed_with_state_epochs_size_and_table(place, capsys):
    assert go(place) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "state", "epochs", "size", "age", "table"]
    rows = {line.split()[0]: line.split() for line in lines[2:-1]}
    assert len(rows) == 3
    done = next(row for name, row in rows.items() if "-at-" in name)
    assert done[1:3] == ["done", "3/30"]
    assert done[-1] == "demo/at"
    assert [row[1] for row in rows.values()].count("failed") == 1
    assert lines[-1].startswith("3 runs, ")


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        (["state=failed"], 1),
        (["state=failed,done"], 3),
        (["table=demo"], 2),
        (["table=demo/at"], 1),
        (["method=trades"], 2),
        (["method=trades", "seed=1"], 1),
        (["seed=0,1"], 3),
        (["component/awp=enabled"], 1),
        (["component.awp=disabled"], 2),
        (["component.awp.gamma=0.01"], 1),
        (["eps=8/255"], 1),
        (["schedule=cosine", "average=none"], 3),
        (["run='*-at-*'"], 1),
        (["older=1d"], 0),
        (["older=0m", "larger=1kB"], 3),
        (["larger=1TB"], 0),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_filters_choose(place, filters, count, capsys):
    assert go(place, *filters, "format=json") == DONE
    found = json.loads(capsys.readouterr().out)
    assert len(found) == count
    assert all(entry["bytes"] > 0 and entry["epochs"] == 3 for entry in found)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["methd=trades"], "methd=: no run there has this key; did you mean method?"),
        (["state=faild"], "state=faild: no such state; did you mean failed?"),
        (["older=3x"], "older=3x: write a number with m, h, d or w"),
        (["larger=much"], "larger=much: write a number with kB, MB, GB or TB"),
        (["delete=true"], "delete=true: say of which runs"),
        (["archive=old.tar"], "archive=old.tar: say of which runs"),
        (["yes=true"], "yes=true: only with delete=true or archive="),
        (["diff=a"], "diff=: give two runs"),
        (["diff=a,b", "seed=0"], "diff=: goes with runs_dir= and format= alone"),
        (["state=failed", "delete=true", "format=json"], "format=json: for lists"),
        (["diff=a,b"], "diff=a: no run in runs_dir"),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, list) else "",
)
def test_what_is_wrong_is_said_and_nothing_touched(place, arguments, why):
    with pytest.raises(InputError) as error:
        go(place, *arguments)
    assert why in str(error.value)
    assert len(list(place.iterdir())) == 3


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"runs_dir=.*nowhere: no such folder"):
        go(tmp_path / "nowhere")


def test_damaged_and_strange_runs_are_lines_not_ends(place, capsys):
    (named(place, "-at-").path / "config.yaml").write_text("[")
    with (named(place, "-trades-s1").path / "metrics.jsonl").open("r+") as file:
        file.write("!")
    (place / "notes").mkdir()
    assert go(place) == DONE
    out = capsys.readouterr()
    (line,) = (line for line in out.out.splitlines() if "-at-" in line)
    assert line.split()[1:3] == ["damaged", "3/?"]
    assert "config.yaml cannot be read" in out.err
    assert "metrics.jsonl: line 1 is damaged" in out.err
    assert "notes" not in out.out


def test_without_a_word_nothing_is_deleted(place, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert go(place, "state=failed", "delete=true") == BAD_INPUT
    out = capsys.readouterr()
    assert "1 run, " in out.out
    assert "add yes=true" in out.err
    assert len(list(place.iterdir())) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "left"), [("\n", 3), ("n\n", 3), ("", 3), ("y\n", 2)])
def test_a_terminal_is_asked(place, monkeypatch, answer, left):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert go(place, "state=failed", "delete=true") == DONE
    assert len(list(place.iterdir())) == left


def test_what_is_named_is_archived_and_then_deleted(place, tmp_path, capsys):
    target = tmp_path / "old.tar.gz"
    assert go(place, "method=trades", f"archive={target}", "yes=true") == DONE
    assert len(list(place.iterdir())) == 3
    assert "archived 2 to" in capsys.readouterr().out
    target.unlink()
    assert go(place, "method=trades", f"archive={target}", "delete=true", "yes=true") == DONE
    assert [path.name for path in place.iterdir()] == [named(place, "-at-").path.name]
    unpack(target, place)
    assert go(place) == DONE
    assert "3 runs" in capsys.readouterr().out


def test_an_archive_that_fails_deletes_nothing(place, tmp_path):
    target = tmp_path / "old.tar.gz"
    target.write_text("mine")
    with pytest.raises(InputError, match="exists, and stays as it is"):
        go(place, "method=trades", f"archive={target}", "delete=true", "yes=true")
    assert len(list(place.iterdir())) == 3
    assert target.read_text() == "mine"


def test_a_running_run_and_a_link_are_left_out_by_name(place, tmp_path, capsys):
    busy = named(place, "-at-")
    link = place / busy.path.name.replace("-s0-", "-s9-")
    link.symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "config.yaml").write_text("seed: 9\n")
    with busy.open((busy.path / "config.yaml").read_text()):
        assert go(place, "run='*'", "delete=true", "yes=true") == JOB_FAILED
    err = capsys.readouterr().err
    assert f"left out: {busy.path.name}: running: pid " in err
    assert f"left out: {link.name}: a link, which is not followed" in err
    assert {path.name for path in place.iterdir()} == {busy.path.name, link.name}
    assert (tmp_path / "config.yaml").is_file()


def test_a_run_on_another_machine_is_elsewhere_and_stays(place, capsys):
    run = named(place, "-at-")
    record = json.loads((run.path / "status.json").read_text())
    alive = {"state": "running", "host": "elsewhere", "heartbeat": utc_now()}
    (run.path / "status.json").write_text(json.dumps({**record, **alive}))
    assert go(place, "state=elsewhere", "delete=true", "yes=true") == JOB_FAILED
    assert "left out" in capsys.readouterr().err
    assert run.path.is_dir()


def test_a_run_that_another_starts_from_stays_unless_both_go(place, capsys):
    parent = named(place, "-at-")
    child = compose_config("method=at", "seed=5", f"runs_dir={place}")
    fake_run(replace(child, init_from=str(parent.path)), {"clean": 90.0})
    assert go(place, "method=at", "seed=0", "delete=true", "yes=true") == JOB_FAILED
    assert "starts from it (init_from); name that too" in capsys.readouterr().err
    assert parent.path.is_dir()
    assert go(place, "method=at", "delete=true", "yes=true") == DONE
    assert not parent.path.exists()


def test_a_longer_run_is_told_that_its_parent_goes(place, capsys):
    parent, longer = named(place, "-at-"), named(place, "-trades-s1")
    longer.note(parent=parent.path.name)
    assert go(place, "method=at", "delete=true", "yes=true") == DONE
    assert f"note: {longer.path.name} went on from {parent.path.name}" in capsys.readouterr().out


def test_a_difference_is_told_by_key_and_id(place, capsys):
    a, b = named(place, "-at-"), named(place, "-trades-s1")
    assert go(place, f"diff={a.path.name},{b.train_id}") == DONE
    out = capsys.readouterr().out
    assert f"A {a.path.name}\nB {b.path.name}" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["method.name", "at", "trades"] in rows
    assert ["seed", "0", "1"] in rows
    assert f"train_id {a.train_id} | {b.train_id}" in out
    assert "changes no weights" not in out


def test_runs_that_differ_in_their_evaluation_alone_train_alike(place, tmp_path, capsys):
    a = named(place, "-at-")
    other = tmp_path / "other" / a.path.name
    shutil.copytree(a.path, other)
    saved = yaml.safe_load((other / "config.yaml").read_text())
    saved["evaluation"]["n"] = 77
    (other / "config.yaml").write_text(yaml.safe_dump(saved))
    assert go(place, f"diff={a.path},{other}") == DONE
    out = capsys.readouterr().out
    assert "changes no weights\nkey" in out
    assert "Only the evaluation differs: both have the same weights." in out
    assert "eval_id" in out
    assert go(place, f"diff={a.path},{other}", "format=json") == DONE
    found = json.loads(capsys.readouterr().out)
    assert found["differences"] == [{"key": "evaluation.n", "a": None, "b": 77, "trains": False}]
    assert found["train_ids"][0] == found["train_ids"][1]
    assert found["eval_ids"][0] != found["eval_ids"][1]
    assert go(place, f"diff={a.path},{a.path}") == DONE
    assert "The configs are equal." in capsys.readouterr().out


def test_a_switched_component_is_not_all_its_keys_null(place, capsys):
    (with_awp,) = (p for p in place.iterdir() if "-trades-s0" in p.name)
    assert go(place, f"diff={named(place, '-trades-s1').path},{with_awp}") == DONE
    out = capsys.readouterr().out
    assert ["component.awp.gamma", "-", "0.01"] in [line.split() for line in out.splitlines()]


def test_spans_and_sizes_are_read():
    assert [seconds_of(text) for text in ("90m", "2h", "1.5d", "2w")] == [
        *(5400, 7200, 129_600, 1_209_600),
    ]
    assert [bytes_of(text) for text in ("7", "2kB", "1.5GB", "1T")] == [7, 2000, 1.5e9, 1e12]
    assert [span(seconds) for seconds in (5, 120, 7200, 3 * 86_400)] == ["5s", "2m", "2h", "3d"]


def test_all_filters_but_none_is_all():
    with pytest.raises(ConfigError):
        go(Path(), "delete=true", "yes=true")
