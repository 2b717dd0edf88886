"""Where queries, keys and values are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.model import Model
from headcodes.models.weights import is_bridge


def slot_projection(model: Model, layer: int, slot: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the module that makes queries, keys or values, and how its output is cut into [..., head,
    d_head]."""
    attention: Any = model.attention(layer)
    n_heads, d_head = model.n_heads, model.d_head
    place = "qkv".index(slot)
    # TransformerLens calls its parts q, k and v.
    separate = getattr(attention, slot if is_bridge(model.module) else f"{slot}_proj", None)
    if isinstance(separate, nn.Module):
        n = n_heads if slot == "q" else model.n_kv_heads
        return separate, lambda x: x.unflatten(-1, (n, -1))
    if isinstance(getattr(attention, "c_attn", None), nn.Module):  # GPT-2: all queries, all keys, all values
        return attention.c_attn, lambda x: x.unflatten(-1, (3, n_heads, d_head)).select(-3, place)
    if isinstance(getattr(attention, "query_key_value", None), nn.Module):  # GPT-NeoX: q, k, v head by head
        return attention.query_key_value, lambda x: x.unflatten(-1, (n_heads, 3, d_head)).select(-2, place)
    raise HeadcodesError(
        "path patching needs a family whose query, key and value projections are known",
        f"{model!r}",
        "Patch whole heads instead.",
    )
