"""Networks from outside this package: any ``torch.nn.Module``, named by its import path.

Importing runs code. So whoever calls ``locate`` must know that a person named the target on a
command line (``config.command_line``): no file may.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ablation.errors import InputError
from ablation.models.net import Net
from ablation.numerics.modes import evaluating
from ablation.random import key
from ablation.text import did_you_mean, first_line

FORM = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
"""``package.module:attribute``."""
ROUNDING = 1e-3
"""By which the probabilities of an image may miss 1."""


def locate(target: str) -> nn.Module | Callable[..., Any]:
    """What an import path names; the current directory is searched first.

    Args:
        target: ``package.module:attribute``.

    Raises:
        InputError: it is no import path, cannot be imported, or names nothing that can be called.
    """
    if not FORM.fullmatch(target):
        raise _refusal(target, "write <module>:<class or function>, as in mypkg.nets:build")
    name, _, path = target.partition(":")
    found: Any = _imported(target, name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [known for known in dir(found) if not known.startswith("_")]
            remedy = did_you_mean(part, [each for each in public if callable(getattr(found, each))])
            raise _refusal(target, f"{name} has no {path}; {remedy}") from error
    if not callable(found):
        raise _refusal(
            target,
            f"it is {type(found).__name__}; name a class, or a function that returns a network",
        )
    return found  # type: ignore[no-any-return]


def _imported(target: str, name: str) -> Any:
    here = os.getcwd()  # noqa: PTH109 (as Python writes it in sys.path)
    if not {here, ""} & set(sys.path):
        sys.path.insert(0, here)  # it stays: a network may import more when it is built
        importlib.invalidate_caches()
    try:
        with _own_numbers():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise _refusal(
                target,
                f"there is no module {error.name}, neither in {here} nor installed; run the "
                "command in the folder that holds it, or install it",
            ) from error
        raise _refusal(
            target, f"importing {name} fails ({first_line(error)}); install it"
        ) from error
    except SystemExit as error:
        raise _refusal(
            target,
            f"importing {name} runs a program that exits; name the module that defines the network",
        ) from error
    except Exception as error:
        raise _refusal(
            target, f"importing {name} fails ({first_line(error)}); mend it, or name another module"
        ) from error


@contextmanager
def _own_numbers() -> Iterator[None]:
    """Random numbers that are the same every time, and nobody else's."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(key(0, "init", 0))
        yield


def build_outside(target: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """Build the network that an import path names, without wrappers of torch.

    Its random numbers are a function of nothing: two calls give the same weights.

    Args:
        target: ``package.module:attribute``: a class or function, or a network.
        kwargs: arguments of the class or function.

    Raises:
        InputError: it cannot be built, or is no network.
    """
    found = locate(target)
    if not isinstance(found, nn.Module) or kwargs:
        found = _called(target, found, kwargs)
    if not isinstance(found, nn.Module):
        raise _refusal(
            target, f"it returns {type(found).__name__}; it must return a torch.nn.Module"
        )
    while isinstance(inner := getattr(found, "_orig_mod", _inside(found)), nn.Module):
        found = inner
    return found


def _called(target: str, make: Callable[..., Any], kwargs: Mapping[str, Any]) -> Any:
    try:
        with _own_numbers():
            return make(**kwargs)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise _refusal(
            target,
            f"called with ({given}) it fails ({first_line(error)}); set its arguments by "
            "model.kwargs.<name>=",
        ) from error


def _inside(net: nn.Module) -> object:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return net.module if isinstance(net, parallel) else None


def in_pixels(net: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> Net:
    """A network from outside behind an input normalisation, or none, with fp32 logits."""
    return Net(net, nn.Identity(), mean, std)


def check_logits(net: Net, x: Tensor, classes: int, target: str) -> None:
    """Make sure that a network maps images to logits of the classes, on a few images.

    Args:
        net: of ``in_pixels``.
        x: images [N, C, H, W] in [0, 1].
        classes: K.
        target: its import path, for the message.

    Raises:
        InputError: it does not take them, or returns something else.
    """
    shape = list(x.shape)
    with evaluating(net), torch.no_grad():
        inner = x if net.mean is None or net.std is None else (x - net.mean) / net.std
        try:
            z = net.body(inner)
        except Exception as error:
            raise _refusal(
                target,
                f"the network does not take images {shape}, [N, C, H, W] ({first_line(error)}); "
                "set model.kwargs or data to what fits the other",
            ) from error
    if not isinstance(z, Tensor):
        raise _refusal(
            target,
            f"the network returns {type(z).__name__} for images; it must return logits "
            f"[N, {classes}]: wrap it in a module that does",
        )
    if list(z.shape) != [len(x), classes]:
        raise _refusal(
            target,
            f"the network returns {list(z.shape)} for images {shape}; the data has {classes} "
            f"classes, so logits are {[len(x), classes]}: set model.kwargs or data",
        )
    if not z.isfinite().all():
        raise _refusal(
            target,
            "the network returns NaN or infinite logits for test images; check the checkpoint and "
            "model.normalize",
        )
    if bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < ROUNDING).all()):
        raise _refusal(
            target,
            "the network returns probabilities; attacks need logits: leave out its last softmax",
        )


def _refusal(target: str, why: str) -> InputError:
    return InputError(f"model.target={target}: {why}")
