"""Contrast, against sums written out over materialised outputs, and on circuits that are known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import headcodes
from headcodes import metrics, tasks
from headcodes.activations import capture
from headcodes.methods import inputs
from headcodes.methods.inputs import Inputs
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
    found = Inputs(model, tokenize(pairs, model.tokenizer)).changes()
    for ours, theirs in zip(found.values(), expected(model, pairs), strict=True):
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
    to_answer, to_stream = (part.numpy() for part in Inputs(model, tokenize(pairs, model.tokenizer)).changes().values())
    assert found.codes is not None
    assert found.scored_prompts is not None
    untrained = [i for i in range(8) if found.scored_prompts[i] and found.scored_prompts[8 + i]]
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


@pytest.mark.parametrize("held_out", [0, 3])
def test_more_pairs_than_are_measured(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, held_out: int
) -> None:
    """Of eleven pairs nine run side by side; those held out are not among those measured."""
    model = tiny_model("gpt2")
    for module in (capture, inputs):
        monkeypatch.setattr(module, "N_SIDE_BY_SIDE", 9)
    pairs = tasks.get("ioi").build(model.tokenizer, n=11, seed=2)
    given = Inputs(model, tokenize(pairs, model.tokenizer), held_out=held_out)
    given.capture(changes=True)
    n_measured = 8 if held_out else 9
    for ours, theirs in zip(given.changes().values(), expected(model, pairs[:n_measured]), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("components", ["heads", "heads+mlps"])
def test_changes_are_the_same_bits_from_the_capture_and_alone(
    tiny_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, family: str, components: Any
) -> None:
    """And what is captured is the same whether or not changes are measured. Mistral's window lets no row be shared."""
    for module in (capture, inputs):
        monkeypatch.setattr(module, "N_SIDE_BY_SIDE", 5)
    model = tiny_model(family, **({"sliding_window": 4} if family == "mistral" else {}))
    tokens = tokenize(tasks.get("ioi").build(model.tokenizer, n=8, seed=1), model.tokenizer)
    on_the_way, alone = Inputs(model, tokens, components=components), Inputs(model, tokens, components=components)
    on_the_way.capture(changes=True)
    passes: list[int] = []
    hook = model.layers[0].register_forward_hook(lambda *_: passes.append(1))
    found = on_the_way.changes()
    assert not passes
    for name, values in alone.changes().items():
        assert values.shape == (model.n_layers, model.n_heads + (components == "heads+mlps"))
        assert torch.equal(values, found[name])
    hook.remove()
    assert passes
    assert torch.equal(on_the_way.activations.z, alone.activations.z)
    assert all(torch.equal(a, b) for a, b in zip(on_the_way._captured[1], alone._captured[1], strict=True))
    # Clean prompts come first, in their order, and every row is what its prompt alone gives.
    for row, ids in enumerate(tokens.clean + tokens.corrupt):
        one = capture.capture(model, [ids])[0].z[0]
        torch.testing.assert_close(alone.activations.z[row], one, atol=3e-6, rtol=3e-5)
