"""Patching against a plain loop: one pair, one part, one whole forward pass at a time, with hooks of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes.activations import cache as activation_cache
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions import patch as patching
from headcodes.interventions import verify as verifying
from headcodes.interventions.carried import carried_edges, composed_edges
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.paths import path_effects
from headcodes.interventions.verify import verify
from headcodes.interventions.walk import EngineUsed
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
# Effects of random weights are of the order of .1; the tolerance is of fp32 rounding on logits of the order of 1.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


# Pairs of two lengths and three first changed places, one of them the very first token.
token_pairs = partial(
    made_pairs.token_pairs,
    lengths=(9, 9, 6, 9, 6),
    places=((4, 6), (4, 6), (0, 2), (8,), (2, 4)),
    n_right=(1, 2),
    n_wrong=(1, 2, 3),
)


def answered(model: Model, tokens: TokenPairs) -> TokenPairs:
    """Swap the answers of pairs that the model gets wrong: every pair is then answered."""
    right, wrong = [], []
    for index in range(len(tokens)):
        swap = plain_ld(model, tokens, index, tokens.clean[index]) < 0
        right.append(tokens.wrong_answers[index] if swap else tokens.answers[index])
        wrong.append(tokens.answers[index] if swap else tokens.wrong_answers[index])
    return TokenPairs(tokens.clean, tokens.corrupt, right, wrong, tokens.bos, tokens.pairs)


def plain_ld(
    model: Model,
    tokens: TokenPairs,
    index: int,
    ids: list[int],
    edits: dict[Any, Callable[[Any], Any]] | None = None,
    after: dict[Any, Callable[[Any], Any]] | None = None,
) -> float:
    """Run the whole model once; ``edits`` change modules' inputs, ``after`` their outputs."""
    handles = [
        module.register_forward_pre_hook(lambda _m, args, edit=edit: (edit(args[0].clone()), *args[1:]))
        for module, edit in (edits or {}).items()
    ]
    handles += [
        module.register_forward_hook(lambda _m, _a, out, edit=edit: edit(out.clone()))
        for module, edit in (after or {}).items()
    ]
    try:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()
    right, wrong = logits[tokens.answers[index]], logits[tokens.wrong_answers[index]]
    return float(right.logsumexp(0) - wrong.logsumexp(0))


def seen(model: Model, ids: list[int], modules: list[Any], which: str = "input") -> list[torch.Tensor]:
    """Inputs or outputs of modules in a plain run."""
    kept: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, args, out, i=i: kept.__setitem__(i, (args[0] if which == "input" else out).clone())
        )
        for i, module in enumerate(modules)
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [kept[i] for i in range(len(modules))]


def plain_effects(model: Model, tokens: TokenPairs, mlps: bool = False) -> np.ndarray:
    rows = []
    for index in range(len(tokens)):
        clean = plain_ld(model, tokens, index, tokens.clean[index])
        z = seen(model, tokens.corrupt[index], model.projections)
        row = []
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                cut = slice(head * model.d_head, (head + 1) * model.d_head)

                def edit(x: torch.Tensor, layer: int = layer, cut: slice = cut, z: Any = z) -> torch.Tensor:
                    x[..., cut] = z[layer][..., cut]
                    return x

                row.append(
                    clean - plain_ld(model, tokens, index, tokens.clean[index], {model.projections[layer]: edit})
                )
        if mlps:
            modules = [model.mlp(layer) for layer in range(model.n_layers)]
            outputs = seen(model, tokens.corrupt[index], modules, "output")
            for module, out in zip(modules, outputs, strict=True):
                patched = plain_ld(model, tokens, index, tokens.clean[index], after={module: lambda _x, out=out: out})
                row.append(clean - patched)
        rows.append(row)
    return np.array(rows)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADCODES_CACHE", str(tmp_path))


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_a_plain_loop(tiny_model: Any, family: str) -> None:
    model = tiny_model(family)
    tokens = answered(model, token_pairs())
    expected = plain_effects(model, tokens, mlps=True)
    assert np.abs(expected).max() > 0.02
    truth = causal_truth(model, tokens, "heads+mlps", engine="walk", cache=False)
    np.testing.assert_allclose(truth.effects, expected, **CLOSE)
    assert truth.names == [*model.components, "m0", "m1", "m2"]
    assert (truth.n_answered, truth.n_given) == (5, 5)
    for index in range(5):
        assert truth.clean_ld[index] == pytest.approx(plain_ld(model, tokens, index, tokens.clean[index]), abs=2e-5)
        assert truth.corrupt_ld[index] == pytest.approx(plain_ld(model, tokens, index, tokens.corrupt[index]), abs=2e-5)
    forward = causal_truth(model, tokens, engine="forward", cache=False)
    np.testing.assert_allclose(forward.effects, expected[:, :12], **CLOSE)
    np.testing.assert_array_equal(truth.head_effects, truth.effects[:, :12].mean(axis=0).reshape(3, 4))


