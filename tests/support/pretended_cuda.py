"""A pretended CUDA device: real numbers of the CPU, the rules of a GPU, a count of its costs.

Within ``pretending()`` the device ``cuda`` is there. Its tensors are wrappers around CPU tensors,
so that whole trainings and attacks run to the end. Every operation on one of them

- is refused where CUDA refuses it: tensors of two devices, a generator of another device, a result
  that is read before its copy has arrived;
- is noted where the host has to wait for the device: values that are read, sizes that depend on
  values, boolean masks, copies to the host, copies from unpinned memory;
- is counted as a launch unless it is a view.

A CUDA graph records the operations in it; a replay runs them again, as one launch. What would wait
or draw numbers in it is refused, and the numbers of its results are there after a replay only.

Limits: C++ takes a wrapper for a CPU tensor, so the kernels that CUDA would choose are not seen;
autocast is the CPU's; an operation counts once, where CUDA may launch several kernels.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ablation

HOST, CUDA = torch.device("cpu"), torch.device("cuda", 0)
NAME = "Pretended GPU"
PACKAGE = str(Path(ablation.__file__).parent)


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _names(
    "view _unsafe_view reshape _reshape_alias t transpose permute expand select slice unsqueeze "
    "squeeze detach alias as_strided unbind split split_with_sizes unfold diagonal lift_fresh"
)
"""Operations that launch nothing."""
READS = _names(
    "_local_scalar_dense nonzero masked_select unique_dim _unique2 unique_consecutive equal "
    "repeat_interleave bincount multinomial is_nonzero"
)
"""Operations whose result, or its size, the host waits for."""
INDEXING = _names("index index_put _index_put_impl _unsafe_index")
"""Operations that a boolean mask makes wait, and that take whole numbers of the host."""
TAKES_SCALARS = _names(
    "add sub rsub mul div true_divide floor_divide pow maximum minimum where lerp eq ne lt le gt "
    "ge bitwise_and bitwise_or logical_and logical_or addcmul addcdiv atan2 remainder fmod fill "
    "masked_fill clamp clamp_min clamp_max index_put _index_put_impl copy"
)
"""Operations, in place or not, that take a number of the host beside tensors of the device."""
PRODUCTS = _names("convolution convolution_backward mm addmm bmm baddbmm")
"""Operations that TF32 rounds the inputs of."""
COPIES = frozenset(("_to_copy", "copy_"))


class RefusedError(RuntimeError):
    """CUDA would refuse the operation."""


@dataclass(frozen=True)
class Wait:
    """The host waits for the device.

    Attributes:
        reason: what for.
        operation: of aten.
        place: the line of the package.
        stage: what the program was doing, see ``Log.during``.
    """

    reason: str
    operation: str
    place: str
    stage: str = ""


@dataclass
class Log:
    """What the pretended device was asked for."""

    waits: list[Wait] = field(default_factory=list)
    launches: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)
    rounded: Counter[str] = field(default_factory=Counter)
    """Products while the switches allow TF32."""
    on_their_way: dict[int, Tensor] = field(default_factory=dict)
    """Copies to the host that nobody waited for yet, by the place of their memory."""
    stage: str = ""
    inside: bool = False
    """Whether a function of torch works on a tensor of the device."""
    graph: PretendedGraph | None = None
    """What is being recorded."""

    def clear(self) -> None:
        """Forget waits and launches so far."""
        self.waits.clear()
        self.launches.clear()
        self.rounded.clear()

    @property
    def launched(self) -> int:
        """Number of launches."""
        return self.launches.total()

    def wait(self, reason: str, operation: str) -> None:
        if self.graph is not None:
            self.refuse(f"{operation}: waits for {reason}, which a graph cannot record")
        self.waits.append(Wait(reason, operation, _place(), self.stage))

    @contextlib.contextmanager
    def during(self, stage: str) -> Iterator[None]:
        """Note a name of what the program is doing with every wait; the innermost one counts."""
        before, self.stage = self.stage, stage
        try:
            yield
        finally:
            self.stage = before

    def refuse(self, message: str) -> None:
        self.refused.append(f"{message}, at {_place()}")
        raise RefusedError(self.refused[-1])


_log = Log()


def _place() -> str:
    """The innermost line of the package that is being executed."""
    frame = sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PACKAGE):
            return f"{name.removeprefix(PACKAGE + '/')}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return "outside the package"


Call = tuple[Any, Any, dict[str, Any], Any]
"""An operation of aten, its arguments and its result, of CPU tensors."""


class PretendedGraph:
    """``torch.cuda.CUDAGraph``: the operations that it runs again."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def replay(self) -> None:
        """Run them; their results go where they were when recorded."""
        _log.launches["replay"] += 1
        for func, args, kwargs, out in self.calls:
            again = func(*args, **kwargs)
            for ours, new in zip(_made(args, kwargs, out), _tensors([again]), strict=False):
                ours.copy_(new)


