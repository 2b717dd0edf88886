"""What stands in for a CUDA graph on the pretended device."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree


class Graph:
    """A CUDA graph: what was captured, done again at every replay."""

    def __init__(self) -> None:
        self.tape: list[tuple[Any, Any, Any, Any]] = []
        self._before: dict[int, tuple[Any, Any]] = {}

    def before(self, operation: Any, args: Any, kwargs: Any) -> None:
        """Keep what the operation is about to change."""
        if not operation._schema.is_mutable:
            return
        for part in pytree.tree_leaves((args, kwargs)):
            if isinstance(part, torch.Tensor):
                storage = part.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def undo(self) -> None:
        """Put everything back: a capture runs nothing."""
        for storage, value in self._before.values():
            storage.copy_(value)

    def replay(self) -> None:
        def fill(old: Any, new: Any) -> None:
            if isinstance(old, torch.Tensor) and old is not new and old.data_ptr() != new.data_ptr():
                old.copy_(new)

        for operation, args, kwargs, result in self.tape:
            pytree.tree_map(fill, result, operation(*args, **kwargs))
