"""Path patching and carried edges against plain loops over whole forward passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headcodes.errors import HeadcodesError
from headcodes.interventions.carried import carried_edges, composed_edges
from headcodes.interventions.engine import Compute
from headcodes.interventions.paths import path_effects
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs
from plain_runs import CLOSE, answered, plain_ld, seen, token_pairs


def plain_path(
    model: Model, tokens: TokenPairs, index: int, sender: tuple[int, int], receiver: tuple[int, int], slot: str
) -> float:
    """Path patching by hand, for separate q, k and v projections."""
    clean, corrupt = (seen(model, ids, model.projections) for ids in (tokens.clean[index], tokens.corrupt[index]))
    held = []
    for layer in range(model.n_layers):
        z = clean[layer].clone()
        if layer == sender[0]:
            cut = slice(sender[1] * model.d_head, (sender[1] + 1) * model.d_head)
            z[..., cut] = corrupt[layer][..., cut]
        held.append(z)
    first = {model.projections[layer]: (lambda _x, z=held[layer]: z) for layer in range(sender[0], model.n_layers)}
    if slot == "logits":
        return plain_ld(model, tokens, index, tokens.clean[index]) - plain_ld(
            model, tokens, index, tokens.clean[index], first
        )
    module = getattr(model.attention(receiver[0]), f"{slot}_proj")
    kept: list[torch.Tensor] = []
    plain_ld(model, tokens, index, tokens.clean[index], first, after={module: lambda x: (kept.append(x.clone()), x)[1]})
    head = receiver[1] if slot == "q" else receiver[1] // (model.n_heads // model.n_kv_heads)

    def edit(x: torch.Tensor) -> torch.Tensor:
        cut = slice(head * model.d_head, (head + 1) * model.d_head)
        x[..., cut] = kept[0][..., cut]
        return x

    def only_the_receiver(z: torch.Tensor) -> torch.Tensor:
        cut = slice(receiver[1] * model.d_head, (receiver[1] + 1) * model.d_head)
        rest = clean[receiver[0]].clone()
        rest[..., cut] = z[..., cut]
        return rest

    alone = {model.projections[receiver[0]]: only_the_receiver}
    patched = plain_ld(model, tokens, index, tokens.clean[index], alone, after={module: edit})
    return plain_ld(model, tokens, index, tokens.clean[index]) - patched


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text"])
def test_paths_are_those_of_a_plain_loop(tiny_model: Any, family: str) -> None:
    model = tiny_model(family)
    tokens = answered(model, token_pairs())
    paths = [((0, 1), (2, 3), "q"), ((0, 1), (1, 2), "k"), ((1, 0), (2, 3), "v"), ((0, 3), (0, 0), "logits")]
    edges = [(f"a{s[0]}.h{s[1]}", "logits" if slot == "logits" else f"a{r[0]}.h{r[1]}<{slot}>") for s, r, slot in paths]
    expected = np.array([[plain_path(model, tokens, i, *path) for path in paths] for i in range(5)])
    assert np.all(np.abs(expected).max(axis=0) > 1e-4)
    for engine in ("walk", "forward"):
        found = path_effects(model, tokens, edges, compute=Compute(engine))  # type: ignore[arg-type]
        np.testing.assert_allclose(found.effects, expected, **CLOSE)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_fused_projections_are_cut_right(tiny_model: Any, family: str) -> None:
    """Patching all of q, k and v of every head of the next layer, from every head: what the layer reads is corrupt."""
    from headcodes.models.slots import slot_projection

    model = tiny_model(family)
    x = torch.randn(2, 5, model.d_model)
    attention = model.attention(0)
    module = slot_projection(model, 0, "q")[0]
    with torch.no_grad():
        out = module(x)
    cut = {slot: slot_projection(model, 0, slot)[1](out) for slot in "qkv"}
    kept: dict[str, torch.Tensor] = {}
    import transformers.models.gpt2.modeling_gpt2 as gpt2
    import transformers.models.gpt_neox.modeling_gpt_neox as neox

    # transformers' own cut: what its attention function is handed (rotary embedding leaves values alone, and at
    # position 0 everything).
    source = {"gpt2": gpt2, "gpt_neox": neox}[family]

    def spy(_module: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *_a: Any, **_k: Any) -> Any:
        kept.update(q=q, k=k, v=v)
        return torch.zeros(q.shape[0], q.shape[2], q.shape[1], q.shape[3]), None

    model.module.config._attn_implementation = "eager"
    original = source.eager_attention_forward
    source.eager_attention_forward = spy
    try:
        with torch.no_grad():
            hidden = x
            extra = {}
            if family == "gpt_neox":
                rotary = model.module.gpt_neox.rotary_emb(hidden, torch.arange(5)[None])
                extra = {"position_embeddings": rotary}
            attention(hidden, attention_mask=None, **extra)
    finally:
        source.eager_attention_forward = original
    for slot in "qkv":
        theirs = kept[slot].transpose(1, 2)
        positions = slice(None) if slot == "v" or family == "gpt2" else slice(0, 1)
        torch.testing.assert_close(cut[slot][:, positions], theirs[:, positions])


def test_a_slotless_edge_patches_all_three(tiny_model: Any) -> None:
    model = tiny_model("qwen2")
    tokens = answered(model, token_pairs())
    whole = path_effects(model, tokens, [("a0.h0", "a1.h1")]).effects
    parts = path_effects(model, tokens, [("a0.h0", f"a1.h1<{slot}>") for slot in "qkv"]).effects
    assert np.abs(whole[:, 0] - parts.sum(axis=1)).max() < np.abs(whole).max()
    assert np.abs(whole[:, 0] - parts[:, 0]).max() > 1e-6
    for edge in (("a1.h0", "a1.h1"), ("a2.h0", "a1.h1"), ("m0", "a1.h1"), ("a0.h0", "m1"), ("a0.h0", "a3.h0")):
        with pytest.raises(HeadcodesError, match="path must go"):
            path_effects(model, tokens, [edge])


def test_a_shared_key_is_changed_for_one_head_alone(tiny_model: Any) -> None:
    """Grouped queries are the same sums as a model in which every head has its own copy of its group's key and value:
    there a path into one head can only change that head."""
    grouped = tiny_model("llama")
    assert grouped.n_kv_heads < grouped.n_heads
    spread = tiny_model("llama", num_key_value_heads=grouped.n_heads)
    weights = grouped.module.state_dict()
    for name, tensor in weights.items():
        if "k_proj" in name or "v_proj" in name:
            by_head = tensor.unflatten(0, (grouped.n_kv_heads, -1))
            weights[name] = by_head.repeat_interleave(grouped.n_heads // grouped.n_kv_heads, dim=0).flatten(0, 1)
    spread.module.load_state_dict(weights)
    tokens = answered(grouped, token_pairs())
    edges = [("a0.h1", f"a2.h{head}<{slot}>") for head in range(grouped.n_heads) for slot in "qkv"]
    expected = path_effects(spread, tokens, edges).effects
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(path_effects(grouped, tokens, edges).effects, expected, **CLOSE)
    # The receivers of one group differ, as they could not if a change were booked for the group.
    assert np.abs(expected[:, 1] - expected[:, 4]).max() > 1e-5


def test_paths_have_intervals_and_names(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs())
    edges = [("a0.h1", "a2.h3<q>"), ("a0.h0", "logits")]
    found = path_effects(model, tokens, edges)
    np.testing.assert_allclose(found.mean, found.effects.mean(axis=0))
    assert np.all((found.low <= found.mean) & (found.mean <= found.high))
    assert [(row["from"], row["to"]) for row in found.as_rows()] == edges
    assert found.confirmed(1e9) == []
    with pytest.raises(HeadcodesError, match="paths to patch"):
        path_effects(model, tokens, [])


def slope(
    model: Model, tokens: TokenPairs, index: int, sender: tuple[int, int], receiver: tuple[int, int], slot: str
) -> float:
    """How steeply LD falls as one head's result goes towards what it is with its query, key or value from the sender's
    run, by a central difference and plain hooks; every head has keys and values of its own."""
    clean, corrupt = (seen(model, ids, model.projections) for ids in (tokens.clean[index], tokens.corrupt[index]))
    held = [z.clone() for z in clean]
    cut = slice(sender[1] * model.d_head, (sender[1] + 1) * model.d_head)
    held[sender[0]][..., cut] = corrupt[sender[0]][..., cut]
    layer, projection = model.layers[receiver[0]], model.projections[receiver[0]]
    kept: list[torch.Tensor] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        kept.append(x.clone())
        return x

    edits: dict[Any, Any] = {part: (lambda _x, z=z: z) for part, z in zip(model.projections, held, strict=True)}
    plain_ld(model, tokens, index, tokens.clean[index], edits | {layer: keep})
    module = getattr(model.attention(receiver[0]), f"{slot}_proj")
    with torch.no_grad():
        moved = module(layer.input_layernorm(kept.pop()))
    own = slice(receiver[1] * model.d_head, (receiver[1] + 1) * model.d_head)

    def edit(x: torch.Tensor) -> torch.Tensor:
        x[..., own] = moved[..., own]
        return x

    plain_ld(model, tokens, index, tokens.clean[index], {projection: keep}, after={module: edit})
    result = kept.pop()

    def at(step: float) -> float:
        def go(z: torch.Tensor) -> torch.Tensor:
            z[..., own] += step * (result[..., own] - z[..., own])
            return z

        return plain_ld(model, tokens, index, tokens.clean[index], {projection: go})

    return (at(-0.05) - at(0.05)) / 0.1


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_carried_edges_are_slopes_of_path_patching(tiny_model: Any, family: str) -> None:
    model = tiny_model(family, num_key_value_heads=4)
    tokens = answered(model, token_pairs())
    names, scores = carried_edges(model, tokens, [(0, 1), (1, 2), (2, 3)])
    assert len(names) == 9
    paths = [((0, 1), (1, 2), "k"), ((0, 1), (2, 3), "q"), ((1, 2), (2, 3), "v")]
    for sender, receiver, slot in paths:
        column = names.index((f"a{sender[0]}.h{sender[1]}", f"a{receiver[0]}.h{receiver[1]}<{slot}>"))
        expected = [slope(model, tokens, index, sender, receiver, slot) for index in range(len(tokens))]
        assert np.abs(expected).max() > 1e-4
        np.testing.assert_allclose(scores[:, column], expected, atol=2e-3 * np.abs(expected).max(), rtol=2e-2)


def test_composition_is_a_share_of_what_two_heads_could_carry(tiny_model: Any) -> None:
    model = tiny_model("llama")
    assert model.n_kv_heads == 2
    names, strengths = composed_edges(model, [(0, 1), (2, 3)])
    assert names == [("a0.h1", f"a2.h3<{slot}>") for slot in "qkv"]
    written = model.layers[0].self_attn.o_proj.weight[:, 1 * model.d_head : 2 * model.d_head].detach().double()
    for slot, strength in zip("qkv", strengths, strict=True):
        place = 3 if slot == "q" else 1
        weight = getattr(model.layers[2].self_attn, f"{slot}_proj").weight.detach().double()
        read = weight[place * model.d_head : (place + 1) * model.d_head]
        expected = torch.linalg.matrix_norm(read @ written)
        expected = expected / torch.linalg.matrix_norm(read) / torch.linalg.matrix_norm(written)
        assert strength == pytest.approx(float(expected), rel=1e-4)


def test_carried_edges_need_two_layers(tiny_model: Any) -> None:
    model = tiny_model("llama")
    assert carried_edges(model, token_pairs(), [(1, 0), (1, 2)])[0] == []
    with pytest.raises(HeadcodesError, match="layers of"):
        carried_edges(model, token_pairs(), [(9, 0)])
