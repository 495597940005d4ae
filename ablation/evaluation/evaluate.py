"""Evaluate the robustness of one network: every attack of a request, on the same images.

An example counts as robust under an attack iff it is classified correctly and the attack found no
misclassified point within eps. Attacks see correctly classified images only, gathered into full
batches. Their points are judged here, by a forward pass of our own in fp32, and a point outside
the ball or the pixel range is an error, never a result.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.evaluation.attacks import Attack, Ensemble
from ablation.evaluation.autoattack import LOGGER, inspect, is_inspected
from ablation.evaluation.checks import diagnose
from ablation.evaluation.judge import Judge, Progress, Source, Subject, never, place
from ablation.evaluation.ladders import Rung, ladders, running_order, settle
from ablation.evaluation.measures import Measure
from ablation.evaluation.probes import Prober, logit_gap
from ablation.evaluation.results import Attacked, Check, Entry, Evaluation, Verdict
from ablation.evaluation.resume import Forgetful, Judged, Kept, Memo, identify
from ablation.evaluation.warnings import distinct, warnings_of
from ablation.numerics.functional import cross_entropy
from ablation.numerics.modes import evaluating
from ablation.numerics.precision import exact_arithmetic
from ablation.random import generator
from ablation.text import show_fraction
from ablation.types import Norm

if TYPE_CHECKING:
    import pandas as pd


TOP = 10
"""Classes with the largest clean logits that are kept per image."""


@dataclass(frozen=True)
class Request:
    """Request: attacks, perturbation radius and images of an evaluation.

    Attributes:
        attacks: metric name to attack or measure, in order; ``None`` is clean accuracy.
        eps: perturbation radius in pixels, at least 0; with 0 the accuracies are the clean one.
        norm: of the ball. Attacks may override both.
        n: a random subset, a function of ``seed`` alone, so that arms share it; ``None`` means
            all. A smaller ``n`` gives a subset of a larger one's; so does an attack's own ``n``,
            which is a cap.
        batch_size: images attacked at once.
        seed: of the subset, of starts and of the attacks.
        split: which images these are; recorded.
        diagnose: run the checks, with the few small attacks that they need. Turn it off where a
            number only chooses between epochs.

    Raises:
        InputError: a value out of range.
    """

    attacks: Mapping[str, Attack | Measure | None]
    eps: float
    norm: Norm = "linf"
    n: int | None = None
    batch_size: int = 500
    seed: int = 0
    split: Literal["test", "val", "train"] = "test"
    diagnose: bool = True

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"evaluation.eps={self.eps}: write a radius of 0 or more, as 8/255")
        if self.batch_size < 1:
            raise InputError(f"evaluation.batch_size={self.batch_size}: at least 1")
        if self.n is not None and self.n < 1:
            raise InputError(f"evaluation.n={self.n}: at least 1; null takes all images")
        for name, attack in self.attacks.items():
            if isinstance(attack, Measure) and attack.split not in (None, self.split):
                raise InputError(
                    f"evaluation.attacks.{name}: measured on {attack.split} images, and these are "
                    f"{self.split} images; leave it out: ~evaluation.attacks.{name}"
                )


def evaluate(
    net: nn.Module,
    images: Tensor,
    labels: Tensor,
    request: Request,
    *,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] = never,
    partial: Path | None = None,
    shared: bool = False,
    source: Source | None = None,
) -> Evaluation:
    """Attack a network and judge the points.

    With a ``source`` the attacks search on that network, and their points are judged on this one:
    what does not fool it counts as robust. The checks, which judge attacks, are then left out.

    Evaluation mode, frozen parameters, plain fp32 (fp64 if the weights are). Modes, gradient
    flags, global generators and backend switches are afterwards as before.

    Args:
        net: images [N, C, H, W] in [0, 1] to logits [N, K]; on any device.
        images: [N, C, H, W], uint8, or float in [0, 1].
        labels: [N], integers in 0..K-1.
        request: what to run.
        progress: called after every batch.
        should_stop: asked before every batch.
        partial: a folder for judged batches: the same call after an interruption goes on from
            there. The caller removes it once the result is safe.
        shared: other processes make the same call with the same folder: each batch is judged by
            one of them, and all return the same evaluation.
        source: whose adversarial examples attack; ``None`` means the network's own.

    Raises:
        InputError: the images, labels or request do not fit the network or each other.
        NonFiniteError: logits are NaN or infinite.
        AttackError: an attack left its ball.
        InterruptedRunError: ``should_stop`` said so.
    """
    device, dtype = place(net, images)
    order = _subset(images, labels, request)
    nets = [net]
    if source is not None:
        nets.append(source.net)
    with ExitStack() as stack:
        for each in nets:
            stack.enter_context(evaluating(each))
        stack.enter_context(exact_arithmetic(device))
        subject = Subject(net, images, labels.long(), device, dtype)
        memo: Memo = Forgetful()
        if partial is not None:
            key = identify(*nets, images=images, labels=labels, request=request)
            memo = Kept(partial, key, shared=shared)
        session = _Session(subject, request, order, progress, should_stop, memo, source)
        return session.run()


def threat(attack: Attack, eps: float, norm: Norm) -> tuple[float, Norm]:
    """Return the radius and norm in effect: the attack's own where it has them."""
    return eps if attack.eps is None else attack.eps, attack.norm or norm


