from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor

from ablation.config.parser import Parser
from ablation.data import (
    Cifar10,
    Cifar100,
    DeviceLoader,
    Digits,
    ImageFolder,
    ImageSet,
    Mnist,
    OwnImages,
    Parquet,
    Source,
    Split,
    Svhn,
    TinyImageNet,
    check_labels,
    crop_flip,
    encode_split,
    load_split,
    stratified_split,
    tiny_imagenet,
    to_float,
)
from ablation.errors import InputError
from tests.support import data_files as files

CONF = Path(__file__).parents[2] / "conf" / "data"
REAL = Path(
    os.environ.get("ABLATION_TEST_DATA", str(Path(__file__).parents[3] / "shared" / "data"))
)


def real(name: str) -> Path:
    if not (REAL / name).is_dir():
        pytest.skip(f"{name} is not there; set ABLATION_TEST_DATA")
    return REAL / name


def some_images(n: int = 20, c: int = 3, size: int = 8, classes: int = 4) -> ImageSet:
    return ImageSet(torch.from_numpy(files.pixels(n, c, size, size)), torch.arange(n) % classes)


def refusal(source: Source, root: Path) -> str:
    """The message of a load that must fail: one line."""
    with pytest.raises(InputError) as caught:
        source.load(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ImageSet -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), "give uint8"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2).long(), r"\[N, C, H, W\]"),
        (
            torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
            torch.zeros(3).long(),
            r"int64 of shape \[2\]",
        ),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2).int(), "give int64"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.uint8), torch.zeros(0).long(), "no pixel"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, -1]), "label -1 of image 1"),
    ],
)
def test_image_set_refuses_what_is_not_one(images, labels, message):
    with pytest.raises(InputError, match=message):
        ImageSet(images, labels)


def test_fingerprint_depends_on_content_and_order_only():
    data = some_images()
    assert len(data.fingerprint()) == 16
    strided = data.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert ImageSet(strided, data.labels).fingerprint() == data.fingerprint()
    pixel = data.images.clone()
    pixel[3, 1, 2, 2] += 1
    others = [
        ImageSet(pixel, data.labels),
        ImageSet(data.images, data.labels.flip(0)),
        data.subset(torch.arange(20).flip(0)),
        data.subset(torch.arange(19)),
        ImageSet(data.images.view(20, 3, 4, 16), data.labels),
    ]
    assert len({data.fingerprint(), *(other.fingerprint() for other in others)}) == 6


def test_subset_keeps_images_and_labels_together():
    data = some_images()
    part = data.subset(torch.tensor([7, 2]))
    assert len(part) == 2
    assert torch.equal(part.images[0], data.images[7])
    assert part.labels.tolist() == [3, 2]


def test_to_float_divides_by_255_and_stays_within_bounds():
    images = torch.arange(256, dtype=torch.uint8).view(1, 4, 8, 8)
    found = to_float(images)
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(255))
    assert (float(found.min()), float(found.max())) == (0.0, 1.0)
    last = to_float(images, torch.float64, channels_last=True)
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, images.double() / 255)
    assert images.dtype == torch.uint8


def test_check_labels_names_found_set_and_remedy():
    check_labels(some_images(classes=4), 4)
    with pytest.raises(InputError, match=r"data.classes=3: .* of 4 classes; set data.classes=4"):
        check_labels(some_images(classes=4), 3)


# Splits ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    share=st.floats(0, 1),
    train_share=st.none() | st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_stratified_split_is_exact_proportional_disjoint(counts, share, train_share, seed):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    n, classes = len(labels), len(counts)
    val_size = int(share * (n - 1))
    val_size = val_size if val_size >= classes else 0
    train_size = None if train_share is None else int(train_share * (n - val_size))
    train_size = train_size if train_size is None or train_size >= classes else None

    split = stratified_split(labels, val_size, seed, train_size)

    assert len(split.val) == val_size
    assert len(split.train) == (n - val_size if train_size is None else train_size)
    both = torch.cat([split.train, split.val])
    assert len(both.unique()) == len(both)
    for part in (split.train, split.val):
        assert part.dtype == torch.int64
        assert torch.equal(part, part.sort().values)
    held = torch.bincount(labels[split.val], minlength=classes)
    assert ((held - torch.tensor(counts) * val_size / n).abs() < 1).all()
    left = torch.tensor(counts) - held
    used = torch.bincount(labels[split.train], minlength=classes)
    assert ((used - left * len(split.train) / (n - val_size)).abs() < 1).all()


