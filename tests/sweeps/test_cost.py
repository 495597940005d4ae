"""What jobs cost: from runs on disk, from counted passes and a probe; bytes against a real run."""

from __future__ import annotations

import itertools
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
from ablation.data import Digits, Extent, ImageFolder, Parquet, Source, TinyImageNet
from ablation.errors import DONE, InputError
from ablation.evaluation import (
    ApgdCe,
    ApgdT,
    Attack,
    AttackBase,
    AutoAttack,
    FabT,
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
    COST,
    ROBUST,
    SPEED,
    UNKNOWN_EXTENT,
    UNKNOWN_STEPS,
    Estimate,
    Paces,
    Passes,
    Sizes,
    attack_passes,
    describe_total,
    estimate,
    spoken,
    step_passes,
    validations,
)
from ablation.training.method import Phase
from tests.support import data_files as files
from tests.support.configs import compose_config, compose_plain
from tests.support.parts import Boundary

CONF = Path(__file__).parents[2] / "conf"
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
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
            run.log_metrics(row)
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


def epoch(seconds: float, validated: bool = True, phase: str = "main") -> dict[str, Any]:
    return {"phase": phase, "seconds": seconds} | ({"val_clean": 1.0} if validated else {})


# How much the sources hold ----------------------------------------------------------------------


def folder_source(root: Path) -> Source:
    files.image_folder(root)
    return ImageFolder()


def parquet_source(root: Path) -> Source:
    images: list[bytes | None] = [files.encode(files.pixels(7, 5, 3, seed=i)) for i in range(9)]
    files.parquet(root / "train-0.parquet", images[:4], [0, 1, 0, 1])
    files.parquet(root / "train-1.parquet", images[4:6], [0, 1])
    files.parquet(root / "test.parquet", images[6:], [0, 1, 0])
    return Parquet(train="train-*.parquet")


@pytest.mark.parametrize("make", [lambda root: Digits(), folder_source, parquet_source])
def test_an_extent_is_what_loading_gives(tmp_path, make):
    source = make(tmp_path)
    train, test = source.load(tmp_path)
    assert source.extent(tmp_path) == Extent(len(train), len(test), train.images.shape[2])


@pytest.mark.parametrize("make", [folder_source, parquet_source])
def test_an_extent_knows_that_images_are_resized(tmp_path, make):
    found = replace(make(tmp_path), image_size=12).extent(tmp_path)
    assert found.size == 12


@pytest.mark.parametrize("source", [Parquet(), ImageFolder()])
def test_a_source_whose_files_are_missing_has_no_extent(tmp_path, source):
    assert source.extent(tmp_path) is None


def test_a_damaged_first_image_gives_no_extent(tmp_path):
    files.parquet(tmp_path / "train.parquet", [b"no image"], [0])
    files.parquet(tmp_path / "test.parquet", [b"no image"], [0])
    assert Parquet().extent(tmp_path) is None
    files.image_folder(tmp_path)
    first = min((tmp_path / "train" / "cat").iterdir())
    first.write_bytes(b"no image")
    assert ImageFolder().extent(tmp_path) is None


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "svhn"])
def test_the_extent_of_a_downloaded_set_is_what_its_config_says(tmp_path, name):
    header = (CONF / "data" / f"{name}.yaml").read_text()
    said = re.match(r"# .*?([\d,]+) \+ ([\d,]+) .*?(\d+)x", header)
    assert said is not None
    train, test, size = (int(number.replace(",", "")) for number in said.groups())
    source = config(f"data={name}", "model=mlp").data.source
    assert source.extent(tmp_path) == Extent(train, test, size)


def test_a_part_of_tiny_imagenet_is_counted_by_its_classes(tmp_path):
    assert TinyImageNet().extent(tmp_path) == Extent(100_000, 10_000, 64)
    files.tiny_imagenet(tmp_path, ("n01", "n02", "n03"))
    assert TinyImageNet().extent(tmp_path) == Extent(1_500, 150, 64)


