"""What is relied on in models of transformers beyond their documented calls: each name is read here, and nowhere else.

Where a name is gone or does nothing, something slower is done and announced, or what needs it is refused
(docs/compatibility.md has the table). A cache of keys and values: ``headcodes.models.prefix_cache``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.models.weights import is_bridge

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.models.model import Model

# The newest transformers that the tests were run with (docs/compatibility.md).
NEWEST_TRIED = (5, 24)
_WAY = "_attn_implementation"
_GROUPS = "num_key_value_groups"


def newer_than_tried() -> str:
    """Return a remark to go behind a reason where the installed transformers is newer than any tried, else nothing."""
    version = metadata.version("transformers")
    newer = tuple(map(int, re.findall(r"\d+", version)[:2])) > NEWEST_TRIED
    return f" (transformers {version} is newer than any that was tried: docs/compatibility.md)" if newer else ""


def announce(model: Model, slower: str, why: str) -> None:
    """Warn that something slower is done, once a model and reason: the same is often done many times."""
    announced: set[str] = model.__dict__.setdefault("_announced", set())
    if why in announced:
        return
    announced.add(why)
    warnings.warn(f"{slower}: {why}", HeadcodesWarning, stacklevel=4)


def body_of(module: nn.Module) -> nn.Module | None:
    """Return the part of a model that holds its layers, without the unembedding (``base_model``), or None."""
    body = getattr(module, "base_model", None)
    return body if isinstance(body, nn.Module) else None


def attention_way(model: Model) -> str | None:
    """Return how a model of transformers works out its attention ("sdpa", "eager", ...), None for a bridge.

    Warns:
        HeadcodesWarning: it does not say.
    """
    if is_bridge(model.module):
        return None
    way = getattr(getattr(model.module, "config", None), _WAY, None)
    if way is None:
        why = f"it does not say how it attends (config.{_WAY}){newer_than_tried()}"
        announce(model, f"every prompt of {model.name} gets a row of its own, which takes longer than sharing one", why)
    return way


@contextmanager
def attending_eagerly(model: Model) -> Iterator[None]:
    """Let a model of transformers keep its attention weights, which the fast ways do not, while open.

    Raises:
        HeadcodesError: it attends in another way and does not say how to change that, or which to give back.
    """
    if is_bridge(model.module) or (before := attention_way(model)) == "eager":
        yield
        return
    module: Any = model.module
    if before is None or not hasattr(module, "set_attn_implementation"):
        raise HeadcodesError(
            "a model must say how it attends, and let itself be told to attend eagerly, for attention patterns",
            f"{model!r}, without config.{_WAY} or set_attn_implementation{newer_than_tried()}",
            "Load it with attn_implementation='eager', or leave attention patterns out.",
        )
    module.set_attn_implementation("eager")
    try:
        yield
    finally:
        module.set_attn_implementation(before)


def check_ungrouped(model: Model) -> None:
    """Refuse a model whose heads share keys and values, and whose attention cannot be given some for every head.

    Raises:
        HeadcodesError: it does not hold how many heads share one.
    """
    if model.n_kv_heads != model.n_heads and not hasattr(model.attention(0), _GROUPS):
        raise HeadcodesError(
            "heads whose edges are cut must have, or be given, keys and values of their own",
            f"{model.n_heads} heads on {model.n_kv_heads} keys and values, and no {_GROUPS}{newer_than_tried()}",
            "Use level='node', or eap for edges.",
        )


@contextmanager
def ungrouped(model: Model) -> Iterator[None]:
    """Let attention of transformers take keys and values for every head while open: as many as it is given."""
    parts: Sequence[Any] = [model.attention(layer) for layer in range(model.n_layers)]
    before = [getattr(part, _GROUPS) for part in parts]
    try:
        for part in parts:
            setattr(part, _GROUPS, 1)
        yield
    finally:
        for part, groups in zip(parts, before, strict=True):
            setattr(part, _GROUPS, groups)


def passes_keys_on(model: Model) -> bool:
    """Whether later layers may take keys and values that earlier ones made, beside the stream (Gemma 3n and 4)."""
    return bool(getattr(getattr(model.module, "config", None), "num_kv_shared_layers", 0))


def soft_capped(model: Model, logits: Float[Tensor, "*row token"]) -> Float[Tensor, "*row token"]:
    """Return logits as the model caps them (Gemma 2: c tanh(x / c)), or as they are.

    A cap under another name goes unnoticed here, and shows as another answer than the model's own (``run_edited``).
    """
    config: Any = model.module.config
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def turn_positions(module: Any, turns: Float[Tensor, " half"]) -> None:
    """Set by how many radians a model with rotary positions (Llama and its kin) turns each plane a position.

    Raises:
        HeadcodesError: it then turns by something else.
    """
    rotary = getattr(module.model, "rotary_emb", None)
    found = None
    if rotary is not None:
        rotary.inv_freq = turns
        rotary.original_inv_freq = turns.clone()
        found = rotary(torch.zeros(1, 1, 1), torch.tensor([[1]]))[0].flatten()[: len(turns)]
    if found is None or not torch.allclose(found, turns.cos()):
        raise HeadcodesError(
            "planted models must be given the turns of their positions",
            f"positions that turn otherwise (rotary_emb.inv_freq){newer_than_tried()}",
            "Install transformers " + ".".join(map(str, NEWEST_TRIED)) + ".",
        )
