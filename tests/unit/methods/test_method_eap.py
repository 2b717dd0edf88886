"""EAP and EAP-IG: exact where the model is linear, complete where the integral says so, edges by finite differences."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import made_pairs
from headcodes.errors import HeadcodesError
from headcodes.interventions.engine import Compute
from headcodes.interventions.patch import causal_truth
from headcodes.methods import eap
from headcodes.methods.findings import Findings
from headcodes.methods.inputs import Inputs
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
METHODS = ("eap", "eap-ig-inputs", "eap-ig-activations", "eap-ig-inputs-left")


# Pairs of two lengths, so that some are filled up.
token_pairs = partial(made_pairs.token_pairs, n=4, seed=3, lengths=(7, 6), n_right=(2,), n_wrong=(3,))


def metric(model: Model, tokens: TokenPairs, ids: list[list[int]]) -> float:
    """Mean logit difference by plain forward passes of transformers, one prompt at a time."""
    total = 0.0
    with torch.no_grad():
        for prompt, right, wrong in zip(ids, tokens.answers, tokens.wrong_answers, strict=True):
            logits = model.module(input_ids=torch.tensor([prompt])).logits[0, -1].double()
            total += float(logits[right].logsumexp(0) - logits[wrong].logsumexp(0))
    return total / len(ids)


def linear_gpt2(tiny_model: Any) -> Model:
    """Attention that looks everywhere alike, no norms, no MLPs: every part's effect on the logits is linear."""
    model: Model = tiny_model("gpt2")
    body: Any = model.module.transformer
    with torch.no_grad():
        for block in body.h:
            block.ln_1, block.ln_2 = nn.Identity(), nn.Identity()
            block.attn.c_attn.weight[:, : 2 * model.d_model] = 0
            block.attn.c_attn.bias[: 2 * model.d_model] = 0
            block.mlp.c_proj.weight.zero_()
    body.ln_f = model.final_norm = nn.Identity()
    return model


