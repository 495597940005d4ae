"""More epochs for a trained run: the bits of the longer training, or a reason."""

from __future__ import annotations

import shutil

import pytest

from ablation.config.extension import parent_of
from ablation.config.validation import check, load
from ablation.errors import DONE, INTERRUPTED, ConfigError
from ablation.jobs import train as job
from tests.support.jobs import metrics, plain, run_of, stop_after, weights
from tests.support.options import options
from tests.support.sampling import some_of

PARTS = {
    "plain": ("schedule=constant",),
    "piecewise": ("schedule=piecewise", "schedule.milestones=[1,3]"),
    "ema": ("schedule=constant", "average=ema", "component/awp=enabled"),
    "swa": ("schedule=constant", "average=swa", "average.start=1"),
    "phases": (
        *("schedule=constant", "method=at", "component/burn_in=enabled"),
        "component.burn_in.epochs=1",
    ),
    "memory": ("schedule=constant", "component/emr=enabled"),
}


@pytest.mark.parametrize("parts", some_of(PARTS.values(), 3), ids=PARTS)
def test_a_longer_run_ends_with_the_bits_of_one_trained_from_the_start(tmp_path, parts):
    shorter = plain(tmp_path / "one", *parts, "epochs=2")
    if "piecewise" in parts[0]:  # the longer one may have later milestones
        shorter["schedule"]["milestones"] = [1]
    assert job.train(shorter) == DONE
    parent = run_of(shorter)
    longer = plain(tmp_path / "one", *parts, "epochs=4", f"extend={parent.path}")
    whole = plain(tmp_path / "two", *parts, "epochs=4")
    assert load(longer).train_id == load(whole).train_id != load(shorter).train_id
    assert job.train(longer) == job.train(whole) == DONE
    found, wanted = run_of(longer), run_of(whole)
    assert weights(found) == weights(wanted)
    assert metrics(found) == metrics(wanted)
    status = found.status()
    assert status is not None
    assert status.facts["parent"] == parent.path.name
    assert found.result()["entries"] == wanted.result()["entries"]  # type: ignore[index]


@pytest.mark.parametrize("name", options("method"))
def test_every_method_can_be_extended_on_a_constant_rate(tmp_path, name):
    """Two equal configs have equal parts: else every extension would be refused."""
    container = plain(tmp_path, f"method={name}", "schedule=constant", "attack.steps=1")
    once, again = check(container)[0], check(container)[0]
    assert once is not None
    assert again is not None
    assert once.phases == again.phases


REFUSED = {
    "over 4 epochs the schedule gives epoch 1 another learning rate": ("schedule=cosine",),
    "lr is 0.1 there and 0.2 here": ("schedule=constant", "lr=0.2"),
    "it has epochs=2": ("schedule=constant", "epochs=1"),
    "begins at a share of all epochs": ("schedule=constant", "component/mail=enabled"),
    "validated out of turn": ("schedule=constant", "selection.every=3"),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_is_no_beginning_is_refused_with_the_reason(tmp_path, reason):
    parts = REFUSED[reason]
    shorter = plain(tmp_path, *(p for p in parts if p != "lr=0.2"), "epochs=2", "evaluation=none")
    assert job.train(shorter) == DONE
    parent = run_of(shorter).path
    with pytest.raises(ConfigError, match=reason):
        job.train(plain(tmp_path, "epochs=4", *parts, f"extend={parent}"))


def test_a_folder_of_runs_gives_the_longest_that_fits(tmp_path):
    parts = ("schedule=constant", "evaluation=none")
    for more in (("epochs=1",), ("epochs=2",), ("epochs=2", "lr=0.2"), ("epochs=2", "seed=1")):
        job.train(plain(tmp_path, *parts, *more))
    longer = load(plain(tmp_path, *parts, "epochs=3", f"extend={tmp_path}"))
    assert parent_of(longer).config()["epochs"] == 2
    assert parent_of(longer).config()["lr"] == 0.1
    empty = plain(tmp_path, *parts, "epochs=3", "seed=2", f"extend={tmp_path}")
    with pytest.raises(ConfigError, match="no run there is named digits-tiny_cnn-at-s2-"):
        job.train(empty)
    with pytest.raises(ConfigError, match="no run there is named"):
        job.train(plain(tmp_path, *parts, "epochs=3", "extend=nowhere"))


def test_a_run_that_is_not_finished_or_lost_its_state_is_refused(tmp_path, monkeypatch):
    shorter = plain(tmp_path, "schedule=constant", "epochs=2", "evaluation=none")
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert job.train(shorter) == INTERRUPTED
    parent = run_of(shorter)
    longer = plain(tmp_path, "schedule=constant", "epochs=3", f"extend={parent.path}")
    with pytest.raises(ConfigError, match="not trained to the end"):
        job.train(longer)
    assert not run_of(longer).path.exists()
    assert job.train(shorter) == DONE
    for folder in (parent.path / "checkpoints").glob("step_*"):
        shutil.rmtree(folder)
    with pytest.raises(ConfigError, match="checkpoints were deleted"):
        job.train(longer)


def test_a_longer_run_resumes_without_its_parent(tmp_path, monkeypatch):
    shorter = plain(tmp_path, "schedule=constant", "epochs=1", "evaluation=none")
    assert job.train(shorter) == DONE
    parent = run_of(shorter).path
    longer = plain(tmp_path, "schedule=constant", "epochs=3", f"extend={parent}")
    with monkeypatch.context() as patch:
        stop_after(patch, 9)
        assert job.train(longer) == INTERRUPTED
    shutil.rmtree(parent)
    assert job.train(longer) == DONE
    assert [row["epoch"] for row in metrics(run_of(longer))] == [0, 1, 2]
