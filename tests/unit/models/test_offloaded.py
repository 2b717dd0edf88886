"""A model whose weights accelerate keeps on disk is found to do, and scores, what it does in memory."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes import methods
from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesWarning
from headcodes.interventions import gradients
from headcodes.interventions.engine import Compute
from headcodes.interventions.gradients import GradientError
from headcodes.interventions.patch import causal_truth
from headcodes.methods import Level, attribution
from headcodes.methods.inputs import Inputs
from headcodes.models.load import load_model
from headcodes.models.model import Model
from tiny_families import make

token_pairs = partial(made_pairs.token_pairs, n=3, seed=3, lengths=(7, 6), n_right=(2,), n_wrong=(3,), n_vocab=97)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> tuple[Model, Model]:
    """Granite, which multiplies its logits, in bf16: in memory, and with layers and unembedding on disk."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    folder = tmp_path_factory.mktemp("offloaded")
    make("Granite", logits_scaling=3.0, tie_word_embeddings=False).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    homes = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    homes |= {f"model.layers.{layer}": "disk" for layer in range(2)}
    away = load_model(folder, dtype="bfloat16", device_map=homes)
    assert away.unembed.weight.is_meta
    return load_model(folder, dtype="bfloat16"), away


def test_it_is_found_to_do_the_same(both: tuple[Model, Model]) -> None:
    assert both[0].facts == both[1].facts
    assert both[0].facts.logit_scale == pytest.approx(1 / 3)


def test_answers_are_worked_out_in_fp32(both: tuple[Model, Model]) -> None:
    """The model's own logits, rounded to bf16, would hide small differences."""
    asked = {"logits_at": torch.tensor([3]), "vocab": torch.tensor([12, 5, 70])}
    with torch.no_grad():
        here, away = (model.trace(torch.tensor([[5, 70, 31, 41]]), **asked) for model in both)
    assert here is not None and away is not None  # noqa: PT018
    torch.testing.assert_close(away, here, atol=0, rtol=0)


def scores(model: Model, method: str, level: Level = "node") -> np.ndarray[Any, Any]:
    if method == "attribution":
        return attribution.products(model, token_pairs()).of_pairs.numpy()
    return methods.get(method).score(None, Inputs(model, token_pairs()), level, [0])[0].head_scores


@pytest.mark.parametrize("method", ["dla", "attribution", "hisp", "hybrid", "eap", "eap-ig-inputs", "relp"])
def test_methods_find_the_same(both: tuple[Model, Model], method: str) -> None:
    """After a capture, too: what was fetched in inference mode takes no gradient later."""
    found = []
    for model in both:
        capture(model, token_pairs().clean)
        found.append(scores(model, method))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(("method", "level"), [("eap", "edge"), ("relp", "edge"), ("atp-qk", "node")])
def test_a_graph_of_all_layers_would_hold_what_is_to_lie_on_disk(
    both: tuple[Model, Model], method: str, level: Level
) -> None:
    with pytest.raises(GradientError, match="some of the weights are offloaded"):
        scores(both[1], method, level)


@pytest.mark.parametrize(("method", "level"), [("eap", "edge"), ("eap", "node"), ("hisp", "node"), ("atp-qk", "node")])
def test_a_pair_that_does_not_fit_the_memory_is_refused(
    both: tuple[Model, Model], method: str, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "free_bytes", lambda device: 1 << 10)
    with pytest.raises(GradientError, match="0 MiB are free"):
        scores(both[0], method, level)


def test_changes_and_patching_are_the_same(both: tuple[Model, Model]) -> None:
    plain, away = (Inputs(model, token_pairs(), components="heads+mlps").changes().values() for model in both)
    for here, there in zip(plain, away, strict=True):
        np.testing.assert_array_equal(np.asarray(here), np.asarray(there))
    patched = []
    for model in both:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", HeadcodesWarning)  # no walk through layers that are not there
            tokens = made_pairs.flipped(both[0], token_pairs())
            patched.append(causal_truth(model, tokens, cache=False, progress=False, compute=Compute("forward")).effects)
    np.testing.assert_array_equal(*patched)