def test_split_depends_on_its_seed_and_validation_not_on_train_size():
    labels = torch.arange(200) % 10
    base = stratified_split(labels, 40, seed=0)
    assert torch.equal(stratified_split(labels, 40, seed=0).val, base.val)
    assert not torch.equal(stratified_split(labels, 40, seed=1).val, base.val)
    small = stratified_split(labels, 40, seed=0, train_size=30)
    assert torch.equal(small.val, base.val)
    assert set(small.train.tolist()) < set(base.train.tolist())


@pytest.mark.parametrize(
    ("val_size", "train_size", "message"),
    [
        (20, None, r"data.val_size=20: .* 4 \(one per class\) to 19; .*0 for no validation"),
        (3, None, "data.val_size=3"),
        (-1, None, "data.val_size=-1"),
        (4, 17, r"data.train_size=17: .* 4 \(one per class\) to 16; .*null for all"),
        (4, 0, "data.train_size=0"),
    ],
)
def test_split_sizes_that_do_not_fit_are_refused(val_size, train_size, message):
    with pytest.raises(InputError, match=message):
        stratified_split(torch.arange(20) % 4, val_size, 0, train_size)


def test_split_is_saved_and_loaded(tmp_path):
    split = stratified_split(torch.arange(50) % 5, 10, seed=3)
    (tmp_path / "split.npz").write_bytes(encode_split(split))
    found = load_split(tmp_path / "split.npz")
    assert isinstance(found, Split)
    assert torch.equal(found.train, split.train)
    assert torch.equal(found.val, split.val)
    assert [path.name for path in tmp_path.iterdir()] == ["split.npz"]


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut", b"text"])
def test_damaged_split_is_named(tmp_path, content):
    path = tmp_path / "split.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"split\.npz: not a readable split .*; delete the file"):
        load_split(path)


# Augmentation ---------------------------------------------------------------------------------


def naive_crop_flip(images: Tensor, offsets: Tensor, flip: Tensor, pad: int) -> Tensor:
    n, c, h, w = images.shape
    out = torch.empty_like(images)
    for i in range(n):
        padded = torch.zeros(c, h + 2 * pad, w + 2 * pad, dtype=images.dtype)
        padded[:, pad : pad + h, pad : pad + w] = images[i]
        top, left = offsets[i].tolist()
        window = padded[:, top : top + h, left : left + w]
        out[i] = window.flip(2) if flip[i] else window
    return out


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 6),
    c=st.sampled_from([1, 3]),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    pad=st.integers(0, 5),
    seed=st.integers(0, 1000),
)
def test_crop_flip_agrees_with_one_sample_at_a_time(n, c, h, w, pad, seed):
    rng = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, c, h, w), generator=rng, dtype=torch.uint8)
    offsets = torch.randint(0, 2 * pad + 1, (n, 2), generator=rng)
    flip = torch.randint(0, 2, (n,), generator=rng).bool()
    found = crop_flip(images, offsets, flip, pad)
    assert torch.equal(found, naive_crop_flip(images, offsets, flip, pad))


def test_samples_of_one_batch_get_different_crops():
    # one image, repeated: whatever differs in the batch comes from the augmentation
    image = torch.from_numpy(files.pixels(1, 3, 8, 8)).clamp_min(1)
    data = ImageSet(image.expand(64, 3, 8, 8).contiguous(), torch.zeros(64).long())
    loader = DeviceLoader(data, torch.arange(64), 64, seed=0, augment="crop_flip", device="cpu")
    (batch,) = loader.epoch(0)
    assert len(batch.x.flatten(1).unique(dim=0)) > 40  # of 81 crops, mirrored or not
    (later,) = loader.epoch(1)
    assert not torch.equal(later.x, batch.x)


def test_crops_and_flips_are_uniform():
    data = some_images(4000, c=1, size=1)
    loader = DeviceLoader(data, torch.arange(4000), 100, seed=0, device="cpu")
    offsets, flip = loader._draws(4000, epoch=0)
    counts = torch.stack([torch.bincount(offsets[:, axis], minlength=9) for axis in (0, 1)])
    assert counts.shape == (2, 9)
    assert ((counts - 4000 / 9).abs() < 5 * (4000 / 9) ** 0.5).all()
    assert abs(int(flip.sum()) - 2000) < 160
    assert abs(float(torch.corrcoef(offsets.T.double())[0, 1])) < 0.08


# Loader ---------------------------------------------------------------------------------------


