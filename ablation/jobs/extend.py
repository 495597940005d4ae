"""Begin a longer run with the training state of its parent."""

from __future__ import annotations

from ablation.config.experiment import Config
from ablation.config.extension import parent_of
from ablation.errors import InputError
from ablation.jobs.setup import Images, check_split
from ablation.output import say
from ablation.runs.directory import Run


def adopt(config: Config, run: Run, images: Images) -> None:
    """Copy curves, best weights and training state of the parent into a run that has no state.

    Raises:
        InputError: the parent saw other images, or its files are damaged.
    """
    parent = parent_of(config)
    parent.check_data(images.fingerprint())
    check_split(parent.split_path, images.split)
    snapshot = parent.load()
    if snapshot is None:
        raise InputError(f"extend={config.extend}: {parent.path} has no training state")
    run.rewind_metrics(0)
    for row in parent.read_metrics():
        run.log(row)
    averaged = snapshot.average is not None
    for name in snapshot.train["position"]["best"]:
        run.checkpoints.copy_weights(parent.checkpoints, name, averaged=averaged)
    status = parent.status()
    threads = {} if status is None else {"threads": status.facts.get("threads")}
    run.note(parent=parent.path.name, **{k: v for k, v in threads.items() if v is not None})
    run.save(snapshot)  # last: from here on the run resumes by itself
    run.settle()
    say(f"goes on  after the {snapshot.epoch} epochs of {parent.path}")