def test_small_batches_give_the_same(tiny_model: Any) -> None:
    model = tiny_model("qwen2")
    tokens = answered(model, token_pairs())
    whole = causal_truth(model, tokens, "heads+mlps", cache=False)
    small = causal_truth(model, tokens, "heads+mlps", cache=False, memory_bytes=1)
    np.testing.assert_allclose(small.effects, whole.effects, **CLOSE)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_windows_shorter_than_the_prompt(tiny_model: Any, family: str) -> None:
    model = tiny_model(family, sliding_window=3)
    tokens = answered(model, token_pairs())
    truth = causal_truth(model, tokens, engine="walk", cache=False)
    np.testing.assert_allclose(truth.effects, plain_effects(model, tokens), **CLOSE)


def test_eager_attention(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    from headcodes.models.load import load_model

    model = load_model(tiny_hf("llama", attn_implementation="eager"), tokenizer=tiny_tokenizer)
    tokens = answered(model, token_pairs())
    truth = causal_truth(model, tokens, engine="walk", cache=False)
    np.testing.assert_allclose(truth.effects, plain_effects(model, tokens), **CLOSE)


def test_only_answered_pairs_count(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs())
    bad = [1, 3]
    right = [tokens.wrong_answers[i] if i in bad else tokens.answers[i] for i in range(5)]
    wrong = [tokens.answers[i] if i in bad else tokens.wrong_answers[i] for i in range(5)]
    mixed = TokenPairs(tokens.clean, tokens.corrupt, right, wrong, False, tokens.pairs)
    full = causal_truth(model, tokens, cache=False)
    truth = causal_truth(model, mixed, cache=False)
    assert (truth.n_answered, truth.n_given) == (3, 5)
    np.testing.assert_allclose(truth.effects, full.effects[[0, 2, 4]], **CLOSE)
    two = causal_truth(model, mixed, pairs=2, cache=False)
    # Nothing is asked of pairs that are not needed, and only those asked are spoken of.
    assert (two.n_answered, two.n_given, len(two.effects)) == (2, 3, 2)
    np.testing.assert_allclose(two.effects, full.effects[[0, 2]], **CLOSE)
    one = verify(model, mixed, [(0, 0)], pairs=3)
    assert (one.n_answered, one.n_given) == (3, 5)
    none = TokenPairs(tokens.clean, tokens.corrupt, tokens.wrong_answers, tokens.answers, False, tokens.pairs)
    with pytest.raises(HeadcodesError, match="none of 5"):
        causal_truth(model, none)


def test_a_model_is_left_as_it_was(tiny_model: Any) -> None:
    model = tiny_model("gpt2")
    model.module.train()
    tokens = token_pairs()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    causal_truth(model, answered(tiny_model("gpt2"), tokens), "heads+mlps", cache=False)
    assert model.module.training
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in model.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.module.state_dict().items())


