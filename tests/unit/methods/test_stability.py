"""The bootstrap over pairs: the scores of a draw are those of the method on the drawn pairs, run again."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tests.unit.methods.test_method_eap import token_pairs

import headcodes
from headcodes.cli.table import table
from headcodes.discovery import explain
from headcodes.errors import HeadcodesError
from headcodes.graph import head_name
from headcodes.methods import METHODS, get
from headcodes.methods.inputs import Inputs
from headcodes.methods.request import check_request
from headcodes.methods.stability import N_RESAMPLES, Resampled, draws
from headcodes.models.model import Model
from headcodes.settings import Settings

# Their codes, trained on all pairs, stay what they are; the others run again on the pairs of a draw alone.
CODED = ("code-flip", "hybrid")
RERUN = tuple(name for name, method in METHODS.items() if method.by_pair and name not in CODED)


def inputs_of(model: Model, rows: Any = range(12)) -> Inputs:
    return Inputs(model, token_pairs(n=12).subset(rows), Settings(n_train=4))


@pytest.mark.parametrize("name", RERUN)
@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")  # random models do no task
def test_a_draws_scores_are_those_of_running_again(tiny_model: Any, name: str) -> None:
    model: Model = tiny_model("llama")
    result = explain(inputs_of(model), name, stable=0.5, seed=3)
    resampled, by_pair = result.findings.resampled, result.findings.by_pair
    assert resampled is not None
    assert by_pair is not None
    assert len(resampled.scores) == N_RESAMPLES
    answered = np.arange(12)
    if name == "patching":  # patches the pairs that the model answers only
        clean = Inputs(model, token_pairs(n=12)).logit_differences[0]
        answered = np.flatnonzero(clean > 0)
    for place in (0, 7, N_RESAMPLES - 1):
        rows = answered[draws(len(answered), 3)[place]]
        again = get(name).find(inputs_of(model, rows))
        np.testing.assert_allclose(resampled.scores[place], again.head_scores, rtol=2e-4, atol=2e-6)


@pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")
def test_codes_stay_those_of_all_pairs(tiny_model: Any) -> None:
    found = {name: explain(inputs_of(tiny_model("llama")), name, stable=0.5).findings for name in CODED}
    flips, hybrid = found["code-flip"], found["hybrid"]
    assert flips.resampled is not None
    assert flips.codes is not None
    assert flips.scored_prompts is not None
    scored = flips.scored_prompts[:12] & flips.scored_prompts[12:]
    changed = (flips.codes[:12] != flips.codes[12:])[scored]
    rows = draws(int(scored.sum()), 0)[5]
    np.testing.assert_allclose(flips.resampled.scores[5].ravel(), changed[rows].mean(0), atol=1e-6)
    eap = get("eap").find(inputs_of(tiny_model("llama"))).by_pair
    assert eap is not None
    assert hybrid.codes is not None
    assert hybrid.resampled is not None
    weighed = eap.values.flatten(1).numpy() * np.where(hybrid.codes[:12] != hybrid.codes[12:], 1.0, 0.5)
    drawn = weighed[draws(12, 0)[5]]
    expected = np.abs(drawn.mean(0)) + np.abs(drawn).mean(0)
    np.testing.assert_allclose(hybrid.resampled.scores[5].ravel(), expected, rtol=2e-4, atol=2e-6)


def test_intervals_frequencies_and_the_circuit_are_counts_over_draws() -> None:
    model = headcodes.load_model("planted-ioi")
    pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=24, seed=0)
    result = headcodes.discover(model, pairs, method="eap", stable=0.9)
    resampled = result.findings.resampled
    assert resampled is not None
    top = 10
    flat = resampled.scores.reshape(N_RESAMPLES, -1)
    counts = np.zeros(flat.shape[1])
    for scores in flat:
        best = sorted(range(len(scores)), key=lambda head: (-scores[head], head))[:top]
        counts[[head for head in best if scores[head] > 0]] += 1
    np.testing.assert_allclose(resampled.frequency(top).ravel(), counts / N_RESAMPLES)
    document = json.loads(json.dumps(result.as_json(top)))
    assert document["stable"] == 0.9
    assert document["n_resamples"] == N_RESAMPLES
    np.testing.assert_allclose(document["selection_frequency"], counts / N_RESAMPLES)
    low, high = np.percentile(flat, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(document["score_low"], low, rtol=1e-5)
    np.testing.assert_allclose(document["score_high"], high, rtol=1e-5)
    chosen = {name for name, count in zip(result.components, counts, strict=True) if count >= 0.9 * N_RESAMPLES}
    assert set(result.circuit(top).nodes) == chosen
    truth = {head_name(*head) for head in headcodes.planted.load("planted-ioi").truth.heads}
    assert truth <= chosen
    shown = table(result, top)
    assert "selected" in shown
    assert f"{len(chosen)} heads are among the 10 best in at least 90% of 500 draws of the 24 pairs" in shown
    values = result.record(top).head_values
    np.testing.assert_allclose(values["selected"].ravel(), counts / N_RESAMPLES)
    assert "--stable 0.9" in result.record(top).command
    again = headcodes.discover(model, pairs, method="eap", stable=0.9)
    assert again.findings.resampled is not None
    assert np.array_equal(again.findings.resampled.scores, resampled.scores)


def test_an_interval_holds_its_score() -> None:
    """Pairs that cancel: |mean| is 0 and larger in almost every draw."""
    drawn = np.abs(np.random.default_rng(0).choice([-1.0, 1.0], (500, 12, 2)).mean(1)).reshape(500, 1, 2)
    low, high = Resampled(drawn + np.array([0.01, 0.0]), np.array([[0.0, 5.0]]), 12, 0.9).interval
    assert low.tolist() == [[0.0, 0.0]]
    assert high[0, 1] == 5.0
    assert 0.1 < high[0, 0] < 1.0


def test_default_is_drawn_anew_in_place_of_being_patched() -> None:
    model = headcodes.load_model("planted-ioi")
    pairs = headcodes.tasks.get("ioi").build(model.tokenizer, n=24, seed=0)
    result = headcodes.discover(model, pairs, stable=0.9)
    assert result.verification is None
    assert result.findings.resampled is not None
    with pytest.raises(HeadcodesError, match="which default stood for: gradients were not asked for"):
        headcodes.discover(model, pairs, stable=0.9, gradient=False)


@pytest.mark.parametrize(
    ("method", "others", "said"),
    [
        ("paper", {}, "scores that pairs are drawn anew for must be made from a number a pair"),
        ("acdc", {}, "Use one of: default, attribution,"),
        ("eap", {"fdr": 0.1}, "eap"),
        ("eap", {"verify": 5}, "stable with verify"),
        ("eap", {"components": "heads+mlps"}, "stable with components"),
        ("hybrid", {"seeds": [0, 1]}, "stable with seeds"),
    ],
)
def test_what_cannot_be_drawn_anew_is_refused(method: str, others: dict[str, Any], said: str) -> None:
    with pytest.raises(HeadcodesError, match=said):
        check_request(method, stable=0.9, **others)
    for share in (0.0, 1.5):
        with pytest.raises(HeadcodesError, match="stable must lie in"):
            check_request("eap", stable=share)
