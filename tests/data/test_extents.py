"""How much a source holds, known before anything is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from ablation.data import Digits, Extent, ImageFolder, Parquet, Source, TinyImageNet
from tests.support import data_files as files
from tests.support.configs import compose_config

CONF = Path(__file__).parents[2] / "conf"


def folder_source(root: Path) -> Source:
    files.image_folder(root)
    return ImageFolder()


def parquet_source(root: Path) -> Source:
    images: list[bytes | None] = [files.encode(files.pixels(7, 5, 3, seed=i)) for i in range(9)]
    files.parquet(root / "train-0.parquet", images[:4], [0, 1, 0, 1])
    files.parquet(root / "train-1.parquet", images[4:6], [0, 1])
    files.parquet(root / "test.parquet", images[6:], [0, 1, 0])
    return Parquet(train="train-*.parquet")


@pytest.mark.parametrize("make", [lambda root: Digits(), folder_source, parquet_source])
def test_an_extent_is_what_loading_gives(tmp_path, make):
    source = make(tmp_path)
    train, test = source.load(tmp_path)
    extent = source.extent(tmp_path)
    assert (extent.train, extent.test) == (len(train), len(test))
    assert (extent.channels, *extent.size) == train.images.shape[1:]
    assert list(extent.labels) == train.labels.unique().tolist()


@pytest.mark.parametrize("make", [folder_source, parquet_source])
def test_an_extent_knows_that_images_are_resized(tmp_path, make):
    found = replace(make(tmp_path), image_size=12).extent(tmp_path)
    assert found.size == (12, 12)


@pytest.mark.parametrize("source", [Parquet(), ImageFolder()])
def test_a_source_whose_files_are_missing_has_no_extent(tmp_path, source):
    assert source.extent(tmp_path) is None


def test_a_damaged_first_image_gives_no_extent(tmp_path):
    files.parquet(tmp_path / "train.parquet", [b"no image"], [0])
    files.parquet(tmp_path / "test.parquet", [b"no image"], [0])
    assert Parquet().extent(tmp_path) is None
    files.image_folder(tmp_path)
    first = min((tmp_path / "train" / "cat").iterdir())
    first.write_bytes(b"no image")
    assert ImageFolder().extent(tmp_path) is None


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_the_extent_of_a_downloaded_set_is_what_its_config_says(tmp_path, name):
    header = (CONF / "data" / f"{name}.yaml").read_text()
    said = re.match(r"# .*?([\d,]+) \+ ([\d,]+) .*?(\d+)x\d+ (RGB|grey), (\d+) classes", header)
    assert said is not None
    train, test, size, classes = (int(said[i].replace(",", "")) for i in (1, 2, 3, 5))
    channels = {"RGB": 3, "grey": 1}[said[4]]
    source = compose_config(f"data={name}", "model=mlp").data.source
    expected = Extent(train, test, channels, (size, size), range(classes))
    assert source.extent(tmp_path) == expected


def test_a_part_of_tiny_imagenet_is_counted_by_its_classes(tmp_path):
    assert TinyImageNet().extent(tmp_path) == Extent(100_000, 10_000, 3, (64, 64), range(200))
    files.tiny_imagenet(tmp_path, ("n01", "n02", "n03"))
    assert TinyImageNet().extent(tmp_path) == Extent(1_500, 150, 3, (64, 64), range(3))
