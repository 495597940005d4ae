"""What jobs cost: from runs on disk, from counted passes and a probe; bytes against a real run."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from ablation.ascents import AdversarialWeightPerturbation
from ablation.config.experiment import Config
from ablation.config.validation import load
from ablation.crafters import Ascended, AttackCrossEntropy
from ablation.crafters import Pgd as Crafter
from ablation.errors import DONE, InputError
from ablation.evaluation import (
    ApgdT,
    Attack,
    AttackBase,
    AutoAttack,
    Family,
    Fgsm,
    Pgd,
    Spsa,
    Square,
    describe,
)
from ablation.jobs import train as job
from ablation.runs.directory import Run
from ablation.sweeps import cost as module
from ablation.sweeps.cost import (
    CORRECT,
    ROBUST,
    SEARCH,
    TRAIN,
    UNKNOWN_EXTENT,
    UNKNOWN_STEPS,
    Estimate,
    Networks,
    attack_passes,
    describe_total,
    estimate,
    spoken,
    step_passes,
)
from tests.support.configs import compose_config, compose_plain
from tests.support.options import options
from tests.support.parts import Boundary

CONF = Path(__file__).parents[2] / "conf"
MODELS = options("model")
NOWHERE = Path("/nowhere")


def config(*overrides: str) -> Config:
    return compose_config("tracking.mode=disabled", "runtime.device=cpu", *overrides)


def fake_run(
    config: Config,
    runs_dir: Path,
    rows: list[dict[str, Any]],
    seconds: dict[str, float] | None = None,
    n: int = 10,
    device: str = "cpu",
) -> Run:
    """A run that took these epochs, and so many seconds for its attacks on ``n`` images."""
    config = replace(config, runs_dir=str(runs_dir))
    run = Run(config.run_dir, config.train_id)
    with run.open(yaml.safe_dump(config.container())):
        for row in rows:
            run.log(row)
        if seconds is not None:
            entries = [
                {
                    "checkpoint": "last",
                    "weights": "raw",
                    "metric": name,
                    "split": "test",
                    "value": 50.0,
                    "unit": "percent",
                    "n": n,
                    "params": describe(attack, config.eps, config.norm, 10) if attack else {},
                }
                for name, attack in config.evaluation.attacks.items()
            ]
            table = pd.DataFrame({"index": np.arange(n)})
            run.add_evaluation("last", "0", entries, table, meta={"seconds": seconds})
        run.set_status("done", device=device)
    return run


def epoch(seconds: float, phase: str = "main") -> dict[str, Any]:
    return {"phase": phase, "seconds": seconds}


def known(*overrides: str) -> Estimate:
    return estimate([config(*overrides)], NOWHERE)[0]


@pytest.fixture
def one_second_per_pass(monkeypatch):
    """A probe that says a second per forward pass and image."""
    monkeypatch.setattr(module, "_probe", lambda *arguments: 1.0)


# Passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=standard"], TRAIN),
        (["method=at"], 10 * SEARCH + TRAIN),
        (["method=trades", "attack.steps=7"], 7 * SEARCH + 2 * TRAIN),
        (["method=mart", "component/awp=enabled"], 10 * SEARCH + 4 * TRAIN),
    ],
)
def test_a_step_makes_the_passes_its_method_lists(overrides, expected):
    (phase,) = config(*overrides).phases
    assert step_passes(phase.method) == expected


def test_a_crafter_that_does_not_say_its_steps_is_given_some():
    (phase,) = config().phases
    method = replace(phase.method, crafters={"adv": Boundary()})
    assert step_passes(method) == UNKNOWN_STEPS * SEARCH + TRAIN


def test_passes_are_those_a_step_makes(monkeypatch):
    """Counted in a real step: PGD's gradients, and AWP's second look at both views."""
    from ablation.training.step import train_step
    from ablation.types import Clock
    from tests.support.parts import sgd, small_batch, small_net

    (phase,) = config("method=mart", "component/awp=enabled", "attack.steps=3").phases
    crafter = Crafter({"ce": Ascended(AttackCrossEntropy())}, steps=3, step_size=0.25)
    method = replace(phase.method, crafters={"adv": crafter})
    assert isinstance(method.ascent, AdversarialWeightPerturbation)
    seen = {"search": 0, "train": 0}
    net = small_net()
    forward, output = net.forward, net.output

    def count(kind: str, original: Any) -> Any:
        def counted(x: torch.Tensor) -> Any:
            seen[kind] += 1
            return original(x)

        return counted

    monkeypatch.setattr(net, "forward", count("search", forward))
    monkeypatch.setattr(net, "output", count("train", output))
    train_step(method, net, sgd(net), small_batch(), Clock(0, 0), seed=0)
    assert seen == {"search": 3, "train": 4}
    assert step_passes(method) == 3 * SEARCH + 4 * TRAIN


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (Fgsm(), SEARCH * CORRECT),
        (Pgd(20, 0.25), 20 * SEARCH * CORRECT),
        (Pgd(20, 0.25, restarts=3), 20 * SEARCH * (CORRECT + 2 * ROBUST)),
        (ApgdT(n_iter=50), 50 * SEARCH * (CORRECT + 8 * ROBUST)),
        (Square(queries=100), 100 * CORRECT),
        (Spsa(samples=5, iterations=4), 40 * CORRECT),
        (AutoAttack(), SEARCH * (100 * CORRECT + 2 * 900 * ROBUST) + 5000 * ROBUST),
    ],
)
def test_an_attack_makes_its_steps_or_queries(attack, expected):
    assert attack_passes(attack, classes=10) == pytest.approx(expected)


def test_an_attack_that_few_classes_do_not_allow_costs_nothing_and_says_nothing(caplog, capsys):
    assert attack_passes(ApgdT(), classes=2) == 0
    assert attack_passes(AutoAttack(), classes=2) == pytest.approx(
        SEARCH * (100 * CORRECT + 100 * ROBUST) + 5000 * ROBUST
    )
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


def test_an_attack_that_describes_nothing_is_given_some_steps():
    class Silent(AttackBase):
        kind: ClassVar[str] = "silent"
        family: ClassVar[Family] = "fixed steps"

        def __call__(self, predict, x, y, eps, norm, rng):
            raise AssertionError

    silent: Attack = Silent()
    assert attack_passes(silent, 10) == UNKNOWN_STEPS * SEARCH * CORRECT


# The probe --------------------------------------------------------------------------------------


def test_without_runs_seconds_are_passes_times_a_probe(one_second_per_pass):
    found = known("method=standard", "epochs=3", "data.train_size=400", "selection.n=40")
    validation = 150 + 10 * SEARCH * 40 * CORRECT
    assert found.train_seconds == pytest.approx(3 * 400 * TRAIN + 3 * validation)
    assert found.evaluation_seconds == pytest.approx(360 * SEARCH * (1 + 21 * CORRECT))
    assert (found.basis, found.device) == ("rough", "cpu")


def test_evaluation_counts_images_checkpoints_and_caps(one_second_per_pass):
    def seconds(*overrides: str) -> float:
        return known(*overrides).evaluation_seconds

    whole = seconds("evaluation=quick")
    assert seconds("evaluation=quick", "evaluation.n=180") == pytest.approx(whole / 2)
    both = "evaluation.checkpoints=[last,best_clean]"
    assert seconds("evaluation=quick", both) == pytest.approx(2 * whole)
    assert seconds("evaluation=none") == 0
    clean = seconds("evaluation=quick", "evaluation.eps=0")
    capped = seconds(
        "evaluation=quick", "+evaluation.attacks.pgd20.n=36", "evaluation.attacks.fgsm=null"
    )
    pgd = seconds("evaluation=quick", "evaluation.attacks.fgsm=null") - clean
    assert capped == pytest.approx(clean + pgd / 10)
    more = seconds("evaluation=quick", "evaluation.val=[clean]")
    assert more == pytest.approx(whole + clean * 150 / 360)


def test_a_small_network_is_probed_and_nothing_else_moves():
    before = torch.get_rng_state()
    found = known("epochs=2", "data.train_size=400")
    assert found.basis == "rough"
    assert found.train_seconds > 0
    assert found.evaluation_seconds > 0
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_twice_the_work_takes_twice_as_long_and_a_hundred_seeds_are_probed_once(monkeypatch):
    probed = []

    def probe(*arguments: Any) -> float:
        probed.append(arguments)
        return 1.0

    monkeypatch.setattr(module, "_probe", probe)
    base = config("epochs=2", "selection.every=2")
    found = estimate([replace(base, seed=seed) for seed in range(100)], NOWHERE)
    assert len(set(found)) == 1
    assert len(probed) == 1
    longer = known("epochs=4", "selection.every=2")
    assert longer.train_seconds == pytest.approx(2 * found[0].train_seconds)


def test_a_network_that_does_not_run_is_said_and_does_not_end_the_plan():
    impossible = config("model=vgg16_bn", "data=digits")
    found = estimate([impossible, config()], NOWHERE)
    assert [entry.basis for entry in found] == ["unknown", "rough"]
    assert found[0].train_seconds == 0
    assert "rough 1, unknown 1 jobs" in describe_total(found, 1)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_sized(name):
    header = (CONF / "model" / f"{name}.yaml").read_text()
    said = re.search(r"([\d,]{6,})\s+(?:#\s*)?parameters", header)
    assert said is not None
    state, parameters = Networks().bytes(config(f"model={name}", "data=cifar10"))
    assert state >= parameters > 0
    if name not in ("mlp", "tiny_cnn"):  # theirs are for other images
        assert parameters == 4 * int(said[1].replace(",", ""))


def test_what_cannot_be_known_is_taken_to_be_like_cifar(tmp_path):
    unknown = config(
        *("data=parquet", f"data_dir={tmp_path}", "data.train_size=300"),
        *("data.classes=10", "data.mean=[0.5,0.5,0.5]", "data.std=[0.5,0.5,0.5]"),
    )
    assert Networks().extent(unknown) == UNKNOWN_EXTENT
    assert Networks().split(unknown) == {"train": 300, "val": 1000, "test": 10_000}


# Runs on disk -----------------------------------------------------------------------------------


def test_a_run_of_equal_cost_is_the_measure(tmp_path):
    measured = config("method=trades", "epochs=3")
    fake_run(measured, tmp_path, [epoch(9.0), epoch(2.0), epoch(2.0)])
    longer = ("method=trades", "epochs=10")
    same = config(*longer, "seed=5", "eps=0.2", "lr=0.01", "attack.step_size=eps/8")
    for planned in (same, config(*longer, "method.terms.kl.coef=3")):
        (found,) = estimate([planned], tmp_path)
        assert (found.train_seconds, found.basis) == (20.0, "measured")


@pytest.mark.parametrize(
    "override",
    [
        *("method=mart", "batch_size=64", "attack.steps=5", "data.train_size=500"),
        *("component/awp=enabled", "model.spec.width=8", "runtime.precision=bf16"),
        *("selection.n=20", "average=ema", "method.terms.kl.coef=0"),
    ],
)
def test_a_run_of_another_cost_is_not(tmp_path, override):
    fake_run(config("method=trades"), tmp_path, [epoch(2.0)])
    (found,) = estimate([config("method=trades", override)], tmp_path)
    assert found.basis == "rough"


def test_a_run_on_another_kind_of_device_is_not(tmp_path):
    fake_run(config(), tmp_path, [epoch(2.0)], device="cuda:1")
    assert estimate([config()], tmp_path)[0].basis == "rough"


def test_epochs_with_and_without_validation_are_averaged(tmp_path):
    rows = [epoch(9.0), *(epoch(seconds) for seconds in (1.0, 5.0, 1.0, 5.0))]
    fake_run(config("epochs=4", "selection.every=2"), tmp_path, rows)
    (found,) = estimate([config("epochs=10", "selection.every=2")], tmp_path)
    assert found.train_seconds == 10 * 3.0


def test_a_phase_that_no_run_reached_is_not_measured(tmp_path):
    fake_run(config(), tmp_path, [epoch(2.0, phase="prelude")])
    assert estimate([config()], tmp_path)[0].basis == "rough"


def test_attacks_are_measured_per_image(tmp_path):
    seconds = {"clean": 1.0, "fgsm": 2.0, "pgd20": 30.0}
    fake_run(config("method=at"), tmp_path, [], seconds, n=10)
    (found,) = estimate([config("method=trades", "evaluation.n=40")], tmp_path)
    assert found.evaluation_seconds == pytest.approx(4 * 33.0)
    assert found.basis == "rough"


def test_each_half_says_what_it_is_from(tmp_path):
    fake_run(config("method=at"), tmp_path, [epoch(2.0)] * 3)
    (found,) = estimate([config("method=at")], tmp_path)
    assert (found.basis, found.evaluation_basis) == ("measured", "rough")
    assert "(measured 1 job), evaluation" in describe_total([found], 1)
    fake_run(config("method=at"), tmp_path, [], {"clean": 1.0, "fgsm": 2.0})
    (found,) = estimate([config("method=at")], tmp_path)
    assert found.evaluation_basis == "partly measured"
    seconds = {"clean": 1.0, "fgsm": 2.0, "pgd20": 30.0}
    fake_run(config("method=at", "seed=1"), tmp_path, [], seconds)
    (found,) = estimate([config("method=at")], tmp_path)
    assert found.evaluation_basis == "measured"
    (found,) = estimate([config("method=at", "evaluation=none")], tmp_path)
    assert found.evaluation_basis == ""


def test_jobs_of_other_machines_are_measured_on_theirs_and_a_probe_says_that_it_is_not(tmp_path):
    fake_run(config("method=at"), tmp_path, [epoch(2.0)] * 3, device="cuda:0")
    anywhere = "runtime.device=auto"
    (found,) = estimate([config("method=at", "evaluation=none", anywhere)], tmp_path, "cuda")
    assert (found.basis, found.device) == ("measured", "cuda")
    (found,) = estimate([config("method=trades", anywhere)], tmp_path, "cuda")
    assert found.device == "this machine's cpu in place of the jobs' cuda"
    (found,) = estimate([config("method=trades", "runtime.device=cpu")], tmp_path, "cuda")
    assert found.device == "cpu"


def test_an_attack_with_other_settings_is_counted_instead(tmp_path, one_second_per_pass):
    seconds = {"clean": 1.0, "fgsm": 2.0, "pgd20": 30.0}
    fake_run(config(), tmp_path, [], seconds, n=360)
    changed = config("evaluation.attacks.pgd20.steps=40")
    (found,) = estimate([changed], tmp_path)
    expected = 3.0 + attack_passes(Pgd(40, 0.25), 10) * 360
    assert found.evaluation_seconds == pytest.approx(expected)
    smaller = config("evaluation.attacks.pgd20.step_size=eps/10")
    (found,) = estimate([smaller], tmp_path)
    assert found.evaluation_seconds == pytest.approx(33.0)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "status.json"])
def test_a_damaged_run_measures_nothing_and_stops_nobody(tmp_path, name):
    run = fake_run(config(), tmp_path, [epoch(2.0), epoch(2.0)])
    (run.path / name).write_text("{[\n{[\n")
    assert estimate([config()], tmp_path)[0].basis == "rough"


def test_a_folder_of_runs_that_is_a_file_is_an_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="runs_dir"):
        estimate([config()], tmp_path / "runs")


@pytest.mark.parametrize("average", ["none", "ema"])
def test_a_real_run_is_found_and_takes_the_bytes_that_were_estimated(tmp_path, average):
    overrides = (
        *("model.spec.width=64", "epochs=3", "attack.steps=1", "selection.attack.steps=1"),
        *("data.train_size=400", "selection.n=20", "evaluation.n=50", "tracking.mode=disabled"),
        *("runtime.device=cpu", f"average={average}", f"runs_dir={tmp_path}"),
    )
    container = compose_plain(*overrides)
    planned = load(container)
    (before,) = estimate([planned], tmp_path)
    assert job.train(container) == DONE
    run = Run(planned.run_dir, planned.train_id)
    used = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert before.bytes == pytest.approx(used, rel=0.05)
    (after,) = estimate([replace(planned, seed=7)], tmp_path)
    seconds = [row["seconds"] for row in run.read_metrics()]
    assert after.train_seconds == pytest.approx(3 * (seconds[1] + seconds[2]) / 2)
    assert after.basis == "measured"
    assert after.bytes == before.bytes


# In words ---------------------------------------------------------------------------------------


def test_the_total_is_one_line():
    jobs = [Estimate(3600.0, 600.0, 400_000_000, "measured", "rough", "cuda")] * 2
    jobs += [Estimate(1500.0, 300.0, 200_000_000, "rough", "partly measured", "cuda")] * 2
    assert describe_total(jobs, 2) == (
        "about 3 h 20 min of compute on cuda: training 2 h 50 min (measured 2, rough 2 jobs), "
        "evaluation 30 min (partly measured 2, rough 2 jobs); 1.2 GB on disk; with 2 jobs at a "
        "time about 1 h 40 min"
    )
    assert describe_total(jobs[:1], 2) == (
        "about 1 h 10 min of compute on cuda: training 1 h (measured 1 job), evaluation 10 min "
        "(rough 1 job); 400 MB on disk"
    )
    assert "at a time" not in describe_total(jobs, 1)
    assert describe_total([], 2).startswith("about 0 s of compute")


def test_jobs_at_a_time_end_with_the_longest():
    jobs = [Estimate(seconds, 0.0, 0, "rough", "", "cpu") for seconds in (60.0, 60.0, 6000.0)]
    assert describe_total(jobs, 2).endswith("with 2 jobs at a time about 1 h 41 min")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        *((0, "0 s"), (0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3569, "59 min")),
        *((3590, "1 h"), (12_000, "3 h 20 min"), (172_800, "2 d"), (190_800, "2 d 5 h")),
    ],
)
def test_durations_in_words(seconds, words):
    assert spoken(seconds) == words
