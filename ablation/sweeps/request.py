"""A sweep's command line, taken apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.errors import HydraException

from ablation.config.folders import tables_dirs
from ablation.config.overrides import key_of, parsed
from ablation.errors import ConfigError
from ablation.sweeps.planning import choose_rows
from ablation.sweeps.published import check_published, load_published, published_path
from ablation.sweeps.tables import Arm, Table, load_table, table_path
from ablation.text import one_line

OWN_KEYS = ("table", "row", "tables_dir")
"""Keys of a command line that name the sweep; they are not passed on to jobs."""


@dataclass(frozen=True)
class Request:
    """A command line, taken apart.

    Attributes:
        name: of the table; ``None`` for a plain sweep.
        table: the table; for a plain sweep one arm without a name.
        rows: arms to run.
        cli: what the command line says on top.
        runs_dir: where the runs are.
        source: the CSV of published numbers.
    """

    name: str | None
    table: Table
    rows: list[str]
    cli: list[str]
    runs_dir: Path
    source: Path | None = None


def read_request(arguments: Sequence[str]) -> Request:
    """Understand a sweep's command line.

    Args:
        arguments: task overrides in Hydra's grammar.

    Raises:
        ConfigError: the table, a row or an override is wrong.
    """
    try:
        own = {key_of(text): parsed(text) for text in arguments if key_of(text) in OWN_KEYS}
    except HydraException as error:
        raise ConfigError([one_line(error)]) from error
    cli = [text for text in arguments if key_of(text) not in (*OWN_KEYS, "launch")]
    places = {key_of(text): parsed(text).value() for text in cli if key_of(text) == "runs_dir"}
    runs_dir = Path(str(places.get("runs_dir", "runs"))).expanduser()
    if "table" not in own or own["table"].value() is None:
        if "row" in own:
            raise ConfigError(["row= chooses rows of a table: add table=<name>"])
        return Request(None, plain_sweep(cli), [""], cli, runs_dir)
    name = str(own["table"].value())
    folder = own["tables_dir"].value() if "tables_dir" in own else None
    table = open_table(name, folder)
    source = published_path(table_path(name, table_folders(folder)))
    rows = list(table.arms)
    if "row" in own:
        override = own["row"]
        sweep = override.is_sweep_override()
        value = list(override.sweep_string_iterator()) if sweep else override.value()
        names = value if isinstance(value, list) else [value]
        rows = choose_rows(table, [str(entry) for entry in names])
    return Request(name, table, rows, cli, runs_dir, source)


def table_folders(tables_dir: object = None) -> list[Path]:
    """Where table files are looked for; the user's own come first."""
    own = [] if tables_dir is None else [Path(str(tables_dir)).expanduser()]
    return [*own, *tables_dirs()]


def open_table(name: str, tables_dir: object = None) -> Table:
    """Read a table, and hold it against its published numbers.

    Raises:
        InputError: there is none of this name.
        ConfigError: the file is wrong, or it and its CSV name different rows.
    """
    path = table_path(name, table_folders(tables_dir))
    table, source = load_table(path), published_path(path)
    if source is not None:
        problems = check_published(table, load_published(source), source.name)
        if problems:
            raise ConfigError([f"{path.name}: {problem}" for problem in problems])
    return table


def plain_sweep(cli: Sequence[str]) -> Table:
    """``-m method=at,trades seed=0,1`` as a table: one arm, whose grid is the command line."""
    seeds = [text for text in cli if key_of(text) == "seed" and parsed(text).is_sweep_override()]
    axes = {"seed": list(parsed(seeds[0]).sweep_string_iterator())} if seeds else {}
    return Table("sweep", {"": Arm()}, axes=axes)
