"""What waits in SLURM's queue is known, and nothing is submitted twice; squeue is a fake here."""

from __future__ import annotations

import os

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ablation.config.folders import conf_dir, register_components
from ablation.errors import InputError
from ablation.runs.directory import Run
from ablation.sweeps import slurm
from ablation.sweeps.launchers import register_launchers

SQUEUE = """#!/bin/sh
echo "$@" >> "$FAKE/asked"
[ -e "$FAKE/error" ] && { cat "$FAKE/error" >&2; exit 1; }
cat "$FAKE/queue"
"""


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A function that says what squeue will answer."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    (folder / "squeue").write_text(SQUEUE)
    (folder / "squeue").chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")

    def holds(*lines, error=None):
        (folder / "queue").write_text("".join(f"{line}\n" for line in lines))
        if error is not None:
            (folder / "error").write_text(error)

    holds()
    return holds


@pytest.fixture
def runs(tmp_path):
    names = [f"digits-mlp-at-s{n}-012345678{n}" for n in range(3)]
    return [Run(tmp_path / "runs" / name, name[-10:]) for name in names]


def test_only_what_was_submitted_is_looked_up(runs, queue, tmp_path):
    assert slurm.queued(runs) == ({}, [])
    assert not (tmp_path / "slurm" / "asked").exists()
    slurm.note_submitted(runs[0], "7_0")
    slurm.note_submitted(runs[1], "7_1")
    queue("7_0|PENDING", "7_1|RUNNING", "8|PENDING")
    waiting, notices = slurm.queued(runs)
    assert waiting == {runs[0].path.name: "7_0 PENDING", runs[1].path.name: "7_1 RUNNING"}
    assert notices == []
    assert "--jobs=7" in (tmp_path / "slurm" / "asked").read_text().split()


@pytest.mark.parametrize("state", ["COMPLETED", "COMPLETING", "FAILED", "CANCELLED", "TIMEOUT"])
def test_a_job_that_is_over_waits_no_more(runs, queue, state):
    slurm.note_submitted(runs[0], "7")
    queue(f"7|{state}")
    assert slurm.queued(runs) == ({}, [])


def test_a_job_that_squeue_has_forgotten_waits_no_more(runs, queue):
    slurm.note_submitted(runs[0], "7")
    queue(error="slurm_load_jobs error: Invalid job id specified")
    assert slurm.queued(runs) == ({}, [])


def test_where_squeue_does_not_answer_nothing_is_submitted_twice(runs, queue):
    slurm.note_submitted(runs[0], "7")
    queue(error="slurm_load_jobs error:\nUnable to contact slurm controller")
    waiting, (notice,) = slurm.queued(runs)
    assert waiting == {runs[0].path.name: "7 UNKNOWN"}
    assert "Unable to contact slurm controller" in notice


def test_where_there_is_no_squeue_that_is_said(runs, monkeypatch, tmp_path):
    slurm.note_submitted(runs[0], "7")
    monkeypatch.setenv("PATH", str(tmp_path))
    waiting, (notice,) = slurm.queued(runs)
    assert waiting == {}
    assert notice.startswith("1 job was submitted to SLURM before; squeue")


def test_a_job_that_has_ended_is_forgotten(runs, queue):
    slurm.note_submitted(runs[0], "7")
    slurm.forget_submitted(runs[0])
    slurm.forget_submitted(runs[0])
    queue("7|PENDING")
    assert slurm.queued(runs) == ({}, [])


@pytest.mark.parametrize(
    ("settings", "device"),
    [
        ({"gpus_per_node": 1}, "cuda"),
        ({"gpus_per_node": None, "gres": "gpu:a100:1"}, "cuda"),
        ({"gpus_per_node": 0}, "cpu"),
    ],
)
def test_jobs_get_a_gpu_where_one_is_asked_for(settings, device):
    assert slurm.device_of(settings) == device


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gpus_per_node": 0}, "jobs get no GPU; set hydra.launcher.gpus_per_node=1"),
        ({"gpus_per_node": 4}, "share one GPU, and it asks for 4 .* runtime.devices"),
    ],
)
def test_runs_that_share_a_gpu_are_refused_where_a_job_has_none_or_several(settings, message):
    with pytest.raises(InputError, match=f"per_gpu=2: .*{message}"):
        slurm.check_shared(2, settings)
    slurm.check_shared(1, settings)
    slurm.check_shared(2, {"gpus_per_node": 1})


@pytest.mark.extra
@pytest.mark.parametrize(("given", "gpus"), [([], 1), (["runtime.devices=4"], 4)])
def test_a_job_is_one_task_that_gets_the_gpus_of_its_run(given, gpus):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    register_components()
    register_launchers()
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir())):
        chosen = ["hydra/launcher=submitit_slurm", *given]
        composed = compose("config", chosen, return_hydra_config=True)
    launcher = dict(OmegaConf.to_container(composed.hydra.launcher, resolve=True))  # type: ignore[arg-type]
    settings = {
        k: v for k, v in launcher.items() if k not in ("_target_", "dry", "wait", "per_gpu")
    }
    text = slurm.script(slurm.executor(settings, check=False), jobs=1)
    asked = {line.removeprefix("#SBATCH --") for line in text.splitlines()}
    assert {f"gpus-per-node={gpus}", "ntasks-per-node=1", "nodes=1"} <= asked
    assert slurm.device_of(settings) == "cuda"
