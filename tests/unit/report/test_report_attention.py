from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes.discovery import discover
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.models.load import load_model
from headcodes.report import attention
from headcodes.report.attention import AttentionPattern, attention_examples, attention_patterns
from headcodes.report.folders import read_folder
from headcodes.tasks import get

# Models here are random: they do no task, and need not.
pytestmark = pytest.mark.filterwarnings("ignore:the model answers only")

IDS = [[5, 9, 7, 30, 31, 8], [40, 5, 41]]
HEADS = [(0, 1), (2, 3)]


FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_patterns(family: str, tiny_model: Callable[..., Any]) -> None:
    for ids, patterns in zip(IDS, attention_patterns(tiny_model(family), IDS, HEADS), strict=True):
        assert patterns.shape == (len(HEADS), len(ids), len(ids))
        np.testing.assert_allclose(patterns.sum(-1), 1, atol=1e-5)
        assert np.triu(patterns, 1).max() == 0


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2"])
def test_patterns_are_those_of_transformer_lens(
    family: str, tiny_hf: Callable[..., Any], tiny_tokenizer: Any, tmp_path: Path
) -> None:
    module = tiny_hf(family)
    model = load_model(module, tokenizer=tiny_tokenizer)
    bridge = _bridge(module, tiny_tokenizer, tmp_path)
    ours = attention_patterns(model, IDS, HEADS)
    from_bridge = attention_patterns(load_model(bridge), IDS, HEADS)
    for ids, mine, its in zip(IDS, ours, from_bridge, strict=True):
        _, cache = bridge.run_with_cache(torch.tensor([ids]))
        for i, (layer, head) in enumerate(HEADS):
            theirs = cache[f"blocks.{layer}.attn.hook_pattern"][0, head].detach().numpy()
            np.testing.assert_allclose(mine[i], theirs, atol=2e-6)
            np.testing.assert_allclose(its[i], theirs, atol=2e-6)


def _bridge(module: Any, tokenizer: Any, folder: Path) -> Any:
    lens = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(folder)  # TransformerLens looks its tokenizer up again by name
    twin = copy.deepcopy(module)
    twin.config.architectures = [type(module).__name__]
    reloaded = AutoTokenizer.from_pretrained(folder)
    return lens.TransformerBridge.boot_transformers("tiny", hf_model=twin, tokenizer=reloaded)


def test_model_is_left_as_it_was(tiny_hf: Callable[..., Any], tiny_tokenizer: Any) -> None:
    module = tiny_hf("llama")
    tokens = torch.tensor([IDS[0]])
    before, way = module(tokens).logits, module.config._attn_implementation
    attention_patterns(load_model(module, tokenizer=tiny_tokenizer), IDS, HEADS)
    assert module.config._attn_implementation == way != "eager"
    assert torch.equal(module(tokens).logits, before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_examples_name_tokens_and_heads_and_survive_the_file(tiny_model: Callable[..., Any], tmp_path: Path) -> None:
    model = tiny_model()
    pairs = get("ioi").build(model.tokenizer, n=4)
    result = discover(model, pairs, n_train=2)
    examples = attention_examples(model, result.pairs, result.circuit(3).heads)
    assert [(e.side, e.index) for e in examples] == [("clean", 0), ("corrupt", 0), ("clean", 1), ("corrupt", 1)]
    assert "".join(examples[0].tokens).endswith(pairs[0].clean)
    assert examples[0].heads == tuple(result.circuit(3).heads)
    result.save(tmp_path, top=3, model=model)
    read = read_folder(tmp_path).attention
    for one, other in zip(examples, read, strict=True):
        assert (one.side, one.index, one.tokens, one.heads) == (other.side, other.index, other.tokens, other.heads)
        np.testing.assert_allclose(one.patterns, other.patterns, atol=0.5 / 255 + 1e-6)
    result.save(tmp_path, top=2)  # without the model: patterns of other heads must not stay behind
    assert read_folder(tmp_path).attention == []


def test_long_prompts_are_passed_over(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    result = discover(model, get("ioi").build(model.tokenizer, n=2), n_train=2)
    monkeypatch.setattr(attention, "MOST_TOKENS", 3)
    assert attention_examples(model, result.pairs, result.circuit().heads) == []


def test_a_model_without_weights_of_attention_is_saved_with_a_warning(
    tiny_model: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    result = discover(model, get("ioi").build(model.tokenizer, n=2), n_train=2)
    for layer in range(model.n_layers):
        part = model.attention(layer)
        monkeypatch.setattr(part, "forward", lambda *a, its=part.forward, **k: (its(*a, **k)[0], None))
    with pytest.raises(HeadcodesError, match="attention modules must return"):
        attention_patterns(model, IDS, HEADS)
    with pytest.warns(HeadcodesWarning, match="attention modules must return"):
        result.save(tmp_path, model=model)
    assert (tmp_path / "page.html").exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    attention.save_attention(tmp_path, [AttentionPattern("clean", 0, ("a", "b"), ((0, 0),), np.zeros((1, 1, 1)))])
    with pytest.raises(ValueError, match=r"attention\.safetensors"):
        attention.load_attention(tmp_path)
