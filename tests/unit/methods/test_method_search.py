"""Cutting edges against sums spelled out; ACDC against a plain loop; ACDC, SP and the rest on planted circuits."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import made_pairs
from headcodes import methods
from headcodes.errors import HeadcodesError
from headcodes.interventions.ablate import EdgeAblation, HeadAblation
from headcodes.interventions.reads import graph_of
from headcodes.methods import acdc, sp
from headcodes.methods.inputs import Inputs
from headcodes.models import planted
from headcodes.models.model import Model
from headcodes.prompts.tokens import tokenize
from peers.spelled_out import SpelledOut

token_pairs = partial(made_pairs.token_pairs, n=3, seed=7, lengths=(6, 5))


@pytest.mark.parametrize("family", ["gpt2", "opt", "gpt_neox", "llama", "qwen2", "qwen3", "transformer-lens"])
def test_cut_edges_are_sums_spelled_out(tiny_model: Any, attention_only: Any, tiny_tokenizer: Any, family: str) -> None:
    model: Model = attention_only(tiny_tokenizer) if family == "transformer-lens" else tiny_model(family)
    tokens = token_pairs()
    plain = SpelledOut(model, family)
    graph = graph_of(model)
    sources, destinations = graph.sources, graph.destinations
    order = graph.edges_from_logits()
    draw = np.random.default_rng(0)
    for share in (0.0, 0.05, 0.5, 1.0):
        chosen = [edge for edge in order if draw.random() < share]
        removed = torch.zeros(graph.shape, dtype=torch.bool)
        for edge in chosen:
            removed[edge] = True
        gone = {(sources[i], destinations[j]) for i, j in chosen}
        kl, difference = 0.0, 0.0
        zero = 0.0
        for index in range(len(tokens)):
            clean, said = plain.run(tokens.clean[index], {}, set())
            _, corrupt = plain.run(tokens.corrupt[index], {}, set())
            logits, _ = plain.run(tokens.clean[index], corrupt, gone)
            right, wrong = tokens.answers[index], tokens.wrong_answers[index]
            for sign, row in ((1, clean), (-1, logits)):
                difference += sign * float(row[right].logsumexp(0) - row[wrong].logsumexp(0)) / len(tokens)
            nothing = {name: torch.zeros_like(value) for name, value in said.items()}
            p = clean.log_softmax(0)
            kl += float((p.exp() * (p - logits.log_softmax(0))).sum()) / len(tokens)
            logits, _ = plain.run(tokens.clean[index], nothing, gone)
            zero += float((p.exp() * (p - logits.log_softmax(0))).sum()) / len(tokens)
        close = {"abs": 2e-5, "rel": 1e-3}
        for ablation, loss, expected in (
            ("resample", "kl", kl),
            ("resample", "logit-diff", difference),
            ("zero", "kl", zero),
        ):
            assert EdgeAblation(model, tokens, ablation, loss).loss(removed) == pytest.approx(expected, **close)


def test_ablating_a_head_is_cutting_all_its_edges(tiny_model: Any) -> None:
    model, tokens = tiny_model("gpt2"), token_pairs()
    graph = graph_of(model)
    for ablation in ("resample", "zero"):
        removed = torch.zeros(graph.shape, dtype=torch.bool)
        heads = torch.zeros(3, 4, dtype=torch.bool)
        for layer, head in ((0, 1), (1, 3)):
            heads[layer, head] = True
            removed[graph.sources.index(f"a{layer}.h{head}")] = True
        by_edges = EdgeAblation(model, tokens, ablation, "kl").loss(removed)
        assert by_edges > 1e-3
        assert HeadAblation(model, tokens, ablation, "kl").loss(heads) == pytest.approx(by_edges, rel=1e-3)


def test_the_sweep_is_one_plain_search_a_threshold() -> None:
    draw = np.random.default_rng(1)
    weights = draw.exponential(0.1, size=(5, 4))
    pairs = draw.normal(0, 0.05, size=(20, 20))
    n_calls = 0

    def loss(removed: Tensor) -> float:
        nonlocal n_calls
        n_calls += 1
        gone = removed.numpy().ravel().astype(float)
        return float(weights.ravel() @ gone + gone @ pairs @ gone)

    order = [(int(i), int(j)) for i, j in draw.permutation([(i, j) for i in range(5) for j in range(4)])]
    thresholds = [0.01, 0.05, 0.1, 0.2, 0.4]
    expected = np.zeros((5, 4))
    n_plain = 0
    for threshold in thresholds:
        removed = torch.zeros(5, 4, dtype=torch.bool)
        for candidate in order:
            if removed[0, 3] and candidate[1] == 2:
                removed[candidate] = True
                continue
            n_plain += 1
            before = loss(removed)
            removed[candidate] = True
            if loss(removed) - before >= threshold:
                removed[candidate] = False
                expected[candidate] = threshold
    n_calls = 0
    found = acdc.sweep(order, (5, 4), loss, thresholds, lambda removed, column: bool(removed[0, 3]) and column == 2)
    np.testing.assert_array_equal(found, expected)
    assert 0 < len(np.unique(expected)) <= 6
    assert n_calls < n_plain


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels.ravel(), scores.ravel()))


@pytest.fixture(scope="module")
def plant() -> Any:
    found = planted.load("planted-ioi")
    tokens = tokenize(found.task.build(found.model.tokenizer, 8), found.model.tokenizer)
    return Inputs(found.model, tokens), found.truth.labels, found


@pytest.mark.parametrize("name", ["hisp", "eap", "eap-ig-inputs", "eap-ig-activations", "patching", "sp", "acdc"])
def test_planted_heads_are_recovered(plant: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acdc, "THRESHOLDS", (1e-3, 1e-2))
    inputs, labels, _ = plant
    found = methods.get(name).find(inputs, "node")
    assert auc(found.head_scores, labels) >= (0.95 if name == "hisp" else 0.999), found.head_scores


def test_edges_of_large_and_of_grouped_models_are_refused_by_name(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acdc, "THRESHOLDS", (0.01,))
    inputs = Inputs(tiny_model("llama"), token_pairs(), metric="logit-diff")
    with pytest.raises(HeadcodesError, match="4 heads on 2 keys and values"):
        acdc.find("acdc", inputs, "edge", 0)
    found = acdc.find("acdc", inputs, "node", 0, ablation="zero")
    assert set(np.unique(found.head_scores)) <= {0.0, 0.01}


def test_probing_is_seeded_and_gates_stay_probabilities(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sp, "N_EPOCHS", 5)
    inputs = Inputs(tiny_model("gpt2"), token_pairs())
    first, again, other = (sp.find("sp", inputs, "node", seed, ablation="zero").head_scores for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert ((first > 0) & (first < 1)).all()
