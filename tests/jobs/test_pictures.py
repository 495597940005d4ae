"""``adversarial.png``: what a tile, a row and a caption show, and bytes that do not change."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from ablation.config import validation
from ablation.jobs import attack
from ablation.jobs import train as job
from ablation.jobs.pictures import GAP, LINE, MARGIN, TILE, Adversarial, sheet
from ablation.jobs.setup import load_images
from ablation.runs.tracking import NoTracker
from tests.support.jobs import plain, run_of


def examples(count=8, channels=3, side=32, delta=0.1):
    rng = torch.Generator().manual_seed(0)
    clean = 0.25 + torch.rand((count, channels, side, side), generator=rng) / 2
    sign = torch.where(torch.rand(clean.shape, generator=rng) < 0.5, -1.0, 1.0)
    return [Adversarial(x, x + delta * s, i, i, (i + 1) % 10)
            for i, (x, s) in enumerate(zip(clean, sign, strict=True))]  # fmt: skip


def pixels(found, names=()):
    return np.asarray(Image.open(BytesIO(sheet(found, names))))


def tile(picture, column, place, side):
    """The tile of an example in one of the three rows."""
    x, y = MARGIN + column * (max(side, TILE) + GAP), LINE + GAP + place * (side + LINE + GAP)
    return picture[y : y + side, x : x + side]


@pytest.mark.parametrize(("channels", "side", "scale"), [(3, 32, 3), (1, 28, 3), (3, 8, 12),
                                                         (3, 224, 1)])  # fmt: skip
def test_tiles_are_the_image_the_adversarial_one_and_the_scaled_perturbation(channels, side, scale):
    found = examples(3, channels, side)
    picture = pixels(found)
    assert picture.shape[2] == 3
    for column, each in enumerate(found):
        delta = 0.5 + 5 * (each.adversarial - each.clean)  # of 0.1 to black or white
        for place, wanted in enumerate((each.clean, each.adversarial, delta)):
            shown = tile(picture, column, place, side * scale)[::scale, ::scale]
            assert np.abs(shown / 255 - wanted.permute(1, 2, 0).numpy()).max() < 0.5 / 255 + 1e-6
    assert {*np.unique(tile(picture, 0, 2, side * scale))} == {0, 255}


def test_an_image_that_was_not_moved_is_grey():
    still = [Adversarial(each.clean, each.clean, 0, 0, 0) for each in examples(2)]
    assert np.unique(tile(pixels(still), 1, 2, 96)).tolist() == [128]
    both = [still[0], examples(1)[0]]
    assert np.unique(tile(pixels(both), 0, 2, 96)).tolist() == [128]


def test_captions_are_classes_by_name_and_stay_in_their_column():
    found = examples(2, side=8)
    plain_, named = pixels(found), pixels(found, ["a very long name of a class"] * 10)
    assert (plain_ != named).any()
    ink = (named.min(2) < 200).any(0)
    gaps = ink[MARGIN + TILE : MARGIN + TILE + GAP]
    assert not gaps.any()
    for column in range(2):
        assert (tile(plain_, column, 0, 96) == tile(named, column, 0, 96)).all()


def test_the_same_examples_give_the_same_bytes():
    assert sheet(examples()) == sheet(examples())
    assert sheet(examples()) != sheet(examples(delta=-0.1))


def test_a_run_leaves_the_picture_once_without_tracking(tmp_path, monkeypatch):
    container = plain(tmp_path)
    job.train(container)
    run = run_of(container)
    first = run.picture_path.read_bytes()
    assert Image.open(BytesIO(first)).width == MARGIN + 8 * (TILE + GAP)
    run.picture_path.unlink()
    config = validation.load(container)
    device = torch.device("cpu")
    images = load_images(config, device)
    attack.show_examples(config, run, images, device, NoTracker())
    assert run.picture_path.read_bytes() == first
    monkeypatch.setattr(attack, "build_net", None)  # nothing is computed again
    attack.show_examples(config, run, images, device, NoTracker())
