"""Training batches made on the device: order, crops and flips per sample, from keyed streams."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ablation.data.images import ImageSet, sent, to_float
from ablation.errors import InputError
from ablation.random import generator
from ablation.ranks import present
from ablation.types import Batch

Augment = Literal["none", "crop_flip"]
PAD = 4
"""Zeros around an image before it is cropped: the padding of all methods shipped here."""


def crop_flip(images: Tensor, offsets: Tensor, flip: Tensor, pad: int = PAD) -> Tensor:
    """Pad with zeros, cut a window of the original size out of each image, mirror some windows.

    One gather for the whole batch; the host waits for nothing.

    Args:
        images: pixels, shape [N, C, H, W], uint8.
        offsets: top and left of each window in the padded image, shape [N, 2], in 0..2*pad.
        flip: which windows are mirrored left to right, shape [N], bool.
        pad: width of the border.

    Returns:
        Pixels, shape [N, C, H, W], uint8.
    """
    n, c, h, w = images.shape
    padded = F.pad(images, (pad, pad, pad, pad)).flatten(2)
    column = torch.arange(w, device=images.device)
    column = torch.where(flip[:, None], w - 1 - column, column) + offsets[:, 1:]  # [N, W]
    row = torch.arange(h, device=images.device) + offsets[:, :1]  # [N, H]
    pixel = row[:, :, None] * (w + 2 * pad) + column[:, None, :]  # [N, H, W]
    return padded.gather(2, pixel.view(n, 1, h * w).expand(n, c, h * w)).view(n, c, h, w)


def check_batch_size(batch_size: int, count: int) -> None:
    """Check that a batch fits into a training set of ``count`` images.

    Raises:
        InputError: ``batch_size`` is less than 1 or more than ``count``.
    """
    if not 1 <= batch_size <= count:
        raise InputError(
            f"batch_size={batch_size}: there are {count} images to train on; set batch_size "
            f"between 1 and {count}, or keep more images with data.train_size and data.val_size"
        )


def check_shares(batch_size: int, count: int, drop_last: bool, world: int) -> None:
    """Check that each of ``world`` devices gets an image of every batch of ``count`` images.

    Raises:
        InputError: a batch is too small.
    """
    rest = 0 if drop_last else count % batch_size
    if batch_size < world:
        raise InputError(
            f"batch_size={batch_size}: {world} devices share a batch; set batch_size={world} or "
            f"more, or fewer runtime.devices"
        )
    if 0 < rest < world:
        raise InputError(
            f"batch_size={batch_size}: the last batch of {count} images holds {rest}, which "
            f"{world} devices cannot share; set data.drop_last=true or another batch_size"
        )


class DeviceLoader:
    """Loader of training batches from a set that is held on the device.

    Order and augmentation of an epoch are functions of (seed, epoch), drawn on the CPU: runs on
    CPU and GPU, and on any number of ranks, see the same images, and a resumed epoch continues with
    the batches it would have had.

    Args:
        data: the full training set; moved to the device.
        index: positions in ``data`` to train on, shape [N], int64.
        batch_size: images per step; the last batch of an epoch may be smaller.
        seed: of the run.
        augment: ``crop_flip`` pads by 4, crops and mirrors each sample on its own.
        drop_last: leave out a smaller last batch.
        device: where batches are made.
        dtype: of the images.
        channels_last: memory format of the images.

    Raises:
        InputError: the batch is larger than the set, the set is empty, or a batch is too small for
            all ranks.
    """

    def __init__(
        self,
        data: ImageSet,
        index: Tensor,
        batch_size: int,
        *,
        seed: int,
        augment: Augment = "none",
        drop_last: bool = False,
        device: torch.device | str,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        check_batch_size(batch_size, len(index))
        check_shares(batch_size, len(index), drop_last, present().world)
        self._device = torch.device(device)
        self._data = data.to(self._device)
        self._index = index.cpu()
        self._batch_size, self._drop_last = batch_size, drop_last
        self._seed, self._augment = seed, augment
        self._dtype, self._channels_last = dtype, channels_last

    @property
    def n_train(self) -> int:
        """Images of the full training set, which ``Batch.index`` counts."""
        return len(self._data.labels)

    @property
    def batch_size(self) -> int:
        """Images of a whole batch."""
        return self._batch_size

    def __len__(self) -> int:
        whole, rest = divmod(len(self._index), self._batch_size)
        return whole + (rest > 0 and not self._drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Make the batches of an epoch.

        Args:
            epoch: 0-based, counted over all phases.
            start: first step to yield; the steps before it are skipped, not made.

        Yields:
            Images [N, C, H, W] in [0, 1], labels [N], and positions in the full set [N]; of
            several ranks, each takes a part of every batch.
        """
        n = len(self._index)
        order = torch.randperm(n, generator=generator(self._seed, "order", epoch))
        index = sent(self._index[order], self._device)
        draws = self._draws(n, epoch) if self._augment == "crop_flip" else None
        for step in range(start, len(self)):
            rows, place = self._rows(step)
            images = self._data.images.index_select(0, index[rows])
            if draws is not None:
                images = crop_flip(images, draws[0][rows], draws[1][rows])
            x = to_float(images, self._dtype, channels_last=self._channels_last)
            yield Batch(x, self._data.labels.index_select(0, index[rows]), index[rows], place)

    def _rows(self, step: int) -> tuple[slice, tuple[int, int] | None]:
        """The samples of a step in the order of its epoch, and their place in its batch.

        With several ranks, those of this one.
        """
        first, ranks = step * self._batch_size, present()
        count = min(self._batch_size, len(self._index) - first)
        if ranks.alone:
            return slice(first, first + count), None
        own = ranks.rows(count)
        return slice(first + own.start, first + own.stop), (own.start, count)

    def _draws(self, n: int, epoch: int) -> tuple[Tensor, Tensor]:
        """Draw offsets [N, 2] and flips [N] of an epoch, in the order of its samples."""
        rng = generator(self._seed, "augment", epoch)
        offsets = torch.randint(0, 2 * PAD + 1, (n, 2), generator=rng)
        flip = torch.randint(0, 2, (n,), generator=rng).bool()
        return sent(offsets, self._device), sent(flip, self._device)
