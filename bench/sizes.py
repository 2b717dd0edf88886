"""Time and memory of a gradient-free discovery against the size of the model (docs/performance.md).

A Llama of random weights is written to a folder, layer by layer, with SmolLM2's tokenizer, and opened in bf16 by a
process of its own: in memory, or with every layer and the unembedding left on disk (accelerate). Memory is what the
process holds of its own: weights in memory are mapped from their files and are not in it.

    python bench/sizes.py 1b FOLDER --pairs 100
    python bench/sizes.py 8b FOLDER --pairs 8 --disk
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import psutil
import torch

GIB = 1 << 30
# Layers, query heads, those with keys of their own, width of a head, of the stream, of the MLP; vocabulary.
SIZES = {
    "360m": (32, 15, 5, 64, 960, 2560, 49152),
    "1b": (16, 32, 8, 64, 2048, 8192, 128256),
    "8b": (32, 32, 8, 128, 4096, 14336, 128256),
}


def write(size: str, folder: Path) -> None:
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    from headcodes import load_model

    n_layers, n_heads, n_kv, d_head, d_model, d_mlp, n_vocab = SIZES[size]
    folder.mkdir(parents=True)
    load_model("smollm2-135m").tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=n_vocab,
        num_hidden_layers=n_layers,
        num_attention_heads=n_heads,
        num_key_value_heads=n_kv,
        head_dim=d_head,
        hidden_size=d_model,
        intermediate_size=d_mlp,
        tie_word_embeddings=size != "8b",
        dtype="bfloat16",
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}

    def keep(file: str, **weights: torch.Tensor) -> None:
        named = {f"{name.replace('__', '.')}.weight": weight.contiguous() for name, weight in weights.items()}
        save_file(named, folder / file, metadata={"format": "pt"})
        places.update(dict.fromkeys(named, file))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).mul_(0.06).bfloat16()

    attention = {"q_proj": (n_heads * d_head, d_model), "k_proj": (n_kv * d_head, d_model)}
    attention |= {"v_proj": (n_kv * d_head, d_model), "o_proj": (d_model, n_heads * d_head)}
    mlp = {"gate_proj": (d_mlp, d_model), "up_proj": (d_mlp, d_model), "down_proj": (d_model, d_mlp)}
    for layer in range(n_layers):
        weights = {f"self_attn__{name}": drawn(*shape) for name, shape in attention.items()}
        weights |= {f"mlp__{name}": drawn(*shape) for name, shape in mlp.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[name] = torch.ones(d_model, dtype=torch.bfloat16)
        keep(f"layer-{layer}.safetensors", **{f"model__layers__{layer}__{name}": w for name, w in weights.items()})
    norm = torch.ones(d_model, dtype=torch.bfloat16)
    keep("embedding.safetensors", model__embed_tokens=drawn(n_vocab, d_model), model__norm=norm)
    if not config.tie_word_embeddings:
        keep("unembedding.safetensors", lm_head=drawn(n_vocab, d_model))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def measure(folder: str, n_pairs: int, disk: bool) -> None:
    from headcodes import discover, load_model, tasks

    process, most = psutil.Process(), [0]

    def own() -> int:
        held = process.memory_info()
        return int(held.rss - held.shared)

    def watch() -> None:
        while True:
            most[0] = max(most[0], own())
            time.sleep(0.02)

    threading.Thread(target=watch, daemon=True).start()
    homes: Any = None
    if disk:
        n_layers = json.loads((Path(folder) / "config.json").read_text())["num_hidden_layers"]
        homes = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
        homes |= {f"model.layers.{layer}": "disk" for layer in range(n_layers)}
    model = load_model(folder, dtype="bfloat16", device_map=homes)
    opened = most[0]
    pairs = tasks.get("ioi").build(model.tokenizer, n=n_pairs, seed=0)
    before, most[0], start, used = own(), 0, time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights do no task
        discover(model, pairs, method="contrast", verify=None)
    weights = sum(part.numel() * 2 for part in model.module.parameters())
    print(f"{model!r}: {weights / GIB:.2f} GiB of weights{' on disk' if disk else ''}")
    wall, processor = time.perf_counter() - start, time.process_time() - used
    print(f"  {n_pairs} + {n_pairs} prompts: {wall:.1f} s, {processor:.1f} of processor")
    beyond, held, to_open = ((most[0] - before) / GIB, before / GIB, opened / GIB)
    print(f"  at most {beyond:.2f} GiB beyond the {held:.2f} before; {to_open:.2f} to open it")


if __name__ == "__main__":
    asked = argparse.ArgumentParser()
    asked.add_argument("size", help=f"smollm2-135m, {', '.join(SIZES)}")
    asked.add_argument("folder", type=Path, help="where to write the model, where there is none yet")
    asked.add_argument("--pairs", type=int, default=100)
    asked.add_argument("--disk", action="store_true")
    asked.add_argument("--measure", action="store_true", help="in this process")
    given = asked.parse_args()
    named = given.size not in SIZES
    if given.measure:
        measure(given.size if named else str(given.folder), given.pairs, given.disk)
    else:
        if not named and not given.folder.exists():
            write(given.size, given.folder)
        subprocess.run([sys.executable, *sys.argv, "--measure"], check=True)
