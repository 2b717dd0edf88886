"""What other tools got wrong in silence, and this one did before: each read right, or refused in one line."""

from __future__ import annotations

import copy
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from headcodes import discover
from headcodes.activations.capture import capture
from headcodes.activations.packing import pack, padded
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions.patch import causal_truth
from headcodes.methods import dla, eap
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from made_pairs import PROMPTS, from_clean
from tiny_families import make


def adapted(dora: bool, modules: list[str]) -> Any:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=modules, use_dora=dora, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    model = peft.get_peft_model(make("Llama"), config).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_" in name and part.ndim == 2:
                part.normal_(std=0.2)
    return model


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_the_output_projection_count(dora: bool, whole: bool) -> None:
    model = adapted(dora, ["q_proj", "v_proj", "o_proj"])
    merged = load_model(copy.deepcopy(model).merge_and_unload())
    found = load_model(model if whole else model.get_base_model())
    torch.testing.assert_close(found.W_O, merged.W_O, atol=1e-5, rtol=1e-4)
    ours, theirs = capture(found, PROMPTS)[0], capture(merged, PROMPTS)[0]
    torch.testing.assert_close(ours.head_outputs(), theirs.head_outputs(), atol=1e-5, rtol=1e-4)
    tokens = from_clean(PROMPTS)
    edges = [eap.find("eap", Inputs(each, tokens), "edge", 0) for each in (found, merged)]
    np.testing.assert_allclose(edges[0].edges.scores, edges[1].edges.scores, atol=1e-4, rtol=1e-3)
    assert spearmanr(edges[0].head_scores.ravel(), edges[1].head_scores.ravel()).statistic > 0.99


@pytest.mark.parametrize("dora", [False, True])
def test_adapters_on_the_unembedding_count(dora: bool) -> None:
    model = adapted(dora, ["lm_head"])
    merged, found = load_model(copy.deepcopy(model).merge_and_unload()), load_model(model)
    assert (merged.facts.plain_unembedding, found.facts.plain_unembedding) == (True, False)
    ids, tokens = torch.tensor(PROMPTS[:1]), from_clean(PROMPTS)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, -1]
    for vocab in (None, torch.tensor([12, 5, 70])):
        logits = found.trace(ids, logits_at=torch.tensor([ids.shape[1] - 1]), vocab=vocab)
        torch.testing.assert_close(logits, expected if vocab is None else expected[:, vocab], atol=1e-5, rtol=1e-4)
    for method in (eap, dla):
        signed = [
            method.find(method.__name__.split(".")[-1], Inputs(each, tokens), "node", 0).signed
            for each in (found, merged)
        ]
        np.testing.assert_allclose(*signed, atol=1e-4, rtol=1e-3)
    effects = [causal_truth(each, tokens, cache=False, progress=False).effects for each in (found, merged)]
    np.testing.assert_allclose(*effects, atol=1e-4, rtol=1e-3)


def test_a_layer_that_is_run_twice_in_a_pass_is_refused() -> None:
    model = make("Llama")
    model.model.layers[1] = model.model.layers[0]
    with pytest.raises(HeadcodesError, match=r"run once in a forward pass.*layer 0 .* a second time"):
        load_model(model)


def test_an_adapters_strength_is_another_model() -> None:
    model = adapted(False, ["o_proj"])
    before = load_model(model).checksum
    for part in model.modules():
        if isinstance(getattr(part, "scaling", None), dict):
            part.scaling = {name: 2 * value for name, value in part.scaling.items()}
    assert load_model(model).checksum != before


class Widened(nn.Linear):
    """A plain subclass, such as Falcon's."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + (0 if self.bias is None else self.bias)


class Bent(nn.Linear):
    """No linear map, whatever it is called."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


Bent.__name__ = "Linear"


def with_projection(kind: type[nn.Linear]) -> Any:
    model = make("Llama")
    for layer in model.model.layers:
        other = kind(32, 32, bias=False)
        other.weight = layer.self_attn.o_proj.weight
        layer.self_attn.o_proj = other
    return model


def test_a_projection_is_what_it_computes_not_what_it_is_called() -> None:
    plain, other = load_model(make("Llama")), load_model(with_projection(Widened))
    torch.testing.assert_close(other.W_O, plain.W_O, atol=1e-6, rtol=1e-5)
    with pytest.raises(HeadcodesError, match="linear map"):
        load_model(with_projection(Bent))


def test_an_mlp_that_puts_out_more_than_it_adds_keeps_heads_and_loses_edges() -> None:
    model = make("Llama")

    class Layer(nn.Module):
        """A layer whose MLP's output is bent on its way into the stream."""

        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.self_attn, self.mlp = layer.self_attn, layer.mlp
            self.input_layernorm = layer.input_layernorm
            self.post_attention_layernorm = layer.post_attention_layernorm

        def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
            hidden_states = (
                hidden_states + self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)[0]
            )
            return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states)).sin()

    model.model.layers[1] = Layer(model.model.layers[1])
    found = load_model(model)
    assert "layer 1" in (found.facts.stream or "")
    assert found.mlp(1) is None
    inputs = Inputs(found, from_clean(PROMPTS))
    assert eap.find("eap", inputs, "node", 0).head_scores.all()
    with pytest.raises(HeadcodesError, match="do not add up to what leaves layer 1"):
        eap.find("eap", inputs, "edge", 0)


