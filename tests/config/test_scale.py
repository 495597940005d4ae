"""``scale=smoke``: smaller everywhere, the same experiment otherwise, and never taken for it."""

from __future__ import annotations

import pytest

from ablation.config.scale import scaled
from ablation.config.validation import check, load
from ablation.evaluation import ApgdCe, AutoAttack
from tests.support.configs import compose_config, compose_plain


def test_smoke_swaps_images_and_network_and_caps_numbers():
    config = compose_config(
        *("data=cifar10", "model=vgg16_bn", "method=trades", "evaluation=dose", "scale=smoke"),
        *("epochs=200", "batch_size=16", "data.val_size=5000", "selection.n=1024"),
    )
    assert (config.data.name, config.model.name, config.scale) == ("digits", "tiny_cnn", "smoke")
    assert (config.epochs, config.batch_size, config.data.train_size) == (2, 16, 256)
    assert config.eps == 8 / 255  # the threat model stays
    crafter = config.method.crafters["adv"]
    assert getattr(crafter, "steps", None) == 3
    attack = config.evaluation.attacks["aa"]
    assert isinstance(attack, AutoAttack)
    assert (attack.version, attack.n_iter) == ("custom", 3)
    assert isinstance(config.evaluation.attacks["apgd_ce"], ApgdCe)


def test_smoke_never_makes_anything_larger():
    config = compose_config("scale=smoke", "epochs=1", "attack.steps=2", "data.val_size=20",
                            "selection.n=5", "evaluation.n=3")  # fmt: skip
    assert (config.epochs, config.data.val_size, config.selection.n) == (1, 20, 5)
    assert config.evaluation.n == 3
    assert getattr(config.method.crafters["adv"], "steps", None) == 2


def test_no_validation_stays_no_validation():
    config = compose_config("scale=smoke", "data.val_size=0", "selection.metric=last")
    assert config.data.val_size == 0


@pytest.mark.parametrize(
    ("epochs", "milestones", "expected"),
    [(110, [79, 89], [1]), (200, [100, 150], [1]), (2, [1], [1])],
)
def test_milestones_keep_their_place(epochs, milestones, expected):
    config = compose_config(
        "scale=smoke", "schedule=piecewise", f"epochs={epochs}", f"schedule.milestones={milestones}"
    )
    assert list(getattr(config.schedule, "milestones", ())) == expected


def test_a_saved_smoke_config_loads_as_it_is_and_is_the_same_run():
    config = compose_config("scale=smoke", "method=mart")
    again = load(config.container())
    assert again.train_id == config.train_id
    assert again.container() == config.container()


def test_a_real_run_with_the_same_numbers_is_another_run():
    smoke = compose_config("scale=smoke")
    container = {**smoke.container(), "scale": "full"}
    assert load(container).train_id != smoke.train_id


def test_a_full_config_is_untouched():
    plain = compose_plain("method=trades")
    assert scaled(plain) == {**plain, "scale": "full"}


def test_an_unknown_scale_is_refused():
    _, problems = check({**compose_plain(), "scale": "tiny"})
    assert any("scale='tiny'" in problem for problem in problems)
