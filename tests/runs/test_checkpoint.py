"""Checkpoints: what is saved comes back, or the one before does, whatever happens in between."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from ablation.errors import InputError
from ablation.random import generator
from ablation.runs import checkpoint
from ablation.runs.checkpoint import Checkpoints, Snapshot
from ablation.runs.files import atomic_write_bytes, atomic_write_text, sweep_temporaries
from ablation.runs.state_dicts import encode, load_into, load_weights_file

DEAD = 2**22 + 1
"""No process has this number: Linux counts to 2**22."""


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def snapshot(step: int, *, average: bool = True, seed: int = 0) -> Snapshot:
    rng = generator(seed, "snapshot", step)
    weights = {"w": torch.randn(3, 4, generator=rng), "n": torch.tensor(step)}
    train = {
        "optimizer": {"state": {0: {"momentum": torch.randn(5, generator=rng)}}, "lr": 0.1},
        "memory": [{"radius": torch.arange(4.0)}],
        "position": {"step": step, "best": {"best_robust": [31.5, 80.0]}, "phase": None},
    }
    means = {"w": torch.randn(3, 4, generator=rng)} if average else None
    return Snapshot(step, step // 10, weights, means, train)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def equal(a: Snapshot, b: Snapshot) -> bool:
    return all(same(getattr(a, name), getattr(b, name)) for name in vars(a))


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", "0123456789")


def loaded(store: Checkpoints) -> tuple[Snapshot, list[str]]:
    found = store.load_latest()
    assert found is not None
    return found


def fail_with(number: int):
    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("average", [True, False])
def test_a_snapshot_comes_back_bit_for_bit(store, average):
    assert store.load_latest() is None
    before = snapshot(7, average=average)
    assert store.save(before).name == "step_0000007"
    after, warnings = loaded(store)
    assert equal(before, after)
    assert warnings == []


def test_the_newest_two_are_kept(store):
    for step in (5, 10, 100, 20_000_000):
        store.save(snapshot(step))
    assert sorted(path.name for path in store.folder.iterdir()) == [
        "step_0000100",
        "step_20000000",
    ]
    assert loaded(store)[0].step == 20_000_000


def test_the_same_step_may_be_saved_again_without_a_moment_without(store):
    store.save(snapshot(3, seed=1))
    store.save(snapshot(3, seed=2))
    path = store.save(snapshot(3, seed=3))
    assert equal(loaded(store)[0], snapshot(3, seed=3))
    assert path.name == "step_0000003-3"
    store.save(snapshot(4))
    assert len(list(store.folder.iterdir())) == 2


def test_views_shared_and_strided_tensors_are_saved_as_what_they_look_like(store):
    base = torch.arange(1000.0)
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    odd = {"empty": torch.zeros(0, 3), "half": torch.ones(2, dtype=torch.bfloat16)}
    weights = {"a": base[:3], "b": base[:3], "image": image, "bool": base > 3, **odd}
    train = {"view": base[:2], "wide": torch.ones(1).expand(4)}
    path = store.save(Snapshot(1, 0, weights, None, train))
    assert same(loaded(store)[0].weights, weights)
    assert same(loaded(store)[0].train, train)
    assert (path / "train.pt").stat().st_size < 3000


def test_numpy_numbers_and_subclasses_become_plain_types(store):
    import numpy as np

    class Text(str):
        __slots__ = ()

    train = {"a": np.float64(0.5), "b": np.int64(3), "c": Text("x"), "d": (1, [True, None])}
    store.save(Snapshot(1, 0, {}, None, train))
    found = loaded(store)[0].train
    assert found == train
    assert [type(found[key]) for key in "abc"] == [float, int, str]


@pytest.mark.parametrize("value", [object(), Path("x"), {1.5: 2}])
def test_what_cannot_be_loaded_safely_is_not_saved(store, value):
    with pytest.raises(TypeError, match=r"train\.a"):
        store.save(Snapshot(1, 0, {}, None, {"a": value}))
    assert store.load_latest() is None


FILES = ("weights.safetensors", "average.safetensors", "train.pt", "manifest.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["truncate", "empty", "remove"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(store, name, how):
    store.save(snapshot(1))
    path = store.save(snapshot(2)) / name
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: -3 if how == "truncate" else 0])
    found, warnings = loaded(store)
    assert equal(found, snapshot(1))
    assert len(warnings) == 1
    assert "step_0000002 is damaged" in warnings[0]
    assert "going back to the one before" in warnings[0]


def test_any_flipped_bit_is_noticed(store):
    store.save(snapshot(1))
    folder = store.save(snapshot(2))
    choose = random.Random(0)
    for name in FILES:
        content = (folder / name).read_bytes()
        for _ in range(25):
            damaged = bytearray(content)
            place = choose.randrange(len(content))
            damaged[place] ^= 1 << choose.randrange(8)
            (folder / name).write_bytes(damaged)
            found, _ = loaded(store)
            whitespace = name == "manifest.json" and content[place : place + 1].isspace()
            assert found.step == 1 or whitespace
        (folder / name).write_bytes(content)
    assert loaded(store)[0].step == 2


def test_a_damaged_checkpoint_goes_once_a_sound_one_has_taken_its_place(store):
    store.save(snapshot(1))
    (store.save(snapshot(9)) / "train.pt").write_bytes(b"")
    again = Checkpoints(store.folder, store.train_id)
    assert loaded(again)[0].step == 1
    again.save(snapshot(5))
    assert sorted(path.name for path in store.folder.iterdir()) == ["step_0000001", "step_0000005"]
    again.save(snapshot(9))
    assert equal(loaded(again)[0], snapshot(9))


def test_none_intact_names_the_files_and_the_remedy(store):
    for step in (1, 2):
        (store.save(snapshot(step)) / "train.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"step_0000001, step_0000002.*backup.*remove") as caught:
        store.load_latest()
    assert "\n" not in str(caught.value)


def test_another_runs_checkpoint_is_refused(store):
    store.save(snapshot(1))
    store.save_weights("last", {"w": torch.ones(1)}, meta={})
    other = Checkpoints(store.folder, "fedcba9876")
    with pytest.raises(InputError, match=r"belongs to run 0123456789, not to fedcba9876"):
        other.load_latest()
    with pytest.raises(InputError, match=r"belongs to run 0123456789"):
        other.load_weights("last", average=False)


def test_a_newer_format_is_refused_rather_than_passed_over(store, monkeypatch):
    store.save(snapshot(1))
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    store.save(snapshot(2))
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"newer version.*update"):
        store.load_latest()


def test_the_manifest_says_what_wrote_it(store):
    manifest = json.loads((store.save(snapshot(12)) / "manifest.json").read_text())
    assert (manifest["format"], manifest["step"], manifest["epoch"]) == (1, 12, 1)
    assert manifest["train_id"] == "0123456789"
    assert manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert set(manifest["files"]) == set(FILES[:3])


ERRORS = [
    (errno.ENOSPC, r"no space left on .* free space or set runs_dir=.*nothing was lost"),
    (errno.EROFS, r"cannot be written \(Read-only.*set runs_dir="),
    (errno.EIO, r"Input/output error while saving"),
]


@pytest.mark.parametrize("call", ["write", "fsync", "rename", "mkdir"])
@pytest.mark.parametrize(("number", "message"), ERRORS)
def test_a_failing_disk_costs_nothing_but_the_new_checkpoint(
    store, monkeypatch, call, number, message
):
    store.save(snapshot(1))
    monkeypatch.setattr(os, call, fail_with(number))
    with pytest.raises(InputError, match=message) as caught:
        store.save(snapshot(2))
    monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert [path.name for path in store.folder.iterdir()] == ["step_0000001"]
    assert equal(loaded(store)[0], snapshot(1))
    store.save(snapshot(2))
    assert equal(loaded(store)[0], snapshot(2))


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_an_interrupt_cleans_up_and_passes_through(store, monkeypatch, call):
    store.save(snapshot(1))

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, call, interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(snapshot(2))
    monkeypatch.undo()
    assert [path.name for path in store.folder.iterdir()] == ["step_0000001"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_an_atomic_write_leaves_the_old_content_when_it_fails(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    atomic_write_text(path, "old ü")
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))
    with pytest.raises(InputError, match=r"no space left on .* while saving a.json"):
        atomic_write_text(path, "new")
    monkeypatch.undo()
    assert path.read_text("utf-8") == "old ü"
    assert list(tmp_path.iterdir()) == [path]


def test_a_short_write_is_continued(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, content: write(handle, content[:3]))
    atomic_write_bytes(tmp_path / "a", bytes(range(100)))
    assert (tmp_path / "a").read_bytes() == bytes(range(100))


def test_files_get_the_usual_permissions(tmp_path):
    before = os.umask(0o022)
    try:
        atomic_write_bytes(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o644


def test_a_file_in_the_place_of_a_folder_is_named(tmp_path):
    (tmp_path / "runs").write_text("")
    for place in (tmp_path / "runs" / "a", tmp_path / "runs" / "b" / "a"):
        with pytest.raises(InputError, match=rf"{tmp_path}/runs is a file where a folder"):
            atomic_write_bytes(place, b"x")


def test_the_sweep_takes_only_what_the_dead_left(tmp_path):
    names = [f"a.tmp-{DEAD}", f"a.tmp-{os.getpid()}", f"a.tmp-{os.getppid()}", "a.tmp-x", "a"]
    for name in names:
        (tmp_path / name).write_text("")
    half = tmp_path / f"step_1.tmp-{DEAD}"
    half.mkdir()
    (half / "weights.safetensors").write_text("")
    sweep_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(names[2:])


def test_weights_come_back_with_their_metadata(store):
    weights, average = {"w": torch.randn(2, 3)}, {"w": torch.zeros(2, 3)}
    meta = {"epoch": "3", "step": "12", "model": '"cnn"'}
    assert not store.has("best_robust")
    assert store.names() == []
    store.save_weights("best_robust", weights, average, meta=meta)
    store.save_weights("last", weights, meta=meta)
    assert store.names() == ["best_robust", "last"]
    assert store.has("best_robust", average=True)
    assert not store.has("last", average=True)
    assert same(store.load_weights("best_robust", average=False), weights)
    assert same(store.load_weights("best_robust", average=True), average)
    _, found = load_weights_file(store.folder / "best_robust-average.safetensors")
    assert found == {**meta, "train_id": "0123456789", "format": "1"}
    with pytest.raises(InputError, match=r"no averaged weights 'last'; it has: best_robust, last"):
        store.load_weights("last", average=True)


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_a_header_as_long_as_a_pickle_or_a_zip_file_begins(tmp_path, start):
    """One length in 32 has 0x80 as its low byte."""
    path = tmp_path / "last.safetensors"
    for length in range(8, 20_000, 8):
        content = encode({"w": torch.ones(2)}, {"note": "n" * length})
        if content.startswith(start):
            break
    path.write_bytes(content)
    assert content.startswith(start)
    weights, meta = load_weights_file(path)
    assert torch.equal(weights["w"], torch.ones(2))
    assert meta == {"note": "n" * length}


def test_what_was_recorded_is_kept_with_the_weights_of_its_epoch(store, tmp_path):
    weights, meta = {"w": torch.randn(2, 3)}, {"epoch": "3", "step": "12"}
    columns = {"index": torch.tensor([4, 0]), "radius": torch.tensor([0.1, 0.2])}
    assert store.load_recorded("last") is None
    store.save_weights("last", weights, weights, columns, meta=meta)
    assert store.names() == ["last"]
    found = store.load_recorded("last")
    assert found is not None
    assert same(found[0], columns)
    assert found[1] == 3
    other = Checkpoints(tmp_path / "other", "9876543210")
    other.copy_weights(store, "last", averaged=True)
    copied = other.load_recorded("last")
    assert copied is not None
    assert same(copied[0], columns)
    assert copied[1] == 3
    store.save_weights("last", weights, weights, {}, meta={"epoch": "4", "step": "16"})
    assert store.load_recorded("last") is None


@pytest.mark.parametrize("write", ["weights", "recorded"])
def test_what_was_recorded_at_another_step_than_the_weights_is_refused(store, write):
    """As a kill between the two files leaves it."""
    weights, columns = {"w": torch.randn(2)}, {"index": torch.zeros(1), "radius": torch.ones(1)}
    store.save_weights("last", weights, recorded=columns, meta={"epoch": "3", "step": "12"})
    path = store.folder / (
        "last.safetensors" if write == "weights" else "last-recorded.safetensors"
    )
    before = path.read_bytes()
    store.save_weights("last", weights, recorded=columns, meta={"epoch": "4", "step": "16"})
    path.write_bytes(before)
    with pytest.raises(InputError, match=r"last-recorded\.safetensors is of step"):
        store.load_recorded("last")


def test_equal_weights_are_equal_files(tmp_path):
    weights = {f"layer{i}": torch.randn(3, generator=generator(0, "w", i)) for i in range(9)}
    meta = {f"key{i}": str(i) for i in range(9)}
    contents = set()
    for order in (meta, dict(reversed(meta.items()))):
        for folder in (tmp_path / "a", tmp_path / "b"):
            Checkpoints(folder, "0123456789").save_weights("last", weights, meta=order)
            contents.add((folder / "last.safetensors").read_bytes())
    assert len(contents) == 1


def test_damaged_weights_are_refused(store):
    store.save_weights("last", {"w": torch.randn(64)}, meta={"epoch": "1"})
    path = store.folder / "last.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:4], b"", content[:-9] + b"x" + content[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"last\.safetensors is damaged"):
            store.load_weights("last", average=False)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_published_checkpoints_are_unwrapped(tmp_path, wrapper, prefix):
    weights = {"a.weight": torch.ones(2), "module_list.bias": torch.zeros(1)}
    named = {prefix + key: value for key, value in weights.items()}
    path = tmp_path / "model.pt"
    torch.save({wrapper: named, "epoch": 3} if wrapper else named, path)
    found, meta = load_weights_file(path)
    assert same(found, weights)
    assert meta == {}


def test_foreign_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2)}, str(tmp_path / "w.safetensors"), {"sha256": "theirs"})
    weights, meta = load_weights_file(tmp_path / "w.safetensors")
    assert torch.equal(weights["w"], torch.ones(2))
    assert meta == {"sha256": "theirs"}


def test_weights_of_earlier_versions_are_read_and_their_checksum_is_checked(tmp_path):
    """A metadata key per entry, among them the checksum."""
    header = (
        b'{"__metadata__":{"epoch":"4","format":"1","ablation_sha256":'
        b'"ff89f622e9cb6770f5f2ac88413f3b1e04bd8047dc91e4f54da697cd6a87e53f"},'
        b'"n":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
        b'"w":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]}}    '
    )
    data = b"\x03\x00\x00\x00\x00\x00\x00\x00\x00\x00\xc0?\x00\x00\x00\xc0"
    path = tmp_path / "w.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + data)
    weights, meta = load_weights_file(path)
    assert same(weights, {"w": torch.tensor([[1.5, -2.0]]), "n": torch.tensor(3)})
    assert meta == {"epoch": "4", "format": "1"}
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[:-1] + b"\xc1")
    with pytest.raises(InputError, match="sha256"):
        load_weights_file(path)


def test_equal_weights_are_equal_files_with_one_key_of_metadata(tmp_path, store):
    meta = dict.fromkeys("abcdefgh", "1")
    for name in ("last", "best_clean"):
        store.save_weights(name, {"w": torch.ones(2)}, meta=meta)
    contents = [path.read_bytes() for path in store.folder.glob("*.safetensors")]
    assert contents[0] == contents[1]
    header = json.loads(contents[0][8 : 8 + int.from_bytes(contents[0][:8], "little")])
    assert list(header["__metadata__"]) == ["ablation"]


class Malicious:
    def __reduce__(self):
        return (os.system, ("echo owned > owned",))


def test_pickled_objects_are_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number, value in enumerate([Malicious(), argparse.Namespace(lr=0.1)]):
        path = tmp_path / f"{number}.pt"
        torch.save({"state_dict": {"w": torch.ones(1)}, "args": value}, path)
        with pytest.raises(InputError, match=r"holds pickled objects .*state dict") as caught:
            load_weights_file(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n <!DOCTYPE html><html>Sign in</html>", r"is a web page, not weights: download"),
        (b"version https://git-lfs.github.com/spec/v1\noid", r"Git LFS pointer.*git lfs pull"),
        (b"PK\x03\x04 truncated", r"is damaged or not a file of weights"),
        (b"\x80\x02 truncated", r"is damaged or not a file of weights"),
        (b"", r"is damaged or not a file of weights"),
        (b"hello, this is text", r"is damaged or not a file of weights"),
    ],
)
def test_files_that_are_no_weights_say_what_they_are(tmp_path, content, message):
    path = tmp_path / "w.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_weights_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_other_contents(tmp_path):
    with pytest.raises(InputError, match=r"No such file.*check the path"):
        load_weights_file(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"is a folder"):
        load_weights_file(tmp_path)
    torch.save({"epoch": 3, "w": torch.ones(1)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"'epoch' is int, not a tensor"):
        load_weights_file(tmp_path / "a.pt")
    torch.save([1, 2], tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"holds no state dict"):
        load_weights_file(tmp_path / "b.pt")


def test_weights_go_into_a_network_and_leave_its_memory_format(store):
    source, target = network(), network()
    target = target.to(memory_format=torch.channels_last)
    strides = target.get_parameter("0.weight").stride()
    store.save_weights("last", source.state_dict(), meta={})
    load_into(target, store.load_weights("last", average=False), "last")
    assert same(source.state_dict(), target.state_dict())
    assert target.get_parameter("0.weight").stride() == strides
    assert strides[1] == 1


def test_weights_of_another_model_change_nothing(store):
    net, weights = network(), network().state_dict()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    wrong = {f"x{key}" if "1." in key else key: value for key, value in weights.items()}
    wrong["3.weight"] = torch.zeros(10, 4)
    with pytest.raises(InputError) as caught:
        load_into(net, wrong, "model.pt")
    assert str(caught.value) == (
        "model.pt does not fit this model "
        "(missing: 1.weight [4], 1.bias [4], 1.running_mean [4] and 2 more; "
        "unexpected: x1.weight [4], x1.bias [4], x1.running_mean [4] and 2 more; "
        "of another shape: 3.weight is [10, 4] there and [2, 4] in the model); "
        "set model=... and model.head=... to what the weights were trained with"
    )
    assert same(before, dict(net.state_dict()))


def save_for_ever(folder: Path, size: int, step: int, pipe: int) -> None:
    """The victim: saves and tells the parent each step that is durable."""
    try:
        torch.set_num_threads(1)  # a fork has none of its parent's threads
        store = Checkpoints(folder, "0123456789")
        store.sweep()
        while True:
            step += 1
            state = torch.full((size,), float(step))
            store.save(Snapshot(step, step, {"w": state}, {"w": state}, {"m": state}))
            store.save_weights("last", {"w": state}, meta={})
            os.write(pipe, step.to_bytes(8, "little"))
    finally:
        os._exit(1)


def kill_while_saving(folder: Path, kills: int, size: int, seed: int) -> None:
    choose, last = random.Random(seed), 0
    store = Checkpoints(folder, "0123456789")
    for _ in range(kills):
        reader, writer = os.pipe()
        victim = os.fork()
        if victim == 0:
            save_for_ever(folder, size, last, writer)
        os.close(writer)
        told = [os.read(reader, 8)]
        time.sleep(choose.uniform(0.0, 0.08))
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        while told[-1]:
            told.append(os.read(reader, 8))
        os.close(reader)
        durable = int.from_bytes(told[-2], "little")
        assert durable > last
        found, warnings = loaded(store)
        assert warnings == []
        assert found.step in (durable, durable + 1)
        assert found.average is not None
        for tensor in (found.weights["w"], found.average["w"], found.train["m"]):
            assert (tensor == float(found.step)).all()
        assert store.load_weights("last", average=False)["w"][0] in (durable, durable + 1)
        last = found.step
    store.sweep()
    assert not list(folder.glob("*.tmp-*"))
    assert sum(path.is_dir() for path in folder.iterdir()) <= 3


def test_a_kill_while_saving_leaves_a_checkpoint_to_load(tmp_path):
    kill_while_saving(tmp_path, kills=10, size=200_000, seed=0)


@pytest.mark.slow
def test_many_kills_while_saving_leave_a_checkpoint_to_load(tmp_path):
    kill_while_saving(tmp_path, kills=100, size=1_000_000, seed=1)