def test_cache_is_kept_by_content_and_goes_on_where_it_stopped(
    tiny_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs())
    first = causal_truth(model, tokens.subset([0, 2]))
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 2
    full = causal_truth(model, tokens)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 5
    np.testing.assert_array_equal(full.effects[[0, 2]], first.effects)

    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("nothing is left to run")

    with monkeypatch.context() as patch:
        patch.setattr(patching, "run_edited", refuse)
        again = causal_truth(model, tokens)
        np.testing.assert_array_equal(again.effects, full.effects)
        # another model, other answers, other components: none of it may be read back
        more = TokenPairs(
            tokens.clean,
            tokens.corrupt,
            [[*ids, 199] for ids in tokens.answers],
            tokens.wrong_answers,
            False,
            tokens.pairs,
        )
        for others in (
            lambda: causal_truth(model, answered(model, more)),
            lambda: causal_truth(tiny_model("llama", seed=1), answered(tiny_model("llama", seed=1), tokens)),
            lambda: causal_truth(model, tokens, "heads+mlps"),
        ):
            with pytest.raises(AssertionError, match="nothing is left"):
                others()
        patch.setattr(patching, "code_checksum", lambda: "other code")
        with pytest.raises(AssertionError, match="nothing is left"):
            causal_truth(model, tokens)
    (entry,) = activation_cache.ls()
    assert (entry.task, entry.n_pairs) == ("made, causal truth", 5)
    files[0].write_bytes(b"broken")
    with pytest.warns(HeadcodesWarning, match="damaged file of the cache"):
        np.testing.assert_allclose(causal_truth(model, tokens).effects, full.effects, **CLOSE)
    assert activation_cache.clear() > 0
    assert not list(tmp_path.rglob("*.safetensors"))


def test_unequal_lengths_are_refused_before_anything_runs(tiny_model: Any) -> None:
    tokens = token_pairs()
    tokens.corrupt[1].append(5)
    with pytest.raises(HeadcodesError, match="9 and 10 at prompt 1"):
        causal_truth(tiny_model("llama"), tokens)
    with pytest.raises(HeadcodesError, match="components must be"):
        causal_truth(tiny_model("llama"), tokens, "all")  # type: ignore[arg-type]


def test_verify_is_the_truth_of_a_few_heads(tiny_model: Any) -> None:
    model = tiny_model("qwen3")
    tokens = answered(model, token_pairs(n=10))
    truth = causal_truth(model, tokens, cache=False)
    heads = [(2, 3), (0, 1), (1, 0), (0, 1)]
    found = verify(model, tokens, heads)
    assert found.heads == heads
    np.testing.assert_allclose(found.effects, truth.effects[:, [11, 1, 4, 1]], **CLOSE)
    np.testing.assert_allclose(found.mean, found.effects.mean(axis=0))
    assert np.all(found.low <= found.mean)
    assert np.all(found.mean <= found.high)
    assert np.all(found.low >= found.effects.min(axis=0))
    again = verify(model, tokens, heads)
    np.testing.assert_array_equal(found.low, again.low)
    assert [row["head"] for row in found.as_rows()] == ["a2.h3", "a0.h1", "a1.h0", "a0.h1"]
    for bad in ([], [(3, 0)], [(0, 4)], [(-1, 0)]):
        with pytest.raises(HeadcodesError):
            verify(model, tokens, bad)


def test_a_verification_asks_only_for_what_is_not_known(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs(n=10))
    asked = verify(model, tokens, [(0, 1), (2, 0)], pairs=4)
    _, clean, corrupt, _, _ = patching.answered(model, tokens, None)
    clean[1] = -1.0  # were it so, the pair would be passed over
    monkeypatch.setattr(patching, "capture", lambda *_args, **_named: pytest.fail("the model was asked"))
    told = verify(model, tokens, [(0, 1), (2, 0)], pairs=4, known=(clean, corrupt))
    assert (told.n_answered, told.n_given) == (4, 5)
    np.testing.assert_array_equal(told.clean_ld, clean[[0, 2, 3, 4]])
    np.testing.assert_array_equal(told.corrupt_ld, corrupt[[0, 2, 3, 4]])
    np.testing.assert_allclose(told.effects[[0, 1, 2]], asked.effects[[0, 2, 3]], **CLOSE)


