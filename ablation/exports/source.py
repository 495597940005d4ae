"""``model.py``: a network's architecture as one readable file that needs torch alone.

The definitions are those of ``ablation/models/``, word for word and only as many as the network
uses; what serves training and foreign checkpoints is left out. So an architecture has one source.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ablation.models import HEADS, ModelSpec, Net
from ablation.types import HeadFactory

PACKAGE = "ablation"
LEFT_OUT = ("names", "init", "output", "loss_logits", "share")
"""Members of classes that training and foreign checkpoints use, and the logits do not."""


@dataclass(frozen=True)
class Architecture:
    """What ``build_model`` makes a network of, beside its seed.

    Attributes:
        spec: of the body.
        head: a name in ``HEADS``, or a factory.
        channels: of the images.
        size: (height, width) in pixels.
        classes: number of logits.
        normalisation: mean and deviation per channel; ``None`` if the body sees raw pixels.
        channels_last: memory format; the other one rounds differently.
    """

    spec: ModelSpec
    head: str | HeadFactory
    channels: int
    size: tuple[int, int]
    classes: int
    normalisation: tuple[list[float], list[float]] | None
    channels_last: bool


HEADER = '''"""{title}

Images [N, {channels}, {height}, {width}] in [0, 1] to logits [N, {classes}].
Input normalisation, if any, is inside. Needs torch and safetensors. Written by ablation {version}
from its own source.

    from model import load
    net = load()

SPDX-License-Identifier: MIT (this file; for the weights see README.md)
"""
'''
FOOTER = '''

def build() -> Net:
    """The network before its weights are loaded."""
    body = {spec}.build(channels={channels}, size={size}, classes={classes})
    head = {head}(features=body.features, classes={classes})
    net = Net(body, head, mean={mean}, std={std})
    return net{memory}


def load(path: str | Path | None = None, device: str = "cpu") -> Net:
    """The network with its weights, in evaluation mode; by default those beside this file."""
    weights = Path(__file__).with_name("model.safetensors") if path is None else path
    net = build()
    net.load_state_dict(load_file(weights))
    return net.to(device).eval()
'''


def standalone(architecture: Architecture, title: str, version: str) -> str:
    """Write the source of a network: ``build()`` makes it, ``load()`` loads its weights too.

    Args:
        architecture: of the network; its parts are classes of this package.
        title: the first line.
        version: of this package.
    """
    node = architecture
    head: object = HEADS[node.head] if isinstance(node.head, str) else node.head
    maker = head.__name__ if isinstance(head, type) else repr(head)
    mean, std = node.normalisation or (None, None)
    collected = _Collected()
    for part, text in ((node.spec, repr(node.spec)), (head, maker), (Net, "Net")):
        kind = part if isinstance(part, type) else type(part)
        collected.take_names(ast.parse(text), kind.__module__)
    body, imports = collected.written()
    imports |= {("pathlib", "Path"), ("safetensors.torch", "load_file")}
    imports |= {("torch", "")} if node.channels_last else set()
    facts = {"channels": node.channels, "classes": node.classes}
    header = HEADER.format(
        title=title, height=node.size[0], width=node.size[1], version=version, **facts
    )
    memory = ".to(memory_format=torch.channels_last)" if node.channels_last else ""
    footer = FOOTER.format(
        spec=repr(node.spec), head=maker, size=node.size, mean=mean, std=std, memory=memory, **facts
    )
    parts = [header, "from __future__ import annotations\n", _ordered(imports), *body, footer]
    return "\n".join(parts)


@dataclass(frozen=True)
class _Module:
    """A source file: what it defines at its top, and where its other names come from.

    Attributes:
        lines: of the file.
        defined: statements by the name that they define, with the text that explains them.
        imported: module and name by local name; an empty name is the module itself.
    """

    lines: list[str]
    defined: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


@lru_cache(maxsize=64)
def _module(name: str) -> _Module:
    spec = importlib.util.find_spec(name)
    assert spec is not None  # noqa: S101  (it was imported)
    assert spec.origin is not None  # noqa: S101
    text = Path(spec.origin).read_text("utf-8")
    found, statements = _Module(text.splitlines()), ast.parse(text).body
    for place, node in enumerate(statements):
        if isinstance(node, ast.Import):
            found.imported.update({e.asname or e.name: (e.name, "") for e in node.names})
        elif isinstance(node, ast.ImportFrom):
            origin = str(node.module)
            found.imported.update({e.asname or e.name: (origin, e.name) for e in node.names})
        elif defined := _defines(node):
            found.defined[defined] = [node, *_explained(statements, place)]
    return found


def _defines(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return targets[0].id if isinstance(targets[0], ast.Name) else None


def _explained(statements: list[ast.stmt], place: int) -> list[ast.stmt]:
    """The bare string behind an assignment."""
    after = statements[place + 1 : place + 2]
    explains = isinstance(statements[place], ast.Assign | ast.AnnAssign) and after and _text(after)
    return after if explains else []


def _text(statements: list[ast.stmt]) -> bool:
    (node,) = statements
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


class _Collected:
    """Definitions that a network needs, and those that they need, by module."""

    def __init__(self) -> None:
        self._modules: dict[str, set[str]] = {}
        self._imports: set[tuple[str, str]] = set()

    def take(self, module: str, name: str) -> None:
        """Add a definition and all that it uses; what stems from elsewhere is imported."""
        source = _module(module)
        if name in source.imported:
            origin, inner = source.imported[name]
            if inner and origin.split(".")[0] == PACKAGE:
                self.take(origin, inner)
            else:
                alias = name if name not in (origin, inner) else ""
                self._imports.add((origin, f"{inner} as {alias}" if alias else inner))
        elif name in source.defined and name not in self._modules.get(module, ()):
            self._modules.setdefault(module, set()).add(name)
            for node in source.defined[name]:
                self.take_names(node, module)

    def take_names(self, node: ast.AST, module: str) -> None:
        """Add every name in a piece of a module's code."""
        for name in sorted(_used(node)):
            self.take(module, name)

    def written(self) -> tuple[list[str], set[tuple[str, str]]]:
        """The definitions as text, each behind those that it uses; modules and names to import."""
        order = list(dict.fromkeys(each for name in self._modules for each in self._below(name)))
        texts = [
            self._text(module, name)
            for module in order
            for name in _module(module).defined
            if name in self._modules[module]
        ]
        return texts, self._imports

    def _below(self, module: str) -> Iterator[str]:
        """The collected modules that one imports, directly or not, and then itself."""
        for origin, _ in _module(module).imported.values():
            if origin in self._modules:
                yield from self._below(origin)
        yield module

    def _text(self, module: str, name: str) -> str:
        source, parts = _module(module), []
        for node in source.defined[name]:
            hidden = set(_hidden(node))
            marks = getattr(node, "decorator_list", ())
            first = min([node.lineno, *(each.lineno for each in marks)])
            numbers = range(first, (node.end_lineno or first) + 1)
            parts += [source.lines[at - 1] for at in numbers if at not in hidden]
        is_block = isinstance(source.defined[name][0], ast.ClassDef | ast.FunctionDef)
        return ("\n\n" if is_block else "\n") + "\n".join(parts)