def test_what_cannot_be_known_is_taken_to_be_like_cifar(tmp_path):
    unknown = config("data=parquet", f"data_dir={tmp_path}", "data.train_size=300")
    assert Sizes().extent(unknown) == UNKNOWN_EXTENT
    assert Sizes().split(unknown) == {"train": 300, "val": 1000, "test": 10_000}


# Passes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=standard"], Passes(0, 0, 1)),
        (["method=at"], Passes(0, 10, 1)),
        (["method=trades", "attack.steps=7"], Passes(0, 7, 2)),
        (["method=mart", "component/awp=enabled"], Passes(0, 10, 4)),
        (["component/awp=enabled", "component.awp.start=3", "epochs=4"], Passes(0, 10, 1.25)),
        (["component/awp=enabled", "component.awp.start=9", "epochs=4"], Passes(0, 10, 1)),
        (["method.passes=[craft:adv,adv,step,nat]"], Passes(1, 10, 1)),
    ],
)
def test_a_step_makes_the_passes_its_method_lists(overrides, expected):
    (phase,) = config(*overrides).phases
    assert step_passes(phase) == expected


def test_a_crafter_that_does_not_say_its_steps_is_given_some():
    (phase,) = config().phases
    method = replace(phase.method, crafters={"adv": Boundary()})
    assert step_passes(Phase("main", 1, method)).search == UNKNOWN_STEPS


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
    expected = step_passes(Phase("main", 1, method))
    assert (seen["search"], seen["train"]) == (expected.search, expected.train) == (3, 4)


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (Fgsm(), Passes(CORRECT, CORRECT, 0)),
        (Pgd(20, 0.25), Passes(CORRECT, 20 * CORRECT, 0)),
        (Pgd(20, 0.25, restarts=3), Passes(CORRECT, 20 * CORRECT + 40 * ROBUST, 0)),
        (ApgdCe(n_iter=50), Passes(CORRECT, 50 * CORRECT, 0)),
        (ApgdT(n_iter=50), Passes(CORRECT, 50 * CORRECT + 8 * 50 * ROBUST, 0)),
        (Square(queries=100), Passes(101 * CORRECT, 0, 0)),
        (Spsa(samples=5, iterations=4), Passes(41 * CORRECT, 0, 0)),
    ],
)
def test_an_attack_makes_its_steps_or_queries(attack, expected):
    found = attack_passes(attack, classes=10)
    assert (found.forward, found.search) == pytest.approx((expected.forward, expected.search))


def test_the_parts_of_autoattack_run_on_what_is_left():
    parts = [ApgdT(100, 9), FabT(100, 9), Square(5000)]
    searches = 100 * CORRECT + sum(900 * ROBUST for _ in parts[:2])
    found = attack_passes(AutoAttack(), classes=10)
    assert found.search == pytest.approx(searches)
    assert found.forward == pytest.approx(CORRECT + 2 * ROBUST + 5001 * ROBUST)


def test_an_attack_that_few_classes_do_not_allow_costs_nothing_and_says_nothing(caplog, capsys):
    assert attack_passes(ApgdT(), classes=2).search == 0
    assert attack_passes(AutoAttack(), classes=2).search == pytest.approx(
        100 * CORRECT + 100 * ROBUST
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
    assert attack_passes(silent, 10).search == UNKNOWN_STEPS * CORRECT


def test_validations_fall_on_every_kth_and_the_last_epoch():
    found = validations(config("epochs=5", "selection.every=2"))
    assert found == [("main", due) for due in (False, True, False, True, True)]
    none = validations(config("epochs=2", "data.val_size=0", "selection.metric=last"))
    assert none == [("main", False)] * 2


# Without a probe --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_sized_without_being_allocated(name):
    sizes, wanted = Sizes(), config(f"model={name}", "data=cifar10")
    net = sizes.net(wanted)
    assert net is not None
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}
    header = (CONF / "model" / f"{name}.yaml").read_text()
    said = re.search(r"([\d,]{6,})\s+(?:#\s*)?parameters", header)
    assert said is not None
    if name not in ("mlp", "tiny_cnn"):  # theirs are for other images
        assert sum(p.numel() for p in net.parameters()) == int(said[1].replace(",", ""))


