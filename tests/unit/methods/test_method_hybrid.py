"""Hybrid is EAP's products by pair and the flips of the codes it returns, from one backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes import methods
from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.methods.inputs import Inputs
from headcodes.settings import Settings

token_pairs = partial(made_pairs.token_pairs, n=9, seed=11)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text"])
def test_scores_are_products_by_pair_weighed_by_flips(
    tiny_model: Any, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = tiny_model(family), token_pairs()
    eap = methods.get("eap")
    single = [eap.find(Inputs(model, tokens.subset([i]))).signed for i in range(len(tokens))]
    n_backward = 0
    grad = torch.autograd.grad

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal n_backward
        n_backward += 1
        return grad(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", counted)
    found = methods.get("hybrid").find(Inputs(model, tokens, Settings(n_train=4)), seed=2)
    assert n_backward == 1
    assert found.codes is not None
    flips = found.codes[: len(tokens)] != found.codes[len(tokens) :]
    assert 0 < flips.mean() < 1
    weighed = [np.ravel(s) * np.where(f, 1.0, 0.5) for s, f in zip(single, flips, strict=True)]
    expected = np.abs(np.mean(weighed, axis=0)) + np.mean(np.abs(weighed), axis=0)
    np.testing.assert_allclose(found.head_scores.ravel(), expected, atol=1e-6, rtol=1e-3)
    assert found.signed is not None
    whole = eap.find(Inputs(model, tokens)).signed
    assert whole is not None
    np.testing.assert_allclose(found.signed, whole, atol=1e-6, rtol=1e-3)


def test_codes_are_of_the_heads_mean_results(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.methods import hybrid

    model, tokens = tiny_model("llama"), token_pairs()
    seen: list[Any] = []
    make_codes = hybrid.make_codes
    monkeypatch.setattr(hybrid, "make_codes", lambda heads, *rest: seen.append(heads) or make_codes(heads, *rest))
    first, again, other = (methods.get("hybrid").find(Inputs(model, tokens), seed=seed) for seed in (0, 0, 1))
    heads, _ = capture(model, [*tokens.clean, *tokens.corrupt])
    torch.testing.assert_close(seen[0].z, heads.z, atol=1e-6, rtol=1e-5)
    np.testing.assert_array_equal(first.head_scores, again.head_scores)
    assert not np.array_equal(first.codes, other.codes)


def test_unequal_lengths_are_refused(tiny_model: Any) -> None:
    tokens = token_pairs()
    tokens.corrupt[1].append(5)
    with pytest.raises(HeadcodesError, match="equally many tokens"):
        methods.get("hybrid").find(Inputs(tiny_model("gpt2"), tokens))
