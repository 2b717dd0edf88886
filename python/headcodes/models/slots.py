"""Where queries, keys and values are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.model import Model
from headcodes.models.weights import is_bridge, widths

# Where queries, keys and values lie; which of them holds is found out by ``headcodes.models.check``.
LAYOUTS = ("separate", "blocks", "grouped")
_COMMON = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


def slot_projection(model: Model, layer: int, slot: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the module that makes queries, keys or values, and how its output is cut into [..., head,
    d_head]."""
    attention: Any = model.attention(layer)
    n_heads, d_head, layout = model.n_heads, model.d_heads[layer], model.facts.layout
    place = "qkv".index(slot)
    # TransformerLens calls its parts q, k and v.
    separate = getattr(attention, slot if is_bridge(model.module) else f"{slot}_proj", None)
    if layout == "separate" and isinstance(separate, nn.Module):
        return separate, lambda x: x.unflatten(-1, (-1, d_head))
    common = next((getattr(attention, name) for name in _COMMON if hasattr(attention, name)), None)
    size = None if common is None else widths(common)
    if layout == "separate" or common is None or size is None:
        raise HeadcodesError(
            "a model whose paths are patched must be of a family whose query, key and value projections are known",
            f"{model!r}",
            "Patch whole heads instead.",
        )
    n_kv = (size[1] // d_head - n_heads) // 2
    if layout == "blocks":  # GPT-2, Phi-3, MPT: all queries, all keys, all values
        start = (0, n_heads, n_heads + n_kv)[place]
        stop = start + (n_heads if slot == "q" else n_kv)
        return common, lambda x: x.unflatten(-1, (-1, d_head))[..., start:stop, :]
    # GPT-NeoX, BLOOM, Falcon: each group's queries, its key, its value.
    group = n_heads // max(n_kv, 1)
    if slot == "q":
        return common, lambda x: x.unflatten(-1, (-1, group + 2, d_head))[..., :group, :].flatten(-3, -2)
    return common, lambda x: x.unflatten(-1, (-1, group + 2, d_head))[..., group + place - 1, :]


def slot_columns(cut: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
    """Return which columns of a module's output its queries, keys or values are, head by head, on its device.

    Args:
        cut: of ``slot_projection``.
    """
    return cut(torch.arange(output.shape[-1], device=output.device)).flatten()


def norm_over_heads(model: Model, layer: int, slot: str) -> nn.Module | None:
    """Return the norm over all heads' queries or keys at once that follows their projection (OLMo 2 and 3), or None."""
    norm = getattr(model.attention(layer), f"{slot}_norm", None) if slot in "qk" else None
    weight = getattr(norm, "weight", None)
    if not isinstance(norm, nn.Module) or not isinstance(weight, Tensor) or model.facts.layout != "separate":
        return None
    n_heads = model.n_heads if slot == "q" else model.n_kv_heads
    return norm if n_heads > 1 and weight.shape == (n_heads * model.d_heads[layer],) else None