def loader(data: ImageSet, index: Tensor | None = None, **changes: Any) -> DeviceLoader:
    settings: dict[str, Any] = {"batch_size": 4, "seed": 0, "device": "cpu", **changes}
    return DeviceLoader(data, torch.arange(len(data)) if index is None else index, **settings)


def test_an_epoch_visits_every_index_once_with_its_image_and_label():
    data, index = some_images(30), torch.arange(1, 30, 2)
    batches = list(loader(data, index).epoch(0))
    assert [len(batch.y) for batch in batches] == [4, 4, 4, 3]
    seen = torch.cat([batch.index for batch in batches])
    assert not torch.equal(seen, index)
    assert torch.equal(seen.sort().values, index)
    for batch in batches:
        assert torch.equal(batch.x, to_float(data.images[batch.index]))
        assert torch.equal(batch.y, data.labels[batch.index])


def test_drop_last_leaves_out_the_smaller_batch():
    kept = loader(some_images(30), drop_last=True)
    assert len(kept) == 7
    assert [len(batch.y) for batch in kept.epoch(0)] == [4] * 7
    assert len(loader(some_images(28), drop_last=True)) == len(loader(some_images(28))) == 7


def test_epochs_differ_seeds_differ_and_repeat():
    data = some_images(30)

    def epoch(number: int, **changes: Any) -> Tensor:
        found = loader(data, augment="crop_flip", **changes).epoch(number)
        return torch.cat([batch.x.flatten(1) for batch in found])

    assert torch.equal(epoch(0), epoch(0))
    assert torch.equal(epoch(0), epoch(0, batch_size=7))
    assert not torch.equal(epoch(0), epoch(1))
    assert not torch.equal(epoch(0), epoch(0, seed=1))


def test_resuming_within_an_epoch_gives_the_same_batches():
    made = loader(some_images(30), augment="crop_flip")
    whole = list(made.epoch(2))
    for start in (0, 3, 7):
        rest = list(made.epoch(2, start=start))
        assert len(rest) == len(made) - start
        for batch, expected in zip(rest, whole[start:], strict=True):
            assert torch.equal(batch.x, expected.x)
            assert torch.equal(batch.index, expected.index)


def test_loader_makes_the_wanted_dtype_and_format():
    made = loader(some_images(8), dtype=torch.float64, channels_last=True, augment="crop_flip")
    x = next(made.epoch(0)).x
    assert x.dtype == torch.float64
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1


@pytest.mark.parametrize("size", [0, 21])
def test_batch_size_must_fit_the_set(size):
    with pytest.raises(InputError, match=rf"batch_size={size}: .*20 images.*between 1 and 20"):
        loader(some_images(20), batch_size=size)


