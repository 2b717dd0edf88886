"""Contrast, against sums written out over materialised outputs, and on circuits that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import headcodes
from headcodes import metrics, tasks
from headcodes.methods.contrast import changes
from headcodes.models import planted
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import tokenize

pytestmark = pytest.mark.filterwarnings("ignore::headcodes.errors.HeadcodesWarning")


def one_run(model: Any, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """z [layer, seq, head, d_head], what enters each layer and the final norm [layer + 1, seq, d_model], logits."""
    z, streams, hooks = [], [], []
    for projection in model.projections:
        hooks.append(projection.register_forward_pre_hook(lambda _m, args: z.append(args[0][0])))
    for block in [*model.layers, model.final_norm]:
        hooks.append(block.register_forward_pre_hook(lambda _m, args: streams.append(args[0][0])))
    with torch.no_grad():
        logits = model.module(torch.tensor([ids])).logits[0, -1]
    for hook in hooks:
        hook.remove()
    return torch.stack(z).unflatten(-1, (model.n_heads, model.d_head)).double(), torch.stack(streams).double(), logits


def expected(model: Any, pairs: PromptPairs) -> tuple[np.ndarray, np.ndarray]:
    tokens = tokenize(pairs, model.tokenizer)
    to_answer = np.zeros((model.n_layers, model.n_heads))
    to_stream = np.zeros_like(to_answer)
    for i in range(len(tokens)):
        clean, corrupt = tokens.clean[i], tokens.corrupt[i]
        (z, x, logits), (z_, x_, _) = one_run(model, clean), one_run(model, corrupt)
        alike = next(k for k in range(100) if clean[k] != corrupt[k])
        n = min(len(clean), len(corrupt)) - alike
        weights = model.module.get_output_embeddings().weight.double()
        chosen = logits.detach().double()
        right, wrong = tokens.answers[i], tokens.wrong_answers[i]
        along = chosen[right].softmax(0) @ weights[right] - chosen[wrong].softmax(0) @ weights[wrong]
        end = x[-1, -1]
        if "RMS" in type(model.final_norm).__name__:
            gain = model.final_norm.weight.double()
            along = along * gain / (end.square().mean() + model.final_norm.variance_epsilon).sqrt()
        else:
            along = along * model.final_norm.weight.double() / (end.var(unbiased=False) + 1e-5).sqrt()
            along = along - along.mean()
        for layer in range(model.n_layers):
            for head in range(model.n_heads):
                W_O = model.W_O[layer, head].double()
                said = (z[layer, -n:, head] - z_[layer, -n:, head]) @ W_O
                stream = (x[layer, -n:].square().sum(-1) + x_[layer, -n:].square().sum(-1)) / 2
                to_stream[layer, head] += (said.square().sum(-1) / stream).sum().item()
                to_answer[layer, head] += abs(said[-1] @ along).item()
    return to_answer / len(tokens), to_stream / len(tokens)


UNEQUAL = PromptPairs(
    (
        PromptPair(
            "When Andrew and Jane had met, Andrew sent", "When Andrew had met, Andrew sent", (" Jane",), (" Andrew",)
        ),
        PromptPair("Andrew sent a", "Jane had sent a", (" Jane", " Julie"), (" Andrew",)),
    ),
    "mine",
    "mine",
)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["ioi", "unequal"])
def test_changes_are_the_sums_written_out(tiny_model: Callable[..., Any], family: str, kind: str) -> None:
    model = tiny_model(family)
    pairs = UNEQUAL if kind == "unequal" else tasks.get("ioi").build(model.tokenizer, n=5, seed=2)
    found = changes(model, tokenize(pairs, model.tokenizer))
    for ours, theirs in zip(found, expected(model, pairs), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_every_family_gets_scores(tiny_model: Callable[..., Any], family: str) -> None:
    model = tiny_model(family)
    pairs = tasks.get("ioi").build(model.tokenizer, n=6, seed=0)
    scores = headcodes.discover(model, pairs, method="contrast").head_scores
    assert np.isfinite(scores).all()
    assert scores.min() >= 0
    assert scores.max() > 0


def test_scores_add_both_changes_in_standard_deviations(tiny_model: Callable[..., Any]) -> None:
    model = tiny_model()
    pairs = tasks.get("ioi").build(model.tokenizer, n=8, seed=0)
    found = headcodes.discover(model, pairs, method="contrast", n_train=4, verify=None).findings
    to_answer, to_stream = changes(model, tokenize(pairs, model.tokenizer))
    assert found.codes is not None
    assert found.judged is not None
    untrained = [i for i in range(8) if found.judged[i] and found.judged[8 + i]]
    assert len(untrained) == 6
    flips = [[int(found.codes[i, head] != found.codes[8 + i, head]) for i in untrained] for head in range(12)]
    to_flips = to_stream * np.mean(flips, axis=1).reshape(3, 4)
    expected = to_answer / to_answer.std() + to_flips / to_flips.std()
    np.testing.assert_allclose(found.head_scores, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["planted-ioi", "planted-induction"])
def test_planted_heads_come_first(name: str) -> None:
    plant = planted.load(name)
    pairs = plant.task.build(plant.model.tokenizer, n=40, seed=0)
    scores = headcodes.discover(plant.model, pairs, method="contrast").head_scores
    by_mean = headcodes.discover(plant.model, pairs, method="mean-diff").head_scores
    assert metrics.roc_auc(scores, plant.truth.labels) >= metrics.roc_auc(by_mean, plant.truth.labels) - 0.01


def test_more_pairs_than_are_measured(tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.methods import contrast

    model = tiny_model()
    pairs = tasks.get("ioi").build(model.tokenizer, n=8, seed=0)
    monkeypatch.setattr(contrast, "N_MEASURED", 3)
    few = changes(model, tokenize(pairs[:3], model.tokenizer))
    seen: list[Any] = []
    monkeypatch.setattr(contrast, "changes", lambda _model, tokens, _mlps: seen.append(len(tokens)) or few)
    headcodes.discover(model, pairs, method="contrast")
    assert seen == [3]