def test_flops_are_two_per_multiplication():
    # 555.4 million multiplications: the figure published for this ResNet-18 on 32x32 images.
    assert Sizes().flops(config("model=resnet18", "data=cifar10")) == pytest.approx(
        2 * 555.4e6, rel=1e-3
    )
    mlp = config("model=mlp", "data=digits", "model.spec.width=32", "model.spec.hidden=2")
    assert Sizes().flops(mlp) == 2 * (64 * 32 + 32 * 32 + 32 * 10)


def test_without_a_probe_time_is_flops_by_an_assumed_speed():
    small = config("method=standard", "epochs=3", "data.train_size=400", "selection.n=40")
    (found,) = estimate([small], NOWHERE, budget_s=0)
    validation = Passes(search=150) + Passes(1, 10, 0) * (40 * CORRECT)
    passes = Passes(train=3 * 400) + validation * 3
    assert found.basis == "assumed"
    assert found.train_seconds == pytest.approx(
        COST.dot(passes) * Sizes().flops(small) / SPEED["cpu"]
    )
    quick = Passes(search=360) + Passes(2, 21, 0) * (CORRECT * 360)
    assert found.evaluation_seconds == pytest.approx(
        COST.dot(quick) * Sizes().flops(small) / SPEED["cpu"]
    )


def evaluation_seconds(*overrides: str) -> float:
    return estimate([config(*overrides)], NOWHERE, budget_s=0)[0].evaluation_seconds


def test_evaluation_counts_images_checkpoints_and_caps():
    whole = evaluation_seconds("evaluation=quick")
    assert evaluation_seconds("evaluation=quick", "evaluation.n=180") == pytest.approx(whole / 2)
    both = "evaluation.checkpoints=[last,best_clean]"
    assert evaluation_seconds("evaluation=quick", both) == pytest.approx(2 * whole)
    assert evaluation_seconds("evaluation=none") == 0
    clean = evaluation_seconds("evaluation=quick", "evaluation.eps=0")
    capped = evaluation_seconds(
        "evaluation=quick", "+evaluation.attacks.pgd20.n=36", "evaluation.attacks.fgsm=null"
    )
    pgd = evaluation_seconds("evaluation=quick", "evaluation.attacks.fgsm=null") - clean
    assert capped == pytest.approx(clean + pgd / 10)


def test_the_validation_images_a_table_selects_by_are_attacked_too():
    plain = evaluation_seconds("evaluation=quick")
    clean = evaluation_seconds("evaluation=quick", "evaluation.eps=0")
    more = evaluation_seconds("evaluation=quick", "evaluation.val=[clean]")
    assert more == pytest.approx(plain + clean * 150 / 360)


def test_an_incomplete_last_batch_is_left_out_if_the_loader_does_so():
    dropped, kept = (
        estimate(
            [config("data.train_size=300", f"data.drop_last={drop}", "data.val_size=0",
                    "selection.metric=last")],
            NOWHERE, budget_s=0,
        )[0].train_seconds
        for drop in ("true", "false")
    )  # fmt: skip
    assert dropped / kept == pytest.approx(256 / 300)


def test_swa_pays_for_its_statistics():
    swa, none = (
        estimate([config(f"average={name}", "epochs=2")], NOWHERE, 0)[0].train_seconds
        for name in ("swa", "none")
    )
    flops = Sizes().flops(config())
    assert swa - none == pytest.approx(2 * 1287 * flops / SPEED["cpu"])


def test_a_network_that_cannot_be_built_does_not_end_the_plan():
    impossible = config("model=vgg16_bn", "data=digits")
    found = estimate([impossible], NOWHERE)[0]
    assert found.basis == "assumed"
    assert found.train_seconds > 0


# The probe --------------------------------------------------------------------------------------


def test_a_small_network_is_probed_and_nothing_else_moves():
    before = torch.get_rng_state()
    (found,) = estimate([config("epochs=2", "data.train_size=400")], NOWHERE)
    assert found.basis == "probed"
    assert found.train_seconds > 0
    assert found.evaluation_seconds > 0
    assert torch.equal(before, torch.get_rng_state())
    assert torch.is_grad_enabled()