@pytest.mark.parametrize("name", METHODS)
def test_on_a_linear_model_scores_are_the_effects_of_exact_patching(tiny_model: Any, name: str) -> None:
    model = linear_gpt2(tiny_model)
    tokens = token_pairs(n_right=(1,), n_wrong=(1,))
    wrong = [i for i in range(4) if metric(model, tokens.subset([i]), [tokens.clean[i]]) < 0]
    for i in wrong:  # patching looks at answered pairs only
        tokens.answers[i], tokens.wrong_answers[i] = tokens.wrong_answers[i], tokens.answers[i]
    truth = causal_truth(model, tokens, cache=False, compute=Compute("forward"), progress=False)
    found = eap.find(name, Inputs(model, tokens), "edge", 0)
    assert found.signed is not None
    assert np.abs(truth.head_effects).max() > 1e-2
    np.testing.assert_allclose(found.signed, truth.head_effects, atol=2e-5, rtol=1e-4)
    np.testing.assert_array_equal(found.head_scores, np.abs(found.signed))
    lost = metric(model, tokens, tokens.clean) - metric(model, tokens, tokens.corrupt)
    np.testing.assert_allclose(found.other_nodes["input"], lost, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_nodes_edges_add_up_to_its_score(tiny_model: Any, family: str, name: str) -> None:
    model: Model = tiny_model(family)
    found = eap.find(name, Inputs(model, token_pairs()), "edge", 0, steps=2)
    assert found.edges is not None
    assert found.signed is not None
    totals = dict(zip(found.edges.sources, np.nansum(found.edges.scores, axis=1), strict=True))
    scores = found.other_nodes | dict(zip(model.components, found.signed.ravel(), strict=True))
    assert totals.keys() == scores.keys()
    for node, score in scores.items():
        assert totals[node] == pytest.approx(score, abs=2e-5, rel=2e-4), node


def test_edges_are_those_of_the_graph(tiny_model: Any) -> None:
    for family, parallel in (("llama", False), ("gpt_neox", True)):
        model: Model = tiny_model(family)
        edges = eap.find("eap", Inputs(model, token_pairs()), "edge", 0).edges
        assert edges is not None
        stages = {"input": -1.0, "logits": 99.0}
        for layer in range(3):
            stages[f"m{layer}"] = layer + (0 if parallel else 0.5)
            stages |= {f"a{layer}.h{head}": layer for head in range(4)}
        for i, source in enumerate(edges.sources):
            for j, target in enumerate(edges.destinations):
                is_edge = stages[source] < stages[target.split("<")[0]]
                assert bool(np.isfinite(edges.scores[i, j])) == is_edge, (source, target)
        # 12 (1 + 6 + 11) + (5 + 10 + 15) + 16 edges; 12 fewer where MLPs do not read their own layer's heads.
        assert np.isfinite(edges.scores).sum() == 262 - (12 if parallel else 0)


def test_input_integrals_are_complete(tiny_model: Any) -> None:
    model, tokens = tiny_model("llama"), token_pairs()
    lost = metric(model, tokens, tokens.clean) - metric(model, tokens, tokens.corrupt)
    errors = [
        abs(eap.find("eap-ig-inputs", Inputs(model, tokens), "node", 0, steps=steps).other_nodes["input"] - lost)
        for steps in (5, 20, 80)
    ]
    # The right Riemann sum's error falls as 1 / steps.
    assert errors[2] < 0.02 * abs(lost)
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize("name", METHODS[1:3])
def test_one_step_is_the_clean_run(tiny_model: Any, name: str) -> None:
    """Of corrupt + k/m (clean - corrupt), k = 1..m, the last point is clean: with m = 1 that is EAP."""
    inputs = Inputs(tiny_model("qwen3"), token_pairs())
    plain, single = eap.find("eap", inputs, "node", 0), eap.find(name, inputs, "node", 0, steps=1)
    assert plain.signed is not None
    assert single.signed is not None
    np.testing.assert_allclose(single.signed, plain.signed, atol=1e-5, rtol=1e-4)


def test_left_sums_begin_at_the_corrupted_run(tiny_model: Any) -> None:
    """With m = 1 the only point is corrupt: EAP with the sides exchanged, its differences then of the other sign."""
    model, tokens = tiny_model("qwen3"), token_pairs()
    exchanged = replace(tokens, clean=tokens.corrupt, corrupt=tokens.clean)

    def signed(name: str, of: TokenPairs, steps: int) -> Any:
        return eap.find(name, Inputs(model, of), "node", 0, steps=steps).signed

    left, right = "eap-ig-inputs-left", "eap-ig-inputs"
    np.testing.assert_allclose(signed(left, tokens, 1), -signed("eap", exchanged, 1), atol=1e-5, rtol=1e-4)
    # Of m steps, left and right sums share all points but their ends.
    ends = signed(right, tokens, 1) - signed(left, tokens, 1)
    np.testing.assert_allclose(4 * (signed(right, tokens, 4) - signed(left, tokens, 4)), ends, atol=4e-5, rtol=1e-3)


def test_activation_integrals_are_complete_for_each_layer(tiny_model: Any) -> None:
    model, tokens = tiny_model("gpt2"), token_pairs()
    found = eap.find("eap-ig-activations", Inputs(model, tokens), "node", 0, steps=60)
    assert found.signed is not None
    clean = metric(model, tokens, tokens.clean)
    for layer in range(3):
        lost = clean - patched_layer(model, tokens, layer)
        assert found.signed[layer].sum() == pytest.approx(lost, abs=0.02 * abs(lost) + 1e-4)


def patched_layer(model: Model, tokens: TokenPairs, layer: int) -> float:
    """The metric when all heads of a layer say what they say on the corrupted prompts; hooks of its own."""
    total = 0.0
    for index in range(len(tokens)):
        kept: list[Tensor] = []
        projection = model.projections[layer]
        with hook(projection, lambda args, kept=kept: kept.append(args[0])):
            metric(model, tokens.subset([index]), [tokens.corrupt[index]])
        with hook(projection, lambda _args, kept=kept: (kept[0],)):
            total += metric(model, tokens.subset([index]), [tokens.clean[index]])
    return total / len(tokens)


@contextmanager
def hook(module: nn.Module, change: Callable[..., Any]) -> Iterator[None]:
    handle = module.register_forward_pre_hook(lambda _m, args: change(args))
    yield
    handle.remove()


NORMS = {"gpt2": "ln_1", "llama": "input_layernorm", "gemma3_text": "input_layernorm", "gpt_neox": "input_layernorm"}


@pytest.mark.parametrize("family", NORMS)
def test_head_edges_are_derivatives_along_one_path(tiny_model: Any, family: str) -> None:
    """Each edge against a central difference in float64, by hooks that share nothing with the code under test."""
    model: Model = tiny_model(family)
    tokens = token_pairs(n=2)
    model.module.double()
    model.__dict__.pop("W_O", None)
    found = eap.find("eap", Inputs(model, tokens), "edge", 0).edges
    assert found is not None
    group = model.n_heads // model.n_kv_heads
    step = 1e-2  # norms of Llama and its kin round to fp32 whatever the dtype
    for slot in "qkv":
        for source in (1, 3):
            # Keys and values of a group of heads can be moved together only.
            heads = [2] if slot == "q" or group == 1 else [2, 3]
            derivative = 0.0
            for sign in (1, -1):
                moved = [moved_metric(model, tokens, i, family, slot, source, heads, sign * step) for i in range(2)]
                derivative -= sign * float(np.mean(moved)) / (2 * step)
            row = found.sources.index(f"a0.h{source}")
            scores = [found.scores[row, found.destinations.index(f"a2.h{head}<{slot}>")] for head in heads]
            assert sum(scores) == pytest.approx(derivative, rel=5e-3, abs=1e-5), (slot, source)


def moved_metric(
    model: Model, tokens: TokenPairs, index: int, family: str, slot: str, source: int, heads: list[int], share: float
) -> float:
    """The metric when heads of layer 2 read, in one slot, a stream in which a head of layer 0 is partly corrupted."""
    z: dict[str, Tensor] = {}
    block: Any = model.layers[0]
    pair = tokens.subset([index])
    for side, ids in (("clean", pair.clean), ("corrupt", pair.corrupt)):
        with hook(model.projections[0], lambda args, side=side: z.__setitem__(side, args[0].clone())):
            metric(model, pair, ids)
    d = model.d_head
    change = torch.zeros_like(z["clean"])
    change[..., source * d : (source + 1) * d] = (z["corrupt"] - z["clean"])[..., source * d : (source + 1) * d]
    projection: Any = model.projections[0]

    def written(x: Tensor) -> Tensor:
        y = projection.forward(x)
        return block.post_attention_layernorm.forward(y) if family.startswith("gemma") else y

    # The direction in which the stream moves is the derivative of what is written, by a small difference of its own.
    small = 1e-2
    direction = (written(z["clean"] + small * change) - written(z["clean"] - small * change)) / (2 * small)
    last: Any = model.layers[2]
    norm = getattr(last, NORMS[family])
    attention: Any = model.attention(2)
    stream: list[Tensor] = []
    names = {"gpt2": "c_attn", "gpt_neox": "query_key_value"}
    module = getattr(attention, names.get(family, f"{slot}_proj"))

    def note(_m: nn.Module, args: Any, kwargs: Any) -> None:
        stream.append(args[0] if args else kwargs["hidden_states"])

    def replace(_m: nn.Module, _args: Any, output: Tensor) -> Tensor:
        other = module.forward(norm.forward(stream[0] + share * direction))
        mixed = output.clone()
        for head in heads:
            if family == "gpt2":
                start = "qkv".index(slot) * model.d_model + head * d
            elif family == "gpt_neox":
                start = (3 * head + "qkv".index(slot)) * d
            else:
                start = (head if slot == "q" else head // (model.n_heads // model.n_kv_heads)) * d
            mixed[..., start : start + d] = other[..., start : start + d]
        return mixed

    handles = [last.register_forward_pre_hook(note, with_kwargs=True), module.register_forward_hook(replace)]
    value = metric(model, pair, pair.clean)
    for handle in handles:
        handle.remove()
    return value


def test_bf16_and_batches_change_little(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model: Model = tiny_model("llama")
    tokens = token_pairs()
    whole = eap.find("eap", Inputs(model, tokens), "edge", 0)
    monkeypatch.setattr(eap, "edge_bytes_per_token", lambda _model: 1 << 28)  # one pair a batch
    single = eap.find("eap", Inputs(model, tokens), "edge", 0)
    assert whole.edges is not None
    assert single.edges is not None
    np.testing.assert_allclose(whole.edges.scores, single.edges.scores, atol=1e-5)
    model.module.to(torch.bfloat16)
    model.__dict__.pop("W_O", None)
    half = eap.find("eap", Inputs(model, tokens), "node", 0)
    assert np.corrcoef(half.head_scores.ravel(), whole.head_scores.ravel())[0, 1] > 0.99


def test_the_model_is_left_as_it_was_found(tiny_model: Any) -> None:
    model: Model = tiny_model("gpt2")
    before = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.module.modules()]
    wants = [p.requires_grad for p in model.module.parameters()]
    result: Findings = eap.find("eap", Inputs(model, token_pairs()), "edge", 0)
    assert before == [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.module.modules()]
    assert wants == [p.requires_grad for p in model.module.parameters()]
    assert all(p.grad is None for p in model.module.parameters())
    assert result.pair_scores is not None
    np.testing.assert_array_equal(result.pair_scores, result.pair_scores.T)


@pytest.mark.parametrize("name", METHODS)
def test_unequal_lengths_are_refused_with_the_prompt_named(tiny_model: Any, name: str) -> None:
    tokens = token_pairs()
    tokens.corrupt[2].append(5)
    with pytest.raises(HeadcodesError, match=r"equally many tokens.*7 and 8 at prompt 2"):
        eap.find(name, Inputs(tiny_model("llama"), tokens), "node", 0)
