"""What a config takes from a user's images, and what it says of them before a run begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ablation.config.surroundings import check
from ablation.config.validation import load
from ablation.data import ImageFolder
from ablation.errors import DONE
from ablation.jobs import train as job
from tests.support import data_files as files
from tests.support.configs import compose_plain
from tests.support.jobs import plain, run_of

SMALL = ("data.val_size=0", "selection.n=null", "selection.metric=last", "batch_size=2")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Two classes of three images of 6x5 pixels, training and test."""
    return files.image_folder(tmp_path / "photos")


def composed(root: Path, *overrides: str, data: str = "image_folder") -> dict[str, Any]:
    return compose_plain(f"data={data}", f"data_dir={root}", "model=mlp", *SMALL, *overrides)


def parquet(root: Path, labels: list[int], shape: tuple[int, ...] = (7, 5, 3)) -> Path:
    images: list[bytes | None] = [
        files.encode(files.pixels(*shape, seed=i)) for i in range(len(labels))
    ]
    for name in ("train", "test"):
        files.parquet(root / f"{name}.parquet", images, list(labels))
    return root


def test_classes_and_statistics_are_those_of_the_images_unless_set(photos):
    config = load(composed(photos))
    assert config.data.classes == 2
    train, _ = ImageFolder().load(photos)
    pixels = train.images.double() / 255
    assert config.data.mean == pytest.approx(pixels.mean((0, 2, 3)).tolist(), abs=1e-4)
    assert config.data.std == pytest.approx(pixels.std((0, 2, 3)).tolist(), abs=1e-2)
    own = load(composed(photos, "data.mean=[0.1,0.2,0.3]"))
    assert (own.data.mean, own.data.std) == ([0.1, 0.2, 0.3], config.data.std)
    # what is taken from the images is what one could have written
    spelled = [f"data.{key}={getattr(config.data, key)}" for key in ("classes", "mean", "std")]
    assert load(composed(photos, *spelled)).train_id == config.train_id
    assert check(composed(photos)) == []


@pytest.mark.parametrize("classes", [3, 10])
def test_too_many_classes_are_told_before_anything_is_started(photos, classes):
    expected = f"data.classes={classes}: the images are of 2 classes; set data.classes=2"
    assert check(composed(photos, f"data.classes={classes}")) == [expected]


def test_too_few_classes_are_told_for_every_set(tmp_path):
    found = check(compose_plain("data.classes=7"))
    assert found == ["data.classes=7: the images are of 10 classes; set data.classes=10"]
    root = parquet(tmp_path, [0, 1, 2])
    found = check(composed(root, "data.classes=2", data="parquet"))
    assert found == ["data.classes=2: the images are of 3 classes; set data.classes=3"]


def test_a_mean_of_other_channels_is_told(photos):
    given = ("data.mean=[0.5]", "data.std=[0.5]", "model.normalize=true")
    (found,) = check(composed(photos, *given))
    assert found.startswith("data.mean=[0.5]: 1 entries, and the images have 3 channels")
    assert check(composed(photos, *given[:2])) == []


def test_missing_images_are_told_once_with_the_rest(tmp_path):
    found = check(composed(tmp_path / "none", "lr=-1", "runtime.device=tpu"))
    assert len(found) == 3
    assert sum("is missing: expected a folder of classes" in line for line in found) == 1
    first = tmp_path / "photos" / "train" / "cat" / "0.png"
    files.image_folder(tmp_path / "photos")
    first.write_bytes(b"no image")
    (damaged,) = check(composed(tmp_path / "photos"))
    assert damaged == f"{first}: not an image that Pillow can read; replace it"


def test_only_own_images_leave_settings_to_be_found():
    (found,) = check(compose_plain("data.mean=null"))
    assert found.startswith("data.mean=null: only data=image_folder and data=parquet take it")


def test_a_smoke_run_of_own_images_needs_none_of_them(tmp_path):
    assert check(compose_plain("data=parquet", f"data_dir={tmp_path}", "scale=smoke")) == []


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], "labels 1 to 3: 3 classes are numbered 0 to 2"),
        ([0, 1, 5], "labels 0 to 5 without 2, 3, 4: 3 classes are numbered 0 to 2"),
        ([2, 9, 40], "labels 2 to 40 without 3, 4, 5 and 33 more: 3 classes are numbered 0 to 2"),
    ],
)
def test_labels_with_an_offset_or_gaps_are_told_from_a_wrong_count(tmp_path, labels, message):
    root = parquet(tmp_path, labels)
    (found,) = check(composed(root, data="parquet"))
    assert found == f"{message}; set data.source.relabel=true to number them anew"
    assert check(composed(root, "data.source.relabel=true", data="parquet")) == []


