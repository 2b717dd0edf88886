"""A pretended accelerator: tensors that lie on ``pretend:0`` or ``pretend:1`` and are computed by the CPU.

It stands on torch's private-use backend, without a line of C++. A tensor is a shell around one of the CPU; a dispatch
mode opens the shells, refuses what CUDA would refuse, lets the CPU compute and closes the results up again. Thus code
that mixes devices fails here as it fails on a GPU, and what makes the host wait for the device is counted, by the line
of the package that asked for it. Streams, graphs and the current device are as CUDA's: a capture runs nothing, forbids
waiting and notes only what runs on its stream's device.

    with pretended() as log:
        model = load_model(module.to("pretend:1"), tokenizer=tokenizer)
        discover(model, pairs)
    log.waits   # Counter of "kind file:line"

What it cannot tell: whether a kernel compiles, how long anything takes, how a GPU rounds.
"""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from .graph import Graph
from .operations import ANSWERS, INDEXES, MOVES

NAME, N_DEVICES = "pretend", 2
# What a device says that it has free, and in all; tests change it.
MEMORY = [64 << 30, 80 << 30]

_aten = torch.ops.aten


class MixedDevicesError(RuntimeError):
    """What a GPU would refuse: operands on different devices."""


class Log:
    """What happened on the device since ``pretended`` was entered.

    Attributes:
        waits: how often the host had to wait for the device, by "kind file:line" of the package.
        n_operations: number of operations on it.
        largest_bytes: of the largest tensor that an operation made there.
        float64: whether it computes in float64; Apple's does not.
    """

    def __init__(self, float64: bool = True) -> None:
        self.waits: Counter[str] = Counter()
        self.n_operations = 0
        self.largest_bytes = 0
        self.float64 = float64
        self.current = 0
        self.capturing: tuple[Graph, int] | None = None
        self.default_capture_stream: Stream | None = None

    @property
    def n_waits(self) -> int:
        """How often the host waited in all."""
        return self.waits.total()

    def wait(self, kind: str) -> None:
        """Count one wait; none may happen while a graph is captured."""
        if self.capturing is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing ({kind})")
        self.waits[f"{kind} {_place()}"] += 1


_log = Log()


def _place() -> str:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if "/headcodes" in name and "/tests/" not in name:
            return f"{name.rpartition('/headcodes/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"


class _Module:
    """What torch calls a device module, as ``torch.cuda`` is one."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None: ...

    def device_count(self) -> int:
        return N_DEVICES

    def current_device(self) -> int:
        return _log.current

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        return MEMORY[0], MEMORY[1]

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.float16, torch.bfloat16]


@cache
def _register() -> None:
    """Give the private-use backend its name; once a process, and for good."""
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up

    class Guard(torch._C._acc.DeviceGuard):  # type: ignore[misc, name-defined]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    set_up(NAME, backend_module=_Module(), device_guard=Guard())


def why_not() -> str | None:
    """Say why there is no pretended device here, or None where there can be one."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} lets no backend be written in Python"
    return None


