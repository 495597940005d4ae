"""A rank beside the first: trains along, and leaves locking, writing and judging to rank 0."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.errors import DONE, INTERRUPTED, JOB_FAILED, InterruptedRunError, NonFiniteError
from ablation.jobs.fit import engine
from ablation.jobs.ranks import Launched, Nothing, called, share_threads
from ablation.jobs.setup import build_net, load_images, numerics
from ablation.output import warn
from ablation.ranks import joined
from ablation.runs.signals import stop_on_signals


def follow(config: Config, me: Launched) -> int:
    """Train along with rank 0, from its call to the end of the training; returns an exit code."""
    with stop_on_signals() as signals:
        try:
            _train_along(config, me, lambda: signals.requested)
        except (InterruptedRunError, KeyboardInterrupt):  # rank 0 says it
            return INTERRUPTED
        except NonFiniteError:  # all ranks find it
            return JOB_FAILED
        except Exception:
            warn(f"rank {me.ranks.rank}: {traceback.format_exc().rstrip()}")
            return JOB_FAILED
    return DONE


def _train_along(config: Config, me: Launched, stop: Callable[[], bool]) -> None:
    store = called(me)
    if store is None:
        return
    ranks, device = me.ranks, me.device(config.runtime.device)
    with joined(ranks.rank, ranks.world, device, store), numerics(config.runtime):
        images = load_images(config, device)
        net = build_net(config, images.train, config.phases[-1].method, device)
        nothing = Nothing()
        engine(config, net, images, nothing, nothing, _not_here, stop, _nobody).fit()


def _not_here(net: object) -> NoReturn:
    raise AssertionError("rank 0 validates")


def _nobody(row: Mapping[str, Any], net: object) -> None:
    """Rank 0 tracks."""


def main() -> None:
    """A rank that a job has started: the config comes on stdin."""
    config, me = load(json.load(sys.stdin)), Launched.here()
    share_threads(me.ranks.world)
    sys.exit(follow(config, me))


if __name__ == "__main__":
    main()