def _made(args: Any, kwargs: dict[str, Any], out: Any) -> list[Tensor]:
    """The tensors that an operation made: not what it changed in place, nor views."""
    given = {each.untyped_storage().data_ptr() for each in _tensors([args, list(kwargs.values())])}
    found = _tensors([out])
    if any(each.untyped_storage().data_ptr() in given for each in found if each.numel()):
        return []
    return found


@contextlib.contextmanager
def _recording(graph: PretendedGraph, **options: Any) -> Iterator[None]:
    """``torch.cuda.graph``: nothing is computed yet."""
    del options
    with mock.patch.object(_log, "graph", graph):
        yield
    for _, args, kwargs, out in graph.calls:
        for each in _made(args, kwargs, out):
            each.fill_(torch.nan if each.is_floating_point() else 0)


class PretendedStream:
    """``torch.cuda.Stream``: all work is in one order anyway."""

    def wait_stream(self, other: PretendedStream) -> None: ...


class OnDevice(Tensor):
    """A tensor on the pretended device; its numbers are in ``raw``, a CPU tensor."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> OnDevice:
        raw = raw.detach()
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=HOST,
        )
        made.raw = raw
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        return OnDevice(self.raw)

    @data.setter
    def data(self, value: Tensor) -> None:
        assert isinstance(value, OnDevice)
        Tensor.data.__set__(self, value)  # type: ignore[attr-defined]
        self.raw = value.raw

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = OnDevice(self.raw.clone())
            if getattr(self, "_is_param", False):
                made = torch.nn.Parameter(made, requires_grad=self.requires_grad)
            memo[id(self)] = made.requires_grad_(self.requires_grad)
        found: Tensor = memo[id(self)]
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"OnDevice({self.raw!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        return _run(func, args, kwargs or {})


class PlacedGenerator(torch.Generator):
    """A generator that says which device it is of; its numbers are the CPU's."""

    placed: torch.device

    def __new__(cls, device: Any = "cpu") -> PlacedGenerator:
        made = super().__new__(cls)
        made.placed = torch.device(device)
        return made

    device = property(lambda self: self.placed)


def _host(kind: str) -> str:
    return "cpu" if kind == "cuda" else kind


class _Autocast(torch.autocast):
    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(_host(device_type), *args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run(func: Any, args: Any, kwargs: dict[str, Any], to: torch.device | None = None) -> Any:
    """Run an operation on the CPU tensors behind its arguments.

    Args:
        func: of aten.
        args: its arguments.
        kwargs: more of them.
        to: where a copy goes; ``None`` where C++ asks, which takes all devices for the CPU.
    """
    name = func.overloadpacket.__name__
    tensors = _tensors(args) + _tensors(kwargs.values())
    mine = [each for each in tensors if isinstance(each, OnDevice)]
    _check_arrived(name, tensors)
    if mine and name not in COPIES:
        _check_devices(name, args, tensors)
    if mine and name not in VIEWS and _log.graph is None:
        _log.launches[name] += 1
    if mine:
        _note_reads(name, args)
    if mine and name in PRODUCTS and _allows_tf32(name):
        _log.rounded[name] += 1
    there = bool(mine) if to is None else to.type == "cuda"
    if name == "copy_":
        there = isinstance(args[0], OnDevice)
    if name in COPIES:
        source, unhurried = args[name == "copy_"], kwargs.get("non_blocking", args[2:3] == (True,))
        _note_copy(name, source, there, unhurried)
    if "device" in kwargs:
        there = there or _is_cuda(kwargs["device"])
        kwargs = {**kwargs, "device": HOST}
    out = func(*_raw(args), **_raw(kwargs))
    if _log.graph is not None and there:
        _log.graph.calls.append((func, _raw(args), _raw(kwargs), out))
    if name == "_to_copy" and mine and not there and kwargs.get("non_blocking"):
        _log.on_their_way[out.untyped_storage().data_ptr()] = out
    if not there or name == "_local_scalar_dense":
        return _given(func, args, kwargs, out)
    known = {id(each.raw): each for each in mine}
    return _given(func, args, kwargs, _wrapped(out, known))


def _tensors(values: Any) -> list[Tensor]:
    """The tensors among arguments, in lists too."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _raw(value: Any) -> Any:
    """The CPU tensors behind those of the device, in nested arguments."""
    if isinstance(value, OnDevice):
        return value.raw
    if isinstance(value, (list, tuple)):
        return type(value)(_raw(each) for each in value)
    return {k: _raw(v) for k, v in value.items()} if isinstance(value, dict) else value


def _wrapped(value: Any, known: dict[int, OnDevice]) -> Any:
    """Results on the device; those that are arguments, in place, are the same again."""
    if isinstance(value, Tensor):
        return known[id(value)] if id(value) in known else OnDevice(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_wrapped(each, known) for each in value)
    return value


def _given(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What an operation returns: those in place return the tensor that they were given."""
    returns = func._schema.returns
    if len(returns) != 1 or returns[0].alias_info is None or not returns[0].alias_info.is_write:
        return out
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            return args[number] if number < len(args) else kwargs[argument.name]
    return out


def _check_devices(name: str, args: Any, tensors: list[Tensor]) -> None:
    """Refuse tensors of the host beside those of the device, but for numbers and indices."""
    base = name.rstrip("_").removeprefix("_foreach_")
    for each in tensors:
        if isinstance(each, OnDevice) or (each.dim() == 0 and base in TAKES_SCALARS):
            continue
        if base in INDEXING and each is not args[0] and not each.is_floating_point():
            _log.wait("an index of the host", name)
        else:
            _log.refuse(f"{name}: a tensor {list(each.shape)} of the host beside the device's")


def _check_arrived(name: str, tensors: list[Tensor]) -> None:
    if _log.on_their_way and any(
        each.untyped_storage().data_ptr() in _log.on_their_way
        for each in tensors
        if not isinstance(each, OnDevice)
    ):
        _log.refuse(f"{name}: reads a copy that may not have arrived; synchronise first")


def _allows_tf32(name: str) -> bool:
    convolves = name.startswith("convolution")
    legacy = torch.backends.cudnn if convolves else torch.backends.cuda.matmul
    switch: Any = getattr(legacy, "conv", None) if convolves else legacy
    if hasattr(switch, "fp32_precision"):
        return bool(switch.fp32_precision == "tf32")
    return bool(legacy.allow_tf32)


def _note_reads(name: str, args: Any) -> None:
    base = name.rstrip("_")
    if base in READS:
        _log.wait("a value" if base == "_local_scalar_dense" else "a size", name)
    elif base in INDEXING and any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    ):
        number = len(args) > 2 and args[2].dim() == 0 and not isinstance(args[2], OnDevice)
        if not number:  # else torch fills by the mask
            _log.wait("a mask", name)


