"""Mean and deviation of a user's images: right, computed once, renewed when the files change."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ablation.data import ImageFolder, statistics
from ablation.data.statistics import pixel_statistics
from tests.support import data_files as files


def test_statistics_are_numpys():
    pixels = files.pixels(600, 3, 4, 5)
    mean, std = pixel_statistics(torch.from_numpy(pixels))
    scaled = pixels.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), atol=5.1e-5)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), atol=5.1e-5)
    assert pixel_statistics(torch.full((2, 1, 2, 2), 51, dtype=torch.uint8)) == ([0.2], [0.0])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ablation"


def test_they_are_computed_once_and_anew_when_a_file_changes(tmp_path, cache, monkeypatch):
    root, source = files.image_folder(tmp_path / "photos"), ImageFolder()
    first = statistics(source, root)
    train, _ = source.load(root)
    assert (first.mean, first.std) == pixel_statistics(train.images)
    with monkeypatch.context() as patch:
        patch.setattr(ImageFolder, "load", lambda *_: 1 / 0)
        assert statistics(source, root) == first
    (root / "train" / "cat" / "0.png").write_bytes(files.encode(files.pixels(5, 6, 3, seed=99)))
    assert statistics(source, root) != first
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"mean": 1}', '{"mean": [null], "std": [1]}'])
def test_a_damaged_cache_is_written_anew(tmp_path, cache, content):
    root = files.image_folder(tmp_path / "photos")
    first = statistics(ImageFolder(), root)
    (path,) = cache.iterdir()
    path.write_text(content)
    assert statistics(ImageFolder(), root) == first
    assert json.loads(path.read_text())["mean"] == first.mean


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = files.image_folder(tmp_path / "photos")
    assert statistics(ImageFolder(), root) == statistics(ImageFolder(), root)
