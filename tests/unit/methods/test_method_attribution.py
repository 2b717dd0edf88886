"""Attribution against EAP pair by pair, and what `default` stands for."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes import methods, metrics
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.interventions import gradients
from headcodes.interventions.carried import carried_edges
from headcodes.methods import default
from headcodes.methods.inputs import Inputs
from headcodes.models import planted
from headcodes.prompts.tokens import tokenize
from headcodes.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore:the model answers only")


token_pairs = partial(made_pairs.token_pairs, n=11, seed=3)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "gemma3_text"])
def test_scores_are_eaps_products_pair_by_pair_bounded(tiny_model: Any, family: str) -> None:
    model, tokens = tiny_model(family), token_pairs()
    found = methods.get("attribution").find(Inputs(model, tokens, Settings(n_train=4), held_out=2))
    eap = methods.get("eap")
    signed = [eap.find(Inputs(model, tokens.subset([i]))).signed for i in range(9)]
    products = np.array([s.ravel() for s in signed if s is not None])
    bounded = np.tanh(products)
    expected = np.abs(bounded.mean(0)) + np.abs(bounded).mean(0)
    np.testing.assert_allclose(found.head_scores.ravel(), expected, atol=1e-6, rtol=1e-3)
    assert found.signed is not None
    np.testing.assert_allclose(found.signed.ravel(), products.mean(0), atol=1e-6, rtol=1e-3)
    assert found.codes is not None
    assert found.codes.shape == (22, model.n_components)


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
def test_planted_heads_come_before_all_others(name: str) -> None:
    plant = planted.load(name)
    tokens = tokenize(plant.task.build(plant.model.tokenizer, n=24, seed=1), plant.model.tokenizer)
    found = methods.get("default").find(Inputs(plant.model, tokens))
    assert (found.method_used, found.fallback) == ("attribution", None)
    assert metrics.roc_auc(found.head_scores, plant.truth.labels) == 1.0
    # A plain product gives a head that the answer does not hang on exactly nothing.
    assert not found.head_scores[~plant.truth.labels].any()


def test_default_takes_the_other_method_where_told(tiny_model: Any) -> None:
    model, tokens = tiny_model(), token_pairs()
    found = methods.get("default").find(Inputs(model, tokens, gradient=False))
    assert (found.method_used, found.fallback) == ("contrast", "gradients were not asked for")
    alone = methods.get("contrast").find(Inputs(model, tokens))
    np.testing.assert_array_equal(found.head_scores, alone.head_scores)
    assert alone.method_used is None


def test_default_says_why_there_are_no_gradients(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    unequal = token_pairs()
    unequal.corrupt[3].append(7)
    with pytest.warns(HeadcodesWarning, match="contrast, which ranks heads less well.*pair 3 differ in length"):
        found = methods.get("default").find(Inputs(model, unequal))
    assert found.fallback is not None
    with pytest.raises(HeadcodesError, match="no common positions"):
        methods.get("attribution").find(Inputs(model, unequal))

    monkeypatch.setattr(gradients, "free_bytes", lambda _device: 10)
    with pytest.warns(HeadcodesWarning, match="0 MiB are free"):
        assert methods.get("default").find(Inputs(model, token_pairs())).method_used == "contrast"


def test_edges_are_refused_before_anything_is_run_where_memory_does_not_do(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model()
    monkeypatch.setattr(gradients, "free_bytes", lambda _device: 10)
    monkeypatch.setattr(model.module, "forward", lambda *_args, **_kwargs: pytest.fail("the model was run"))
    with pytest.raises(
        HeadcodesError, match=r"a pair of \d+ tokens takes about \d+ MiB, and 0 MiB are free.*shorter prompts"
    ):
        carried_edges(model, token_pairs(), [(0, 1), (1, 0)])


def test_default_goes_on_when_memory_runs_out(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(default.attribution, "score", full)
    with pytest.warns(HeadcodesWarning, match="does not fit the memory of cpu"):
        assert methods.get("default").find(Inputs(tiny_model(), token_pairs())).method_used == "contrast"
