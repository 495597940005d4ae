"""Where ``conf`` and the table files lie, and what Hydra's store is told of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ablation import plugins
from ablation.errors import ConfigError
from ablation.text import did_you_mean, one_line


def conf_dir() -> Path:
    """``conf/`` beside the package in a checkout, or inside it in an installed wheel."""
    return beside("conf", "_conf", "config.yaml")


def sweeps_dir() -> Path:
    """``multirun_sweeps/`` beside the package, or its copy in an installed wheel."""
    return beside("multirun_sweeps", "_sweeps", "README.md")


def conf_dirs() -> list[Path]:
    """Folders of options: ours, and those of plug-ins."""
    return [conf_dir(), *plugins.folders("conf")]


def tables_dirs() -> list[Path]:
    """Folders of table files: ours, and those of plug-ins."""
    return [sweeps_dir(), *plugins.folders("tables")]


def beside(checkout: str, installed: str, witness: str) -> Path:
    """A folder of the checkout if its witness is there, else its copy in the package."""
    package = Path(__file__).resolve().parents[1]
    found = package.parent / checkout
    return found if (found / witness).is_file() else package / installed


def has_file(path: Path) -> bool:
    """Check for a file; a name that no file could have is none."""
    try:
        return path.is_file()
    except OSError:
        return False


@cache
def component_names() -> list[str]:
    """Every component that ``conf/component`` has a folder for, here or in a plug-in."""
    paths = [path for folder in conf_dirs() for path in folder.glob("component/*")]
    return sorted({path.name for path in paths if path.is_dir()})


def register_components() -> None:
    """Make ``component: defaults`` list every folder of ``conf/component``, disabled.

    So a new component is one class and its YAML options; no list is edited.

    Raises:
        InputError: a plug-in is broken, or would hide an option or a table.
    """
    check_plugins()
    node = {"defaults": [{name: "disabled"} for name in component_names()]}
    ConfigStore.instance().store(group="component", name="defaults", node=node)


@cache
def check_plugins() -> None:
    """Hold the files of every plug-in against ours; once a process.

    Raises:
        InputError: an entry point of one is wrong.
        ConfigError: with everything that is wrong with its files.
    """
    problems = plugins.clashes(conf_dir(), "conf", "**/*.yaml")
    problems += plugins.clashes(sweeps_dir(), "tables", "*.yaml")
    problems += plugins.clashes(sweeps_dir(), "tables", "searches/*.yaml")
    known = sorted(path.name for path in conf_dir().iterdir() if path.is_dir())
    for plugin in plugins.installed():
        problems += [plugin.problem(text) for text in _conf_problems(plugin.folder / "conf", known)]
    if problems:
        raise ConfigError(problems)


def _conf_problems(folder: Path, known: Sequence[str]) -> Iterator[str]:
    """What is wrong with a plug-in's options."""
    groups = sorted(path.name for path in folder.glob("*") if path.is_dir())
    for name in groups:
        if name not in known:
            yield f"conf/{name}: no such group; {did_you_mean(name, known)} Rename it"
    yield from option_files_problems(folder, groups)
    for path in sorted(folder.glob("component/*")):
        ours = (conf_dir() / "component" / path.name).is_dir()
        if path.is_dir() and not ours and not (path / "disabled.yaml").is_file():
            yield f"conf/component/{path.name}: add disabled.yaml with 'enabled: false'"


def register_files(key: str, names: Sequence[str]) -> None:
    """Make every table an option of ``table=``, so that help, completion and typos know it.

    Args:
        key: ``table`` or ``search``.
        names: of the files.
    """
    for name in names:
        ConfigStore.instance().store(group=key, name=name, node={key: name}, package="_global_")


def read_yaml(path: Path) -> Any:
    """A YAML file as Hydra reads its own, which refuses a key that is there twice.

    Raises:
        ConfigError: it cannot be read.
    """
    return _read(path, lambda text: OmegaConf.to_container(OmegaConf.create(text)))


def read_saved_config(run: Path) -> dict[str, Any]:
    """The ``config.yaml`` of a run directory.

    Raises:
        ConfigError: it cannot be read, or is no mapping.
    """
    path = run / "config.yaml"
    found = _read(path, yaml.safe_load)
    if not isinstance(found, dict):
        raise ConfigError([f"{path}: no config of a run; it holds {type(found).__name__}"])
    return {str(key): value for key, value in found.items()}


def _read(path: Path, load: Callable[[str], Any]) -> Any:
    try:
        text = path.read_text("utf-8")
        refuse_bombs(text)
        return load(text)
    except RecursionError as error:
        raise ConfigError([f"{path}: nested too deeply"]) from error
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        reason = one_line(error).replace('in "<unicode string>", ', "at ")
        raise ConfigError([f"{path}: {reason}"]) from error


MOST_NODES = 100_000
"""Values of a YAML file, counted as often as its aliases repeat them."""


def refuse_bombs(text: str) -> None:
    """Refuse a text that grows beyond all measure when its aliases are written out.

    Raises:
        ValueError: it does.
        YAMLError: it is no YAML.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader) if "&" in text and "*" in text else None
    if root is not None and _written_out(root, {}) > MOST_NODES:
        raise ValueError(f"its aliases (*) would make more than {MOST_NODES} values of it")


def _written_out(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes below a node and itself; infinite where it contains itself."""
    if id(node) not in known:
        known[id(node)] = math.inf  # while it is open
        entries = node.value if isinstance(node, yaml.CollectionNode) else ()
        children = itertools.chain.from_iterable(
            entry if isinstance(entry, tuple) else (entry,) for entry in entries
        )
        known[id(node)] = 1 + sum(_written_out(child, known) for child in children)
    return known[id(node)]


def unread_files(folder: Path) -> list[str]:
    """Files of a user's config folder that one of ours, or of a plug-in, hides; one line each.

    Args:
        folder: that ``--config-dir`` names; Hydra searches it last.
    """
    names = sorted(path.relative_to(folder) for path in folder.rglob("*.yaml"))
    return [
        f"{folder / name}: would not be read, {place / name} comes first; give it another name"
        for name in names
        for place in conf_dirs()
        if (place / name).is_file() and not (place / name).samefile(folder / name)
    ]


def option_files_problems(folder: Path, groups: Iterable[str]) -> list[str]:
    """Files of a user's config folder that Hydra could not read, one line each.

    Args:
        folder: that ``--config-dir`` names.
        groups: whose options may be chosen.
    """
    tops = sorted({group.split("/")[0] for group in groups})
    paths = [*folder.glob("*.yaml"), *(p for top in tops for p in (folder / top).rglob("*.yaml"))]
    problems = []
    if (folder / "hydra").is_dir():
        problems.append(f"{folder / 'hydra'}: options of Hydra are not read here; remove it")
    for path in sorted(paths):
        try:
            if not isinstance(read_yaml(path), dict):
                problems.append(f"{path}: an option is a mapping of keys")
        except ConfigError as error:
            problems += error.problems
    return problems
