"""Hooks: reading and replacing what modules are given and put out, and taking the hooks out again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Edit = Callable[[Tensor], Tensor]


@contextmanager
def edit_input(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Put ``edit(x)`` in place of a module's input x while the context is open."""

    def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if args:
            return (edit(args[0]), *args[1:]), kwargs
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())
        return args, {**kwargs, name: edit(kwargs[name])}

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def edit_output(module: nn.Module, edit: Edit) -> Iterator[None]:
    """Put ``edit(y)`` in place of a module's output y (the first of several) while the context is open."""

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        if isinstance(output, (tuple, list)):
            return type(output)((edit(output[0]), *output[1:]))
        return edit(output)

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def capture_inputs(projections: list[nn.Module], sink: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``sink(layer, x)`` with every projection's input while open; always take the hooks out again."""

    def watcher(layer: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def watch(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            sink(layer, args[0] if args else next(iter(kwargs.values())))

        return watch

    with ExitStack() as hooks:
        for layer, module in enumerate(projections):
            hooks.callback(module.register_forward_pre_hook(watcher(layer), with_kwargs=True).remove)
        yield


class NoHeads(nn.Module):
    """Stands where a layer without attention heads has no output projection, so that all layers can be asked alike.

    While its layer runs under ``running`` it is given heads' results of zeros, and what it makes of them, zeros, goes
    into the stream: hooks here find heads whose results are 0, and gradients of 0.
    """

    def __init__(self, n_columns: int) -> None:
        super().__init__()
        self.n_columns = n_columns

    def forward(self, z: Tensor) -> Tensor:
        """Return nothing for every position, [..., 1]."""
        return (z * 0).sum(-1, keepdim=True)

    def running(self, layer: nn.Module) -> AbstractContextManager[None]:
        """Be called whenever ``layer`` is, while open."""

        def feed(x: Tensor) -> Tensor:
            z = torch.zeros(*x.shape[:-1], self.n_columns, dtype=x.dtype, device=x.device)
            if torch.is_grad_enabled():
                z.requires_grad_(True)
            zeros: Tensor = self(z)
            return x + zeros

        return edit_input(layer, feed)


@contextmanager
def capture_outputs(modules: list[nn.Module], sink: Callable[[int, Tensor], None]) -> Iterator[None]:
    """Call ``sink(layer, y)`` with every module's output (the first of several) while open."""

    def watcher(layer: int) -> Edit:
        def watch(y: Tensor) -> Tensor:
            sink(layer, y)
            return y

        return watch

    with ExitStack() as hooks:
        for layer, module in enumerate(modules):
            hooks.enter_context(edit_output(module, watcher(layer)))
        yield


@contextmanager
def as_found(module: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and give every module its own mode back afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, training in modes:
            if training:
                part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


def first_of(output: Any) -> Any:
    """Return what a module puts out, without what it may put out beside it."""
    return output[0] if isinstance(output, (tuple, list)) else output
