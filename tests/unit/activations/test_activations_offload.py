"""Weights that accelerate has moved away are fetched layer by layer: neither capture nor a backward pass needs room for
the whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headcodes.activations.capture import capture
from headcodes.models.load import load_model

PROMPTS = [[5, 6, 7, 8, 9], [9, 8, 7], [4, 4]]
ANSWERS = [[5], [6, 7], [8]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_hf: Any, tiny_tokenizer: Any) -> Path:
    """A Llama of 12 layers, 202 MB in fp32, and its tokenizer."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder = tmp_path_factory.mktemp("offload")
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    tiny_hf("llama", num_key_value_heads=8, head_dim=64, tie_word_embeddings=False, **sizes).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def parts(**homes: str) -> dict[str, str]:
    """Everything on the CPU but what is named; ``layers`` stands for all layers."""
    layers = {f"model.layers.{layer}": homes.get("layers", "cpu") for layer in range(12)}
    rest = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
    return rest | layers | {name.replace("__", "."): home for name, home in homes.items() if name != "layers"}


def test_offloaded_weights_give_the_same_bits(folder: Path) -> None:
    plain = load_model(folder, dtype="float32", device="cpu")
    away = load_model(folder, dtype="float32", device_map=parts(layers="disk", lm_head="disk"))
    assert all(module.weight.is_meta for module in away.projections)
    z, logits = capture(plain, PROMPTS, answer_ids=ANSWERS)
    z_away, logits_away = capture(away, PROMPTS, answer_ids=ANSWERS)
    assert torch.equal(z.z, z_away.z)
    assert torch.equal(z.W_O, z_away.W_O)
    torch.testing.assert_close(logits, logits_away, atol=1e-5, rtol=1e-5)
    assert all(module.weight.is_meta for module in away.projections)


def test_a_model_larger_than_the_memory_it_may_take(folder: Path) -> None:
    """202 MB of weights, run and checked in less than half of that."""
    code = f"""
from pathlib import Path
from headcodes.activations.capture import capture
from headcodes.methods.attribution import products
from headcodes.models.load import load_model
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import TokenPairs
import transformers.models.llama.modeling_llama, transformers.convert_slow_tokenizer, accelerate
import headcodes.models.check, headcodes.models.disturbed

def peak():
    # The process's own high-water mark; getrusage would begin with that of the process it was forked from.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024

before = peak()
model = load_model({str(folder)!r}, dtype="float32", device_map={parts(layers="disk")!r})
capture(model, {PROMPTS!r}, answer_ids={ANSWERS!r})
pairs = PromptPairs((PromptPair("c", "d", ("a",), ("b",)),), "made", "up")
products(model, TokenPairs([[5, 6, 7]], [[5, 8, 7]], [[5]], [[6]], False, pairs))
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert float(done.stdout) < 100