def test_a_probe_that_fails_leaves_an_assumption(monkeypatch):
    def fail(*arguments: Any) -> Passes:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(module, "_time", fail)
    (found,) = estimate([config()], NOWHERE)
    assert found == estimate([config()], NOWHERE, budget_s=0)[0]
    assert found.basis == "assumed"


def test_a_network_too_large_for_the_budget_is_not_tried(monkeypatch):
    tried: list[str] = []

    def time(subject: module.Subject, allowance: float) -> Passes:
        tried.append(subject.config.model.name)
        return COST * (subject.flops / SPEED["cpu"])

    monkeypatch.setattr(module, "_time", time)
    large, small = config("model=wrn34_10", "data=cifar10"), config()
    found = estimate([large, small], NOWHERE, budget_s=1.0)
    assert set(tried) == {"tiny_cnn"}
    assert [entry.basis for entry in found] == ["scaled", "probed"]


def test_other_networks_are_scaled_by_flops_from_the_nearest_of_their_precision():
    sizes = Sizes()
    near, far, wanted = (
        sizes.subject(config("data=cifar10", f"model={name}"), 64, training=True)
        for name in ("vgg16_bn", "wrn34_10", "resnet18")
    )
    paces = Paces({near: Passes(1, 2, 3), far: Passes(9, 9, 9)})
    pace, basis = paces.pace(wanted)
    assert basis == "scaled"
    assert pace.train == pytest.approx(3 * wanted.flops / near.flops)
    half = replace(far, precision="bf16")
    pace, _ = Paces({near: Passes(1, 2, 3), half: Passes(9, 9, 9)}).pace(
        replace(wanted, precision="bf16")
    )
    assert pace.train == pytest.approx(9 * wanted.flops / far.flops)


def test_the_same_network_at_another_batch_size_needs_no_probe_of_its_own():
    subject = Sizes().subject(config(), 64, training=True)
    other = replace(subject, batch=128)
    assert Paces({other: Passes(1, 2, 3)}).pace(subject) == (Passes(1, 2, 3), "probed")


def test_a_hundred_seeds_are_sized_once(monkeypatch):
    built = itertools.count()
    original = module._build

    def build(*arguments: Any) -> Any:
        next(built)
        return original(*arguments)

    monkeypatch.setattr(module, "_build", build)
    base = config("epochs=2")
    found = estimate([replace(base, seed=seed) for seed in range(100)], NOWHERE, budget_s=0)
    assert len(set(found)) == 1
    assert next(built) == 1


# Runs on disk -----------------------------------------------------------------------------------


def test_a_run_of_equal_cost_is_the_measure(tmp_path):
    measured = config("method=trades", "epochs=3")
    fake_run(measured, tmp_path, [epoch(9.0), epoch(2.0), epoch(1.0)])
    longer = ("method=trades", "epochs=10")
    same = config(*longer, "seed=5", "eps=0.2", "lr=0.01", "attack.step_size=eps/8")
    for planned in (same, config(*longer, "method.terms.kl.coef=3")):
        (found,) = estimate([planned], tmp_path, budget_s=0)
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
    (found,) = estimate([config("method=trades", override)], tmp_path, budget_s=0)
    assert found.basis == "assumed"


def test_a_run_on_another_kind_of_device_is_not(tmp_path):
    fake_run(config(), tmp_path, [epoch(2.0)], device="cuda:1")
    assert estimate([config()], tmp_path, budget_s=0)[0].basis == "assumed"


def test_epochs_with_and_without_validation_are_measured_apart(tmp_path):
    rows = [epoch(1.0, False), epoch(5.0), epoch(1.0, False), epoch(5.0)]
    fake_run(config("epochs=4", "selection.every=2"), tmp_path, rows)
    (found,) = estimate([config("epochs=7", "selection.every=2")], tmp_path, budget_s=0)
    assert found.train_seconds == 3 * 1.0 + 4 * 5.0