def describe(attack: Attack | Measure, eps: float, norm: Norm, classes: int) -> dict[str, Any]:
    """State what a metric's name leaves open about its attack: numbers compare if it agrees.

    Args:
        attack: any, or a measure, which inherits neither radius nor norm.
        eps: the evaluation's perturbation radius, in pixels.
        norm: the evaluation's.
        classes: of the network.

    Raises:
        InputError: the attack cannot be run on so many classes.
    """
    if isinstance(attack, Measure):
        return {"measure": attack.kind, **attack.describe(eps, classes)}
    eps, norm = threat(attack, eps, norm)
    return {
        "attack": attack.kind,
        **attack.describe(eps, classes),
        "norm": norm,
        "eps": eps,
        "eps_text": show_fraction(eps).split(" = ")[0],
    }


def _subset(images: Tensor, labels: Tensor, request: Request) -> Tensor:
    """Draw the indices of the evaluated images, in random order."""
    total = len(images)
    if images.dim() != 4 or total == 0:
        raise InputError(f"images: shape {tuple(images.shape)}; give [N, C, H, W] with N > 0")
    if images.is_floating_point():
        low, high = images.amin().item(), images.amax().item()
        if not (low >= 0 and high <= 1):
            raise InputError(
                f"images: pixels in [{low:g}, {high:g}]; give uint8, or floats in [0, 1] "
                "(normalisation belongs inside the network)"
            )
    elif images.dtype != torch.uint8:
        raise InputError(f"images: {images.dtype}; give uint8, or floats in [0, 1]")
    if labels.shape != (total,) or labels.is_floating_point():
        raise InputError(f"labels: {labels.dtype} {tuple(labels.shape)}; give {total} integers")
    if request.n is not None and request.n > total:
        raise InputError(
            f"evaluation.n={request.n}: the {request.split} split has {total} images; "
            f"set evaluation.n={total} or null"
        )
    return torch.randperm(total, generator=generator(request.seed, "evaluation"))[: request.n]


