"""Judge attacks: batch by batch, on the points they return, by a forward of our own in fp32."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ablation.errors import InputError, InterruptedRunError, NonFiniteError, out_of_memory
from ablation.evaluation.attacks import Attack, Frugal, Predict, RandomStart, check_points
from ablation.evaluation.autoattack import LOGGER
from ablation.evaluation.resume import Judged, Memo
from ablation.evaluation.warnings import distinct, warnings_of
from ablation.models.folding import search_copy
from ablation.random import generator, key
from ablation.types import Norm

PATIENCE = 0.5
"""Seconds between two looks at what other processes judge."""
SAME = 1e-3
"""By how much of the largest logit a cheaper copy of a network may differ from it: rounding of fp32
through hundreds of layers stays far below, another function far above."""

Progress = Callable[[str, int, int], None]
"""Called with the metric (and part), examples done and examples to attack."""


def never() -> bool:
    """Never ask for a stop."""
    return False


@dataclass(frozen=True)
class Source:
    """Another network, on which adversarial examples are crafted: a transfer attack.

    Attributes:
        name: in every attack's parameters, as ``attack_from``.
        net: like the network under evaluation: same images, classes and device.
    """

    name: str
    net: nn.Module


def place(net: nn.Module, images: Tensor) -> tuple[torch.device, torch.dtype]:
    """Return the network's device and dtype."""
    for weight in net.parameters():
        if weight.dtype in (torch.float16, torch.bfloat16):
            raise InputError(f"evaluation is in fp32, the weights are {weight.dtype}: net.float()")
        if weight.is_floating_point():
            return weight.device, weight.dtype
    return images.device, images.dtype if images.is_floating_point() else torch.float32


@dataclass(frozen=True)
class Subject:
    """A network and the images that it is evaluated on."""

    net: nn.Module
    images: Tensor
    labels: Tensor
    device: torch.device
    dtype: torch.dtype

    def predict(self, x: Tensor) -> Tensor:
        """Logits [N, K] of points [N, C, H, W]."""
        z: Tensor = self.net(x.to(self.dtype))
        return z

    @cached_property
    def cheaper(self) -> _SearchCopy:
        """What computes the same at less cost; made when it is asked for."""
        return _SearchCopy(self)

    def twin(self, net: nn.Module) -> Subject:
        """Return another network with the same images."""
        device, dtype = place(net, self.images)
        if device != self.device:
            raise InputError(f"the source's network is on {device}, the other on {self.device}")
        return replace(self, net=net, dtype=dtype)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images in [0, 1] and labels of some rows, on the network's device."""
        x = self.images[rows.to(self.images.device)].to(self.device)
        x = x.to(self.dtype) if x.is_floating_point() else x.to(self.dtype) / 255
        return x, self.labels[rows.to(self.labels.device)].to(self.device)


