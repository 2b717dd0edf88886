"""Methods on SmolLM2: what gradients say is what patching finds, and quality against the causal truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headcodes import methods, metrics, tasks
from headcodes.interventions.patch import causal_truth
from headcodes.interventions.verify import verify
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import TokenPairs, tokenize

pytestmark = pytest.mark.real


def ioi(model: Any, n: int, seed: int = 0) -> TokenPairs:
    return tokenize(tasks.get("ioi").build(model.tokenizer, n=n, seed=seed), model.tokenizer)


def test_the_largest_scores_of_eap_are_effects(smollm2: Any) -> None:
    tokens = ioi(smollm2, 4)
    found = methods.get("eap").find(Inputs(smollm2, tokens)).signed
    assert found is not None
    best = np.argsort(-np.abs(found).ravel())[:8]
    heads = [(int(i) // smollm2.n_heads, int(i) % smollm2.n_heads) for i in best]
    checked = verify(smollm2, tokens, heads, n_resamples=10)
    scores = np.array([found[head] for head in heads])
    assert (np.sign(scores) == np.sign(checked.mean)).mean() >= 7 / 8
    assert np.corrcoef(scores, checked.mean)[0, 1] > 0.85


def test_edges_add_up_with_three_heads_a_key(smollm2: Any) -> None:
    assert smollm2.n_heads // smollm2.n_kv_heads == 3
    found = methods.get("eap").find(Inputs(smollm2, ioi(smollm2, 2)), "edge")
    assert found.edges is not None
    assert found.signed is not None
    assert np.isfinite(found.edges.scores).sum() == 123_211
    totals = dict(zip(found.edges.sources, np.nansum(found.edges.scores, axis=1), strict=True))
    scores = found.other_nodes | dict(zip(smollm2.components, found.signed.ravel(), strict=True))
    size = max(map(abs, scores.values()))
    assert all(abs(totals[node] - score) < 1e-3 * size for node, score in scores.items())


@pytest.mark.slow
def test_quality_on_ioi(smollm2: Any) -> None:
    truth = causal_truth(smollm2, ioi(smollm2, 32, seed=10_000), pairs=16)
    inputs = Inputs(smollm2, ioi(smollm2, 50))
    least = {"mean-diff": 0.86, "dla": 0.7, "eap": 0.93, "eap-ig-inputs": 0.93, "hybrid": 0.95}
    for name, auc in least.items():
        scores = methods.get(name).find(inputs).head_scores
        assert metrics.roc_auc(scores, truth.labels(20)) >= auc, name
        if name not in ("mean-diff", "dla"):
            assert metrics.roc_auc(scores, truth.labels(10)) >= 0.97, name
