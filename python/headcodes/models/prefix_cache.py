"""A cache of keys and values that holds a prefix once for any number of rows, and whether a model takes it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from headcodes.graph import numbered
from headcodes.models.hooks import as_found
from headcodes.models.model import Model
from headcodes.models.relied import body_of, newer_than_tried
from headcodes.models.weights import is_bridge

# What transformers calls the argument that takes a cache of keys and values: from 5.24 on, and before.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def why_not_walked(model: Model) -> str | None:
    """Return why a model's layers cannot be called one after another, as it calls them itself; None where they can."""
    weights = list(model.module.parameters())
    if is_bridge(model.module):
        return "TransformerLens calls them in its own way"
    if any(weight.device.type == "meta" for weight in weights):
        return "some of its weights are off their device"
    if len({weight.device for weight in weights}) > 1:
        return "its weights lie on several devices"
    stateful = sorted({*model.without_heads, *(layer for layer, name in enumerate(model.facts.beside) if name)})
    if stateful:
        return f"keys and values are not all that {numbered(stateful)} keep of a prefix"
    if model.final_norm is None:
        return "its final norm is not known"
    if body_of(model.module) is None:
        return "it does not say which of its modules holds the layers (base_model)"
    if cache_argument(model) is None:
        return f"it fills no cache of keys and values given as {' or '.join(_CACHE_ARGUMENTS)}{newer_than_tried()}"
    return None


def cache_argument(model: Model) -> str | None:
    """Return the name under which the model takes a cache and fills it in every layer; None where there is none.

    Found out by running one token, once a model: a name in a signature says nothing about what is done with it.
    """
    known: dict[str, str | None] = model.__dict__.setdefault("_cache_argument", {})
    if "name" not in known:
        known["name"] = next((name for name in _CACHE_ARGUMENTS if _fills(model, name)), None)
    return known["name"]


def _fills(model: Model, name: str) -> bool:
    cache = prefix_cache(model.n_layers)
    cache.recording = True
    body: Any = body_of(model.module)
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with as_found(model.module), torch.inference_mode():
            body(input_ids=token, use_cache=True, **{name: cache})
    except (TypeError, ValueError, AttributeError, IndexError, KeyError):  # takes no such argument, or no such cache
        return False
    return all(kept is not None for kept in cache.kept)


def prefix_cache(n_layers: int) -> Any:
    """Make transformers' cache, but one that stores only the prefix and gives it to as many rows as there
    are."""
    from transformers import DynamicCache

    class PrefixCache(DynamicCache):
        recording = False
        n_rows = 1
        pairs: Tensor | None = None  # which of those in the prefix; None: all

        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

        def _n_kept(self) -> int:
            first: tuple[Tensor, Tensor] | None = next((kept for kept in self.kept if kept is not None), None)
            return 0 if first is None or self.recording else int(first[0].shape[-2])

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            if self.recording:
                self.kept[layer_idx] = (key_states, value_states)
                return key_states, value_states
            kept = self.kept[layer_idx]
            if kept is None:
                return key_states, value_states
            if self.pairs is not None:
                kept = kept[0][self.pairs], kept[1][self.pairs]
            keys, values = (part.repeat(self.n_rows, 1, 1, 1) for part in kept)
            return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

        def get_seq_length(self, layer_idx: int = 0, *_args: Any, **_kwargs: Any) -> int:
            return int(self._n_kept())

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0, *_args: Any) -> tuple[int, int]:
            # transformers 4 hands over the positions themselves.
            n_query = query_length if isinstance(query_length, int) else len(query_length)
            return int(self._n_kept() + n_query), 0

    return PrefixCache()
