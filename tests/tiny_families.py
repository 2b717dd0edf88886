"""A tiny random model of every family that docs/models.md lists."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

_SIZES = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
_PLAIN = _SIZES | {
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
_GROUPED = _PLAIN | {"num_key_value_heads": 2}
_GPT = {"vocab_size": 97, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1}
_FALCON = _SIZES | {"ffn_hidden_size": 48, "initializer_range": 0.2, "max_position_embeddings": 64} | _ENDS
_DEEP = _GROUPED | {"num_hidden_layers": 4}
_HYBRID = _DEEP | {"layer_types": ["linear_attention", "full_attention"] * 2}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_GRANITE_4 = {
    "layer_types": ["mamba", "attention"] * 2,
    "shared_intermediate_size": 32,
    "residual_multiplier": 0.22,
}

# Name in the table: class of the configuration (its first part), and its values.
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT-2": ("GPT2", _GPT | _ENDS),
    "GPT-Neo": (
        "GPTNeo",
        {
            "vocab_size": 97,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        }
        | _ENDS,
    ),
    "GPT-NeoX, parallel": ("GPTNeoX", _PLAIN | {"use_parallel_residual": True}),
    "GPT-NeoX, sequential": ("GPTNeoX", _PLAIN | {"use_parallel_residual": False}),
    "GPT-J": ("GPTJ", _GPT | _ENDS | {"rotary_dim": 4}),
    "CodeGen": ("CodeGen", _GPT | _ENDS | {"rotary_dim": 4, "n_ctx": 64}),
    "OPT": ("OPT", _SIZES | {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "OPT, norms behind": (
        "OPT",
        _SIZES
        | {
            "ffn_dim": 48,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 32,
            "init_std": 0.2,
            "do_layer_norm_before": False,
        },
    ),
    "BLOOM": (
        "Bloom",
        {"vocab_size": 97, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2} | _ENDS,
    ),
    "MPT": (
        "Mpt",
        {"vocab_size": 97, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    ),
    "Falcon, multi-query": ("Falcon", _FALCON | {"multi_query": True, "parallel_attn": True}),
    "Falcon, grouped": ("Falcon", _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "Falcon, sequential": (
        "Falcon",
        _FALCON | {"multi_query": False, "parallel_attn": False, "alibi": True, "bias": True},
    ),
    "Phi": ("Phi", _PLAIN),
    "Phi-3": ("Phi3", _GROUPED),
    "StableLM": ("StableLm", _GROUPED | {"use_qkv_bias": True}),
    "Llama": ("Llama", _GROUPED),
    "Mistral, window of 4": ("Mistral", _GROUPED | {"sliding_window": 4}),
    "Mixtral": ("Mixtral", _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "Qwen 2": ("Qwen2", _GROUPED),
    "Qwen 3": ("Qwen3", _GROUPED | {"head_dim": 12}),
    "Qwen 3 MoE": (
        "Qwen3Moe",
        _GROUPED | _EXPERTS | {"head_dim": 12},
    ),
    "Gemma 2": ("Gemma2", _GROUPED | {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 16}),
    "Gemma 3": ("Gemma3Text", _GROUPED | {"head_dim": 12, "query_pre_attn_scalar": 12, "sliding_window": 16}),
    "Gemma 4, widths by layer": (
        "Gemma4Text",
        _GROUPED
        | {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 2,
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 97,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 16,
            "attention_k_eq_v": False,
            "num_kv_shared_layers": 0,
        },
    ),
    "Cohere": ("Cohere", _GROUPED | {"logit_scale": 0.25}),
    "Cohere 2": ("Cohere2", _GROUPED | {"logit_scale": 0.25, "sliding_window": 16}),
    "OLMo": ("Olmo", _GROUPED),
    "OLMo 2": ("Olmo2", _GROUPED),
    "OLMo 3": ("Olmo3", _GROUPED | {"sliding_window": 16}),
    "OLMoE": ("Olmoe", _GROUPED | {"num_experts": 4, "num_experts_per_tok": 2}),
    "Granite": (
        "Granite",
        _GROUPED
        | {
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "logits_scaling": 8.0,
            "attention_multiplier": 0.1,
        },
    ),
    "SmolLM3": ("SmolLM3", _GROUPED),
    "GLM-4": ("Glm4", _GROUPED | {"head_dim": 8}),
    "gpt-oss": (
        "GptOss",
        _GROUPED | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16},
    ),
    # Hybrids: layers 0 and 2 have no heads, or (Falcon-H1) every layer has a state space beside them.
    "Qwen 3-Next": (
        "Qwen3Next",
        _HYBRID | _LINEAR | _EXPERTS | {"head_dim": 8, "shared_expert_intermediate_size": 16},
    ),
    "Qwen 3.5": ("Qwen3_5Text", _HYBRID | _LINEAR | {"head_dim": 8}),
    "OLMo hybrid": ("OlmoHybrid", _HYBRID | _LINEAR),
    "Jamba": (
        "Jamba",
        _DEEP
        | {
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "num_experts": 2,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
    ),
    "Bamba": ("Bamba", _DEEP | _MAMBA | {"attn_layer_indices": [1, 3]}),
    "Granite 4, dense": ("GraniteMoeHybrid", _DEEP | _MAMBA | _GRANITE_4 | {"num_local_experts": 0}),
    "Granite 4, experts": (
        "GraniteMoeHybrid",
        _DEEP | _MAMBA | _GRANITE_4 | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "Falcon-H1": (
        "FalconH1",
        _GROUPED | _MAMBA | {"head_dim": 8, "mamba_d_ssm": 64, "attention_out_multiplier": 0.5},
    ),
    "LFM2": (
        "Lfm2",
        _DEEP | {"layer_types": ["conv", "full_attention"] * 2, "block_ff_dim": 48, "block_auto_adjust_ff_dim": False},
    ),
    "Nemotron-H": (
        "NemotronH",
        _DEEP
        | {
            "layers_block_type": ["mamba", "attention", "mlp", "attention"],
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "ssm_state_size": 8,
            "n_groups": 1,
            "chunk_size": 8,
            "head_dim": 8,
            "use_mamba_kernels": False,
        },
    ),
    "MiniMax": (
        "MiniMax",
        _HYBRID | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8},
    ),
    "RecurrentGemma": (
        "RecurrentGemma",
        _DEEP
        | {"head_dim": 8, "lru_width": 32, "block_types": ["recurrent", "attention"], "attention_window_size": 16},
    ),
}
# Opened like any other, and held to what they are found to do alone.
_ROUTED = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
_ROUTED |= {"n_group": 1, "topk_group": 1}
_LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "Nemotron": ("Nemotron", _GROUPED),
    "Starcoder 2": ("Starcoder2", _GROUPED),
    "Persimmon": ("Persimmon", _PLAIN),
    "GPT-BigCode": ("GPTBigCode", _GPT | _ENDS),
    "EXAONE 4": ("Exaone4", _GROUPED | {"sliding_window": 16, "sliding_window_pattern": 2}),
    "Helium": ("Helium", _GROUPED | {"head_dim": 8}),
    "ERNIE 4.5": ("Ernie4_5", _GROUPED | {"head_dim": 8}),
    "Seed-OSS": ("SeedOss", _GROUPED | {"head_dim": 8}),
    "HunYuan": ("HunYuanDenseV1", _GROUPED | {"head_dim": 8}),
    "Arcee": ("Arcee", _GROUPED),
    "Apertus": ("Apertus", _GROUPED),
    "dots.llm1": ("Dots1", _GROUPED | _ROUTED | {"n_shared_experts": 1, "sliding_window": 16}),
    "Ministral": ("Ministral", _GROUPED | {"head_dim": 8, "sliding_window": 16}),
    "GLM-4.5": ("Glm4Moe", _GROUPED | _ROUTED | {"head_dim": 8}),
    "Gemma": ("Gemma", _GROUPED | {"head_dim": 8}),
    "VaultGemma": ("VaultGemma", _GROUPED | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}),
    "NanoChat": ("NanoChat", _GROUPED),
    "FlexOLMo": ("FlexOlmo", _GROUPED | _EXPERTS),
    "Qwen 2 MoE": ("Qwen2Moe", _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 16}),
    "Phi MoE": ("Phimoe", _GROUPED | _LOCAL),
    "MiniMax M2": ("MiniMaxM2", _GROUPED | _LOCAL | {"head_dim": 8}),
    "ERNIE 4.5, experts": ("Ernie4_5_Moe", _GROUPED | _EXPERTS | {"moe_num_experts": 4, "moe_k": 2}),
    "Granite, experts": ("GraniteMoe", _GROUPED | _LOCAL | {"residual_multiplier": 0.22}),
    "Llama 4": (
        "Llama4Text",
        _GROUPED | _LOCAL | {"head_dim": 8, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 2},
    ),
    "XGLM": (
        "XGLM",
        {"vocab_size": 97, "d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4}
        | {"max_position_embeddings": 64, "init_std": 0.2},
    ),
    "BioGPT": ("BioGpt", _PLAIN),
    "GPT": ("OpenAIGPT", _GPT),
    "DiffLlama": ("DiffLlama", _GROUPED),
    "BitNet": ("BitNet", _GROUPED),
    "AFMoE": ("Afmoe", _GROUPED | _EXPERTS | {"head_dim": 8, "num_dense_layers": 1, "sliding_window": 16}),
    "MiMo-V2": (
        "MiMoV2Flash",
        _GROUPED
        | _ROUTED
        | {"head_dim": 8, "v_head_dim": 8, "swa_head_dim": 8, "swa_v_head_dim": 8, "sliding_window": 16}
        | {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2},
    ),
    "LFM3": ("Lfm3", _DEEP | {"head_dim": 8, "layer_types": ["conv", "full_attention"] * 2}),
    "Doge": ("Doge", _GROUPED),
    "Zaya": ("Zaya", _GROUPED | _EXPERTS | {"head_dim": 8, "num_experts_per_tok": 1}),
}
_LATENT = _PLAIN | _ROUTED | {"num_key_value_heads": 4, "kv_lora_rank": 8, "q_lora_rank": 12, "n_shared_experts": 1}
_LATENT |= {"qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
# Of which nothing is read, and what is said of it.
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mamba 2": (
        "Mamba2",
        {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 16}
        | {"state_size": 8, "n_groups": 1, "chunk_size": 8}
        | _ENDS,
        "no attention heads to read",
    ),
    "Zamba": (
        "Zamba",
        _DEEP
        | {
            "layer_types": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 8,
            "n_mamba_heads": 2,
            "mamba_dt_rank": 4,
        },
        "weights several layers share",
    ),
    "Zamba 2": (
        "Zamba2",
        _DEEP
        | {
            "attention_hidden_size": 64,
            "attention_head_dim": 16,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "num_mem_blocks": 1,
            "chunk_size": 8,
            "use_mamba_kernels": False,
            "adapter_rank": 4,
        },
        "weights several layers share",
    ),
    "Dory": ("Dory", _GROUPED | {"head_dim": 8}, "a second time"),
    "Kimi Linear": ("KimiLinear", _DEEP | {"head_dim": 8}, "multi-head latent attention"),
    "DeepSeek V2": ("DeepseekV2", _LATENT, "multi-head latent attention"),
    "DeepSeek V3": ("DeepseekV3", _LATENT, "multi-head latent attention"),
    "JetMoE": (
        "JetMoe",
        _SIZES
        | {"num_key_value_heads": 2, "kv_channels": 8, "intermediate_size": 48}
        # Which head runs depends on the token.
        | {"num_local_experts": 2, "num_experts_per_tok": 2},
        "mixture-of-experts attention",
    ),
}


def make(name: str, seed: int = 0, **changes: Any) -> Any:
    """Make the model, biases and norms random too: left at zero and one, a forgotten one would go unnoticed."""
    import transformers as tf

    kind, values = (ROWS | FURTHER | REFUSED)[name][:2]
    torch.manual_seed(seed)
    config: Callable[..., Any] = getattr(tf, f"{kind}Config")
    made = tf.AutoModelForCausalLM.from_config(config(**(values | changes))).eval()
    with torch.no_grad():
        for part in made.parameters():
            if part.ndim == 1:
                part.add_(0.1 * torch.randn_like(part))
            else:
                part.copy_(0.2 * torch.randn_like(part))
    return made


def table() -> str:
    """Return what every family is found to do when it is opened, as the table of docs/models.md."""
    from headcodes.models.check import verdict
    from headcodes.models.load import load_model

    columns = ("projection", "sum of parts", "attention and MLP", "heads", "finite", "batches", "edges")
    heading = " | ".join(f"({letter}) {name}" for letter, name in zip("abcdef", columns, strict=False))
    lines = [f"| family | {heading} | edges |", f"|---|{'---|' * len(columns)}"]
    for name in ROWS | FURTHER:
        found = verdict(load_model(make(name)))
        # How far rounding goes differs from machine to machine.
        lines.append(f"| {name} | {' | '.join(re.sub(r' .to [^ ]* of the stream.', '', found[c]) for c in columns)} |")
    for name, (_, _, reason) in REFUSED.items():
        what = {"a second time": "layers are run more than once in a pass"}.get(reason, reason)
        lines.append(f"| {name} | refused: {what} |{' |' * (len(columns) - 1)}")
    return "\n".join(lines) + "\n"


def known(name: str) -> bool:
    """Whether the installed transformers has the family."""
    import transformers as tf

    return hasattr(tf, f"{(ROWS | FURTHER | REFUSED)[name][0]}Config")


if __name__ == "__main__":
    print(table(), end="")
