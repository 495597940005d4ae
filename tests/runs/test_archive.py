"""Archives hold every byte or are not there; only runs that nobody works on are removed."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from ablation.errors import InputError
from ablation.runs import archive
from ablation.runs.archive import remove, size_of
from ablation.runs.directory import Run, find_runs
from tests.support.archives import unpack

FILES = {"config.yaml": b"seed: 0\n", "checkpoints/last.safetensors": bytes(range(256)) * 5000}


@pytest.fixture
def run(tmp_path) -> Run:
    return made(tmp_path / "runs" / "digits-mlp-at-s0-0123456789")


def made(path: Path) -> Run:
    for name, content in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return Run.at(path)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("name", ["old.tar.gz", "old.tgz", "old.tar", "old"])
def test_an_archive_gives_back_every_byte(run, tmp_path, name):
    other = made(run.path.with_name("digits-mlp-at-s1-abcdef0123"))
    place = tmp_path / "new" / name
    kept = archive.archive([run, other], place)
    assert len(kept) == 2 * len(FILES)
    assert {path.name for path in place.parent.iterdir()} == {name}
    back = place
    if place.is_file():
        back = tmp_path / "back"
        unpack(place, back)
    for each in (run, other):
        assert contents(back / each.path.name) == contents(each.path) == FILES
    assert {path.name for path in back.iterdir()} == {run.path.name, other.path.name}


@pytest.mark.parametrize("name", ["old.tar.gz", "old"])
def test_what_is_there_stays(run, tmp_path, name):
    place = tmp_path / name
    archive.archive([run], place)
    before = place.read_bytes() if place.is_file() else contents(place)
    with pytest.raises(InputError, match="it exists, and stays as it is"):
        archive.archive([run], place)
    assert before == (place.read_bytes() if place.is_file() else contents(place))
    (tmp_path / "dangling.tar").symlink_to("nowhere")
    with pytest.raises(InputError, match="it exists, and stays as it is"):
        archive.archive([run], tmp_path / "dangling.tar")


@pytest.mark.parametrize("name", ["old.tar.gz", "old"])
def test_a_full_disk_leaves_nothing(run, tmp_path, name, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archive, "_make_durable", full)
    place = tmp_path / "out" / name
    with pytest.raises(InputError, match=r"No space left.*free space, or give another place"):
        archive.archive([run], place)
    assert [path for path in place.parent.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("name", ["old.tar.gz", "old"])
def test_a_byte_that_changed_on_the_way_is_noticed(run, tmp_path, name, monkeypatch):
    right = archive._chunks

    def wrong(path: Path):
        yield from right(path)
        if ".tmp-" in str(path):
            yield b"!"

    monkeypatch.setattr(archive, "_chunks", wrong)
    monkeypatch.setattr(archive, "_packed", lambda *_: "other")
    with pytest.raises(InputError, match="did not arrive as it is on the disk"):
        archive.archive([run], tmp_path / "out" / name)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_link_is_neither_archived_nor_followed(run, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    (run.path / "more").symlink_to(outside)
    with pytest.raises(InputError, match="more is a link, whose content the archive would lack"):
        archive.archive([run], tmp_path / "old.tar")
    remove(run)
    assert not run.path.exists()
    assert (outside / "precious").is_file()
    linked = run.path.with_name("digits-mlp-at-s2-0123456789")
    linked.symlink_to(outside)
    with pytest.raises(InputError, match="is a link, which is not followed"):
        remove(Run.at(linked))
    assert {path.name for path in outside.iterdir()} == {"precious"}


HOLD = """
import sys
from pathlib import Path
from filelock import FileLock
with FileLock(Path(sys.argv[1]) / ".lock"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_run_that_somebody_holds_stays(run, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InputError, match="is being trained or evaluated"):
            remove(run)
        with pytest.raises(InputError, match="is being trained or evaluated"):
            archive.archive([run], tmp_path / "old.tar")
        holder.communicate("")
    assert contents(run.path) == FILES
    assert not (tmp_path / "old.tar").exists()
    remove(run)
    assert list(run.path.parent.iterdir()) == []


def test_a_run_that_changed_since_it_was_kept_stays(run, tmp_path):
    kept = archive.archive([run], tmp_path / "old.tar")
    (run.path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="changed since it was archived, and stays"):
        remove(run, kept)
    assert run.path.is_dir()
    (run.path / "metrics.jsonl").unlink()
    remove(run, kept)
    assert not run.path.exists()


def test_a_kill_half_way_leaves_no_half_a_run(run, monkeypatch):
    def broken(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("shutil.rmtree", broken)
    with pytest.raises(InputError, match="cannot be removed"):
        remove(run)
    assert list(find_runs(run.path.parent)) == []


def test_sizes_count_bytes_and_no_links(run, tmp_path):
    whole = sum(map(len, FILES.values()))
    assert size_of(run.path) == whole
    (tmp_path / "big").write_bytes(bytes(10**6))
    (run.path / "link").symlink_to(tmp_path / "big")
    assert whole < size_of(run.path) < whole + 1000