def _members(node: ast.AST) -> list[tuple[ast.stmt, bool]]:
    """The statements of a class, and whether each is kept."""
    body, found = getattr(node, "body", []), list[tuple[ast.stmt, bool]]()
    for place, each in enumerate(body):
        behind = place > 0 and isinstance(each, ast.Expr) and not found[-1][1]
        found.append((each, not behind and _defines(each) not in LEFT_OUT))
    return found


def _hidden(node: ast.stmt) -> Iterator[int]:
    """Numbers of the lines of a class that are left out, with the blank ones before them."""
    if not isinstance(node, ast.ClassDef):
        return
    last = node.body[0].lineno
    for each, kept in _members(node):
        end = each.end_lineno or each.lineno
        yield from (() if kept else range(last + 1, end + 1))
        last = end


def _used(node: ast.AST) -> set[str]:
    """Names that a definition uses, what is left out of it apart."""
    if isinstance(node, ast.ClassDef):
        kept = [each for each, is_kept in _members(node) if is_kept]
        outer = [*node.bases, *node.decorator_list, *kept]
        return set().union(*map(_used, outer))
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}


def _ordered(imports: set[tuple[str, str]]) -> str:
    """The lines that import, those of the standard library first."""
    names: dict[str, list[str]] = {}
    for origin, name in sorted(imports):
        names.setdefault(origin, []).append(name)
    lines: dict[bool, list[str]] = {False: [], True: []}
    for origin, inner in names.items():
        found = lines[origin.split(".")[0] in ("torch", "safetensors")]
        aliased = [name.removeprefix(" as ") for name in inner if name.startswith(" as ")]
        found += [f"import {origin}"] * ("" in inner) + [f"import {origin} as {a}" for a in aliased]
        if plain := [name for name in inner if name and not name.startswith(" as ")]:
            found.append(f"from {origin} import {', '.join(plain)}")
    order = [sorted(each, key=lambda line: line.startswith("from")) for each in lines.values()]
    return "\n\n".join("\n".join(each) for each in order if each)