def test_confirmed_heads_surely_have_an_effect_and_maybe_some_size() -> None:
    found = verifying.Verification(
        heads=[(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)],
        effects=(effects := np.array([[1.0, -1.0, 0.3, 0.3, 3.0, 0.3], [1.0, -1.0, 0.1, 0.3, -2.0, 0.5]])),
        mean=effects.mean(axis=0),
        low=np.array([0.5, -2.0, -0.1, 0.3, -2.0, 0.3]),
        high=np.array([2.0, -0.5, 0.9, 0.4, 3.0, 0.6]),
        clean_ld=np.array([9.0, 11.0]),
        corrupt_ld=np.zeros(2),
        n_answered=2,
        n_given=2,
    )
    # 5% of 10 is half a logit. (0, 2) may have none, (0, 3) surely has less; (1, 0) changes sign from prompt to prompt.
    assert found.confirmed() == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert found.confirmed(0.01) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]


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
        found = path_effects(model, tokens, edges, engine=engine)  # type: ignore[arg-type]
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


def test_a_walk_that_goes_wrong_is_noticed(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.interventions import walk as sweep

    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    tokens = answered(model, token_pairs())
    expected = plain_effects(model, tokens)
    np.testing.assert_allclose(causal_truth(model, tokens, engine="walk", cache=False).effects, expected, **CLOSE)
    honest = sweep._answers
    monkeypatch.setattr(sweep, "_answers", lambda *args: 1.1 * honest(*args))
    with pytest.raises(HeadcodesError, match="own forward pass"):
        causal_truth(model, tokens, engine="walk", cache=False)
    with pytest.warns(HeadcodesWarning, match="whole forward passes.*own answers"):
        truth = causal_truth(model, tokens, cache=False)
    np.testing.assert_allclose(truth.effects, expected, **CLOSE)


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


# What a model of transformers may stop to offer, one by one: each stand-in lacks it.
def _takes_no_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = model.module.base_model
    forward = type(body).forward

    def refuses(self: Any, *args: Any, **named: Any) -> Any:
        if {"cache", "past_key_values"} & {name for name, value in named.items() if value is not None}:
            raise TypeError("forward() got an unexpected keyword argument")
        return forward(self, *args, **named)

    monkeypatch.setattr(type(body), "forward", refuses)


def _fills_no_cache(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    body = model.module.base_model
    forward = type(body).forward

    def ignores(self: Any, *args: Any, **named: Any) -> Any:
        return forward(self, *args, **{n: v for n, v in named.items() if n not in ("cache", "past_key_values")})

    monkeypatch.setattr(type(body), "forward", ignores)


def _has_no_final_norm(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "final_norm", None)


@pytest.mark.parametrize(
    ("lack", "reason"),
    [
        (_takes_no_cache, "fills no cache of keys and values given as cache or past_key_values"),
        (_fills_no_cache, "fills no cache"),
        (_has_no_final_norm, "its final norm is not known"),
    ],
)
def test_whole_forward_passes_are_announced_and_recorded_with_their_reason(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch, lack: Any, reason: str
) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs())
    walked = causal_truth(model, tokens, cache=False)
    assert walked.engine == EngineUsed("walk")
    model = tiny_model("llama")
    lack(model, monkeypatch)
    with pytest.warns(HeadcodesWarning, match=f"whole forward passes.*{reason}"):
        slower = causal_truth(model, tokens, cache=False)
    assert slower.engine is not None
    assert slower.engine.name == "forward"
    assert reason in str(slower.engine.why)
    np.testing.assert_allclose(slower.effects, walked.effects, **CLOSE)
    with pytest.raises(HeadcodesError, match=reason):
        causal_truth(model, tokens, cache=False, engine="walk")
    assert causal_truth(model, tokens, cache=False, engine="forward").engine == EngineUsed("forward")


def test_a_newer_transformers_is_named_where_it_is_not_recognised(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.models import prefix_cache, relied

    model = tiny_model("llama")
    _fills_no_cache(model, monkeypatch)
    assert "newer" not in str(prefix_cache.why_not_walked(model))
    monkeypatch.setattr(relied.metadata, "version", lambda _name: "5.40.1")
    assert "transformers 5.40.1 is newer than any that was tried" in str(prefix_cache.why_not_walked(model))
