"""A paper's setting in one word: it fits everything, and everything that is set wins over it."""

from __future__ import annotations

import itertools

import pytest
import yaml
from hydra import initialize_config_dir

from ablation.commands import cli, train
from ablation.config import validation
from ablation.config.experiment import Config
from ablation.config.folders import register_components
from ablation.errors import ConfigError
from ablation.runs.directory import Run
from ablation.runs.launches import note_recipe, recorded_recipe
from ablation.schedules import Cosine, Piecewise
from ablation.training.optim import Sgd
from tests.support.configs import compose_config, composer
from tests.support.golden import GIVEN
from tests.support.options import CONF, options
from tests.support.sampling import some_of

RECIPES = [name for name in options("recipe") if name != "none"]
PAPERS = {  # what the papers and released scripts state
    "dose": (200, 0.1, 128, 5e-4, 5000, "cifar10-vgg16_bn", 8 / 255),
    "emr": (100, 0.1, 128, 5e-4, 2000, "cifar10-wrn34_10_emr", 0.0314),
    "emr_trades": (130, 0.1, 128, 1e-3, 2000, "cifar10-wrn34_10_emr", 0.031),
    "emr_mail": (100, 0.1, 128, 2e-4, 0, "cifar10-wrn34_10_emr", 0.0314),
    "emr_mlp": (50, 0.01, 100, 1e-3, 0, "mnist-mlp", 0.1),
    "emr_cnn": (100, 0.01, 100, 5e-4, 0, "cifar10-cnn", 0.031),
    "lma": (130, 0.01, 100, 3.5e-3, 1000, "cifar10-resnet18", 8 / 255),
    "mwpb": (110, 0.1, 128, 5e-4, 1000, "cifar10-resnet18", 8 / 255),
    "mwpb_svhn": (110, 0.01, 128, 3.5e-3, 1465, "svhn-resnet18", 8 / 255),
}
DROPS = {  # epochs that begin at a tenth of the rate, counted from 0
    "emr": (60, 90),
    "emr_trades": (60, 120),
    "emr_mail": (75, 90),
    "emr_mlp": (30,),
    "emr_cnn": (75, 90),
    "lma": (74, 89),
    "mwpb": (79, 89),
    "mwpb_svhn": (79, 89),
}
STARTS = {
    (name, method): ("attack.start=gaussian",)
    for name in ("emr_mlp", "emr_cnn")
    for method in ("trades", "st_at")
}
"""EMR attacks from the image, where the divergences of TRADES and ST-AT have no gradient."""
OWN_DECAY = {(name, "pmhr_at"): ("optim.weight_decay=0",) for name in RECIPES}
"""PMHR has a penalty on the weights of its own; a second one is refused."""
REFUSED = {**STARTS, **OWN_DECAY}
GROUPS = ("method", "data", "model", "schedule", "evaluation")


def settings(config: Config) -> tuple[object, ...]:
    images = f"{config.data.name}-{config.model.name}"
    return (
        *(config.epochs, config.lr, config.batch_size, config.optim.weight_decay),
        *(config.data.val_size, images, pytest.approx(config.eps)),
    )


def test_every_recipe_is_held_against_its_paper():
    assert sorted(PAPERS) == RECIPES
    assert {"dose", *DROPS} == {*RECIPES}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_what_its_paper_states(name):
    config = compose_config(f"recipe={name}")
    assert settings(config) == PAPERS[name]
    assert config.recipe == name
    known = Piecewise(DROPS[name]) if name in DROPS else Cosine(floor=0.001)
    assert config.schedule == known
    assert config.method.name == "at"
    assert not any(config.component.values())


@pytest.fixture
def composed():
    """Compose many configs, without starting Hydra anew for each; their problems are raised."""
    register_components()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield lambda *overrides: validation.load(composer().plain(overrides))


@pytest.fixture(scope="module")
def without():
    """What each method chooses for itself, with no recipe."""
    return {name: choices_of(compose_config(f"method={name}")) for name in options("method")}


def choices_of(config: Config) -> tuple[object, ...]:
    on = {name for name, part in config.component.items() if part}
    return config.method.name, config.method.passes, config.optim.clip, on


@pytest.mark.parametrize("name", some_of(RECIPES, 5))
def test_a_recipe_goes_with_every_method_data_set_and_option_instead_of_its_own(
    name, composed, without
):
    """No key of the recipe is left over in a schedule or an evaluation that has no such key."""
    turns = {group: itertools.cycle(options(group)) for group in GROUPS}
    for _ in range(max(len(options(group)) for group in GROUPS)):
        option = {group: next(turns[group]) for group in GROUPS}
        overrides = [f"{group}={one}" for group, one in option.items()]
        overrides += [*GIVEN.get(option["data"], ()), *REFUSED.get((name, option["method"]), ())]
        config = composed(f"recipe={name}", "epochs=130", *overrides)
        assert (config.data.name, config.model.name) == (option["data"], option["model"])
        own = option["method"] == "pmhr_at"
        assert config.optim.weight_decay == (0 if own else PAPERS[name][3])
        assert config.batch_size == PAPERS[name][2]
        assert choices_of(config) == without[option["method"]]


@pytest.mark.parametrize("name", some_of(RECIPES, 3))
def test_a_recipe_goes_with_every_optimiser_average_and_scale(name, composed):
    for group in ("optim", "average", "scale"):
        for option in options(group):
            more = ["lr=1e-3"] if option == "adamw" else []  # a recipe's lr is SGD's
            config = composed(f"recipe={name}", f"{group}={option}", *more)
            assert config.optim.weight_decay == PAPERS[name][3]