def _note_copy(name: str, source: Tensor, there: bool, unhurried: bool) -> None:
    if isinstance(source, OnDevice) and not there and not unhurried:
        _log.wait("a copy to the host", name)
    pinned = unhurried and getattr(source, "pinned", False)
    if not isinstance(source, OnDevice) and there and source.numel() > 0 and not pinned:
        _log.wait("a copy from unpinned memory", name)


class _Dispatch(TorchDispatchMode):
    """Operations without a tensor of the device that make one."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        # C++ makes its own tensors, within a call or a backward pass, where it sees its inputs.
        inside = _log.inside or torch._C._current_graph_task_id() != -1
        tensors = _tensors(args) + _tensors(kwargs.values())
        makes = not tensors and any(each.name == "device" for each in func._schema.arguments)
        if _is_cuda(kwargs.get("device")) or (inside and (makes or kwargs.get("device"))):
            return _run(func, args, {**kwargs, "device": CUDA})
        if any(isinstance(each, OnDevice) for each in tensors):
            return _run(func, args, kwargs)
        _check_arrived(str(func), tensors)
        return func(*args, **kwargs)


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, to: torch.device, options: dict[str, Any]) -> Any:
        ctx.origin = x.device
        return _copied(x, to, options)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _copied(grad, ctx.origin, {}), None, None


def _copied(x: Tensor, to: torch.device, options: dict[str, Any]) -> Any:
    options = {"memory_format": torch.preserve_format, **options, "device": to}
    return _run(torch.ops.aten._to_copy.default, (x,), options, to)


class _Function(TorchFunctionMode):
    """Calls of Python that C++ would answer as for a CPU tensor."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._check_generator(func, args, kwargs)
        special = self.SPECIAL.get(func)
        if special is not None:
            return special(self, func, args, kwargs)
        if func in self.MAKERS and _is_cuda(kwargs.get("device")):
            rest = {key: value for key, value in kwargs.items() if key != "device"}
            return _copied(func(*args, **rest), CUDA, {})
        there = func is not Tensor.__setitem__ and any(
            isinstance(each, OnDevice) for each in (*args, *kwargs.values())
        )
        with mock.patch.object(_log, "inside", there):
            return func(*args, **kwargs)

    def _check_generator(self, func: Any, args: Any, kwargs: Any) -> None:
        rng = kwargs.get("generator")
        if not isinstance(rng, torch.Generator):
            return
        if _log.graph is not None:
            _log.refuse(f"{func.__name__}: draws numbers, which a graph would repeat")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        device = kwargs.get("device") or (HOST if first is None else first.device)
        if torch.device(device).type != rng.device.type:
            _log.refuse(f"{func.__name__}: a generator of {rng.device.type} draws for {device}")

    def _to(self, func: Any, args: Any, kwargs: Any) -> Any:
        kwargs = dict(kwargs)
        first, *rest = args
        rest = [v for a in rest for v in ((a.device, a.dtype) if isinstance(a, Tensor) else (a,))]
        copied = kwargs.pop("copy", False)
        device, dtype, non_blocking, layout = torch._C._nn._parse_to(*rest, **kwargs)
        options: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        options |= {} if layout is None else {"memory_format": layout}
        if device is None or device.type == first.device.type:
            options |= {"copy": True} if copied else {}
            return func(first, **{"dtype": first.dtype, **options})
        return self._moved(first, device, {"non_blocking": non_blocking, **options})

    def _moved(self, x: Tensor, to: torch.device, options: dict[str, Any]) -> Any:
        if x.device.type == to.type:
            return x
        if x.requires_grad and torch.is_grad_enabled():
            return _Move.apply(x, to, options)
        return _copied(x, to, options)

    def _cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._moved(args[0], HOST, {})

    def _cuda(self, func: Any, args: Any, kwargs: Any) -> Any:
        return self._moved(args[0], CUDA, {})

    def _numpy(self, func: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(args[0], OnDevice):
            _log.refuse("numpy: of a tensor on the device")
        _check_arrived("numpy", [args[0]])
        return func(*args, **kwargs)

    def _tolist(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(self._moved(args[0].detach(), HOST, {}))

    def _new_tensor(self, func: Any, args: Any, kwargs: Any) -> Any:
        rest = {"dtype": args[0].dtype, **kwargs}
        return self._moved(torch.tensor(*args[1:], **rest), args[0].device, {})

    def _pin(self, func: Any, args: Any, kwargs: Any) -> Any:
        made = args[0].clone()
        made.pinned = True
        return made

    MAKERS: ClassVar = (torch.tensor, torch.as_tensor, torch.asarray)
    SPECIAL: ClassVar[dict[Any, Callable[..., Any]]] = {
        Tensor.to: _to,
        Tensor.cpu: _cpu,
        Tensor.cuda: _cuda,
        Tensor.numpy: _numpy,
        Tensor.tolist: _tolist,
        Tensor.pin_memory: _pin,
        Tensor.new_tensor: _new_tensor,
    }


def _grouped(lists: Any, with_indices: bool = False) -> dict[Any, Any]:
    """torch's grouping of tensors by device and type; C++ would go by the devices it sees."""
    groups: dict[Any, Any] = {}
    for number, first in enumerate(lists[0]):
        columns, numbers = groups.setdefault((first.device, first.dtype), ([[] for _ in lists], []))
        for column, own in zip(columns, lists, strict=True):
            column.append(own[number] if own else None)
        numbers.append(number)
    for columns, _ in groups.values():
        columns[:] = [column if own else [] for column, own in zip(columns, lists, strict=True)]
    return groups


def _synchronize(device: object = None) -> None:
    _log.wait("all that is queued", "synchronize")
    _log.on_their_way.clear()


@contextlib.contextmanager
def pretending() -> Iterator[Log]:
    """Within, ``cuda`` is there. Yields the log, empty."""
    _log.clear()
    _log.refused.clear()
    _log.on_their_way.clear()
    changed: dict[str, Any] = {
        "torch.Generator": PlacedGenerator,
        "torch.autocast": _Autocast,
        "torch.is_autocast_enabled": lambda kind, ask=torch.is_autocast_enabled: ask(_host(kind)),
        "torch.get_autocast_dtype": lambda kind, ask=torch.get_autocast_dtype: ask(_host(kind)),
        "torch._C._group_tensors_by_device_and_dtype": _grouped,
        "torch.cuda._lazy_init": lambda: None,
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.get_device_name": lambda device=None: NAME,
        "torch.cuda.synchronize": _synchronize,
        "torch.cuda.CUDAGraph": PretendedGraph,
        "torch.cuda.graph": _recording,
        "torch.cuda.graph_pool_handle": object,
        "torch.cuda.Stream": PretendedStream,
        "torch.cuda.current_stream": PretendedStream,
        "torch.cuda.stream": contextlib.nullcontext,
    }
    with ExitStack() as stack:
        for name, value in changed.items():
            stack.enter_context(mock.patch(name, value))
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # a wrapper has no storage
        stack.enter_context(_Dispatch())
        stack.enter_context(_Function())
        yield _log
