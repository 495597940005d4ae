"""Do a run's work and record how it ended."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import nullcontext

from ablation.errors import (
    DONE,
    INTERRUPTED,
    JOB_FAILED,
    InputError,
    InterruptedRunError,
    NonFiniteError,
    out_of_memory,
)
from ablation.output import warn
from ablation.runs.directory import Run
from ablation.runs.signals import stop_on_signals
from ablation.runs.status import State
from ablation.text import first_line

REMEDY = (
    "set a smaller batch_size= in training (where the network has no BatchNorm, "
    "runtime.accumulate=auto keeps it), evaluation.batch_size= in evaluation, or choose a device "
    "with more memory; retry=true tries again"
)
"""What to do where memory ran out."""


def supervised(
    run: Run,
    work: Callable[[Callable[[], bool]], object],
    training: bool = True,
    stand: State = "interrupted",
) -> int:
    """Do the work of a run and record how it ended.

    Args:
        run: its directory, locked.
        work: gets a function that says whether a signal asked to stop.
        training: false leaves the run's status alone: a later evaluation cannot fail a run.
        stand: the state to go back to if something the user gave cannot be used; a run that
            was ``done`` stays so whatever happens to a later evaluation.

    Returns:
        An exit code. A scheduler's signal handler may leave with its own, after the run was saved.
    """

    def record(state: State, **facts: str) -> None:
        if training:
            run.set_status(stand if stand == "done" and state != "running" else state, **facts)

    try:
        with stop_on_signals() as signals:
            record("running")
            with run.beating() if training else nullcontext():
                work(lambda: signals.requested)
    except InterruptedRunError as error:
        record("interrupted", error=str(error))
        warn(str(error))
        if signals.hand_on():  # submitit requeues and exits, but lets SIGTERM pass
            return supervised(run, work, training, stand)
        return INTERRUPTED
    except KeyboardInterrupt:
        record("interrupted", error="stopped at once by a second Ctrl-C")
        return INTERRUPTED
    except NonFiniteError as error:
        record("failed", error=str(error), term=error.term)
        warn(f"failed: {error}; this run has no result")
        return JOB_FAILED
    except InputError as error:
        record(stand, error=str(error))
        raise
    except Exception as error:
        if out_of_memory(error):
            text = f"out of memory ({first_line(error)}): {REMEDY}"
            record("failed", error=text)
            warn(f"failed: {text}")
            return JOB_FAILED
        record("failed", error=f"{type(error).__name__}: {error}")
        warn(traceback.format_exc().rstrip())
        return JOB_FAILED
    record("done")
    return DONE
