"""Where queries, keys and values are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.model import Model
from headcodes.models.weights import is_bridge, widths

if TYPE_CHECKING:
    from jaxtyping import Float

# Where queries, keys and values lie; which of them holds is found out by ``headcodes.models.check``.
LAYOUTS = ("separate", "blocks", "grouped", "quarters")
_COMMON = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")


class Cut:
    """How the output of a module that makes queries, keys or values is cut into heads."""

    def __init__(self, cut: Callable[[Tensor], Tensor], n_columns: int | None = None) -> None:
        """Take the cut as a function of the last dimension.

        Args:
            cut: from [..., column] to [..., head, d_head].
            n_columns: of the module's output, where the heads may lie apart in it; None: ``cut`` gives a view.
        """
        self._cut = cut
        # Where heads lie apart, no view of the output holds them: they are taken out and put back by their columns.
        self._columns: Tensor | None = None
        if n_columns is not None:
            every = torch.arange(n_columns)
            places = cut(every)
            apart = places.untyped_storage().data_ptr() != every.untyped_storage().data_ptr()
            self._columns = places if apart else None

    def __call__(self, x: Float[Tensor, "*where column"]) -> Float[Tensor, "*where head d_head"]:
        """Return the heads; a view of ``x``, or where they lie apart in it a copy."""
        return self._cut(x)

    def edit(self, x: Float[Tensor, "*where column"], edit: Callable[[Tensor], object]) -> None:
        """Let ``edit`` change the heads in ``x`` in place."""
        values = self(x)
        edit(values)
        self.put(x, values)

    def put(self, x: Float[Tensor, "*where column"], values: Float[Tensor, "*where head d_head"]) -> None:
        """Write heads into ``x``, in place."""
        if self._columns is None:
            place = self._cut(x)
            if place.data_ptr() != values.data_ptr():
                place.copy_(values)
        else:
            x[..., self._columns.to(x.device)] = values.to(x.dtype)


def slot_projection(model: Model, layer: int, slot: str) -> tuple[nn.Module, Cut]:
    """Return the module that makes queries, keys or values, and how its output is cut into [..., head, d_head].

    Where queries bring a gate on their head's result along (Qwen3-Next), a head's query is both, [..., head, 2 d_head].

    Raises:
        HeadcodesError: they are not known, or were found not to be each head's own.
    """
    attention: Any = model.attention(layer)
    n_heads, d_head, layout = model.n_heads, model.d_heads[layer], model.facts.layout
    place = "qkv".index(slot)
    # TransformerLens calls its parts q, k and v.
    separate = getattr(attention, slot if is_bridge(model.module) else f"{slot}_proj", None)
    common = next((getattr(attention, name) for name in _COMMON if hasattr(attention, name)), None)
    found = separate if layout == "separate" else common
    size = None if not isinstance(found, nn.Module) else widths(found)
    if model.facts.slots is not None or not isinstance(found, nn.Module) or (layout != "separate" and size is None):
        raise HeadcodesError(
            "a model whose paths are patched must be of a family whose query, key and value projections are known",
            f"{model!r}" if model.facts.slots is None else f"{model.name}: {model.facts.slots}",
            "Patch whole heads instead.",
        )
    if layout == "separate":
        width = 2 * d_head if slot == "q" and size is not None and size[1] == 2 * n_heads * d_head else d_head
        return found, Cut(lambda x: x.unflatten(-1, (-1, width)))
    assert size is not None
    n_kv = (size[1] // d_head - n_heads) // 2
    if layout == "blocks":  # GPT-2, Phi-3, MPT: all queries, all keys, all values
        start = (0, n_heads, n_heads + n_kv)[place]
        stop = start + (n_heads if slot == "q" else n_kv)
        return found, Cut(lambda x: x.unflatten(-1, (-1, d_head))[..., start:stop, :])
    if layout == "quarters":  # CodeGen: four times a quarter of all queries, of all values, of all keys
        part = (0, 2, 1)[place]
        return found, Cut(lambda x: x.unflatten(-1, (4, 3, -1, d_head))[..., part, :, :].flatten(-3, -2), size[1])
    # GPT-NeoX, BLOOM, Falcon: each group's queries, its key, its value.
    group = n_heads // max(n_kv, 1)
    if slot == "q":
        return found, Cut(lambda x: x.unflatten(-1, (-1, group + 2, d_head))[..., :group, :].flatten(-3, -2), size[1])
    return found, Cut(lambda x: x.unflatten(-1, (-1, group + 2, d_head))[..., group + place - 1, :])


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
