"""The contract of what a plug-in brings, for its own tests: it composes, trains, saves and resumes.

>>> class TestContract(Contract):  # in a test file of the plug-in; pytest does the rest
...     plugin = "my-plugin"

Its methods and component variants meet every network, ours and its own, for two steps of tiny
images, and its networks every method; evaluations attack, data are read, tables are planned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

import torch

from ablation import plugins
from ablation.commands.cli import searching
from ablation.config.compose import Composer
from ablation.config.experiment import Config
from ablation.config.folders import conf_dir, read_yaml
from ablation.config.parser import TARGET, locate
from ablation.config.validation import load
from ablation.data import DeviceLoader, ImageSet, check_labels
from ablation.doctor.setting import SMALL
from ablation.doctor.stores import Shelf, Silent, tensors
from ablation.errors import ConfigError, InputError, InterruptedRunError
from ablation.evaluation import Request, evaluate
from ablation.models import Net, build_model
from ablation.numerics.precision import precision_context
from ablation.runs.checkpoint import Snapshot
from ablation.sweeps.planning import Planner
from ablation.sweeps.request import open_table
from ablation.sweeps.tables import table_names
from ablation.training.engine import Engine, Recipe

SIZE, CLASSES, BATCH, STEPS = (8, 12), 3, 6, 2
"""Images are not square; an epoch, and every phase, is of two steps."""
QUICK = ("epochs=110", "attack.steps=2", "attack.step_size=eps/2")
EVALUATED = ("torch_module",)
"""Options that ``ablation-evaluate`` alone takes."""


def options(group: str, conf: Path | None = None) -> list[str]:
    """Options of a group that a training may choose.

    Args:
        group: for example ``method``.
        conf: the folder of groups; ``None`` means ours.
    """
    names = sorted(path.stem for path in ((conf or conf_dir()) / group).glob("*.yaml"))
    return [name for name in names if name not in EVALUATED]


def component_options(conf: Path | None = None) -> list[str]:
    """``component/<name>=<variant>`` of every variant that changes something."""
    return [
        f"component/{path.parent.name}={path.stem}"
        for path in sorted((conf or conf_dir()).glob("component/*/*.yaml"))
        if path.stem != "disabled"
    ]


def completed(override: str, conf: Path | None = None) -> list[str]:
    """The override, and those that enable what its component requires."""
    if not override.startswith("component/"):
        return [override]
    group = override.partition("=")[0]
    variants = map(read_yaml, sorted(((conf or conf_dir()) / group).glob("*.yaml")))
    target = next(node[TARGET] for node in variants if TARGET in node)  # some build on another
    required = getattr(locate(target), "requires", ())
    if override == "component/closed_form_gradient=dyart":  # its filter is for searched points
        required = (*required, "fab_margin")
    more = ["optim.weight_decay=0"] if group == "component/pmhr" else []  # it has its own
    return [*(f"component/{name}=enabled" for name in required), override, *more]


class Configs:
    """Composed configs; Hydra is asked once for each choice of options. Needs ``searching``.

    Args:
        small: overrides that make a model small, by the option's name.
    """

    def __init__(self, small: Mapping[str, Sequence[str]] = SMALL) -> None:
        composer, self._small = Composer(), small
        self.plain = cache(lambda *overrides: composer.plain(list(overrides)))

    def __call__(self, model: str, *overrides: str) -> Config:
        """The config of these overrides on the small form of a model.

        Raises:
            ConfigError: they do not go together.
        """
        network = self.plain(f"model={model}", *self._small.get(model, ()))["model"]
        return load({**self.plain(*overrides, *QUICK), "model": network})

    def of_component(self, model: str, methods: Sequence[str], overrides: Sequence[str]) -> Config:
        """The same with the first of the methods that takes a component.

        Raises:
            AssertionError: none does.
        """
        refusals = []
        for method in methods:
            try:
                return self(model, f"method={method}", *overrides)
            except ConfigError as error:  # it has nothing that the component could change
                refusals.append(f"method={method}: {error}")
        raise AssertionError("\n".join([f"no method takes {' '.join(overrides)}", *refusals]))


def in_turn(choices: Sequence[str], start: int) -> list[str]:
    """The choices from one of them on, each once."""
    return list(islice(cycle(choices), start % len(choices), start % len(choices) + len(choices)))


def images() -> ImageSet:
    """Noise, shape [12, 1, 8, 12], uint8, with three classes."""
    g = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (STEPS * BATCH, 1, *SIZE), generator=g, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(STEPS * BATCH) % CLASSES)


def network(config: Config) -> Net:
    """The config's network for ``images``."""
    return build_model(
        config.model.spec,
        channels=1,
        size=SIZE,
        classes=CLASSES,
        head=config.phases[-1].method.head or config.model.head,
        mean=[0.5] if config.model.normalize else None,
        std=[0.5] if config.model.normalize else None,
        seed=0,
    )


def trained(config: Config, shelf: Shelf, stop_after: int | None = None) -> Snapshot:
    """Train every phase of a config for one epoch, or until ``stop_after`` steps of this call."""
    recipe = Recipe(
        phases=[replace(phase, epochs=1) for phase in config.phases],
        optim=config.optim,
        schedule=config.schedule,
        lr=0.01,
        average=config.average,
        seed=0,
        precision=precision_context("fp32", torch.device("cpu")),
        classes=CLASSES,
        select_every=1,
    )
    data, reporter = images(), Silent()
    loader = DeviceLoader(data, torch.arange(len(data)), BATCH, seed=0, device="cpu")
    engine = Engine(
        network(config),
        loader,
        recipe,
        lambda net: {},
        shelf,
        reporter,
        lambda: reporter.steps == stop_after,
        lambda row, net: None,
    )
    try:
        engine.fit()
    except InterruptedRunError:
        require(stop_after is not None, "training stopped by itself")
    else:
        require(stop_after is None, f"training was not stopped after {stop_after} steps")
    assert shelf.saved is not None  # noqa: S101
    return shelf.saved


