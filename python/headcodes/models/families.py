"""Where the parts of a language model lie, by family; and which models have no heads to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from headcodes.errors import HeadcodesError


@dataclass(frozen=True, slots=True)
class Family:
    """Paths inside a causal language model of transformers.

    ``layers`` and ``final_norm`` are paths in the model, ``attention``, ``projection`` and ``mlp`` paths in one
    layer. The projection's input is every head's result side by side, [..., n_heads * d_head]; its output goes to
    the residual stream (in Gemma 2 and 3 through a norm first: a head's output is what it is before that norm).
    """

    layers: str
    attention: str
    projection: str
    mlp: str
    final_norm: str


_LLAMA = Family("model.layers", "self_attn", "self_attn.o_proj", "mlp", "model.norm")

# By configuration's model_type. Every row is held to TransformerLens's own account of the family in the tests.
FAMILIES: dict[str, Family] = {
    "gpt2": Family("transformer.h", "attn", "attn.c_proj", "mlp", "transformer.ln_f"),
    "gpt_neox": Family("gpt_neox.layers", "attention", "attention.dense", "mlp", "gpt_neox.final_layer_norm"),
    "opt": Family("model.decoder.layers", "self_attn", "self_attn.out_proj", "fc2", "model.decoder.final_layer_norm"),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    # Gemma 3 from 4B up: the same language model under one that also sees pictures.
    "gemma3": Family(
        "model.language_model.layers", "self_attn", "self_attn.o_proj", "mlp", "model.language_model.norm"
    ),
}

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
_STATE_SPACE = {
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "jamba",
    "kimi_linear",
    "lfm2",
    "lfm2_moe",
    "mamba",
    "mamba2",
    "nemotron_h",
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "xlstm",
    "zamba",
    "zamba2",
}
_SEQUENTIAL = {"full_attention", "sliding_attention", "chunked_attention"}
_WEIGHT_DTYPES = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


def refuse(config: Any) -> None:
    """Raise where a configuration describes layers whose work does not fall apart into attention heads.

    Raises:
        HeadcodesError: mixture-of-experts attention, multi-head latent attention, state-space or other recurrent
            layers, encoders, weights stored quantised. Mixtures of experts in the MLP are no hindrance.
    """
    text = config.get_text_config()
    kind = str(text.model_type)
    reason = None
    if kind in _MIXTURE_ATTENTION:
        reason = (
            "mixture-of-experts attention: which head runs depends on the token, so a head has no fixed output weights"
        )
    elif kind in _LATENT_ATTENTION or getattr(text, "kv_lora_rank", None):
        reason = "multi-head latent attention: its heads share a compressed value space, which no test here covers"
    elif kind in _STATE_SPACE or set(getattr(text, "layer_types", None) or ()) - _SEQUENTIAL:
        reason = "state-space, recurrent or linear-attention layers: they have no attention heads to read"
    elif getattr(config, "is_encoder_decoder", False):
        reason = "an encoder-decoder: prompts here are continued from left to right"
    if reason is not None:
        raise HeadcodesError(
            "A model's attention must be made of heads with fixed output weights",
            f"the {kind} architecture, which has {reason}",
            "Take a model of a family that `headcodes models` lists.",
        )
    quantization = getattr(config, "quantization_config", None)
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
        raise HeadcodesError(
            "A model's weights must be plain floating-point numbers",
            f"weights quantised by {getattr(method, 'value', method)}",
            "Load the model's unquantised weights; .gguf files are converted on loading.",
        )


def check_projection(module: nn.Module, path: str) -> None:
    """Raise unless ``module`` is a plain linear map whose weights can be cut into heads.

    Raises:
        HeadcodesError: no linear map, an adapter around one, or weights stored in another form than plain floats.
    """
    weight: Any = getattr(module, "weight", None)
    plain = type(module).__name__ in ("Linear", "Conv1D", "NonDynamicallyQuantizableLinear") and isinstance(
        weight, torch.Tensor
    )
    if plain and type(weight) in (nn.Parameter, torch.Tensor) and weight.ndim == 2 and weight.dtype in _WEIGHT_DTYPES:
        return
    stored = f" with weights stored as {weight.dtype}" if isinstance(weight, torch.Tensor) else ""
    raise HeadcodesError(
        "An output projection must be a plain linear layer with floating-point weights",
        f"{type(module).__module__}.{type(module).__name__}{stored} at {path}",
        "Quantised layers are not read: load the plain weights. Adapters must be merged into their layer first.",
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
