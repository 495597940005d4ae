"""Several devices for one run: what they are refused for, and that they change no identity."""

from __future__ import annotations

import pytest
import torch

from ablation.config.surroundings import devices_of, sharing_problems, size_problems
from ablation.data import Extent, check_shares
from ablation.errors import InputError
from tests.support.configs import compose_config


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)


def launched(monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    """As torchrun starts a process."""
    given = {"RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    for key, value in given.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("runtime.compile=true",),
        ("runtime.devices=4",),
        ("runtime.devices=4", "runtime.batch_norm=replica"),
        ("runtime.devices=2", "method=dyart"),
    ],
)
def test_what_can_be_shared_is_not_refused(overrides: tuple[str, ...]) -> None:
    assert list(sharing_problems(compose_config(*overrides))) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("runtime.devices=0",), "runtime.devices=0: at least 1"),
        (("runtime.batch_norm=replica",), "a device alone has the whole batch"),
        (("runtime.devices=2", "runtime.device=cuda:1"), "set runtime.device=cuda"),
        (("runtime.devices=2", "runtime.compile=true"), "cannot be compiled"),
        (
            (
                *("runtime.devices=2", "method=dyart"),
                "component.fab_margin.shared_bias=true",
            ),
            "shared_bias=true: all samples take it of the first",
        ),
        (
            (
                *("runtime.devices=2", "method=dyart"),
                "component.closed_form_gradient.masked=true",
            ),
            "masked=true: BatchNorm counts the points of one device",
        ),
        (
            (
                *("runtime.devices=2", "method=dyart", "component/emr=probe"),
                "component.emr.view=boundary",
            ),
            "component.emr.view=boundary: it holds some samples of the batch",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(overrides: tuple[str, ...], message: str) -> None:
    (problem,) = sharing_problems(compose_config(*overrides))
    assert message in problem


def test_there_must_be_as_many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (problem,) = sharing_problems(compose_config("runtime.devices=4"))
    assert problem == "runtime.devices=4: 2 CUDA devices are visible"
    assert list(sharing_problems(compose_config("runtime.devices=2"))) == []
    assert list(sharing_problems(compose_config("runtime.devices=4", "runtime.device=cpu"))) == []


def test_torchrun_says_how_many_devices_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    launched(monkeypatch, 4)
    assert devices_of(compose_config()) == 4
    assert list(sharing_problems(compose_config())) == []
    (problem,) = sharing_problems(compose_config("runtime.devices=2"))
    assert "torchrun has started 4 processes" in problem
    (problem,) = sharing_problems(compose_config("runtime.compile=true"))
    assert "cannot be compiled" in problem


@pytest.mark.parametrize(
    ("batch_size", "count", "drop_last", "world", "message"),
    [
        (2, 100, False, 4, "batch_size=2: 4 devices share a batch"),
        (32, 98, False, 4, "the last batch of 98 images holds 2"),
        (32, 98, True, 4, ""),
        (32, 96, False, 4, ""),
        (32, 97, False, 1, ""),
    ],
)
def test_every_device_gets_an_image_of_every_batch(
    batch_size: int, count: int, drop_last: bool, world: int, message: str
) -> None:
    if not message:
        check_shares(batch_size, count, drop_last, world)
        return
    with pytest.raises(InputError) as error:
        check_shares(batch_size, count, drop_last, world)
    assert message in str(error.value)


def test_batches_that_are_too_small_are_refused_before_images_are_read() -> None:
    config = compose_config("runtime.devices=4", "data.train_size=130", "batch_size=128")
    extent = config.data.source.extent(config.data_root)
    assert isinstance(extent, Extent)
    (problem,) = size_problems(config, extent)
    assert "the last batch of 130 images holds 2, which 4 devices cannot share" in problem


def test_the_number_of_devices_is_no_part_of_the_identity() -> None:
    assert compose_config("runtime.devices=4").train_id == compose_config().train_id
