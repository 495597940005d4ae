"""A run from config to result, interrupted, resumed, failed, repeated; on the digits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ablation.config.validation import load
from ablation.errors import DONE, INTERRUPTED, JOB_FAILED, ConfigError, InputError
from ablation.evaluation import evaluate
from ablation.evaluation.judge import Judge
from ablation.jobs import evaluate as assess
from ablation.jobs import setup
from ablation.jobs import train as job
from ablation.models import Net
from ablation.runs.directory import Run
from ablation.runs.launches import Launch, note_launch, note_recipe
from ablation.runs.state_dicts import load_weights_file
from tests.support.configs import compose_plain
from tests.support.jobs import finish_interrupted, metrics, plain, run_of, stop_after, weights


def test_a_run_leaves_what_the_contract_lists(tmp_path, capsys):
    container = plain(tmp_path)
    assert job.train(container) == DONE
    run = run_of(container)
    names = {path.name for path in run.path.iterdir()}
    assert names >= {
        *("config.yaml", "status.json", "metrics.jsonl", "split.npz"),
        *("checkpoints", "evaluations", "result.json"),
    }
    files = {path.name for path in (run.path / "checkpoints").iterdir()}
    assert files >= {"best_robust.safetensors", "best_clean.safetensors", "last.safetensors"}
    assert len([name for name in files if name.startswith("step_")]) == 2
    assert [row["epoch"] for row in metrics(run)] == [0, 1, 2]
    assert {"val_clean", "val_robust", "loss", "loss_ce", "lr", "train_robust"} <= metrics(run)[
        0
    ].keys()
    result = json.loads(run.result_path.read_text())
    entry = {e["metric"]: e for e in result["entries"]}["pgd20"]
    assert entry["checkpoint"] == "best_robust"
    assert entry["n"] == 50
    assert entry["params"]["steps"] == 20
    assert entry["params"]["eps"] == pytest.approx(0.1)
    assert result["scale"] == "full"
    status = run.status()
    assert status is not None
    assert status.state == "done"
    shown = capsys.readouterr().out
    assert "pgd20" in shown
    assert str(run.path) in shown


def test_the_saved_config_is_reusable_and_identifies_the_run(tmp_path):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    saved = yaml.safe_load((run_of(container).path / "config.yaml").read_text())
    assert load(saved).train_id == load(container).train_id


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        ((), 2),
        ((), 4),
        (("method=trades", "average=ema"), 6),
        (("method=mart", "average=swa", "component/awp=enabled"), 9),
        pytest.param(
            ("optim=adamw", "average=ema", "schedule=torch", "model=mlp", "runtime.accumulate=3"),
            4,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(
    tmp_path, monkeypatch, overrides, steps
):
    whole = plain(tmp_path / "whole", *overrides)
    broken = plain(tmp_path / "broken", *overrides)
    assert job.train(whole) == DONE
    one, other = run_of(whole), finish_interrupted(monkeypatch, broken, steps)
    assert metrics(one) == metrics(other)
    assert weights(one) == weights(other)
    values = [[e["value"] for e in (run.result() or {})["entries"]] for run in (one, other)]
    assert values[0] == values[1]


def test_the_same_command_again_prints_the_result_and_trains_nothing(tmp_path, monkeypatch, capsys):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    capsys.readouterr()
    monkeypatch.setattr(job, "load_images", lambda *_: pytest.fail("read the data again"))
    assert job.train(container) == DONE
    assert "is done" in capsys.readouterr().out


def test_another_evaluation_adds_to_the_first_and_trains_nothing(tmp_path, monkeypatch):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    run = run_of(container)
    before = weights(run)
    more = plain(
        tmp_path,
        f"run={run.path}",
        "evaluation=standard",
        "~evaluation.attacks.apgd_ce",
        "evaluation.n=30",
        "evaluation.checkpoints=[best_clean,last]",
        "device=cpu",
        config_name="evaluate",
    )
    assert assess.run(more) == DONE
    assert weights(run) == before
    entries = (run.result() or {})["entries"]
    assert {e["checkpoint"] for e in entries} == {"best_robust", "best_clean", "last"}
    assert len(list(run.evaluations.glob("*.parquet"))) == 3
    count = len(entries)
    assert assess.run(more) == DONE
    assert len((run.result() or {})["entries"]) == count


def test_a_bare_checkpoint_is_evaluated(tmp_path, capsys):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    path = run_of(container).path / "checkpoints" / "best_robust.safetensors"
    request = plain(
        tmp_path,
        f"checkpoint={path}",
        "data=digits",
        "model=tiny_cnn",
        "evaluation=quick",
        "evaluation.n=50",
        "device=cpu",
        config_name="evaluate",
    )
    capsys.readouterr()
    assert assess.run(request) == DONE
    trained = {e["metric"]: e["value"] for e in (run_of(container).result() or {})["entries"]}
    line = next(
        row for row in capsys.readouterr().out.splitlines() if row.split()[1:2] == ["pgd20"]
    )
    assert f"{trained['pgd20']:.2f}" in line


def test_a_checkpoint_of_another_model_is_refused_in_one_line(tmp_path):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    path = run_of(container).path / "checkpoints" / "last.safetensors"
    request = plain(
        tmp_path, f"checkpoint={path}", "data=digits", "model=mlp", config_name="evaluate"
    )
    with pytest.raises(InputError, match="model=") as caught:
        assess.run(request)
    assert "\n" not in str(caught.value)


def test_nan_marks_the_run_failed_names_the_term_and_gives_no_number(tmp_path, capsys):
    container = plain(tmp_path, "lr=1e30")
    assert job.train(container) == JOB_FAILED
    run = run_of(container)
    status = run.status()
    assert status is not None
    assert status.state == "failed"
    assert status.term in ("ce", "gradient")
    assert run.result() is None
    capsys.readouterr()
    assert job.train(container) == JOB_FAILED
    assert "retry=true" in capsys.readouterr().err


def test_retry_trains_a_failed_run_again(tmp_path):
    container = plain(tmp_path, "epochs=1")
    run = run_of(container)
    with run.open(yaml.safe_dump(load(container).container())):
        run.set_status("failed", error="the power went")
    assert job.train(container) == JOB_FAILED
    assert job.train({**container, "retry": True}) == DONE


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, monkeypatch, capsys):
    container = plain(tmp_path)
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        job.train(container)
    run = run_of(container)
    newest = sorted((run.path / "checkpoints").glob("step_*"))[-1]
    content = bytearray((newest / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "weights.safetensors").write_bytes(bytes(content))
    assert job.train(container) == DONE
    assert "warning" in capsys.readouterr().err
    whole = plain(tmp_path / "whole")
    job.train(whole)
    assert weights(run) == weights(run_of(whole))


def test_a_second_process_is_refused(tmp_path):
    container = plain(tmp_path)
    run = run_of(container)
    with (
        run.open(yaml.safe_dump(load(container).container())),
        pytest.raises(InputError, match="by pid"),
    ):
        job.train(container)


def test_validation_and_training_images_do_not_meet_and_test_is_not_read_for_selection(
    tmp_path, monkeypatch
):
    container = plain(tmp_path, "epochs=1", "evaluation=none")
    from ablation.data import Digits, ImageSet, load_split

    original = Digits.load

    def without_test(self: Digits, root: Path) -> tuple[ImageSet, ImageSet]:
        train, test = original(self, root)
        return train, ImageSet(torch.zeros_like(test.images), torch.zeros_like(test.labels))

    job.train(plain(tmp_path / "whole", "epochs=1", "evaluation=none"))
    monkeypatch.setattr(Digits, "load", without_test)
    assert job.train(container) == DONE
    run = run_of(container)
    split = load_split(run.split_path)
    assert not set(split.train.tolist()) & set(split.val.tolist())
    assert metrics(run) == metrics(run_of(plain(tmp_path / "whole", "epochs=1", "evaluation=none")))


def test_without_validation_only_last_can_stand_for_the_run(tmp_path):
    with pytest.raises(ConfigError, match="selection\\.metric=last"):
        job.train(plain(tmp_path, "data.val_size=0", "selection.n=null"))
    container = plain(
        tmp_path, "data.val_size=0", "selection.n=null", "selection.metric=last", "epochs=1"
    )
    assert job.train(container) == DONE
    assert "val_clean" not in metrics(run_of(container))[0]
    files = {path.name for path in (run_of(container).path / "checkpoints").iterdir()}
    assert "best_robust.safetensors" not in files


def test_init_from_starts_at_another_runs_weights(tmp_path):
    first = plain(tmp_path, "method=standard", "epochs=2")
    job.train(first)
    source = run_of(first)
    warm = plain(tmp_path, f"init_from={source.path}", "epochs=1", "lr=1e-9")
    cold = plain(tmp_path, "epochs=1", "lr=1e-9")
    assert load(warm).train_id != load(cold).train_id
    assert job.train(warm) == DONE
    accuracy = metrics(run_of(warm))[0]["val_clean"]
    assert accuracy == pytest.approx(metrics(source)[-1]["val_clean"], abs=6)
    with pytest.raises(ConfigError, match="no finished run there"):
        job.train(plain(tmp_path, "init_from=nowhere"))


def test_images_that_changed_are_noticed(tmp_path, monkeypatch):
    container = plain(tmp_path, "epochs=1", "evaluation=none")
    job.train(container)
    from ablation.data import Digits, ImageSet

    original = Digits.load

    def changed(self: Digits, root: Path) -> tuple[ImageSet, ImageSet]:
        train, test = original(self, root)
        return ImageSet(255 - train.images, train.labels), test

    monkeypatch.setattr(Digits, "load", changed)
    with pytest.raises(InputError, match="trained on other data"):
        job.train({**container, "evaluation": plain(tmp_path)["evaluation"]})


def test_a_compiled_like_runtime_changes_the_identity_but_paths_do_not(tmp_path):
    base = load(plain(tmp_path))
    same = ("data_dir=elsewhere", "runtime.device=auto", "runtime.fast=off", "tracking.project=x")
    for override in (*same, "lr=1e-1", "lr=0.10"):
        assert load(plain(tmp_path, override)).train_id == base.train_id, override
    other = ("runtime.precision=bf16", "runtime.compile=true", "batch_size=64", "seed=1", "lr=0.2")
    for override in (*other, "component/awp=enabled", "attack.steps=3", "selection.n=41"):
        assert load(plain(tmp_path, override)).train_id != base.train_id, override
    assert load(plain(tmp_path, "seed=1")).arm_id == base.arm_id


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path, monkeypatch):
    container = plain(tmp_path, "epochs=1", "evaluation=none")
    job.train(container)
    whole = plain(tmp_path, "epochs=1", "evaluation=standard", "~evaluation.attacks.pgd100")
    attacked: list[str] = []
    original = Judge._attacked

    def judged(self: Judge, title: str, *rest: Any) -> Any:
        if not title.startswith("checks/"):
            attacked.append(title)
        return original(self, title, *rest)

    monkeypatch.setattr(Judge, "_attacked", judged)
    stop = {"after": 3}
    monkeypatch.setattr(
        "ablation.jobs.attack.AttackProgress.__call__",
        lambda self, metric, done, total: stop.update(after=stop["after"] - 1),
    )
    with monkeypatch.context() as patch:
        requested = property(lambda self: stop["after"] <= 0, lambda self, value: None)
        patch.setattr("ablation.runs.signals.Stop.requested", requested, raising=False)
        assert job.train(whole) == INTERRUPTED
    run = run_of(container)
    assert attacked == ["fgsm", "pgd20"]
    assert run.result() is None
    assert job.train(whole) == DONE
    assert attacked == ["fgsm", "pgd20", "cw", "apgd_ce"]
    resumed = (run.result() or {})["entries"]
    assert not list(run.evaluations.glob("*.partial"))

    fresh = plain(tmp_path / "fresh", "epochs=1", "evaluation=standard")
    fresh["evaluation"] = whole["evaluation"]
    job.train(fresh)
    again = (run_of(fresh).result() or {})["entries"]
    assert [e["value"] for e in resumed] == [e["value"] for e in again]


def test_a_run_that_is_not_trained_to_the_end_is_not_evaluated(tmp_path, monkeypatch):
    container = plain(tmp_path)
    stop_after(monkeypatch, 9)
    assert job.train(container) == INTERRUPTED
    assert run_of(container).checkpoints.has("best_robust")
    request = plain(tmp_path, f"run={run_of(container).path}", config_name="evaluate")
    with pytest.raises(ConfigError, match="finish its training first"):
        assess.run(request)


def test_weights_that_were_deleted_are_said_to_be(tmp_path):
    container = plain(tmp_path, "epochs=1", "evaluation=none")
    job.train(container)
    run = run_of(container)
    for path in run.checkpoints.folder.glob("*.safetensors"):
        path.unlink()
    request = plain(tmp_path, f"run={run.path}", config_name="evaluate")
    with pytest.raises(ConfigError, match="its weights best_robust were deleted; move"):
        assess.run(request)
    with pytest.raises(ConfigError, match="its weights best_robust were deleted; move"):
        job.train(plain(tmp_path, "epochs=1"))


def test_a_finished_run_needs_its_weights_alone_for_another_evaluation(tmp_path, monkeypatch):
    import shutil

    job.train(plain(tmp_path, "epochs=1", "evaluation=none"))
    run = run_of(plain(tmp_path, "epochs=1"))
    before = (weights(run), metrics(run))
    for folder in (run.path / "checkpoints").glob("step_*"):
        shutil.rmtree(folder)
    monkeypatch.setattr(job, "fit", lambda *_: pytest.fail("trained again"))
    assert job.train(plain(tmp_path, "epochs=1")) == DONE
    assert (weights(run), metrics(run)) == before


def test_init_from_survives_a_kill_before_the_first_snapshot(tmp_path, monkeypatch):
    first = plain(tmp_path, "method=standard", "epochs=1", "evaluation=none")
    job.train(first)
    source = run_of(first)
    warm = plain(tmp_path, f"init_from={source.path}", "epochs=1", "lr=1e-9", "evaluation=none")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", lambda *_: (_ for _ in ()).throw(InputError("disk full")))
        with pytest.raises(InputError, match="disk full"):
            job.train(warm)
    assert job.train(warm) == DONE
    trained = load_weights_file(run_of(warm).path / "checkpoints/last.safetensors")[0]
    start = load_weights_file(source.path / "checkpoints/last.safetensors")[0]
    name = next(name for name in start if name.endswith("weight"))
    assert (trained[name] - start[name]).abs().max() < 1e-5


def test_a_failing_later_evaluation_leaves_a_finished_run_done(tmp_path, monkeypatch):
    job.train(plain(tmp_path, "epochs=1", "evaluation=none"))
    container = plain(tmp_path, "epochs=1")
    with monkeypatch.context() as patch:
        patch.setattr("ablation.jobs.attack.evaluate", lambda *_, **__: 1 / 0)
        assert job.train(container) == JOB_FAILED
    status = run_of(container).status()
    assert status is not None
    assert status.state == "done"
    assert job.train(container) == DONE


def test_weights_that_became_infinite_in_the_last_step_fail_the_run(tmp_path):
    container = plain(
        tmp_path,
        *("data.val_size=0", "selection.n=null", "selection.metric=last", "evaluation=none"),
        *(
            "epochs=1",
            "data.train_size=null",
            "batch_size=1437",
            "lr=1e38",
            "optim.weight_decay=1e5",
        ),
    )
    assert job.train(container) == JOB_FAILED
    status = run_of(container).status()
    assert status is not None
    assert status.term == "weights"


def test_norm_and_eps_of_an_evaluation_are_what_was_asked(tmp_path):
    job.train(plain(tmp_path, "epochs=1", "evaluation=none"))
    path = run_of(plain(tmp_path, "epochs=1")).path
    common = (f"run={path}", "evaluation=quick", "evaluation.n=30", "device=cpu")
    for overrides in (
        ("norm=l2", "eps=0.5"),
        ("eps=0.01", "evaluation.eps=0.02"),
        ("evaluation.attacks.pgd20.step_size=0.005", "evaluation.eps=0.02"),
    ):
        request = compose_plain(*common, *overrides, config_name="evaluate")
        assert assess.run({**request, "runs_dir": str(tmp_path)}) == DONE
    entries = [e for e in (Run(path, "x").result() or {})["entries"] if e["metric"] == "pgd20"]
    seen = {(e["params"]["norm"], e["params"]["eps"], e["params"]["step_size"]) for e in entries}
    assert ("l2", 0.5, 0.125) in seen
    assert ("linf", 0.02, 0.005) in seen
    assert len(seen) == 2


def test_evaluations_of_a_checkpoint_on_other_images_are_kept_apart(tmp_path, monkeypatch):
    job.train(plain(tmp_path, "epochs=1", "evaluation=none"))
    weights_file = run_of(plain(tmp_path, "epochs=1")).path / "checkpoints/last.safetensors"
    request = plain(
        tmp_path / "out",
        *(f"checkpoint={weights_file}", "data=digits", "model=tiny_cnn", "evaluation=quick"),
        *("evaluation.n=30", "device=cpu"),
        config_name="evaluate",
    )
    assert assess.run(request) == DONE
    from ablation.data import Digits, ImageSet

    original = Digits.load

    def other(self: Digits, root: Path) -> tuple[ImageSet, ImageSet]:
        train, test = original(self, root)
        return train, ImageSet(255 - test.images, test.labels)

    monkeypatch.setattr(Digits, "load", other)
    assert assess.run(request) == DONE
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_what_parts_remember_survives_an_interruption(tmp_path, monkeypatch):
    from dataclasses import replace

    from ablation.training.method import Slot
    from tests.support.parts import LogitMemory

    def with_memory(container: Any) -> Any:
        config = load(container)
        (phase,) = config.phases
        method = phase.method.with_term("memory", Slot(LogitMemory(), coef=0.1))
        return replace(config, phases=(replace(phase, method=method),))

    monkeypatch.setattr(job, "load", with_memory)
    options = ("data.drop_last=true", "method=standard", "epochs=2", "evaluation=none")
    whole, broken = plain(tmp_path / "whole", *options), plain(tmp_path / "broken", *options)
    assert job.train(whole) == DONE
    one, other = run_of(whole), finish_interrupted(monkeypatch, broken, 4)
    assert metrics(one) == metrics(other)
    assert weights(one) == weights(other)
    assert metrics(one)[0]["loss_memory"] > 0


def test_a_finished_run_is_not_shown_for_other_images(tmp_path, monkeypatch):
    container = plain(tmp_path, "epochs=1")
    job.train(container)
    from ablation.data import Digits, ImageSet

    original = Digits.load

    def other(self: Digits, root: Path) -> tuple[ImageSet, ImageSet]:
        train, test = original(self, root)
        return ImageSet(255 - train.images, train.labels), test

    monkeypatch.setattr(Digits, "load", other)
    with pytest.raises(InputError, match="other data"):
        job.train({**container, "data_dir": "elsewhere"})


def test_a_signal_in_a_validation_does_not_wait_and_costs_no_bit(tmp_path, monkeypatch):
    whole, broken = plain(tmp_path / "whole", "epochs=2"), plain(tmp_path / "broken", "epochs=2")
    assert job.train(whole) == DONE
    calls: list[int] = []

    def interrupted(*args, should_stop, **options):
        calls.append(1)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args, should_stop=should_stop, **options)

    monkeypatch.setattr("ablation.jobs.setup.evaluate", interrupted)
    assert job.train(broken) == INTERRUPTED
    assert metrics(run_of(broken)) == []
    assert job.train(broken) == DONE
    assert metrics(run_of(whole)) == metrics(run_of(broken))
    assert weights(run_of(whole)) == weights(run_of(broken))


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), MemoryError("no room")]
)
def test_no_memory_is_said_with_the_batch_size_and_a_remedy(tmp_path, monkeypatch, capsys, error):
    def fit(*_: object) -> None:
        raise error

    monkeypatch.setattr(job, "fit", fit)
    container = plain(tmp_path, "epochs=1")
    assert job.train(container) == JOB_FAILED
    said = capsys.readouterr().err
    assert f"batch_size={container['batch_size']}" in said
    assert "set a smaller batch_size=" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(("model", "code"), [("mlp", DONE), ("tiny_cnn", JOB_FAILED)])
def test_memory_that_runs_out_in_training_makes_parts_where_it_can(
    tmp_path, monkeypatch, capsys, model, code
):
    overrides = (f"model={model}", "model.spec.width=8", "epochs=1", "evaluation=none")
    whole = plain(tmp_path / "whole", *overrides)
    assert job.train(whole) == DONE
    output = Net.output

    def small(self, x):
        if self.training and len(x) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return output(self, x)

    monkeypatch.setattr(Net, "output", small)
    parts = plain(tmp_path / "parts", *overrides, "runtime.accumulate=auto")
    assert job.train(parts) == code
    said = capsys.readouterr().err
    if code == JOB_FAILED:
        assert "runtime.accumulate=auto keeps it" in said
        return
    assert said.count("each batch is now taken in") == 2
    ours, theirs = (dict(load_last(run_of(each))) for each in (parts, whole))
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5)


def load_last(run):
    return load_weights_file(run.path / "checkpoints" / "last.safetensors")[0]


def test_a_resume_with_other_threads_says_so(tmp_path, monkeypatch, capsys):
    container = plain(tmp_path, "epochs=1")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        assert job.train(container) == INTERRUPTED
    run_of(container).note(threads=64)
    assert job.train(container) == DONE
    assert "the run began with 64 threads" in capsys.readouterr().err


def test_a_folder_in_the_place_of_the_split_is_one_line(tmp_path):
    container = plain(tmp_path, "epochs=1")
    run_of(container).split_path.mkdir(parents=True)
    with pytest.raises(InputError, match=r"split\.npz"):
        job.train(container)


def tracked(tmp_path, monkeypatch, *overrides, launch=None):
    """What W&B would be told at the start of a run."""
    told = {}
    monkeypatch.setattr(setup, "start", lambda node, **facts: told.update(facts))
    config = load(plain(tmp_path, *overrides))
    run = Run(config.run_dir, config.train_id)
    with run.open(yaml.safe_dump(config.container(), sort_keys=False)):
        if launch is not None:
            note_launch(run, launch)
        note_recipe(run, config.recipe)
        setup.start_tracking(config.tracking, config, run, "train")
    return told, config


def test_seeds_of_one_configuration_form_a_group_with_a_readable_name(tmp_path, monkeypatch):
    switched = ("method=trades", "component/awp=enabled")
    one, config = tracked(tmp_path, monkeypatch, *switched)
    other, _ = tracked(tmp_path, monkeypatch, *switched, "seed=1")
    third, _ = tracked(tmp_path, monkeypatch, *switched, "lr=0.2")
    assert one["group"] == other["group"] != third["group"]
    assert one["group"] == f"digits-tiny_cnn-trades+awp {config.arm_id[:6]}"
    assert one["tags"] == ["data:digits", "model:tiny_cnn", "method:trades"]
    assert one["settings"]["arm_id"] == config.arm_id


def test_a_run_is_tagged_with_its_recipe(tmp_path, monkeypatch):
    told, _ = tracked(tmp_path, monkeypatch, "recipe=lma", "data=digits", "schedule=cosine")
    assert told["tags"] == ["data:digits", "model:resnet18", "method:at", "recipe:lma"]


def test_the_recipe_of_a_run_is_in_its_status(tmp_path):
    container = plain(tmp_path, "recipe=lma", "scale=smoke", "evaluation=none")
    assert job.train(container) == DONE
    status = run_of(container).status()
    assert status is not None
    assert status.facts["recipe"] == "lma"


def test_a_tables_runs_are_grouped_by_its_rows(tmp_path, monkeypatch):
    launch = Launch("x", "mine", ["plain"], group="mine/plain lr=0.1")
    told, _ = tracked(tmp_path, monkeypatch, launch=launch)
    assert told["group"] == "mine/plain lr=0.1"
    assert {"table:mine", "row:plain"} < set(told["tags"])
