"""Models of transformers and TransformerLens, taken apart into heads."""

from __future__ import annotations

import copy
import tempfile
from typing import Any

import torch

from headcodes.errors import HeadcodesError, missing_package
from headcodes.files import reason_of
from headcodes.models.check import prove
from headcodes.models.families import find_family, part_at, refuse, resolve_path
from headcodes.models.hooks import NoHeads
from headcodes.models.model import Model
from headcodes.models.sources import (
    Source,
    ask_hub,
    known_models,
    not_loaded,
)
from headcodes.models.untrusted import unasked
from headcodes.models.weights import refuse_format, unpack


def from_transformers(
    module: Any,
    tokenizer: Any,
    name: str,
    *,
    projection: str | None,
    owned: bool,
    revision: str | None = None,
    known_checksum: str | None = None,
) -> Model:
    """Find the heads of a model of transformers.

    Args:
        owned: whether the model is ours to change: TransformerLens rebuilds what it opens.

    Raises:
        HeadcodesError: see ``load_model``.
    """
    config = getattr(module, "config", None)
    if config is None or not hasattr(config, "get_text_config") or module.get_output_embeddings() is None:
        raise HeadcodesError(
            "A model must be a causal language model of transformers",
            f"{type(module).__name__}, which has no configuration or no output embeddings",
            "Load it by AutoModelForCausalLM.",
        )
    refuse(config)
    text = config.get_text_config()
    family = find_family(module)
    if family is None and projection is None:
        return _through_lens(module, tokenizer, name, owned, known_checksum)
    if projection is not None:
        if "{layer}" not in projection:
            raise HeadcodesError(
                "projection must hold {layer} where the layer's number goes",
                repr(projection),
                "For instance: model.layers.{layer}.self_attn.o_proj",
            )
        head, _, tail = projection.partition(".{layer}.")
        layers_path, projection_path, attention = head, tail, tail.rpartition(".")[0]
    else:
        assert family is not None
        layers_path, projection_path, attention = family.layers, family.projection, family.attention
    unpack(module, config)
    layers = list(resolve_path(module, layers_path).children())
    projections = [part_at(layer, projection_path) for layer in layers]
    if all(part is None for part in projections):
        resolve_path(layers[0] if layers else module, projection_path)  # says what is wrong
    refuse_format(next(part for part in projections if part is not None), config, name)
    # OPT-350m has no final norm: its path leads to None.
    final_norm = None if family is None else part_at(module, family.final_norm)
    # An MLP in some layers only (Nemotron-H) is none: what is no head there is looked for when the sums are.
    mlp = None if family is None else family.mlp
    if any(part_at(layer, mlp) is None for layer in layers):
        mlp = None
    model = Model(
        name=name,
        family=str(config.model_type),
        module=module,
        tokenizer=tokenizer,
        layers=layers,
        projections=[part or NoHeads(0) for part in projections],
        attention=attention,
        mlp=mlp,
        mlp_writes=None if family is None or mlp is None else family.mlp_writes or mlp,
        final_norm=final_norm,
        unembed=module.get_output_embeddings(),
        n_heads=int(text.num_attention_heads),
        n_kv_heads=int(getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
        revision=revision,
        projection=projection,
        known_checksum=known_checksum,
    )
    prove(model, known_checksum)
    return model


def _through_lens(module: Any, tokenizer: Any, name: str, owned: bool, known_checksum: str | None) -> Model:
    """Let TransformerLens find the heads of a family the table lacks. It rebuilds what it gets: give it a copy."""
    if tokenizer is None:
        raise HeadcodesError(
            "a model of a family outside the table must come with its tokenizer",
            "none",
            "Pass tokenizer=, or projection=.",
        )
    try:
        from transformer_lens.model_bridge import TransformerBridge
        from transformers import AutoTokenizer

        given = module if owned else copy.deepcopy(module)
        given.config.architectures = [type(given).__name__]
        # TransformerLens opens the tokenizer a second time, by name: one made in memory has none.
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            bridge = TransformerBridge.boot_transformers(name, hf_model=given, tokenizer=again, trust_remote_code=False)
        return from_bridge(bridge, tokenizer, name, known_checksum=known_checksum)
    except Exception as error:
        raise HeadcodesError(
            "a model must be of a family in docs/models.md or one that TransformerLens can open",
            f"{module.config.model_type} ({reason_of(error)})",
            'Name its attention output projection: projection="model.layers.{layer}.self_attn.o_proj".',
        ) from error


def from_lens(place: Source, tokenizer: Any, device: torch.device, dtype: torch.dtype) -> Model:
    """Open weights in TransformerLens's own old format (attn-only-4l and the like)."""
    name = next((row.source for row in known_models() if row.name == place.name), place.name)
    ask_hub(Source("hub", name))
    try:
        from transformer_lens.model_bridge import TransformerBridge

        # Weights are read as tensors only (weights_only); the tokenizer that the repository names may bring code.
        with unasked():
            bridge = TransformerBridge.boot_tl_legacy(name, device=device, dtype=dtype, tokenizer=tokenizer)
    except ImportError as error:
        raise missing_package("transformer_lens", "weights in TransformerLens's own format") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise not_loaded(Source("hub", name), error) from error
    return from_bridge(bridge, bridge.tokenizer, place.name)


def from_bridge(bridge: Any, tokenizer: Any, name: str, known_checksum: str | None = None) -> Model:
    """Find the heads of a TransformerBridge.

    Raises:
        HeadcodesError: see ``load_model``.
    """
    config = getattr(bridge.original_model, "config", None)
    if hasattr(config, "get_text_config"):
        refuse(config)
    layers = list(bridge.blocks)
    try:
        projections = [layer.attn.o for layer in layers]
    except AttributeError as error:
        raise HeadcodesError(
            "Every block of a TransformerBridge must have attention with an output projection (blocks[i].attn.o)",
            f"{type(bridge.original_model).__name__} ({error})",
            "Take a model of a family in docs/models.md.",
        ) from error
    model = Model(
        name=name,
        family="transformer-lens",
        module=bridge,
        tokenizer=tokenizer,
        layers=layers,
        projections=projections,
        attention="attn",
        mlp=None if bridge.cfg.attn_only else "mlp",
        mlp_writes=None if bridge.cfg.attn_only else "mlp",
        final_norm=bridge.ln_final,
        unembed=bridge.unembed,
        n_heads=int(bridge.cfg.n_heads),
        n_kv_heads=int(bridge.cfg.n_key_value_heads or bridge.cfg.n_heads),
        known_checksum=known_checksum,
    )
    prove(model, known_checksum)
    return model