def test_relabelled_images_train_and_the_run_keeps_what_the_classes_were(tmp_path):
    root = parquet(tmp_path / "data", [3, 7, 7, 9, 3])
    options = ("data=parquet", f"data_dir={root}", "data.source.relabel=true", *SMALL)
    container = plain(
        tmp_path,
        *options,
        "model=mlp",
        "data.train_size=null",
        "epochs=1",
        "method=standard",
        "evaluation=none",
    )
    assert job.train(container) == DONE
    run = run_of(container)
    assert (run.path / "classes.json").read_text() == '["3", "7", "9"]'
    source = load(container).data.source
    train, test = source.load(root)
    assert train.labels.tolist() == test.labels.tolist() == [0, 1, 1, 2, 0]


def test_a_run_of_folders_keeps_their_names_and_takes_rectangular_images(tmp_path, photos):
    options = ("data=image_folder", f"data_dir={photos}", *SMALL, "data.train_size=null")
    container = plain(
        tmp_path, *options, "model=mlp", "epochs=1", "method=standard", "evaluation=none"
    )
    assert job.train(container) == DONE
    assert (run_of(container).path / "classes.json").read_text() == '["cat", "dog"]'


def test_relabel_false_is_no_part_of_a_runs_identity(tmp_path):
    root = parquet(tmp_path, [0, 1, 2])
    one, two = (
        load(composed(root, f"data.source.relabel={on}", data="parquet")) for on in (False, True)
    )
    assert "relabel" not in one.identity()["data"]["source"]
    assert one.train_id != two.train_id


def test_what_a_model_cannot_take_is_told_with_the_config(photos):
    (found,) = check(composed(photos, "model=resnet18"))
    assert "ResNet needs images of 8x8 pixels or more, these have 6x5" in found


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["norm=l2", "eps=0.5"], True),
        (["evaluation.norm=l2"], True),
        (["evaluation.norm=l2", "data.source.image_size=6"], False),
        (["norm=linf"], False),
    ],
)
def test_an_attack_that_needs_square_images_is_told_with_the_config(photos, overrides, refused):
    found = check(composed(photos, "evaluation=autoattack", *overrides))
    assert [line.startswith("evaluation.attacks.aa: Square in L2") for line in found] == (
        [True] if refused else []
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["batch_size=4"], None),
        (["batch_size=5"], "batch_size=5: the last batch of 6 images would hold a single one"),
        (["batch_size=5", "data.drop_last=true"], None),
        (["batch_size=1"], "batch_size=1: BatchNorm cannot normalise a batch of a single image"),
        (["batch_size=1", "data.drop_last=true"], "batch_size=1: BatchNorm cannot normalise"),
        (["batch_size=1", "data.source.image_size=16"], None),
    ],
)
def test_a_batch_of_one_where_the_last_feature_map_is_a_pixel_is_told(photos, overrides, message):
    root = parquet(photos, [0, 1, 0, 1, 0, 1], (8, 8, 3))
    options = ("model=resnet18", "model.spec.width=8", *overrides)
    found = check(composed(root, *options, data="parquet"))
    assert [line.startswith(str(message)) for line in found] == ([] if message is None else [True])


@pytest.mark.parametrize(
    ("overrides", "cpu", "refused"),
    [
        ([], "AVX2", True),
        ([], "AVX512", False),
        (["runtime.channels_last=false"], "AVX2", False),
        (["model.spec.width=8"], "AVX2", False),
    ],
)
def test_a_gradient_that_the_cpu_computes_outside_its_memory_is_told(
    photos, monkeypatch, overrides, cpu, refused
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: cpu)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    root = parquet(photos, [0, 1, 0, 1, 0, 1], (16, 16, 3))
    small = ("model=resnet18", "model.spec.width=4", "batch_size=2", *overrides)
    config = composed(root, *small, data="parquet")
    found = [line for line in check(config) if line.startswith("runtime.channels_last=true: on")]
    assert len(found) == int(refused)
    assert all("layers.stage2.0.shortcut.0" in line for line in found)
