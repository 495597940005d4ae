"""``evaluation.temperature``: what is divided, and what the number's identity says of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ablation.config.evaluations import evaluation_ids
from ablation.config.validation import check, load
from ablation.errors import DONE
from ablation.jobs import train as job
from ablation.jobs.attack import Tempered
from ablation.reports.deviations import mismatches
from tests.support.configs import compose_plain
from tests.support.jobs import plain, run_of
from tests.support.parts import small_batch, small_net


def test_logits_are_divided():
    net, batch = small_net().eval(), small_batch()
    torch.testing.assert_close(Tempered(net, 10.0)(batch.x), net(batch.x) / 10)


def test_ids_of_temperature_one_are_those_from_before_the_key():
    config = load(compose_plain("evaluation=standard"))
    other = replace(config, evaluation=replace(config.evaluation, temperature=10.0))
    assert config.train_id == other.train_id
    assert not set(evaluation_ids(config)) & set(evaluation_ids(other))


@pytest.mark.parametrize("value", ["0", "-1", ".inf"])
def test_a_temperature_that_divides_by_nothing_is_refused(value):
    _, problems = check(compose_plain(f"evaluation.temperature={value}"))
    assert any("temperature" in problem for problem in problems)


def test_it_is_recorded_with_the_number(tmp_path):
    container = plain(
        tmp_path,
        *("epochs=1", "data.train_size=130", "attack.steps=1", "selection.n=10"),
        *("selection.attack.steps=1", "monitor.enabled=false"),
        *("evaluation.n=20", "evaluation.temperature=4"),
    )
    assert job.train(container) == DONE
    entries = (run_of(container).result() or {})["entries"]
    assert {entry["params"]["temperature"] for entry in entries} == {4.0}


def test_a_number_at_another_temperature_cannot_stand_beside_a_tables():
    pgd = {"attack": "pgd", "steps": 20}
    assert mismatches({**pgd, "temperature": 4.0}, pgd) == ("temperature 4, not 1",)
    assert mismatches(pgd, {**pgd, "temperature": 4.0}) == ("temperature 1, not 4",)
    assert mismatches(pgd, pgd) == ()
    assert mismatches({"temperature": 4.0}, {}) == ()  # of clean accuracy: it is the same
