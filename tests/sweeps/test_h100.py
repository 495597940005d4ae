"""What an H100 would take: counted arithmetic against closed forms."""

from __future__ import annotations

import itertools

import pytest
import torch

from ablation.sweeps.cost import UNKNOWN_EXTENT, Networks, estimate_elsewhere, training_passes
from ablation.sweeps.h100 import LAUNCH, SUSTAINED, estimate_on_h100, pace, work
from tests.support.configs import compose_config

CPU = torch.device("cpu")


def test_an_mlp_multiplies_its_matrices():
    config = compose_config("data=mnist", "model=mlp")
    extent = Networks().extent(config)
    widths = [28 * 28, 1024, 1024, 1024, 1024, 10]
    products = sum(a * b for a, b in itertools.pairwise(widths))
    assert work(config, extent).flops == 2 * products


def test_a_resnet18_does_what_is_printed_of_it():
    config = compose_config("data=cifar10", "model=resnet18")
    done = work(config, UNKNOWN_EXTENT)
    assert done.flops / 2 == pytest.approx(0.56e9, rel=0.01)  # kuangliu/pytorch-cifar: 0.56 GMAC
    assert 62 <= done.launches <= 100  # 20 convolutions, 20 BatchNorms, 17 ReLUs, 8 sums, the head


def test_large_batches_are_bound_by_arithmetic_and_small_ones_by_launches():
    large = compose_config("data=cifar10", "model=resnet18", "batch_size=1024")
    done = work(large, UNKNOWN_EXTENT)
    for precision, rate in SUSTAINED.items():
        found = pace(large, UNKNOWN_EXTENT, CPU, precision)  # type: ignore[arg-type]
        assert found == pytest.approx(done.flops / rate)
    small = compose_config("data=cifar10", "model=resnet18", "batch_size=2")
    assert pace(small, UNKNOWN_EXTENT, CPU, "fp32") == pytest.approx(done.launches * LAUNCH / 2)


def test_a_job_takes_its_passes_at_that_pace():
    config = compose_config("data=mnist", "model=mlp", "method=at", "evaluation=none")
    networks = Networks()
    passes = training_passes(config, networks.split(config))
    (found,) = estimate_on_h100([config])
    one = pace(config, networks.extent(config), CPU, "fp32")
    assert found.train_seconds == pytest.approx(passes * one)
    assert (found.evaluation_seconds, found.device, found.basis) == (0, "cuda", "rough")


def test_an_estimate_does_not_depend_on_what_else_is_estimated():
    sizes = (2, 64)
    jobs = [compose_config("evaluation=quick", f"batch_size={size}") for size in sizes]
    found = estimate_on_h100(jobs)
    assert found == [estimate_on_h100([job])[0] for job in jobs]
    assert found[0].train_seconds > found[1].train_seconds


def test_no_run_and_no_probe_of_this_machine_is_looked_at():
    config = compose_config("evaluation=demo")
    (slow,) = estimate_elsewhere([config], lambda *_: 2.0, "cuda")
    (fast,) = estimate_elsewhere([config], lambda *_: 1.0, "cuda")
    assert slow.train_seconds == 2 * fast.train_seconds > 0
    assert slow.evaluation_seconds == 2 * fast.evaluation_seconds > 0
    assert slow.bytes == fast.bytes
