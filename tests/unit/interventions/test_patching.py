"""Patching against a plain loop: one pair, one part, one whole forward pass at a time, with hooks of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headcodes.activations import cache as activation_cache
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions import patch as patching
from headcodes.interventions.base_runs import Prepared
from headcodes.interventions.engine import Compute, EngineUsed
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.verify import verify
from headcodes.models import planted, prefix_cache, relied
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs, tokenize
from plain_runs import CLOSE, FAMILIES, answered, plain_ld, seen, token_pairs


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


@pytest.mark.parametrize("family", FAMILIES)
def test_effects_are_those_of_a_plain_loop(tiny_model: Any, family: str) -> None:
    model = tiny_model(family)
    tokens = answered(model, token_pairs())
    expected = plain_effects(model, tokens, mlps=True)
    assert np.abs(expected).max() > 0.02
    truth = causal_truth(model, tokens, "heads+mlps", compute=Compute("walk"), cache=False)
    np.testing.assert_allclose(truth.effects, expected, **CLOSE)
    assert truth.names == [*model.components, "m0", "m1", "m2"]
    assert (truth.n_answered, truth.n_given) == (5, 5)
    for index in range(5):
        assert truth.clean_ld[index] == pytest.approx(plain_ld(model, tokens, index, tokens.clean[index]), abs=2e-5)
        assert truth.corrupt_ld[index] == pytest.approx(plain_ld(model, tokens, index, tokens.corrupt[index]), abs=2e-5)
    forward = causal_truth(model, tokens, compute=Compute("forward"), cache=False)
    np.testing.assert_allclose(forward.effects, expected[:, :12], **CLOSE)
    np.testing.assert_array_equal(truth.head_effects, truth.effects[:, :12].mean(axis=0).reshape(3, 4))


def test_heads_without_any_effect_have_none_to_the_last_bit() -> None:
    """Clean and edited runs end in one product: their rounding is the same, and no head is ranked by it."""
    plant = planted.load("planted-ioi")
    tokens = tokenize(plant.task.build(plant.model.tokenizer, 7), plant.model.tokenizer)
    truth = causal_truth(plant.model, tokens, compute=Compute("walk"), cache=False)
    others = np.ones((plant.model.n_layers, plant.model.n_heads), dtype=bool)
    others[tuple(zip(*plant.truth.heads, strict=True))] = False
    assert np.abs(truth.head_effects[~others]).min() > 0.02
    assert not truth.head_effects[others].any()


def test_small_batches_give_the_same(tiny_model: Any) -> None:
    model = tiny_model("qwen2")
    tokens = answered(model, token_pairs())
    whole = causal_truth(model, tokens, "heads+mlps", cache=False)
    small = causal_truth(model, tokens, "heads+mlps", cache=False, compute=Compute(memory_bytes=1))
    np.testing.assert_allclose(small.effects, whole.effects, **CLOSE)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text"])
def test_windows_shorter_than_the_prompt(tiny_model: Any, family: str) -> None:
    model = tiny_model(family, sliding_window=3)
    tokens = answered(model, token_pairs())
    truth = causal_truth(model, tokens, compute=Compute("walk"), cache=False)
    np.testing.assert_allclose(truth.effects, plain_effects(model, tokens), **CLOSE)


def test_eager_attention(tiny_hf: Any, tiny_tokenizer: Any) -> None:
    from headcodes.models.load import load_model

    model = load_model(tiny_hf("llama", attn_implementation="eager"), tokenizer=tiny_tokenizer)
    tokens = answered(model, token_pairs())
    truth = causal_truth(model, tokens, compute=Compute("walk"), cache=False)
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
        # another model, other answers or wrong ones, other components: none of it may be read back
        more = replace(tokens, answers=[[*ids, 199] for ids in tokens.answers])
        less = replace(tokens, wrong_answers=[ids[:-1] or [198] for ids in tokens.wrong_answers])
        for others in (
            lambda: causal_truth(model, answered(model, more)),
            lambda: causal_truth(model, answered(model, less)),
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


def test_a_walk_that_goes_wrong_is_noticed(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.interventions import base_runs

    model = tiny_model("gemma2", final_logit_softcapping=2.0)
    tokens = answered(model, token_pairs())
    expected = plain_effects(model, tokens)
    np.testing.assert_allclose(
        causal_truth(model, tokens, compute=Compute("walk"), cache=False).effects, expected, **CLOSE
    )
    honest = base_runs.answers_of
    monkeypatch.setattr(base_runs, "answers_of", lambda *args: 1.1 * honest(*args))
    with pytest.raises(HeadcodesError, match="own forward pass"):
        causal_truth(model, tokens, compute=Compute("walk"), cache=False)
    with pytest.warns(HeadcodesWarning, match="whole forward passes.*own answers"):
        truth = causal_truth(model, tokens, cache=False)
    np.testing.assert_allclose(truth.effects, expected, **CLOSE)


def test_a_layer_that_is_given_more_than_its_arguments_is_noticed(tiny_model: Any) -> None:
    model = tiny_model("llama")
    tokens = answered(model, token_pairs())
    seen: list[torch.Tensor] = []

    def sees(_module: Any, _args: Any, output: Any) -> None:
        seen[:] = [(output[0] if isinstance(output, tuple) else output)[:, -1:]]

    def adds(_module: Any, args: Any) -> Any:
        its = seen[0] if len(seen[0]) == len(args[0]) else seen[0][:1]
        return (args[0] + its, *args[1:])

    model.layers[0].register_forward_hook(sees)
    model.layers[1].register_forward_pre_hook(adds)
    # From layer 1 on, what layer 0 put out is that of another run.
    with pytest.raises(HeadcodesError, match="own forward pass"):
        verify(model, tokens, [(1, 0)], compute=Compute("walk"))
    with pytest.warns(HeadcodesWarning, match="own answers"):
        found = verify(model, tokens, [(1, 0)])
    expected = verify(model, tokens, [(1, 0)], compute=Compute("forward")).effects
    np.testing.assert_allclose(found.effects, expected, **CLOSE)


def test_base_runs_that_are_kept_serve_some_of_their_pairs(tiny_model: Any) -> None:
    model = tiny_model("qwen2")
    tokens = answered(model, token_pairs())
    prepared, some = Prepared(), list(range(0, len(tokens), 2))
    heads = [(0, 1), (1, 0)]
    expected = plain_effects(model, tokens)[some][:, [1, model.n_heads]]
    verify(model, tokens, heads, prepared=prepared)
    model.module.base_model.register_forward_pre_hook(lambda *_args: pytest.fail("made again"))
    known = np.ones(len(some)), np.zeros(len(some))
    again = verify(model, tokens.subset(some), heads, prepared=prepared, known=known).effects
    np.testing.assert_allclose(again, expected, **CLOSE)


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
        causal_truth(model, tokens, cache=False, compute=Compute("walk"))
    assert causal_truth(model, tokens, cache=False, compute=Compute("forward")).engine == EngineUsed("forward")


def test_a_newer_transformers_is_named(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    _fills_no_cache(model, monkeypatch)
    assert "newer" not in str(prefix_cache.why_not_walked(model))
    monkeypatch.setattr(relied.metadata, "version", lambda _name: "5.40.1")
    assert "transformers 5.40.1 is newer than any that was tried" in str(prefix_cache.why_not_walked(model))
