"""Whatever can be combined trains, saves and resumes: methods, components, averages, networks.

Every method and every component variant meets every built-in network. A component gets the method
and the optimiser that are next in turn, and a model the average, so that the whole table need not
be run. Of these pairs some always run, and all of them with ``make test-slow``.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ablation.commands.cli import searching
from ablation.doctor.setting import SMALL
from ablation.testing import Configs, check_training, in_turn
from tests.support.options import COMPONENTS, completed, options
from tests.support.sampling import some_pairs

MODELS, METHODS, AVERAGES = options("model"), options("method"), options("average")
OPTIMS = options("optim")


@pytest.fixture(scope="module")
def configs() -> Iterator[Configs]:
    with searching(None):
        yield Configs()


def test_every_model_has_a_small_form():
    assert sorted(SMALL) == MODELS


@pytest.mark.parametrize(("method", "model"), some_pairs(METHODS, MODELS, 3))
def test_every_method_trains_and_resumes_on_every_model(configs, method, model):
    average = in_turn(AVERAGES, MODELS.index(model))[0]
    check_training(configs(model, f"method={method}", f"average={average}"))


@pytest.mark.parametrize(("component", "model"), some_pairs(COMPONENTS, MODELS, 6))
def test_every_component_trains_and_resumes_on_every_model(configs, component, model):
    turn = COMPONENTS.index(component) + MODELS.index(model) % 2
    chosen = (f"optim={OPTIMS[turn % len(OPTIMS)]}", *completed(component))
    check_training(configs.of_component(model, in_turn(METHODS, turn), chosen))
