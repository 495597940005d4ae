"""A page for each method and each component."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ablation.components
from ablation.config.folders import component_names
from docs.generate import docstrings, facts
from docs.generate.facts import CONF, Use
from docs.generate.markdown import (
    block,
    code,
    comment,
    escaped,
    joined,
    page,
    prose,
    section,
    table,
)

NO_ROW = "No row of a table file."


def component_page(name: str, refused: facts.Refusals | None) -> str:
    """The page of a component; without ``refused`` it does not say what is refused."""
    head = comment(CONF / "component" / name / "enabled.yaml")
    classes = classes_of(name)
    first = next(iter(classes.values()))
    rows = [use for use in facts.uses() if name in use.components]
    return page(
        f"`{name}`",
        docstrings.summary(first),
        block(example(name)),
        section("Formula and source", prose(head[:1])),
        section("Deviations and readings", prose(head[1:]), docstrings.details(first)),
        section("Options", _options(name)),
        section("Parameters", *_parameters(name, classes)),
        section("Together with others", *_combining(name, first, refused)),
        section("Rows that use it", used(rows, lambda use: use.components[name])),
    )


def example(name: str) -> str:
    """A command that trains with a component on a method that takes it."""
    method = "at" if name in ("mma", "boosted_cross_entropy") else "trades"
    more = [f"component/{other}=enabled" for other in facts.required(name)]
    if name == "pmhr":
        more.append("optim.weight_decay=0")
    return " ".join([f"ablation-train method={method}", *more, f"component/{name}=enabled"])


def classes_of(name: str) -> dict[str, type]:
    """By option that names it first, the classes of a component."""
    found: dict[str, type] = {}
    for option in facts.options(f"component/{name}"):
        target = facts.node_of(name, option).get("_target_")
        if target is not None:
            found[option] = getattr(ablation.components, target.rpartition(".")[2])
    return found


def _options(name: str) -> str:
    rows = []
    for option in facts.options(f"component/{name}"):
        node = facts.node_of(name, option)
        head = comment(CONF / "component" / name / f"{option}.yaml")
        sets = [
            code(f"{key}: {_written(value)}") for key, value in node.items() if key != "_target_"
        ]
        says = "as above" if option == "enabled" else " ".join(map(joined, head))
        rows.append([code(f"component/{name}={option}"), says, ", ".join(sets)])
    return table(["option", "is", "sets"], rows)


def _parameters(name: str, classes: Mapping[str, type]) -> Iterator[str]:
    """A table for each class; of a variant, what it has beside the first."""
    shown: set[str] = set()
    for option, cls in classes.items():
        means, types = docstrings.arguments(cls), docstrings.written_types(cls)
        values = facts.node_of(name, option)
        rows = [
            [code(f"component.{name}.{key}"), types[key], code(_yaml(values, cls, key)), means[key]]
            for key in types
            if key not in shown
        ]
        if option != "enabled":
            yield f"With {code(f'component/{name}={option}')} also:" if rows else ""
        if rows:
            yield table(["key", "takes", "default", "is"], rows)
        shown |= types.keys()


def _yaml(values: Mapping[str, Any], cls: type, key: str) -> str:
    """The default of a key as YAML writes it."""
    return _written(values.get(key, getattr(cls, key, None)))


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return json.dumps(value) if isinstance(value, (list, tuple, dict)) else str(value)


def _combining(name: str, cls: Any, refused: facts.Refusals | None) -> Iterator[str]:
    requires, after = sorted(cls.requires), sorted(cls.after)
    if requires:
        yield f"Needs {_links(requires)}."
    if after:
        yield f"Applied after {_links(after)}, where they are on."
    if refused is None:
        return
    rows = [
        *_refused("method=", refused.methods),
        *_refused("component/", refused.components),
    ]
    if rows:
        yield "Refused, in the program's words:"
        yield table(["with", "because"], rows)
    else:
        yield "No method and no other component refuses it."


def _refused(kind: str, found: Mapping[str, Sequence[str]]) -> Iterator[list[str]]:
    for problem, names in found.items():
        yield [", ".join(code(f"{kind}{name}") for name in names), escaped(problem)]


def _links(names: Sequence[str]) -> str:
    return ", ".join(f"[{code(name)}]({name}.md)" for name in names)


def used(rows: Sequence[Use], option: Callable[[Use], str] | None = None) -> str:
    """A table of rows of table files, with the option that each has, if it is asked for."""
    if not rows:
        return NO_ROW
    by_table: dict[str, list[Use]] = {}
    for use in rows:
        by_table.setdefault(use.table, []).append(use)
    header = ["table", "rows"]
    lines = []
    for name, found in by_table.items():
        labels = [
            escaped(use.label) + (f" ({code(option(use))})" if option else "") for use in found
        ]
        lines.append([f"[{code(name)}](../papers/{paper_of(name)}.md#{name})", "; ".join(labels)])
    return table(header, lines)


def paper_of(table_name: str) -> str:
    """The page that a table file is on: its paper's, or ``own``."""
    paper = table_name.split("_")[0]
    return paper if paper in ("dose", "emr", "lma", "mwpb") else "own"


def method_page(name: str) -> str:
    """The page of a method."""
    path = CONF / "method" / f"{name}.yaml"
    head = comment(path)
    body = path.read_text("utf-8").splitlines()
    parts = facts.preset_components(name)
    listed = [
        f"- [{code(f'component/{each}={option}')}](../components/{each}.md)"
        for each, option in parts.items()
    ]
    return page(
        f"`{name}`",
        block(f"ablation-train method={name}"),
        section("Formula and source", prose(head[:1])),
        section("Deviations and readings", prose(head[1:]) or "Those of its components, below."),
        section("Components that it switches on", "\n".join(listed)),
        section(
            "Composition",
            "Any key below `method` can be set from the command line: "
            "`method.<key>=<value>`. What the passes do: [design](../design.md#a-method-is-yaml).",
            "\n".join(["```yaml", *(line for line in body if not line.startswith("#")), "```"]),
        ),
        section("Rows that use it", used([use for use in facts.uses() if use.method == name])),
    )


def index(title: str, text: str, names: Sequence[str], says: Mapping[str, str]) -> str:
    """A page that lists pages."""
    rows = [[f"[{code(name)}]({name}.md)", says[name]] for name in names]
    return page(title, text, table(["name", "is"], rows))


def pages() -> dict[str, str]:
    """Every page of this module by its place in the site."""
    refused = facts.refusals()
    found = {f"components/{name}.md": component_page(name, refused[name]) for name in refused}
    methods = facts.options("method")
    found |= {f"methods/{name}.md": method_page(name) for name in methods}
    found["components/index.md"] = index(
        "Components",
        "Each can be switched on any method, alone or with others; what cannot be combined is "
        "refused with the reason.",
        component_names(),
        {name: docstrings.summary(next(iter(classes_of(name).values()))) for name in refused},
    )
    heads = {name: comment(CONF / "method" / f"{name}.yaml")[0] for name in methods}
    found["methods/index.md"] = index(
        "Methods",
        "A method is a YAML file that composes parts; it has no code of its own.",
        methods,
        {name: joined(head) for name, head in heads.items()},
    )
    return found