class Shell(torch.Tensor):
    """A tensor of a pretended device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: torch.device) -> Shell:
        if inner.dtype == torch.float64 and not _log.float64:
            raise TypeError(f"{device.type} has no float64")
        shell: Shell = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )
        shell.inner = inner
        # A view or an expanded tensor takes no more than what it looks at.
        _log.largest_bytes = max(_log.largest_bytes, inner.untyped_storage().nbytes())
        return shell

    def __init__(self, inner: torch.Tensor, device: torch.device) -> None: ...

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.device}: {self.inner!r}"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _log.wait("tolist")
        return self.inner.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert a tensor on {self.device} to numpy; use Tensor.cpu() first")

    __array__ = numpy

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(operation, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _dispatch(operation, args, kwargs or {})


def _asked(kwargs: dict[str, Any]) -> torch.device | None:
    """The device that the call names, with its number."""
    if kwargs.get("device") is None:
        return None
    device = torch.device(kwargs["device"])
    if device.type != NAME:
        return device
    return torch.device(NAME, _log.current if device.index is None else device.index)


def _dispatch(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = pytree.tree_flatten((args, kwargs))
    tensors = [part for part in flat if isinstance(part, torch.Tensor)]
    shells = [part for part in tensors if isinstance(part, Shell)]
    asked = _asked(kwargs)
    if not shells and (asked is None or asked.type != NAME):
        return operation(*args, **kwargs)
    _log.n_operations += 1
    here = _where(operation, args, kwargs, tensors, shells, asked)
    generator = kwargs.get("generator")
    if generator is not None and generator.device.type != here.type:
        raise MixedDevicesError(f"a generator on {generator.device} for tensors on {here}")
    bare_args, bare_kwargs = pytree.tree_unflatten([_open(part) for part in flat], spec)
    captured = _log.capturing is not None and here.index == _log.capturing[1]
    if captured:
        _log.capturing[0].before(operation, bare_args, bare_kwargs)
    result = operation(*bare_args, **bare_kwargs)
    if captured:
        _log.capturing[0].tape.append((operation, bare_args, bare_kwargs, result))
    if operation is _aten.copy_.default:
        return args[0]
    if here.type != NAME:
        return result
    closed = pytree.tree_map(lambda part: Shell(part, here) if isinstance(part, torch.Tensor) else part, result)
    return return_and_correct_aliasing(operation, args, kwargs, closed) if shells else closed


def _open(part: Any) -> Any:
    if isinstance(part, Shell):
        return part.inner
    return torch.device("cpu") if isinstance(part, torch.device) else part


def _where(
    operation: Any,
    args: Any,
    kwargs: dict[str, Any],
    tensors: list[torch.Tensor],
    shells: list[Shell],
    asked: torch.device | None,
) -> torch.device:
    """Say on which device the result lies; refuse operands that a GPU refuses, and count what makes the host wait."""
    if operation in ANSWERS:
        _log.wait(ANSWERS[operation])
    if operation in MOVES:
        source, target = (args[1], args[0].device) if operation is _aten.copy_.default else (args[0], asked)
        target = source.device if target is None else target
        # A copy to the device that may be late takes the host's memory along at once; one from the device may not.
        late = kwargs.get("non_blocking") or (operation is _aten.copy_.default and len(args) > 2 and args[2])
        if source.device.type != target.type and not (late and target.type == NAME):
            _log.wait("to the device" if target.type == NAME else "from the device")
        return target
    if operation in INDEXES:
        target = args[0].device
        for index in args[1]:
            if index is None:
                continue
            if isinstance(index, Shell):
                if index.device != target:
                    raise MixedDevicesError(f"{operation}: indices on {index.device}, tensor on {target}")
                if index.dtype == torch.bool:
                    _log.wait("nonzero")
            else:
                _log.wait("to the device")
        values = args[2] if len(args) > 2 else None
        if isinstance(values, torch.Tensor) and values.ndim and values.device != target:
            raise MixedDevicesError(f"{operation}: values on {values.device}, tensor on {target}")
        return target
    places = {part.device for part in tensors if part.ndim or isinstance(part, Shell)}
    # A number may come from the CPU, and from no other device.
    if len(places) > 1:
        raise MixedDevicesError(f"{operation}: tensors on {' and '.join(sorted(map(str, places)))}")
    return asked if asked is not None else shells[0].device


class Stream:
    """A stream of one device: of the current one unless told."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        number = device if isinstance(device, int) else None if device is None else torch.device(device).index
        self.device = torch.device(NAME, _log.current if number is None else number)

    def wait_stream(self, other: Stream) -> None: ...

    def synchronize(self) -> None:
        _log.wait("synchronize")


@contextmanager
def _current(device: Any) -> Iterator[None]:
    """``torch.cuda.device``."""
    number = device if isinstance(device, int) else torch.device(device).index or 0
    before, _log.current = _log.current, number
    try:
        yield
    finally:
        _log.current = before


@contextmanager
def _stream(stream: Stream) -> Iterator[None]:
    """``torch.cuda.stream``: it makes the stream's device the current one, too."""
    with _current(stream.device):
        yield


@contextmanager
def _capture(graph: Graph, *_: Any, stream: Stream | None = None, **__: Any) -> Iterator[None]:
    """``torch.cuda.graph``: without a stream, on one that was made once, on the device that was current then."""
    if stream is None:
        stream = _log.default_capture_stream = _log.default_capture_stream or Stream()
    with _stream(stream):
        _log.capturing = graph, stream.device.index
        try:
            yield
        finally:
            _log.capturing = None
            graph.undo()
    if not graph.tape:
        warnings.warn("The CUDA Graph is empty: captured on the wrong device or stream", UserWarning, stacklevel=2)


def _inference_mode(mode: bool = True) -> Any:
    """Shells made in inference mode could be no views of ordinary ones."""
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def pretended(*, float64: bool = True) -> Iterator[Log]:
    """Let ``pretend:0`` and ``pretend:1`` be devices, and CUDA's streams and graphs those of them, while open."""
    global _log
    _register()
    _log = Log(float64)
    cuda: dict[str, Callable[..., Any]] = {
        "Stream": Stream,
        "stream": _stream,
        "current_stream": Stream,
        "CUDAGraph": Graph,
        "graph": _capture,
        "device": _current,
        "synchronize": lambda *_: _log.wait("synchronize"),
    }
    with ExitStack() as patches:
        for name, stand_in in cuda.items():
            patches.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        patches.enter_context(mock.patch.object(torch, "inference_mode", _inference_mode))
        is_cuda = property(lambda tensor: tensor.device.type in ("cuda", NAME))
        patches.enter_context(mock.patch.object(torch.Tensor, "is_cuda", is_cuda))
        torch._C._set_only_lift_cpu_tensors(True)
        patches.callback(torch._C._set_only_lift_cpu_tensors, False)
        # Autograd gives a backend written in Python one thread, for device 0; without threads it has no such limit.
        patches.enter_context(torch.autograd.set_multithreading_enabled(False))
        patches.enter_context(_Mode())
        yield _log