class _Session:
    """Run one evaluation; arrays are over all images, on the CPU."""

    def __init__(
        self,
        subject: Subject,
        request: Request,
        order: Tensor,
        progress: Progress | None,
        should_stop: Callable[[], bool],
        memo: Memo,
        source: Source | None,
    ) -> None:
        self.source = source
        self.attacked = subject if source is None else subject.twin(source.net)
        self.subject, self.request, self.order = subject, request, order
        self.rows = order.sort().values
        self.judge = Judge(
            *(subject, self.attacked, request.batch_size, request.seed),
            *(memo, progress, should_stop),
        )
        total = len(subject.images)
        self.prediction = torch.zeros(total, dtype=torch.long)
        self.correct = torch.zeros(total, dtype=torch.bool)
        self.zero_gradient = torch.zeros(total, dtype=torch.bool)
        self.gap = torch.zeros(total, dtype=torch.float64)
        self.top = torch.zeros((total, 0), dtype=torch.short)
        self.measured: dict[str, Tensor] = {}
        self.classes = 0
        self.flags: list[str] = []
        self.seconds: dict[str, float] = {}

    def run(self) -> Evaluation:
        attacks = {
            name: attack for name, attack in self.request.attacks.items() if attack is not None
        }
        gradients = any(not isinstance(attack, Measure) for attack in attacks.values())
        with self._timed("clean"):
            self._clean(gradients=self.request.diagnose and gradients)
        if self.source is not None:
            self._check_source(self.source, attacks)
        params = {name: self._describe(attack) for name, attack in attacks.items()}
        if any(map(is_inspected, attacks.values())):
            with self._flagged("pyautoattack"):
                inspect(
                    self.attacked.predict, *self.subject.batch(self.rows[: self.request.batch_size])
                )
        verdicts, measured = self._results(attacks, params)
        entries: list[Entry] = []
        attacked: list[Attacked] = []
        for metric, attack in self.request.attacks.items():
            if metric in measured:
                entries.append(measured[metric])
                continue
            chosen, robust = self.rows, self.correct
            facts = params.get(metric, {})
            if metric in verdicts:
                verdict, asked = verdicts[metric], cast(Attack, attack)
                attacked.append(Attacked(metric, asked, *self._threat(asked), facts, verdict))
                chosen, robust = verdict.chosen, verdict.robust
            value = 100 * robust[chosen].double().mean().item()
            entries.append(Entry(metric, self.request.split, value, n=len(chosen), params=facts))
        examples = self._table(verdicts)
        diagnosed = self.request.diagnose and self.source is None
        checks = self._checks(examples, attacked) if diagnosed else ()
        tripped = [check.text for check in checks if check.outcome == "tripped"]
        flags = tuple(dict.fromkeys([*self.flags, *tripped]))
        return Evaluation(tuple(entries), examples, flags, self.seconds, checks)

    def _results(
        self, attacks: Mapping[str, Attack | Measure], params: dict[str, dict[str, Any]]
    ) -> tuple[dict[str, Verdict], dict[str, Entry]]:
        """Run attacks and measures; notes in ``params`` which radius a verdict reuses."""
        verdicts: dict[str, Verdict] = {}
        measured: dict[str, Entry] = {}
        # A verdict at another radius says little where the points are made for another network.
        groups = ladders(attacks, self._threat) if self.source is None else []
        above: dict[str, Rung] = {
            lower.metric: upper for rungs in groups for upper, lower in pairwise(rungs)
        }
        for metric in running_order(list(attacks), groups):
            attack, upper = attacks[metric], above.get(metric)
            with self._timed(metric):
                if isinstance(attack, Measure):
                    measured[metric] = self._measure(metric, attack, params[metric])
                elif upper is None:
                    verdicts[metric] = self._attack(metric, attack)
                else:
                    params[metric]["reuses"] = f"eps {show_fraction(upper.eps).split(' = ')[0]}"
                    verdicts[metric] = self._attack(metric, attack, verdicts[upper.metric])
        for rungs in groups:
            self.flags += settle(rungs, verdicts)
        return {name: verdicts[name] for name in attacks if name in verdicts}, measured

    def _checks(self, examples: pd.DataFrame, attacked: list[Attacked]) -> tuple[Check, ...]:
        typical = self.gap[self.rows].mean().item()
        pixels = self.subject.images[0].numel()
        prober = Prober(
            attacked=tuple(attacked),
            order=self.order,
            correct=self.correct,
            typical=typical,
            pixels=pixels,
            classes=self.classes,
            broken=self._broken_by_probe,
        )
        with self._timed("checks"):
            probes = prober.run()
        return diagnose(attacked, examples, probes)

    def _threat(self, attack: Attack) -> tuple[float, Norm]:
        return threat(attack, self.request.eps, self.request.norm)

    def _describe(self, attack: Attack | Measure) -> dict[str, Any]:
        origin = {} if self.source is None else {"attack_from": self.source.name}
        return {
            **origin,
            **describe(attack, self.request.eps, self.request.norm, self.classes),
            "seed": self.request.seed,
            "batch_size": self.request.batch_size,
        }

    def _clean(self, *, gradients: bool) -> None:
        """Record predictions, logit gaps, and where the cross-entropy has no input gradient."""
        largest = self.subject.labels.max().item()
        if self.subject.labels.min() < 0:
            raise InputError("labels: a label is negative")
        for rows in self.judge.batches("clean", self.rows):
            x, y = self.subject.batch(rows)
            with torch.set_grad_enabled(gradients):
                z = self.subject.predict(x.requires_grad_(gradients))
            self.judge.finite(z, rows, "clean images")
            self.classes = z.shape[1]
            if largest >= self.classes:
                raise InputError(
                    f"labels: {largest} is not among the model's {self.classes} classes"
                )
            self.prediction[rows] = z.argmax(1).cpu()
            top = z.detach().topk(min(TOP, self.classes), 1).indices.short().cpu()
            if not self.top.shape[1]:
                self.top = torch.zeros((len(self.prediction), top.shape[1]), dtype=torch.short)
            self.top[rows] = top
            self.gap[rows] = logit_gap(z.detach()).double().cpu()
            if z.requires_grad:
                with torch.enable_grad():
                    (grad,) = torch.autograd.grad(cross_entropy(z, y).sum(), x)
                self.zero_gradient[rows] = grad.flatten(1).eq(0).all(1).cpu()
            elif gradients:
                self.zero_gradient[rows] = True
        labels = self.subject.labels.cpu()
        self.correct[self.rows] = (self.prediction == labels)[self.rows]

    def _check_source(self, source: Source, attacks: Mapping[str, Attack | Measure]) -> None:
        """Require logits of the same classes, and attacks alone."""
        for name, attack in attacks.items():
            if isinstance(attack, Measure):
                raise InputError(
                    f"evaluation.attacks.{name}: it measures the network itself, so there is "
                    f"nothing to transfer; leave it out: ~evaluation.attacks.{name}"
                )
        x, _ = self.subject.batch(self.rows[: self.request.batch_size])
        with torch.no_grad():
            z = self.attacked.predict(x)
        self.judge.finite(z, self.rows[: len(x)], f"clean images, by {source.name}")
        if z.shape[1] != self.classes:
            raise InputError(
                f"attack_from={source.name}: it has {z.shape[1]} classes, the attacked network "
                f"{self.classes}; give networks of one data set"
            )

    def _measure(self, metric: str, measure: Measure, params: Mapping[str, Any]) -> Entry:
        chosen = self.order[: measure.n].sort().values
        more = measure.columns
        shape = (len(self.correct), 1 + len(more)) if more else (len(self.correct),)
        values = torch.full(shape, torch.nan, dtype=torch.double)
        predict = self.judge.polled(self.subject.predict)
        for rows in self.judge.batches(metric, chosen):
            x, y = self.subject.batch(rows)
            values[rows] = measure.measure(predict, x, y).double().cpu()
        names = (metric, *(f"{metric}_{name}" for name in more))
        self.measured |= zip(names, values.view(len(values), -1).unbind(1), strict=True)
        reading = measure.read(values[chosen], self.correct[chosen])
        self.flags += [f"{metric}: {flag}" for flag in reading.flags]
        facts = {**params, **reading.facts}
        return Entry(metric, self.request.split, reading.value, measure.unit, len(chosen), facts)

    def _attack(self, metric: str, attack: Attack, larger: Verdict | None = None) -> Verdict:
        """Run an attack, or the parts of an ensemble, on what is still robust.

        What is robust at a ``larger`` radius meets the first part alone; see ``ladders``.
        """
        eps, norm = self._threat(attack)
        chosen = self.order[: attack.n].sort().values
        parts: Mapping[str, Attack] = {metric: attack}
        if eps == 0:
            parts = {}
        elif isinstance(attack, Ensemble):
            with self._flagged(metric):
                parts = attack.parts(self.classes)
        unbroken = torch.full_like(self.prediction, -1)
        verdict = Verdict(chosen, self.correct.clone(), parts, unbroken, unbroken.clone())
        settled = torch.zeros_like(self.correct)
        if larger is not None:
            settled[larger.chosen] = larger.robust[larger.chosen]
        for position, (name, part) in enumerate(parts.items()):
            title = metric if part is attack else f"{metric}/{name}"
            open_ = verdict.robust & ~settled if position else verdict.robust
            rows = chosen[open_[chosen]]
            judged = self._judged(title, part, rows, eps, norm)
            fallen = rows[judged.broken]
            verdict.robust[fallen] = False
            verdict.broken_by[fallen] = position
            verdict.became[fallen] = judged.became[judged.broken]
        return verdict

    def _broken_by_probe(
        self, name: str, attack: Attack, rows: Tensor, eps: float, norm: Norm
    ) -> Tensor:
        """Run an attack that only the checks ask for; see ``probes.Break``."""
        broken = torch.zeros_like(self.correct)
        broken[rows] = self._judged(f"checks/{name}", attack, rows, eps, norm).broken
        return broken

    def _judged(self, title: str, attack: Attack, rows: Tensor, eps: float, norm: Norm) -> Judged:
        judged = self.judge.judged(title, attack, rows, eps, norm)
        self.flags += [f"{title}: {message}" for message in judged.messages]
        return judged

    def _table(self, verdicts: Mapping[str, Verdict]) -> pd.DataFrame:
        # Slow to import, and not needed before there is a result.
        import pandas as pd

        wrong = ~self.correct
        columns = {
            "index": torch.arange(len(wrong)),
            "label": self.subject.labels.cpu(),
            "prediction": self.prediction,
            "clean_correct": self.correct,
        }
        if self.request.diagnose:
            columns["logit_gap"] = self.gap
        if self.request.diagnose and verdicts:
            columns["zero_gradient"] = self.zero_gradient
        table = pd.DataFrame({name: column.numpy() for name, column in columns.items()})
        if self.request.diagnose:
            table["top_classes"] = list(self.top.numpy())
        first = pd.Series(pd.NA, table.index, dtype="string").mask(wrong.numpy(), "clean")
        for metric, verdict in verdicts.items():
            seen = torch.zeros_like(wrong)
            seen[verdict.chosen] = True
            robust = pd.Series(verdict.robust.numpy())
            if len(verdict.chosen) < len(self.rows):
                robust = robust.astype("boolean").where(seen.numpy())
            table[f"{metric}_robust"] = robust
            fallen = (verdict.broken_by >= 0).numpy()
            became = pd.Series(verdict.became.numpy(), dtype="Int16")
            table[f"{metric}_class"] = became.where(fallen)
            if isinstance(self.request.attacks[metric], Ensemble):
                names = [*verdict.parts, None]  # -1, not broken, is the last
                part = pd.Series([names[i] for i in verdict.broken_by.tolist()], dtype="string")
                table[f"{metric}_broken_by"] = part.mask((wrong & seen).numpy(), "clean")
            first = first.mask(fallen & first.isna(), metric)
        table["first_broken_by"] = first
        for metric, values in self.measured.items():
            table[metric] = values.numpy()
        return table.iloc[self.rows.numpy()].reset_index(drop=True)

    @contextmanager
    def _flagged(self, title: str) -> Iterator[None]:
        with warnings_of(LOGGER) as messages:
            yield
        self.flags += [f"{title}: {message}" for message in distinct(messages)]

    @contextmanager
    def _timed(self, metric: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        self.seconds[metric] = self.seconds.get(metric, 0.0) + time.perf_counter() - begun