def check_training(config: Config) -> None:
    """Train, and again with an interruption before the last step: the same bits.

    Raises:
        AssertionError: it did not, or a weight is not finite.
    """
    whole, shelf = trained(config, Shelf()), Shelf()
    last = STEPS * len(config.phases)
    require(trained(config, shelf, last - 1).step == last - 1, "it saved at another step")
    resumed = trained(config, shelf)
    require(resumed.step == whole.step == last, "it ended at another step")
    infinite = [key for key, value in whole.weights.items() if not value.isfinite().all()]
    require(not infinite, f"not finite: {', '.join(infinite)}")
    theirs, ours = tensors(vars(whole)), tensors(vars(resumed))
    lost = theirs.keys() ^ ours.keys()
    require(not lost, f"saved in one of them only: {', '.join(lost)}")
    others = [key for key in ours if not torch.equal(ours[key], theirs[key])]
    require(not others, f"other bits after it was resumed: {', '.join(others)}")


def require(condition: bool, problem: str) -> None:
    """Fail with a message.

    Raises:
        AssertionError: the condition does not hold.
    """
    if not condition:
        raise AssertionError(problem)


def check_evaluation(config: Config) -> None:
    """Attack an untrained network, which refuses points outside the ball.

    Raises:
        AssertionError: a value is not finite.
    """
    node, data = config.evaluation, images()
    request = Request(node.attacks, config.eps, config.norm, n=BATCH, diagnose=False)
    found = evaluate(network(config).eval(), data.images, data.labels, request)
    for entry in found.entries:
        require(entry.value == entry.value, f"{entry.metric} is not a number")


def check_data(config: Config) -> None:
    """Read the images, where they lie in ``data_dir``, and hold them against the option.

    Raises:
        AssertionError: they disagree.
    """
    source, root = config.data.source, config.data_root
    if source.check(root):
        return  # they are not on this machine
    sets, extent = source.load(root), source.extent(root)
    for found in sets:
        try:
            check_labels(found, config.data.classes)
        except InputError as error:
            raise AssertionError(str(error)) from error
    counts = None if extent is None else (extent.train, extent.test)
    require(counts in (None, tuple(map(len, sets))), f"extent says {counts} images")


class Contract:
    """Tests of everything that a plug-in brings; derive a class named ``Test...`` from it.

    Attributes:
        plugin: the name of its distribution.
        small: overrides that make its models small, by the option's name.
    """

    plugin: ClassVar[str]
    small: ClassVar[Mapping[str, Sequence[str]]] = {}
    _configs: ClassVar[Configs]
    _context: ClassVar[AbstractContextManager[None]]

    @classmethod
    def setup_class(cls) -> None:
        """Start Hydra once for all tests."""
        cls._context = searching(None)
        cls._context.__enter__()
        cls._configs = Configs({**SMALL, **cls.small})

    @classmethod
    def teardown_class(cls) -> None:
        """End it."""
        cls._context.__exit__(None, None, None)

    @classmethod
    def folder(cls, kind: plugins.Kind) -> Path:
        """A folder of the plug-in.

        Raises:
            LookupError: it is not installed.
        """
        for found in plugins.installed():
            if found.distribution == cls.plugin:
                return found.folder / kind
        names = ", ".join(found.distribution for found in plugins.installed())
        raise LookupError(f"{cls.plugin} is not installed; plug-ins: {names or 'none'}")

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Parametrize: pytest calls it for every test of the class."""
        conf = self.folder("conf")
        models, methods = options("model", conf), options("method", conf)
        networks = [*options("model"), *models]
        groups = sorted(path.name for path in conf.glob("*") if path.name != "crafter")
        values: dict[str, Sequence[str]] = {
            "option": [f"{group}={name}" for group in groups for name in options(group, conf)],
            "component": component_options(conf),
            "network": networks,
            "pair": [
                *(f"{method}-{network}" for method in methods for network in networks),
                *(f"{method}-{model}" for method in options("method") for model in models),
            ],
            "evaluation": options("evaluation", conf),
            "data": options("data", conf),
            "table": table_names([self.folder("tables")]),
        }
        for name in sorted(values.keys() & set(metafunc.fixturenames)):
            metafunc.parametrize(name, values[name])

    def test_option(self, option: str) -> None:
        """Every option composes and is valid."""
        load(self._configs.plain(option, "epochs=110", "selection.n=null"))

    def test_component(self, component: str, network: str) -> None:
        """Every component trains and resumes on every network, with a method that takes it."""
        conf = self.folder("conf")
        start = sum(map(ord, component + network))  # others meet other methods
        methods = in_turn([*options("method"), *options("method", conf)], start)
        overrides = completed(component, conf)
        check_training(self._configs.of_component(network, methods, overrides))

    def test_pair(self, pair: str) -> None:
        """Its methods train and resume on every network, and every method on its own."""
        method, _, model = pair.partition("-")
        check_training(self._configs(model, f"method={method}"))

    def test_evaluation(self, evaluation: str) -> None:
        """Every attack stays in its ball."""
        check_evaluation(self._configs("tiny_cnn", f"evaluation={evaluation}"))

    def test_data(self, data: str) -> None:
        """Images are what the option says."""
        check_data(load(self._configs.plain(f"data={data}", "selection.n=null")))

    def test_table(self, table: str) -> None:
        """Every row can be planned."""
        planner = Planner(open_table(table), ["tracking.mode=disabled"], check=False)
        problems = planner.plan().problems
        require(not problems, "\n".join(problems))
