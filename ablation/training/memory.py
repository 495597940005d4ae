"""What the parts of a method remember between steps: tensors by name, owned by the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ablation.errors import InputError
from ablation.ranks import present
from ablation.types import Batch, MemorySpec, Remembers, Views


def remembering(root: object) -> list[Remembers]:
    """Collect the parts that remember, in a fixed order and each once.

    Args:
        root: a method, a part, or a sequence of them; dataclass fields, mappings and sequences
            are followed, so that a loss nested in a crafter is among them.
    """
    found = (part for part in parts_of(root) if isinstance(part, Remembers))
    return list({id(part): part for part in found}.values())


def parts_of(root: object) -> Iterator[object]:
    """Yield whatever a method is made of, as ``remembering`` finds it."""
    if isinstance(root, Mapping):
        for entry in root.values():
            yield from parts_of(entry)
    elif isinstance(root, (list, tuple)):
        for entry in root:
            yield from parts_of(entry)
    elif not isinstance(root, type):
        yield root
        if dataclasses.is_dataclass(root):
            for field in dataclasses.fields(root):
                yield from parts_of(getattr(root, field.name))


def memory_problems(root: object) -> list[str]:
    """List the memories that two parts declare differently, one line each."""
    first: dict[str, tuple[str, MemorySpec]] = {}
    problems: dict[str, str] = {}
    for part in remembering(root):
        for name, spec in part.memory.items():
            kind = type(part).__name__
            other, theirs = first.setdefault(name, (kind, spec))
            if spec != theirs:
                problems.setdefault(
                    name,
                    f"memory.{name}: {other} declares it {_described(theirs)}, but {kind} "
                    f"{_described(spec)}; declare both alike, or give one another name",
                )
    return list(problems.values())


def _described(spec: MemorySpec) -> str:
    dtype = str(spec.dtype).removeprefix("torch.")
    shape = ", ".join(map(str, spec.shape))
    return f"per {spec.scope}, [{shape}] {dtype} from {spec.initial:g}"


class Memories:
    """The memories of all phases of a run; parts of several phases share them by name.

    A memory is allocated when it is first read or written. Until then, and where it was not
    written, it holds its ``initial`` value.

    Args:
        methods: of all phases, whose parts declare the memories.
        n_train: images that ``Batch.index`` counts: rows of memory per example.
        batch_size: of a whole batch: rows of memory per position.
        classes: K, the size of the dimension ``classes``.
        device: where the tensors lie.
    """

    def __init__(
        self,
        methods: Sequence[object],
        *,
        n_train: int,
        batch_size: int,
        classes: int,
        device: torch.device,
    ) -> None:
        parts = remembering(methods)
        self._specs = {name: spec for part in parts for name, spec in part.memory.items()}
        self._rows = {"example": n_train, "position": batch_size}
        self._classes, self._device = classes, device
        self._tensors: dict[str, Tensor] = {}

    def read(self, name: str, batch: Batch) -> Tensor:
        """Copy the rows of a batch [N, ...]; position memory gives its first N rows.

        Raises:
            ValueError: no part declares the memory.
        """
        if name not in self._specs:
            known = ", ".join(self._specs) or "none"
            raise ValueError(f"memory {name}: no part declares it; declared: {known}")
        tensor = self._allocated(name)
        if self._specs[name].scope == "example":
            return tensor.index_select(0, batch.index)
        first = 0 if batch.place is None else batch.place[0]
        return tensor[first : first + len(batch.y)].clone()

    @torch.no_grad()
    def commit(self, parts: Sequence[Remembers], views: Views) -> None:
        """Write what the parts remember of a step, after all of them saw the old values.

        Raises:
            ValueError: a part writes what it does not declare, or rows of another shape.
        """
        new: dict[str, Tensor] = {}
        for part in parts:
            values = part.commit(views)
            if unknown := [name for name in values if name not in part.memory]:
                raise ValueError(f"{type(part).__name__} writes undeclared memory {unknown}")
            new |= values
        for name, rows in new.items():
            self._check(name, rows, views.batch)
        if new:
            self._write(new, views.batch)

    def _check(self, name: str, rows: Tensor, batch: Batch) -> None:
        wanted = [len(batch.y), *self._allocated(name).shape[1:]]
        if list(rows.shape) != wanted:
            raise ValueError(f"memory {name}: rows of shape {list(rows.shape)}, not {wanted}")

    def _write(self, new: Mapping[str, Tensor], batch: Batch) -> None:
        """Write the rows of all ranks: every rank has the whole memory."""
        ranks = present()
        index = ranks.gather(batch.index, batch.place)
        for name, rows in new.items():
            tensor = self._allocated(name)
            rows = ranks.gather(rows.detach().to(tensor.dtype), batch.place)
            if self._specs[name].scope == "example":
                tensor.index_copy_(0, index, rows)
            else:
                tensor[: len(rows)] = rows

    def _allocated(self, name: str) -> Tensor:
        if name not in self._tensors:
            spec, shape = self._specs[name], self._shape(name)
            self._tensors[name] = torch.full(
                shape, spec.initial, dtype=spec.dtype, device=self._device
            )
        return self._tensors[name]

    def _shape(self, name: str) -> tuple[int, ...]:
        spec = self._specs[name]
        sizes = (self._classes if size == "classes" else size for size in spec.shape)
        return (self._rows[spec.scope], *sizes)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the allocated memories by name, for a checkpoint."""
        return dict(self._tensors)

    def load_state_dict(self, state: Mapping[str, Tensor] | Sequence[object]) -> None:
        """Restore the memories of a checkpoint.

        Args:
            state: by name; a sequence is that of an older run, whose parts remembered nothing.

        Raises:
            InputError: a memory is not declared, or has another shape or type.
        """
        if not isinstance(state, Mapping):
            return
        for name, value in state.items():
            spec = self._specs.get(name)
            if spec is None or (value.shape, value.dtype) != (self._shape(name), spec.dtype):
                raise InputError(
                    f"memory {name}: the run's checkpoint has {list(value.shape)} {value.dtype}, "
                    f"which this version's method does not declare; train anew"
                )
            self._tensors[name] = value.to(self._device, copy=True)