def test_batches_are_made_without_a_look_at_values(monkeypatch):
    batches = loader(some_images(30), augment="crop_flip", channels_last=True).epoch(0)
    next(batches)  # the draws of the epoch come first

    def refuse(*args: object) -> None:
        raise AssertionError("on a GPU the host would wait here")

    for name in ("__bool__", "__int__", "__float__", "item", "tolist", "nonzero", "cpu", "numpy"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    count = len(list(batches))
    monkeypatch.undo()
    assert count == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_a_gpu_are_those_of_the_cpu_and_need_no_waiting():
    data = some_images(64)
    on_cpu = list(loader(data, augment="crop_flip").epoch(0))
    on_gpu = loader(data, augment="crop_flip", device="cuda").epoch(0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = list(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for gpu, cpu in zip(found, on_cpu, strict=True):
        assert torch.equal(gpu.x.cpu(), cpu.x)
        assert torch.equal(gpu.index.cpu(), cpu.index)


# Digits and torchvision's sets ----------------------------------------------------------------


def test_digits_have_17_levels_and_a_fixed_stratified_test_set(tmp_path):
    assert Digits().check(tmp_path / "absent") == []
    train, test = Digits().load(tmp_path / "absent")
    assert train.images.shape == (1437, 1, 8, 8)
    assert test.images.shape == (360, 1, 8, 8)
    levels = torch.cat([train.images, test.images]).unique()
    assert levels.tolist() == [round(255 * v / 16) for v in range(17)]
    assert int(torch.bincount(test.labels).min()) >= 34
    assert (train.fingerprint(), test.fingerprint()) == ("26c1f7ae2b597ce4", "fef745aa22a6c076")


@pytest.fixture
def torchvision_sums(monkeypatch):
    """Let a torchvision class accept generated files."""
    from torchvision import datasets

    def patch(name: str, attributes: dict[str, Any]) -> None:
        for attribute, value in attributes.items():
            monkeypatch.setattr(getattr(datasets, name), attribute, value)

    return patch


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The address of a server of ``tmp_path`` on this machine."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    handler = partial(Quiet, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_cifar10_reads_the_official_pickles(tmp_path, torchvision_sums):
    torchvision_sums("CIFAR10", files.cifar10(tmp_path))
    assert Cifar10().check(tmp_path) == []
    train, test = Cifar10().load(tmp_path)
    expected = np.concatenate([files.pixels(4, 3072, seed=i) for i in range(1, 6)])
    assert np.array_equal(train.images.numpy(), expected.reshape(20, 3, 32, 32))
    assert train.labels[:5].tolist() == [1, 2, 3, 4, 2]
    assert test.images.shape == (6, 3, 32, 32)
    assert train.images.is_contiguous()


def test_cifar100_reads_the_fine_labels(tmp_path, torchvision_sums):
    torchvision_sums("CIFAR100", files.cifar100(tmp_path))
    assert Cifar100(download=False).check(tmp_path) == []
    train, test = Cifar100(download=False).load(tmp_path)
    assert train.labels.tolist() == [99 - i for i in range(8)]
    assert np.array_equal(test.images.numpy().reshape(4, -1), files.pixels(4, 3072, seed=1))


def test_svhn_turns_the_matlab_axes_and_class_10(tmp_path, torchvision_sums):
    torchvision_sums("SVHN", files.svhn(tmp_path))
    assert Svhn().check(tmp_path) == []
    train, test = Svhn().load(tmp_path)
    expected = files.pixels(32, 32, 3, 12).transpose(3, 2, 0, 1)
    assert np.array_equal(train.images.numpy(), expected)
    assert train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert len(test) == 5


def test_mnist_reads_idx_files(tmp_path):
    files.mnist(tmp_path)
    assert Mnist().check(tmp_path) == []
    train, test = Mnist().load(tmp_path)
    assert np.array_equal(train.images[:, 0].numpy(), files.pixels(12, 28, 28))
    assert test.labels.tolist() == [0, 1, 2, 3, 4]


def test_mnist_downloads_what_is_missing(tmp_path, torchvision_sums, served):
    sums = files.mnist_archives(tmp_path / "mirror")
    torchvision_sums("MNIST", {"mirrors": [f"{served}/mirror/"], "resources": sums})
    assert Mnist().check(tmp_path / "new") == []
    train, _ = Mnist().load(tmp_path / "new")
    assert np.array_equal(train.images[:, 0].numpy(), files.pixels(12, 28, 28))


SETS: list[tuple[Source, str, str]] = [
    (Mnist(download=False), "MNIST", "MNIST/raw/train-images-idx3-ubyte"),
    (Cifar10(download=False), "CIFAR10", "cifar-10-batches-py/data_batch_1"),
    (Cifar100(download=False), "CIFAR100", "cifar-100-python/train"),
    (Svhn(download=False), "SVHN", "train_32x32.mat"),
]


@pytest.mark.parametrize(("source", "name", "first"), SETS)
def test_missing_files_are_named_with_the_remedy(source, name, first, tmp_path):
    for root in (tmp_path / "absent", tmp_path):
        (problem,) = source.check(root)
        assert problem.startswith(f"data_dir={root}: {root / first}")
        assert "set data.source.download=true, or data_dir to" in problem
        assert refusal(source, root) == problem
    assert replace(source, download=True).check(tmp_path / "absent") == []
    (tmp_path / "file").write_text("")
    (problem,) = replace(source, download=True).check(tmp_path / "file")
    assert "a file, not a folder" in problem


@pytest.mark.parametrize("source", [Mnist(), Cifar10(), Cifar100(), Svhn(), TinyImageNet()])
def test_nothing_is_downloaded_below_folders_that_are_not_there(source, tmp_path):
    root = tmp_path / "slip" / "data"
    problem = f"data_dir={root}: there is no folder {root.parent}; mend the path, or create it"
    assert source.check(root) == [problem]
    assert refusal(source, root) == problem
    assert not root.parent.exists()


@pytest.mark.parametrize(("source", "name", "first"), SETS)
def test_damaged_files_are_named_with_the_remedy(source, name, first, tmp_path, torchvision_sums):
    sums = getattr(files, name.lower())(tmp_path)
    torchvision_sums(name, sums or {})
    damaged = tmp_path / first
    damaged.write_bytes(damaged.read_bytes()[:-7])
    message = refusal(source, tmp_path)
    assert message.startswith(str(damaged))
    assert "delete" in message


def test_a_failed_download_is_an_input_error(tmp_path, torchvision_sums, monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    torchvision_sums("MNIST", {"mirrors": ["http://127.0.0.1:1/"]})
    message = refusal(Mnist(), tmp_path / "new")
    assert message.startswith(f"data_dir={tmp_path / 'new'}: no MNIST there, and it could not be")
    assert "(Error downloading train-images-idx3-ubyte.gz); set data_dir to the folder" in message
    assert "that holds MNIST/raw/train-images-idx3-ubyte, or check the network" in message


def test_other_bytes_are_no_idx_file(tmp_path):
    files.mnist(tmp_path)
    path = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    path.write_bytes(b"<html>not found</html>")
    assert Mnist().check(tmp_path) == [
        f"{path}: not an IDX file of bytes; delete it to download it again"
    ]


# Tiny ImageNet --------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
def test_tiny_imagenet_reads_the_official_layout(tmp_path, inside):
    folder = files.tiny_imagenet(tmp_path)
    root = folder if inside else tmp_path
    assert TinyImageNet().check(root) == []
    train, test = TinyImageNet().load(root)
    assert train.images.shape == (8, 3, 64, 64)
    assert train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]  # n01, n03: sorted
    assert test.labels.tolist() == [1, 1, 0, 0]
    grey = train.images[0]
    assert torch.equal(grey[0], grey[1])


def test_tiny_imagenet_takes_the_classes_of_wnids(tmp_path):
    folder = files.tiny_imagenet(tmp_path, ("n01", "n02", "n03"))
    (folder / "wnids.txt").write_text("n03\nn01\n")
    train, test = TinyImageNet().load(tmp_path)
    assert train.labels.unique().tolist() == test.labels.unique().tolist() == [0, 1]
    assert len(test) == 4


def test_tiny_imagenet_downloads_verifies_and_unpacks(tmp_path, monkeypatch, served):
    archive = files.zipped(files.tiny_imagenet(tmp_path / "made"), tmp_path / "archive.zip")
    monkeypatch.setattr(tiny_imagenet, "URL", f"{served}/archive.zip")
    root = tmp_path / "data"
    assert TinyImageNet().check(root) == []
    message = refusal(TinyImageNet(), root)  # the sum is that of the true archive
    assert "could not be downloaded" in message
    assert not (root / "tiny-imagenet-200").exists()
    monkeypatch.setattr(tiny_imagenet, "MD5", files.md5(archive))
    train, _ = TinyImageNet().load(root)
    assert len(train) == 8


def test_tiny_imagenet_says_what_is_missing(tmp_path):
    (problem,) = TinyImageNet(download=False).check(tmp_path)
    assert f"data_dir={tmp_path}: no tiny-imagenet-200" in problem
    assert "data.source.download=true" in problem
    folder = files.tiny_imagenet(tmp_path)
    for name in ("train/n03/images", "val/images"):
        for file in (folder / name).iterdir():
            file.unlink()
        (problem,) = TinyImageNet().check(tmp_path)
        assert problem.startswith(f"{folder / name} holds no .JPEG")
        (folder / name).rmdir()
        (problem,) = TinyImageNet().check(tmp_path)
        assert problem.startswith(f"{folder / name} is missing; restore it")
        (folder / name).mkdir()
        (folder / name / "val_0.JPEG").write_bytes(b"")
    (folder / "val/val_annotations.txt").unlink()
    (problem,) = TinyImageNet().check(tmp_path)
    assert problem.startswith(f"{folder / 'val/val_annotations.txt'} is missing")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("val_0.JPEG n01\n", "line 1: expected file, class"),
        ("val_0.JPEG\tn01\t0\t0\t1\t1\n", "names no image of class n03"),
        ("gone.JPEG\tn01\nval_0.JPEG\tn03\n", "gone.JPEG: damaged image"),
    ],
)
def test_tiny_imagenet_annotations_must_fit(tmp_path, lines, message):
    folder = files.tiny_imagenet(tmp_path)
    (folder / "val/val_annotations.txt").write_text(lines)
    assert message in refusal(TinyImageNet(), tmp_path)


# Parquet --------------------------------------------------------------------------------------


def encoded(n: int, *shape: int) -> list[bytes | None]:
    return [files.encode(files.pixels(*(shape or (6, 6, 3)), seed=i)) for i in range(n)]


def parquet_pair(root: Path, **changes: Any) -> Path:
    files.parquet(root / "train.parquet", encoded(5), [0, 1, 2, 1, 0], **changes)
    files.parquet(root / "test.parquet", encoded(2), [2, 0], **changes)
    return root


@pytest.mark.parametrize("plain", [False, True])
def test_parquet_reads_structs_and_plain_bytes(tmp_path, plain):
    parquet_pair(tmp_path, plain=plain)
    assert Parquet().check(tmp_path) == []
    train, test = Parquet().load(tmp_path)
    expected = np.stack([files.pixels(6, 6, 3, seed=i).transpose(2, 0, 1) for i in range(5)])
    assert np.array_equal(train.images.numpy(), expected)
    assert train.labels.tolist() == [0, 1, 2, 1, 0]
    assert test.labels.tolist() == [2, 0]


def test_parquet_reads_shards_in_order_and_other_columns(tmp_path):
    names = ("img", "fine_label")
    for number, label in ((1, 11), (0, 10)):
        path = tmp_path / f"data/train-{number}.parquet"
        files.parquet(path, encoded(3), [label] * 3, names=names)
    files.parquet(tmp_path / "data/test.parquet", encoded(2), [0, 1], names=names)
    source = Parquet("data/train-*.parquet", "data/test.parquet", "img", "fine_label")
    train, _ = source.load(tmp_path)
    assert train.labels.tolist() == [10, 10, 10, 11, 11, 11]
    absolute = replace(source, train=str(tmp_path / "data/train-*.parquet"))
    assert absolute.load(tmp_path)[0].fingerprint() == train.fingerprint()
    (first, *_) = replace(source, image_column="image").check(tmp_path)
    assert "no column 'image'; set data.source.image_column to one of img, fine_label" in first


def test_parquet_spans_several_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("ablation.data.parquet.CHUNK", 3)
    monkeypatch.setattr("ablation.data.decode._SLICE", 2)
    files.parquet(tmp_path / "train.parquet", encoded(10), list(range(10)))
    files.parquet(tmp_path / "test.parquet", encoded(1), [0])
    train, _ = Parquet().load(tmp_path)
    expected = np.stack([files.pixels(6, 6, 3, seed=i).transpose(2, 0, 1) for i in range(10)])
    assert np.array_equal(train.images.numpy(), expected)
    assert train.labels.tolist() == list(range(10))
    files.parquet(tmp_path / "train.parquet", [*encoded(7), b"text"], [0] * 8)
    assert "train.parquet, row 7: not an image" in refusal(Parquet(), tmp_path)


def test_parquet_makes_all_grey_or_all_colour(tmp_path):
    grey = encoded(2, 6, 6) + encoded(1)
    files.parquet(tmp_path / "train.parquet", grey, [0, 1, 2])
    files.parquet(tmp_path / "test.parquet", encoded(1), [0])
    assert Parquet().load(tmp_path)[0].images.shape == (3, 3, 6, 6)
    train, test = Parquet(mode="L").load(tmp_path)
    assert train.images.shape == (3, 1, 6, 6)
    assert np.array_equal(train.images[0, 0].numpy(), files.pixels(6, 6, seed=0))
    assert test.images.shape == (1, 1, 6, 6)


def test_parquet_files_must_exist_and_differ(tmp_path):
    problems = Parquet().check(tmp_path / "absent")
    assert len(problems) == 2
    assert f"data_dir={tmp_path / 'absent'}: no file matches train.parquet" in problems[0]
    assert "data.source.test" in problems[1]
    assert "no file matches" in refusal(Parquet(), tmp_path)
    parquet_pair(tmp_path)
    (problem,) = Parquet(train="*.parquet").check(tmp_path)
    assert problem.startswith(f"{tmp_path / 'test.parquet'} is in both data.source.train=*.parquet")


def test_parquet_footers_are_checked(tmp_path):
    parquet_pair(tmp_path)
    path = tmp_path / "train.parquet"
    (problem,) = Parquet(image_column="label").check(path.parent)[:1]
    assert "column 'label' holds int64, not encoded images" in problem
    assert "holds struct<" in Parquet(label_column="image").check(tmp_path)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    (problem,) = Parquet().check(tmp_path)
    assert problem.startswith(f"{path}: damaged or no parquet file")
    files.parquet(path, [], [])
    assert Parquet().check(tmp_path) == [f"{path}: no rows; fetch it again"]
    path.write_bytes(whole[:40] + bytes(200) + whole[240:])
    message = refusal(Parquet(), tmp_path)
    assert str(path) in message
    assert "damaged" in message


@pytest.mark.parametrize(
    ("change", "label", "message"),
    [
        (None, 0, "row 2: no image bytes; embed"),
        (b"text", 0, "row 2: not an image that Pillow can read; replace it"),
        (files.encode(files.pixels(6, 6, 3), "JPEG")[:-60], 0, "row 2: damaged image"),
        (files.encode(files.pixels(6, 6, 3))[:-60], 0, "row 2: damaged image"),
        (files.encode(files.pixels(5, 7, 3)), 0, "row 2: 7x5 pixels, but the first image has 6x6"),
        (files.deep_grey(), 0, "row 2: not an 8-bit image"),
        (files.deep_colour(), 0, "row 2: not an 8-bit image"),
        (encoded(1)[0], None, "row 2: no label; remove the row"),
        (encoded(1)[0], -1, "row 2: label -1 is negative"),
    ],
)
def test_bad_rows_are_named(tmp_path, change, label, message):
    parquet_pair(tmp_path)
    images = [*encoded(2), change]
    files.parquet(tmp_path / "train.parquet", images, [0, 1, label])
    found = refusal(Parquet(), tmp_path)
    assert found.startswith(f"{tmp_path / 'train.parquet'}, {message}")


def test_sets_of_different_size_are_refused_or_resized(tmp_path):
    files.parquet(tmp_path / "train.parquet", encoded(2, 6, 6, 3), [0, 1])
    files.parquet(tmp_path / "test.parquet", encoded(2, 8, 4, 3), [0, 1])
    message = refusal(Parquet(), tmp_path)
    assert "test.parquet: test images have 3 channels and 4x8 pixels" in message
    train, test = Parquet(image_size=5).load(tmp_path)
    assert train.images.shape == test.images.shape == (2, 3, 5, 5)


# Folders of images ----------------------------------------------------------------------------


@pytest.mark.parametrize("test", ["test", "val"])
def test_image_folder_numbers_classes_by_name(tmp_path, test):
    files.image_folder(tmp_path, test)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("left out")
    (tmp_path / "train" / ".cache").mkdir()
    assert ImageFolder().check(tmp_path) == []
    train, found = ImageFolder().load(tmp_path)
    assert train.images.shape == found.images.shape == (6, 3, 5, 6)
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    dog = files.pixels(5, 6, 3, seed=10).transpose(2, 0, 1)
    assert np.array_equal(train.images[3].numpy(), dog)


def test_image_folder_takes_the_first_images_mode(tmp_path):
    files.image_folder(tmp_path, grey=True)
    train, test = ImageFolder().load(tmp_path)
    assert train.images.shape == test.images.shape == (6, 1, 5, 6)
    assert ImageFolder(mode="RGB").load(tmp_path)[0].images.shape == (6, 3, 5, 6)
    for part in ("test", "train"):
        path = tmp_path / part / "dog" / "2.png"
        path.write_bytes(files.encode(files.pixels(5, 6, 3)))
        message = refusal(ImageFolder(), tmp_path)
        assert message.startswith(f"{path}: a colour image")
        assert "data.source.mode=RGB" in message
    assert ImageFolder(mode="L").load(tmp_path)[0].images.shape == (6, 1, 5, 6)


def test_image_folder_reads_palettes_and_drops_transparency(tmp_path):
    files.image_folder(tmp_path)
    colours = files.pixels(5, 6, 3)
    Image.fromarray(colours).convert("RGBA").save(tmp_path / "train/cat/0.png")
    palette = Image.fromarray(files.pixels(5, 6)).convert("P")
    palette.save(tmp_path / "train/cat/1.png", transparency=bytes(range(256)))
    train, _ = ImageFolder().load(tmp_path)
    assert np.array_equal(train.images[0].numpy(), colours.transpose(2, 0, 1))
    assert np.array_equal(train.images[1, 0].numpy(), files.pixels(5, 6))


def test_image_folder_resizes_on_request(tmp_path):
    files.image_folder(tmp_path)
    path = tmp_path / "train" / "dog" / "1.png"
    path.write_bytes(files.encode(files.pixels(9, 9, 3)))
    message = refusal(ImageFolder(), tmp_path)
    assert message.startswith(
        f"{path}: 9x9 pixels, but the first image has 6x5; set data.source.im"
    )
    assert ImageFolder(image_size=4).load(tmp_path)[1].images.shape == (6, 3, 4, 4)
    with pytest.raises(ValueError, match="image_size=0: at least 1"):
        ImageFolder(image_size=0)


def test_image_folder_layouts_that_are_wrong(tmp_path):
    (problem,) = ImageFolder().check(tmp_path)
    assert problem.startswith(f"{tmp_path / 'train'} is missing: expected a folder of classes")
    (tmp_path / "train").mkdir()
    (problem,) = ImageFolder().check(tmp_path)
    assert "holds no class folder: expected train/<class>/*.png" in problem
    (tmp_path / "train").rmdir()
    files.image_folder(tmp_path)
    (tmp_path / "test" / "Dog").mkdir()
    (problem,) = ImageFolder().check(tmp_path)
    assert problem.startswith(f"{tmp_path / 'test' / 'Dog'} holds no image")
    (tmp_path / "test" / "Dog" / "0.png").write_bytes(b"")
    (problem,) = ImageFolder().check(tmp_path)
    assert "has no class 'Dog'; give both the same classes" in problem
    assert refusal(ImageFolder(), tmp_path) == problem
    (problem,) = ImageFolder(test="train").check(tmp_path)
    assert "training and test set are one folder" in problem
    (problem,) = ImageFolder(test="nothing").check(tmp_path)
    assert problem.startswith(f"{tmp_path / 'nothing'} is missing")


# Configuration --------------------------------------------------------------------------------


def read_yaml(name: str) -> Any:
    return OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_yaml_names_a_source_and_sane_numbers(path):
    node = read_yaml(path.stem)
    parser = Parser()
    source = parser.parse(Source, node["source"], "data.source")
    assert parser.problems == []
    assert type(source).__name__.lower() == path.stem.replace("_", "")
    assert node["name"] == path.stem
    assert set(node["source"]) - {"_target_"} == set(vars(source))
    if isinstance(source, OwnImages):
        assert [node[key] for key in ("classes", "mean", "std")] == [None] * 3
    else:
        assert len(node["mean"]) == len(node["std"])
        assert node["val_size"] >= node["classes"]
    assert (node["split_seed"], node["train_size"], node["drop_last"]) == (0, None, False)
    assert path.read_text().startswith("# ")


def test_all_eight_sets_have_a_yaml():
    names = "digits mnist cifar10 cifar100 svhn tiny_imagenet parquet image_folder"
    assert {path.stem for path in CONF.glob("*.yaml")} == set(names.split())


# Real images ----------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_mnist():
    train, test = Mnist(download=False).load(real("mnist"))
    assert train.images.shape == (60_000, 1, 28, 28)
    assert len(test) == 10_000
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    mean = float(train.images.double().mean()) / 255
    assert mean == pytest.approx(0.1307, abs=1e-4)


@pytest.mark.realdata
def test_real_parquet_has_the_statistics_of_cifar10(tmp_path):
    (tmp_path / "train.parquet").symlink_to(real("cifar10_jpeg") / "test.parquet")
    files.parquet(tmp_path / "test.parquet", encoded(2, 32, 32, 3), [0, 1])
    train, _ = Parquet().load(tmp_path)
    assert train.images.shape == (10_000, 3, 32, 32)
    assert torch.bincount(train.labels).tolist() == [1000] * 10
    node = read_yaml("cifar10")
    x = to_float(train.images)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx(node["mean"], abs=0.01)
    assert x.std((0, 2, 3)).tolist() == pytest.approx(node["std"], abs=0.01)


@pytest.mark.realdata
def test_real_tiny_imagenet(tmp_path):
    folder = real("tiny_imagenet_20") / "tiny-imagenet-200"
    assert TinyImageNet(download=False).check(folder) == []
    for part in ("train", "val"):
        (tmp_path / part).symlink_to(folder / part)
    wnids = (folder / "wnids.txt").read_text().split()[-4:]  # four classes: enough, and quick
    (tmp_path / "wnids.txt").write_text("\n".join(wnids))
    train, test = TinyImageNet(download=False).load(tmp_path)
    assert train.images.shape == (2000, 3, 64, 64)
    assert torch.bincount(test.labels).tolist() == [50] * 4


@pytest.mark.slow
@pytest.mark.realdata
def test_real_parquet_whole():
    root = real("cifar10_jpeg")
    assert Parquet().check(root) == []
    train, test = Parquet().load(root)
    assert (len(train), len(test)) == (50_000, 10_000)
    check_labels(train, 10)


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    from ablation.data.digits import digits_table

    bunch, table = load_digits(), digits_table()
    assert (table[:, :64] == bunch.data).all()
    assert (table[:, 64] == bunch.target).all()
