"""Where the parts of a language model lie, by family; and which models have no heads to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from headcodes.errors import HeadcodesError


@dataclass(frozen=True, slots=True)
class Family:
    """Paths inside a causal language model of transformers.

    ``layers`` and ``final_norm`` are paths in the model, the others paths in one layer. The projection's input is
    every head's result side by side, [..., n_heads * d_head]; its output goes to the residual stream (in Gemma 2 and 3
    through a norm first: a head's output is what it is before that norm). ``mlp`` reads the stream; ``mlp_writes`` puts
    out what goes back to it: the same module, or one inside it where that adds the stream itself (BLOOM, MPT). Layers
    that lack attention or projection have no heads (the linear-attention layers of a hybrid).

    That a model has modules at these paths says nothing yet: ``headcodes.models.check`` holds it to the sums.
    """

    layers: str
    attention: str
    projection: str
    mlp: str | None
    final_norm: str
    mlp_writes: str = ""


FAMILIES: tuple[Family, ...] = (
    # Llama, Mistral, Qwen, Gemma, OLMo, Granite, Cohere, StableLM, SmolLM3, GLM-4, Phi-3, Mixtral, gpt-oss, ...
    Family("model.layers", "self_attn", "self_attn.o_proj", "mlp", "model.norm"),
    # The same under a model that also sees pictures: Gemma 3 from 4B up, Gemma 4.
    Family("model.language_model.layers", "self_attn", "self_attn.o_proj", "mlp", "model.language_model.norm"),
    Family("model.layers", "self_attn", "self_attn.dense", "mlp", "model.final_layernorm"),  # Phi
    Family("transformer.h", "attn", "attn.c_proj", "mlp", "transformer.ln_f"),  # GPT-2
    Family("transformer.h", "attn", "attn.out_proj", "mlp", "transformer.ln_f"),  # GPT-J, CodeGen
    Family("transformer.h", "attn.attention", "attn.attention.out_proj", "mlp", "transformer.ln_f"),  # GPT-Neo
    Family("gpt_neox.layers", "attention", "attention.dense", "mlp", "gpt_neox.final_layer_norm"),
    Family(
        "model.decoder.layers", "self_attn", "self_attn.out_proj", "fc1", "model.decoder.final_layer_norm", "fc2"
    ),  # OPT
    Family(
        "transformer.h", "self_attention", "self_attention.dense", "mlp", "transformer.ln_f", "mlp.dense_4h_to_h"
    ),  # BLOOM, Falcon
    Family("transformer.blocks", "attn", "attn.out_proj", "ffn", "transformer.norm_f", "ffn.down_proj"),  # MPT
    # Hybrids whose parts have other names: Jamba, Bamba, Falcon-H1; LFM2; Granite 4; RecurrentGemma; Nemotron-H, where
    # a layer is either attention or an MLP.
    Family("model.layers", "self_attn", "self_attn.o_proj", "feed_forward", "model.final_layernorm"),
    Family("model.layers", "self_attn", "self_attn.out_proj", "feed_forward", "model.embedding_norm"),
    Family("model.layers", "self_attn", "self_attn.o_proj", "shared_mlp", "model.norm"),
    Family("model.layers", "self_attn", "self_attn.o_proj", "feed_forward", "model.embedding_norm"),  # LFM3
    Family("model.layers", "self_attn", "self_attn.o_proj", "feed_forward", "model.norm"),  # Llama 4
    Family("model.layers", "self_attn", "self_attn.o_proj", "block_sparse_moe", "model.norm"),  # Granite, experts
    Family("model.layers", "self_attn", "self_attn.out_proj", "fc1", "model.layer_norm", "fc2"),  # XGLM
    Family("biogpt.layers", "self_attn", "self_attn.out_proj", "fc1", "biogpt.layer_norm", "fc2"),
    Family("model.layers", "temporal_block", "temporal_block.o_proj", "mlp_block", "model.final_norm"),
    Family("model.layers", "mixer", "mixer.o_proj", None, "model.norm_f"),
)


def part_at(layer: nn.Module, path: str | None) -> nn.Module | None:
    """Return the module at a path in a layer, or None where the layer has none."""
    try:
        return None if path is None else layer.get_submodule(path)
    except AttributeError:
        return None


def find_family(model: nn.Module) -> Family | None:
    """Return the first family whose paths lead to modules in a layer, and to a final norm if there is one, or None."""
    for family in sorted(FAMILIES, key=lambda family: part_at(model, family.final_norm) is None):
        paths = (family.attention, family.projection, family.mlp, family.mlp_writes or family.mlp)
        layers = part_at(model, family.layers)
        for layer in () if layers is None else layers.children():
            if all(path is None or part_at(layer, path) is not None for path in paths):
                return family
    return None


_MIXTURE_ATTENTION = {"jetmoe"}
_LATENT_ATTENTION = {
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "minicpm3",
    "glm4_moe_lite",
    "longcat_flash",
    "youtu",
}
_NO_ATTENTION = {"falcon_mamba", "mamba", "mamba2", "rwkv", "xlstm"}
_SHARED_ATTENTION = {"zamba", "zamba2"}
_WITHOUT_HEADS = {"linear_attention", "mamba", "mamba2", "recurrent", "conv", "mlp", "moe"}


def refuse(config: Any) -> None:
    """Raise where a configuration describes a model whose work does not fall apart into attention heads.

    Raises:
        HeadcodesError: mixture-of-experts attention, multi-head latent attention, attention whose weights several
            layers share, no attention in any layer, encoders. Mixtures of experts in the MLP are no hindrance, nor are
            layers of another kind beside those with heads.
    """
    text = config.get_text_config()
    kind = str(text.model_type)
    reason = None
    layer_types = set(getattr(text, "layer_types", None) or ())
    if kind in _MIXTURE_ATTENTION:
        reason = (
            "mixture-of-experts attention: which head runs depends on the token, so a head has no fixed output weights"
        )
    elif kind in _LATENT_ATTENTION or getattr(text, "kv_lora_rank", None):
        reason = "multi-head latent attention: its heads share a compressed value space, which no test here covers"
    elif kind in _SHARED_ATTENTION:
        reason = "one attention block whose weights several layers share: its heads are no single layer's"
    elif kind in _NO_ATTENTION or (layer_types and layer_types <= _WITHOUT_HEADS):
        reason = "state-space, recurrent or linear-attention layers only: they have no attention heads to read"
    elif getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder: prompts here are continued from left to right"
    if reason is not None:
        raise HeadcodesError(
            "A model's attention must be made of heads with fixed output weights",
            f"the {kind} architecture, which has {reason}",
            "Take a model of a family in docs/models.md.",
        )


def resolve_path(model: nn.Module, path: str) -> nn.Module:
    """Return the module at a dotted path.

    Raises:
        HeadcodesError: there is no such module.
    """
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise HeadcodesError(
            "A path must lead to a module of the model",
            f"{path!r} in {type(model).__name__} ({error})",
            "Look at model.named_modules() and write the layer's number as {layer}.",
        ) from error
