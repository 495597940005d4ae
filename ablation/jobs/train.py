"""One run from config to result: data, network, training, evaluation, records.

The entry points are thin; this is what they call. A run is resumable at every step, and everything
it learns is on disk before it is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import yaml

from ablation.config.experiment import Config
from ablation.config.surroundings import check
from ablation.config.validation import load
from ablation.data import encode_split
from ablation.errors import DONE, JOB_FAILED, ConfigError, InputError, out_of_memory
from ablation.jobs.attack import evaluate_checkpoint, show_examples
from ablation.jobs.extend import adopt
from ablation.jobs.fit import engine
from ablation.jobs.follow import follow
from ablation.jobs.ranks import Launched, company, dismissing
from ablation.jobs.recorded import add_recorded
from ablation.jobs.setup import (
    Images,
    build_net,
    check_split,
    load_images,
    monitor,
    numerics,
    start_tracking,
    validator,
)
from ablation.jobs.state import asked_keys, is_trained, missing, moved, weights_problems
from ablation.jobs.summary import announce, result_table
from ablation.jobs.supervise import supervised
from ablation.models import Net
from ablation.output import say, warn
from ablation.runs.directory import Run
from ablation.runs.files import atomic_write_bytes
from ablation.runs.launches import note_launch, note_recipe
from ablation.runs.progress import Progress
from ablation.runs.tracking import Tracker
from ablation.text import first_line


def train(container: Mapping[str, Any]) -> int:
    """Train and evaluate one config, or continue, or show what is there.

    Returns:
        An exit code; see ``ablation.errors``.

    Raises:
        InputError: something the user gave cannot be used.
    """
    config, me = load(container), Launched.here()
    if not me.ranks.first:
        return follow(config, me)
    with dismissing(me):
        return _train(config, container, me)


def _train(config: Config, container: Mapping[str, Any], me: Launched) -> int:
    """The same, as rank 0."""
    check_plan(config)
    run = Run(config.run_dir, config.train_id)
    status = run.status()
    if status is not None and status.state == "done" and not missing(config, run):
        if moved(config, run):
            run.check_data(load_images(config, torch.device("cpu")).fingerprint())
        say(f"{config.run_name} is done\n{result_table(run, asked_keys(config))}")
        return DONE
    if status is not None and status.state == "failed" and not config.retry:
        warn(
            f"{config.run_name} failed before: {status.error}\n"
            f"change the config, or run the same command with retry=true: it goes on from the "
            f"last good checkpoint"
        )
        return JOB_FAILED
    problems = check(container)
    if is_trained(run):
        problems += weights_problems(config, run)
    if problems:
        raise ConfigError(problems)
    with run.open(yaml.safe_dump(config.container(), sort_keys=False)):
        finished = status is not None and status.state == "done"
        if config.launch is not None:
            note_launch(run, config.launch)
        note_recipe(run, config.recipe)
        return supervised(
            run,
            lambda stop: train_and_evaluate(config, run, stop, me),
            stand="done" if finished else "interrupted",
        )


def check_plan(config: Config) -> None:
    """Check that this is the job that the sweeper planned.

    Raises:
        InputError: code or files changed between the plan and the (queued) job.
    """
    planned = config.launch.planned_id if config.launch else config.train_id
    if planned != config.train_id:
        raise InputError(
            f"launch.planned_id={planned}: this job is {config.train_id}; the code or a config "
            f"file changed after the sweep was planned, start the sweep again"
        )


def train_and_evaluate(config: Config, run: Run, stop: Callable[[], bool], me: Launched) -> None:
    """Train and evaluate a run, from wherever it stands."""
    device = me.device(config.runtime.device)
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    run.set_status("running", device=str(device), **gpu)
    announce(config, run, device)
    images = load_images(config, device)
    run.check_data(images.fingerprint())
    if run.split_path.is_file():
        check_split(run.split_path, images.split)
    else:
        atomic_write_bytes(run.split_path, encode_split(images.split))
    extent = config.data.source.extent(config.data_root)
    if extent is not None and extent.names:
        run.keep_classes(extent.names)
    tracker = start_tracking(config.tracking, config, run, "train")
    code = JOB_FAILED
    try:
        if not is_trained(run):
            net = build_net(config, images.train, config.phases[-1].method, device)
            if config.extend is not None and not run.checkpoints.resumable():
                adopt(config, run, images)

            def lost(reason: str) -> None:
                run.set_status("interrupted", error=reason)

            with company(config, me, device, lost), numerics(config.runtime):
                note_threads(run, device)
                try:
                    fit(config, run, net, images, stop, tracker)
                except Exception as error:
                    if out_of_memory(error):
                        error.args = (f"batch_size={config.batch_size}: {first_line(error)}",)
                    raise
            run.set_status("running", trained=True)
            del net
        add_recorded(config, run, images, tracker)
        for name, node in missing(config, run):
            evaluate_checkpoint(config, run, name, node, images, device, stop, tracker)
        show_examples(config, run, images, device, tracker)
        code = DONE
    finally:
        tracker.finish(code)
    say(f"{result_table(run, asked_keys(config))}\nresults in {run.path}")
    upload = tracker.upload()
    if upload is not None:
        say(f"to see it in W&B: {upload}")


def note_threads(run: Run, device: torch.device) -> None:
    """Keep the number of threads: on a CPU it decides over the last bits of every sum."""
    now, status = torch.get_num_threads(), run.status()
    before = now if status is None else status.facts.get("threads", now)
    if device.type == "cpu" and before != now:
        warn(
            f"warning: the run began with {before} threads and goes on with {now}: its numbers "
            f"differ in the last bits; OMP_NUM_THREADS={before} keeps them"
        )
    run.note(threads=before)


def fit(
    config: Config,
    run: Run,
    net: Net,
    images: Images,
    stop: Callable[[], bool],
    tracker: Tracker,
) -> None:
    """Train to the end of the last phase."""
    validate, watch = validator(config, images, stop), monitor(config, images, stop)

    def look(net: torch.nn.Module) -> Mapping[str, float | str]:
        return {**validate(net), **({} if watch is None else watch(net))}

    def on_epoch(row: Mapping[str, Any], model: torch.nn.Module) -> None:
        del model
        numbers = {k: v for k, v in row.items() if isinstance(v, (int, float))}
        tracker.log(numbers, epoch=row["epoch"])
        if watch is not None and "margin_split" in row:
            tracker.histogram("margins", watch.margins, epoch=row["epoch"])

    engine(config, net, images, run, Progress(), look, stop, on_epoch).fit()