@pytest.mark.parametrize("name", ["GPT-2", "OPT", "GPT-J"])
def test_a_prompt_beyond_the_table_of_positions_is_named(name: str) -> None:
    model = load_model(make(name))
    long = [[5] * 64, [5] * 65]
    with pytest.raises(HeadcodesError, match=r"at most 64 tokens.* prompt 1 of 65 tokens"):
        capture(model, long)
    tokens = from_clean([[*PROMPTS[0], *[9] * 60]])
    with pytest.raises(HeadcodesError, match="at most 64 tokens"):
        eap.find("eap", Inputs(model, tokens), "node", 0)
    with pytest.raises(HeadcodesError, match="at most 64 tokens"):
        causal_truth(model, tokens, cache=False, progress=False)


def test_past_its_training_length_a_rotary_model_runs_with_a_warning() -> None:
    model = load_model(make("Llama"))
    with pytest.warns(HeadcodesWarning, match="prompt 1 has 65 tokens, and .* was trained on 64"):
        capture(model, [[5] * 64, [5] * 65])


def test_numbers_that_are_not_finite_are_named_by_layer_when_a_model_is_opened() -> None:
    model = make("Llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(HeadcodesError, match=r"from layer 1 on .* Its weights hold such numbers"):
        load_model(model)
    half = make("Llama").half()
    with torch.no_grad():
        for part in (half.model.layers[1].mlp.up_proj, half.model.layers[1].mlp.down_proj):
            part.weight.mul_(3000)
    with pytest.raises(HeadcodesError, match=r"from layer 1 on .* float16.*dtype='float32'"):
        load_model(half)


@pytest.mark.parametrize("method", ["acdc", "patching", "default", "eap"])
def test_no_method_makes_anything_of_nan(method: str, tiny_model: Any) -> None:
    from headcodes import tasks

    model = tiny_model("gpt2")
    pairs = tasks.get("ioi").build(model.tokenizer, n=4, seed=0)
    with torch.no_grad():
        model.module.transformer.h[1].mlp.c_proj.bias[0] = torch.nan
    with pytest.raises(HeadcodesError, match="finite"):
        discover(model, pairs, method=method)


def test_no_score_is_large_enough_to_see_through_the_mask_of_a_shared_row() -> None:
    """Scores of 4e4 and fp16's largest number taken from them left prompts of one row hearing each other."""
    rows = pack(PROMPTS[:2], sys.maxsize)
    assert [row.prompts for row in rows] == [[0, 1]] or [row.prompts for row in rows] == [[1, 0]]
    mask = padded(rows, torch.float16)[1]["attention_mask"][0, 0]
    scores = torch.where(mask == 0, -4e4, 4e4).half()
    assert not (scores + mask).float().softmax(1)[mask != 0].any()


def test_heads_that_read_more_than_queries_keys_and_values_have_no_edges() -> None:
    """A gate on a head's result that reads the stream: edges by queries, keys and values would miss it."""
    model = make("Llama")
    read: dict[int, Tensor] = {}
    for index, layer in enumerate(model.model.layers):
        layer.input_layernorm.register_forward_hook(lambda _m, _args, out, index=index: read.__setitem__(index, out))
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _m, args, index=index: (args[0] * read[index].sigmoid(),)
        )
    found = load_model(model)
    assert "heads of layer 0 read more of the stream" in (found.facts.edges or "")
    inputs = Inputs(found, from_clean(PROMPTS))
    assert eap.find("eap", inputs, "node", 0).head_scores.all()
    with pytest.raises(HeadcodesError, match="read more of the stream"):
        eap.find("eap", inputs, "edge", 0)


class Stopping(nn.Module):
    """A layer through which no gradient passes, as some quantised ones are."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.detach()).requires_grad_()


def test_gradients_that_do_not_flow_get_one_line() -> None:
    model = make("Llama")
    for layer in model.model.layers:
        layer.mlp.down_proj = Stopping(layer.mlp.down_proj)
        layer.self_attn.o_proj.weight.data.zero_()
    loaded = load_model(model)
    assert loaded.W_O.abs().max() == 0
    model.model.layers[1].self_attn.o_proj.forward = lambda x: torch.zeros_like(x)
    with pytest.raises(HeadcodesError, match="gradient must reach every part"):
        eap.find("eap", Inputs(loaded, from_clean(PROMPTS)), "node", 0)


def test_a_model_that_sees_what_comes_after_is_refused() -> None:
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    bert = BertLMHeadModel(BertConfig(vocab_size=97, initializer_range=0.5, **sizes)).eval()
    with pytest.raises(HeadcodesError, match="left to right"):
        load_model(bert, projection="bert.encoder.layer.{layer}.attention.output.dense")


def test_a_switch_that_keeps_the_hub_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: pytest.fail("a name was looked up"))
    with pytest.raises(HeadcodesError, match=r"someone/nothing.*HF_HUB_OFFLINE=1"):
        load_model("someone/nothing")


def test_what_is_no_model_no_prompts_or_no_tokenizer_gets_one_line(tiny_model: Any, tiny_hf: Any) -> None:
    from headcodes import tasks

    model = tiny_model("llama")
    pairs = tasks.get("ioi").build(model.tokenizer, n=4, seed=0)
    for args, reason in (
        ((tiny_hf("llama"), pairs), r"must be a Model; got a transformers.*load_model\(model"),
        ((model, list(pairs)), r"must be a PromptPairs; got a builtins.list"),
        ((load_model(tiny_hf("llama")), pairs), "must have a tokenizer"),
    ):
        with pytest.raises(HeadcodesError, match=reason):
            discover(*args)