class _SearchCopy:
    """A cheaper copy of a subject's network, if it computes the same."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._chosen: Predict | None = None
        self._asked = False

    def __call__(self, x: Tensor) -> Predict | None:
        """Return the copy, compared with the network on images [N, C, H, W] once, or ``None``."""
        if not self._asked:
            self._chosen, self._asked = self._choose(x), True
        return self._chosen

    @torch.no_grad()
    def _choose(self, x: Tensor) -> Predict | None:
        copied = search_copy(self._subject.net)
        if copied is self._subject.net:
            return None

        def searched(points: Tensor) -> Tensor:
            z: Tensor = copied(points)
            return z

        wanted, found = self._subject.predict(x), searched(x)
        same = torch.allclose(found, wanted, rtol=0, atol=SAME * wanted.abs().amax().item())
        return searched if same else None


class Judge:
    """Attacks images, batch by batch, and judges the points.

    Args:
        subject: the network that is judged.
        attacked: the network that attacks search on.
        batch_size: images attacked at once.
        seed: of the starts and of the attacks.
        memo: where judged batches are kept.
        progress: called after every batch.
        should_stop: asked before every batch and every forward of an attack: one batch of Square on
            a large network is longer than a scheduler waits.
    """

    def __init__(
        self,
        subject: Subject,
        attacked: Subject,
        batch_size: int,
        seed: int,
        memo: Memo,
        progress: Progress | None,
        should_stop: Callable[[], bool],
    ) -> None:
        self._subject, self._searched = subject, attacked
        self._batch_size, self._seed = batch_size, seed
        self._memo, self._progress, self._should_stop = memo, progress, should_stop
        self._at = ("", 0, 0)

    def batches(self, name: str, rows: Tensor) -> Iterator[Tensor]:
        """Split rows into batches, reporting progress and stopping between them."""
        done = 0
        if not len(rows):
            return  # torch.split would yield one empty batch
        for batch in torch.split(rows, self._batch_size):
            self._at = (name, done, len(rows))
            self._go_on()
            yield batch
            done += len(batch)
            if self._progress is not None:
                self._progress(name, done, len(rows))

    def polled(self, predict: Predict) -> Predict:
        """Return the same function, which ends the evaluation where a stop is asked for."""

        def polling(x: Tensor) -> Tensor:
            self._go_on()
            return predict(x)

        return polling

    def _go_on(self) -> None:
        if self._should_stop():
            name, done, total = self._at
            raise InterruptedRunError(
                f"stopped during the evaluation ({name}, {done} of {total} images); "
                "run the same command to go on"
            )

    def judged(self, title: str, attack: Attack, rows: Tensor, eps: float, norm: Norm) -> Judged:
        """Judge all rows, batch by batch; batches that other processes judge are waited for.

        Raises:
            AttackError: the attack left its ball.
            NonFiniteError: logits at a point are NaN or infinite.
            InterruptedRunError: ``should_stop`` said so.
        """
        batches = torch.split(rows, self._batch_size) if len(rows) else ()
        found: dict[int, Judged] = {}
        while len(found) < len(batches):
            before = len(found)
            for number in (number for number in range(len(batches)) if number not in found):
                self._at = (title, sum(len(batches[n]) for n in found), len(rows))
                self._go_on()
                known = self._memo.get(title, number)
                judged = known or self._claimed(title, number, attack, batches[number], eps, norm)
                if judged is None:
                    continue
                found[number] = judged
                if known is None and self._progress is not None:
                    self._progress(title, sum(len(batches[n]) for n in found), len(rows))
            if len(found) == before:
                time.sleep(PATIENCE)
        all_ = [found[number] for number in range(len(batches))]
        messages = distinct(message for judged in all_ for message in judged.messages)
        nothing = torch.zeros(0, dtype=torch.long)
        return Judged(
            torch.cat([nothing.bool(), *(judged.broken for judged in all_)]),
            torch.cat([nothing, *(judged.became for judged in all_)]),
            messages,
        )

    def _claimed(
        self, title: str, number: int, attack: Attack, rows: Tensor, eps: float, norm: Norm
    ) -> Judged | None:
        """Judge a batch and keep the verdict, unless another process is at it."""
        with self._memo.claimed(title, number) as mine:
            if not mine:
                return None
            judged = self._memo.get(title, number)  # another process may just have finished it
            if judged is None:
                with warnings_of(LOGGER) as messages:
                    broken, became = self._broken(title, attack, rows, eps, norm)
                judged = Judged(broken, became, list(messages))
                self._memo.put(title, number, judged)
            return judged

    def _broken(
        self, title: str, attack: Attack, rows: Tensor, eps: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Attack a batch and judge it: broken, and the predicted class [len(rows)], on the CPU.

        Where memory runs out, in two halves.
        """
        try:
            return self._attacked(title, attack, rows, eps, norm)
        except Exception as error:
            if not out_of_memory(error) or len(rows) == 1:
                raise
        if self._subject.device.type == "cuda":
            torch.cuda.empty_cache()
        half = -(-len(rows) // 2)
        logging.getLogger(LOGGER).warning(
            "memory ran out on batches of %d images, so some had %d; set evaluation.batch_size=%d, "
            "which also draws random starts of whole batches alike",
            *(len(rows), half, half),
        )
        parts = [self._broken(title, attack, part, eps, norm) for part in torch.split(rows, half)]
        broken, became = zip(*parts, strict=True)
        return torch.cat(broken), torch.cat(became)

    def _attacked(
        self, title: str, attack: Attack, rows: Tensor, eps: float, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        """Attack a batch and judge the points."""
        x, y = self._subject.batch(rows)
        predict, seed = self.polled(self._searched.predict), self._seed
        # The same seed for every batch, as in the package's loop: no batch depends on another.
        rng = torch.Generator(x.device).manual_seed(seed)
        if isinstance(attack, RandomStart):
            x_adv = attack(predict, x, y, eps, norm, rng, self._starts(attack, x, rows, eps, norm))
        elif isinstance(attack, Frugal):
            streams = [key(seed, "evaluation/search", index) for index in rows.tolist()]
            copied = self._searched.cheaper(x)
            searched = predict if copied is None else self.polled(copied)
            x_adv = attack.hunt(predict, searched, x, y, eps, norm, streams)
        else:
            x_adv = attack(predict, x, y, eps, norm, rng)
        x_adv = x_adv.detach().to(x.dtype)
        check_points(x_adv, x, eps, norm, title)
        with torch.no_grad():
            z = self._subject.predict(x_adv)
        self.finite(z, rows, f"points found by {title}")
        predicted = z.argmax(1)
        return (predicted != y).cpu(), predicted.cpu()

    def _starts(
        self, attack: RandomStart, x: Tensor, rows: Tensor, eps: float, norm: Norm
    ) -> Tensor | None:
        """Draw starts minus images [restarts, N, ...], each image's from a stream of its own."""
        like = torch.zeros((1, *x.shape[1:]), dtype=x.dtype)
        drawn = []
        for index in rows.tolist():
            rng = generator(self._seed, "evaluation/start", index)
            offset = attack.offsets(like, eps, norm, rng)
            if offset is None:
                return None
            drawn.append(offset)
        return torch.cat(drawn, 1).to(x.device)

    def finite(self, z: Tensor, rows: Tensor, where: str) -> None:
        """Check logits [N, K] of some rows.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        bad = ~z.detach().isfinite().all(1).cpu()
        if bad.any():
            first = int(rows[bad][0])
            raise NonFiniteError(
                "logits", f"{int(bad.sum())} of {len(rows)} {where}; first at index {first}"
            )