def test_a_phase_that_no_run_reached_is_not_measured(tmp_path):
    fake_run(config(), tmp_path, [epoch(2.0, phase="prelude")])
    assert estimate([config()], tmp_path, budget_s=0)[0].basis == "assumed"


def test_attacks_are_measured_per_image(tmp_path):
    seconds = {"clean": 1.0, "fgsm": 2.0, "pgd20": 30.0}
    fake_run(config("method=at"), tmp_path, [], seconds, n=10)
    (found,) = estimate([config("method=trades", "evaluation.n=40")], tmp_path, budget_s=0)
    assert found.evaluation_seconds == pytest.approx(4 * 33.0)
    assert found.basis == "assumed"


def test_an_attack_with_other_settings_is_counted_instead(tmp_path):
    seconds = {"clean": 1.0, "fgsm": 2.0, "pgd20": 30.0}
    fake_run(config(), tmp_path, [], seconds, n=360)
    changed = config("evaluation.attacks.pgd20.steps=40")
    (found,) = estimate([changed], tmp_path, budget_s=0)
    counted = attack_passes(Pgd(40, 0.25), 10) * 360
    expected = 3.0 + COST.dot(counted) * Sizes().flops(changed) / SPEED["cpu"]
    assert found.evaluation_seconds == pytest.approx(expected)
    smaller = config("evaluation.attacks.pgd20.step_size=eps/10")
    (found,) = estimate([smaller], tmp_path, budget_s=0)
    assert found.evaluation_seconds == pytest.approx(33.0)


def test_a_run_of_the_same_training_says_more_about_attacks_than_another(tmp_path):
    seconds = {"clean": 1.0, "fgsm": 1.0, "pgd20": 8.0}
    fake_run(config("method=standard"), tmp_path, [], seconds, n=360)
    fake_run(config("method=at"), tmp_path, [], {**seconds, "pgd20": 80.0}, n=360)
    (found,) = estimate([config("method=at", "seed=1")], tmp_path, budget_s=0)
    assert found.evaluation_seconds == pytest.approx(82.0)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "status.json"])
def test_a_damaged_run_measures_nothing_and_stops_nobody(tmp_path, name):
    run = fake_run(config(), tmp_path, [epoch(2.0), epoch(2.0)])
    (run.path / name).write_text("{[\n{[\n")
    assert estimate([config()], tmp_path, budget_s=0)[0].basis == "assumed"


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
    (before,) = estimate([planned], tmp_path, budget_s=0)
    assert job.train(container) == DONE
    run = Run(planned.run_dir, planned.train_id)
    used = sum(path.stat().st_size for path in run.path.rglob("*") if path.is_file())
    assert before.bytes == pytest.approx(used, rel=0.05)
    (after,) = estimate([replace(planned, seed=7)], tmp_path, budget_s=0)
    seconds = sorted(row["seconds"] for row in run.read_metrics())
    assert after.train_seconds == pytest.approx(3 * seconds[1])
    assert after.basis == "measured"
    assert after.bytes == before.bytes


# In words ---------------------------------------------------------------------------------------


def test_the_total_is_one_line():
    jobs = [Estimate(3600.0, 600.0, 400_000_000, "measured")] * 2
    jobs += [Estimate(1500.0, 300.0, 200_000_000, "probed")] * 2
    assert describe_total(jobs, 2) == (
        "about 3 h 20 min of compute (training 2 h 50 min, evaluation 30 min; measured 2, probed 2 "
        "jobs), 1.2 GB on disk; with 2 jobs at a time about 1 h 40 min"
    )
    assert describe_total(jobs[:1], 2) == (
        "about 1 h 10 min of compute (training 1 h, evaluation 10 min; measured 1 job), "
        "400 MB on disk"
    )
    assert "at a time" not in describe_total(jobs, 1)
    assert describe_total([], 2).startswith("about 0 s of compute")


def test_jobs_at_a_time_end_with_the_longest():
    jobs = [Estimate(seconds, 0.0, 0, "scaled") for seconds in (60.0, 60.0, 6000.0)]
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
