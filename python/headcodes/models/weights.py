"""The layers that hold weights, whatever wraps them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def weights_of(module: nn.Module) -> Any:
    """Return the layer of weights itself: TransformerBridge wraps it."""
    return getattr(module, "original_component", None) or module


def is_conv1d(module: nn.Module) -> bool:
    """GPT-2's layer keeps its weights as [in, out], every other as [out, in]."""
    return type(module).__name__ == "Conv1D"


def is_bridge(module: object) -> bool:
    """Whether a user handed us a TransformerBridge; if TransformerLens was never imported, nobody can have one."""
    lens = sys.modules.get("transformer_lens.model_bridge")
    return lens is not None and isinstance(module, lens.TransformerBridge)


@contextmanager
def weights_present(module: nn.Module) -> Iterator[Any]:
    """Bring weights that accelerate has moved to CPU memory or disk onto their device for a moment."""
    if getattr(module, "_hf_hook", None) is None:
        yield module
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield module