@pytest.mark.parametrize(("name", "method"), REFUSED)
def test_what_does_not_go_with_a_recipe_is_refused_with_the_remedy(name, method, composed):
    with pytest.raises(ConfigError, match=f"set {REFUSED[name, method][0]}"):
        composed(f"method={method}", f"recipe={name}")


def test_the_command_line_wins_over_a_recipe_and_a_recipe_over_the_defaults():
    plain, lma = compose_config(), compose_config("recipe=lma")
    mine = compose_config("epochs=10", "recipe=lma", "schedule=cosine", "optim=sgd_clipped")
    assert [c.epochs for c in (plain, lma, mine)] == [30, 130, 10]
    assert [c.schedule for c in (plain, lma, mine)] == [Cosine(), Piecewise((74, 89)), Cosine()]
    assert mine.optim == Sgd(weight_decay=3.5e-3, clip=0.1)
    assert mine.batch_size == lma.batch_size == 100
    other = compose_config("recipe=lma", "data=digits", "model=mlp", "evaluation=quick")
    assert (other.data.name, other.model.name) == ("digits", "mlp")
    assert other.evaluation == plain.evaluation
    assert other.eps == plain.eps


def test_the_command_line_wins_in_any_order_and_over_parts_of_a_recipe():
    overrides = ["recipe=emr_trades", "selection.attack.start=uniform", "schedule.milestones=[3]"]
    one, other = compose_config(*overrides), compose_config(*reversed(overrides))
    assert one == other
    assert one.selection.attack.start == "uniform"
    assert one.selection.attack.steps == 10
    assert one.schedule == Piecewise((3,))
    assert one.optim.weight_decay == 1e-3


def test_a_recipe_is_no_part_of_what_is_run_or_saved():
    lma = compose_config("recipe=lma")
    same = compose_config(
        *("data=cifar10", "model=resnet18", "schedule=lma", "evaluation=lma", "epochs=130"),
        *("lr=0.01", "batch_size=100", "optim.weight_decay=3.5e-3"),
    )
    assert (same.recipe, lma.recipe) == (None, "lma")
    assert same.container() == lma.container()
    assert same.train_id == lma.train_id
    assert "recipe" not in lma.container()
    assert validation.load(lma.container()).train_id == lma.train_id


def test_a_run_says_which_recipe_it_was_asked_for_with(tmp_path):
    config = compose_config("recipe=lma", f"runs_dir={tmp_path}")
    run = Run(config.run_dir, config.train_id)
    assert recorded_recipe(run) is None
    with run.open(yaml.safe_dump(config.container())):
        note_recipe(run, config.recipe)
        note_recipe(run, None)
    assert recorded_recipe(run) == "lma"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe=lam", "recipe=lam: no such option; did you mean lma?"),
        ("recipe=[lma,dose]", "one option of recipe, not a list"),
        ("recipe.epochs=3", "recipe"),
    ],
)
def test_a_mistaken_recipe_is_named(override, message):
    register_components()
    (problem,) = cli.preflight("config", [override], train.check)
    assert message in problem


def test_recipes_choose_no_method_component_or_optimiser():
    for path in CONF.glob("recipe/*.yaml"):
        node = yaml.safe_load(path.read_text("utf-8"))
        chosen = [
            key for each in node.pop("defaults", ()) if isinstance(each, dict) for key in each
        ]
        groups = {key.removeprefix("override /") for key in chosen}
        assert groups <= {"data", "model", "schedule", "evaluation"}, path.name
        assert not {"method", "component", "schedule", "average"} & set(node), path.name


def test_a_drop_comes_when_the_paper_counts_it():
    """LMA's 75th and 90th epochs, counted from 1, are the first at the lower rates."""
    config = compose_config("recipe=lma")
    rates = [config.schedule.lr(config.lr, epoch, config.epochs) for epoch in range(130)]
    falls = [epoch + 1 for epoch in range(1, 130) if rates[epoch] < rates[epoch - 1]]
    assert falls == [75, 90]


def test_a_recipe_of_ones_own_may_begin_with_a_papers(tmp_path):
    (tmp_path / "recipe").mkdir()
    text = "# @package _global_\ndefaults: [lma, _self_]\nrecipe: mine\nlr: 0.02\nepoch: 3\n"
    (tmp_path / "recipe" / "mine.yaml").write_text(text)
    register_components()
    asked = ["--config-dir", str(tmp_path), "recipe=mine", "data=digits", "model=mlp"]
    assert cli.preflight("config", asked, train.check) == [
        "epoch=3: unknown key; did you mean epochs?"
    ]


def test_a_file_of_ones_own_that_ours_would_hide_is_refused(tmp_path):
    (tmp_path / "method").mkdir()
    for name in ("config.yaml", "method/at.yaml", "method/mine.yaml"):
        (tmp_path / name).write_text("lr: 0.02\n")
    register_components()
    found = cli.preflight("config", ["--config-dir", str(tmp_path)], train.check)
    assert [problem.split(": would not be read, ")[0] for problem in found] == [
        str(tmp_path / "config.yaml"),
        str(tmp_path / "method" / "at.yaml"),
    ]
    assert all("comes first; give it another name" in problem for problem in found)
