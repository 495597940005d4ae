"""``model.py``: a network's architecture as one readable file that needs torch alone.

The definitions are those of ``ablation/models/`` and of plug-ins, word for word and only as many as
the network uses; what serves training and foreign checkpoints is left out. So an architecture has
one source.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from ablation import plugins
from ablation.errors import InputError
from ablation.models import HEADS, ModelSpec, Net
from ablation.types import HeadFactory

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


@dataclass(frozen=True)
class Standalone:
    """The source of a network.

    Attributes:
        text: of ``model.py``.
        needs: the packages that it imports, those of Python apart, as words.
    """

    text: str
    needs: str


HEADER = '''"""{title}

Images [N, {channels}, {height}, {width}] in [0, 1] to logits [N, {classes}].
Input normalisation, if any, is inside. Needs {needs}. Written by ablation {version}
from the source of the architecture.

    from model import load
    net = load()

SPDX-License-Identifier: {license} (this file; for the weights see README.md)
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


def standalone(architecture: Architecture, title: str, version: str) -> Standalone:
    """Write the source of a network: ``build()`` makes it, ``load()`` loads its weights too.

    Args:
        architecture: of the network; its parts are classes of this package or of plug-ins.
        title: the first line.
        version: of this package.

    Raises:
        InputError: the source of a plug-in cannot be taken out of its package.
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
    size = {"height": node.size[0], "width": node.size[1]}
    made = {"needs": _needs(imports), "license": collected.license(), "version": version}
    header = HEADER.format(title=title, **made, **size, **facts)
    memory = ".to(memory_format=torch.channels_last)" if node.channels_last else ""
    footer = FOOTER.format(
        spec=repr(node.spec), head=maker, size=node.size, mean=mean, std=std, memory=memory, **facts
    )
    parts = [header, "from __future__ import annotations\n", _ordered(imports), *body, footer]
    return Standalone("\n".join(parts), made["needs"])


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
            origin = _absolute(node, spec.parent)
            found.imported.update({e.asname or e.name: (origin, e.name) for e in node.names})
        elif defined := _defines(node):
            found.defined[defined] = [node, *_explained(statements, place)]
    return found


def _absolute(node: ast.ImportFrom, package: str | None) -> str:
    """The module that names come from; dots count from the package of the file."""
    dots = "." * node.level
    return importlib.util.resolve_name(f"{dots}{node.module or ''}", package)


def _is_ours(module: str) -> bool:
    """Check for this package or that of a plug-in: neither is where the export is used."""
    return f"{module}.".startswith(f"{plugins.OWN}.") or plugins.owner(module) is not None


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


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # what it would lie in is no package
        return False


def _whole(module: str, what: str) -> InputError:
    return InputError(
        f"{module} imports {what}, so its source cannot be written into one file; import the names "
        "that it uses at the top of the module (from a.b import Name)"
    )


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
            if _is_ours(origin):
                if not inner or _is_module(f"{origin}.{inner}"):
                    raise _whole(module, f"the module {origin}.{inner}".rstrip("."))
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
        for each in _kept(node):
            if isinstance(each, ast.Import | ast.ImportFrom) and _imports_ours(each):
                raise _whole(module, f"inside a definition (line {each.lineno})")
        for name in sorted({each.id for each in _kept(node) if isinstance(each, ast.Name)}):
            self.take(module, name)

    def written(self) -> tuple[list[str], set[tuple[str, str]]]:
        """The definitions as text, each behind those that it uses; modules and names to import.

        Raises:
            InputError: two have the same name.
        """
        counts = Counter(name for names in self._modules.values() for name in names)
        if twice := [name for name, count in counts.items() if count > 1]:
            places = [module for module, names in self._modules.items() if twice[0] in names]
            raise InputError(
                f"{' and '.join(places)} both define {twice[0]}, which one file cannot; rename one"
            )
        order = list(dict.fromkeys(each for name in self._modules for each in self._below(name)))
        texts = [
            self._text(module, name)
            for module in order
            for name in _module(module).defined
            if name in self._modules[module]
        ]
        return texts, self._imports

    def license(self) -> str:
        """Of the file, as SPDX has it: the sources of plug-ins keep their own."""
        owners = filter(None, map(plugins.owner, self._modules))
        others = sorted({f"LicenseRef-{plugin.distribution}" for plugin in owners})
        return " AND ".join(["MIT", *others])

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


def _kept(node: ast.AST) -> Iterator[ast.AST]:
    """Every node of a definition, what is left out of it apart."""
    if isinstance(node, ast.ClassDef):
        kept = [each for each, is_kept in _members(node) if is_kept]
        for part in (*node.bases, *node.decorator_list, *kept):
            yield from _kept(part)
    else:
        yield from ast.walk(node)


def _imports_ours(node: ast.Import | ast.ImportFrom) -> bool:
    if isinstance(node, ast.Import):
        return any(_is_ours(each.name) for each in node.names)
    return node.level > 0 or _is_ours(str(node.module))


def _needs(imports: set[tuple[str, str]]) -> str:
    tops = {origin.split(".")[0] for origin, _ in imports}
    others = tops - {"torch", "safetensors"} - sys.stdlib_module_names
    *first, last = ["torch", "safetensors", *sorted(others)]
    return f"{', '.join(first)} and {last}"


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
