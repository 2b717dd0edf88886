"""The plain methods against outputs spelled out in d_model, and what their rows say about them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import made_pairs
from headcodes import methods
from headcodes.activations.capture import capture
from headcodes.errors import HeadcodesError
from headcodes.methods.inputs import Inputs
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs
from headcodes.settings import Settings

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "qwen3", "gemma2", "gemma3_text")


def token_pairs(n: int = 6) -> TokenPairs:
    """Pairs whose prompts differ in length, as these methods allow."""
    pairs = made_pairs.token_pairs(n, 5, lengths=(5, 6, 7), n_right=(2,), n_wrong=(3,))
    corrupt = made_pairs.token_pairs(n, 6, lengths=(6, 7)).clean
    return made_pairs.made(pairs.clean, corrupt, pairs.answers, pairs.wrong_answers)


def outputs(model: Model, prompts: list[list[int]], positions: str = "mean") -> torch.Tensor:
    """Every head's output in the residual stream, before any norm: [n, head, d_model]."""
    heads, _ = capture(model, prompts, positions=positions)
    return torch.einsum("pcd,cdm->pcm", heads.z, model.W_O.flatten(0, 1).float())


def test_mean_difference_and_activation_norm(tiny_model: Any) -> None:
    model, tokens = tiny_model("qwen3"), token_pairs()
    inputs = Inputs(model, tokens)
    clean, corrupt = outputs(model, tokens.clean), outputs(model, tokens.corrupt)
    found = methods.get("mean-diff").find(inputs).head_scores.ravel()
    np.testing.assert_allclose(found, (clean.mean(0) - corrupt.mean(0)).norm(dim=1).numpy(), rtol=1e-5)
    found = methods.get("act-norm").find(inputs).head_scores.ravel()
    np.testing.assert_allclose(found, clean.norm(dim=2).mean(0).numpy(), rtol=1e-5)


def test_random_scores_follow_the_seed_alone(tiny_model: Any) -> None:
    inputs = Inputs(tiny_model("gpt2"), token_pairs())
    first, again, other = (methods.get("random").find(inputs, seed=seed).head_scores for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert first.shape == (3, 4)
    assert ((first >= 0) & (first < 1)).all()


def test_code_flips_are_the_share_of_pairs_whose_code_changes(tiny_model: Any) -> None:
    inputs = Inputs(tiny_model("gpt2"), token_pairs(12), Settings(n_train=6))
    found = methods.get("code-flip").find(inputs, seed=3)
    codes, scored = found.codes, found.scored_prompts
    assert codes is not None
    assert scored is not None
    pairs = [i for i in range(12) if scored[i] and scored[12 + i]]
    assert len(pairs) == 9
    for head in range(12):
        share = np.mean([codes[i, head] != codes[12 + i, head] for i in pairs])
        assert found.head_scores.ravel()[head] == pytest.approx(share)
    assert 0 < found.head_scores.max() <= 1


def weights_of(family: str, norm: Any) -> tuple[torch.Tensor, bool]:
    """A norm's weight as its family applies it, and whether it takes the mean away."""
    centres = family in ("gpt2", "gpt_neox", "opt")
    return (1 + norm.weight if family.startswith("gemma") else norm.weight), centres


def frozen(family: str, norm: Any, x: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """x's scale under a norm, written out, applied to a direction."""
    weight, centres = weights_of(family, norm)
    eps = getattr(norm, "eps", None) or norm.variance_epsilon
    middle = x - x.mean() if centres else x
    read = direction * weight / (middle.square().mean() + eps).sqrt()
    return read - read.mean() if centres else read


@pytest.mark.parametrize("family", FAMILIES)
def test_direct_logit_attribution_spelled_out(tiny_model: Any, family: str) -> None:
    model: Model = tiny_model(family)
    tokens = token_pairs(4)
    found = methods.get("dla").find(Inputs(model, tokens))
    final: Any = model.final_norm
    U = model.unembed.weight.detach()
    expected = torch.zeros(model.n_layers, model.n_heads)
    with torch.no_grad():
        for index, ids in enumerate(tokens.clean):
            states: list[torch.Tensor] = []
            behind: list[torch.Tensor] = []
            handles = [final.register_forward_pre_hook(lambda _m, args, states=states: states.append(args[0][0, -1]))]
            handles += [
                part.register_forward_hook(lambda _m, _a, y, behind=behind: behind.append(y[0, -1]))
                for part in model.projections
            ]
            logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
            for handle in handles:
                handle.remove()
            right, wrong = tokens.answers[index], tokens.wrong_answers[index]
            direction = logits[right].softmax(0) @ U[right] - logits[wrong].softmax(0) @ U[wrong]
            direction = frozen(family, final, states[0], direction)
            heads = outputs(model, [ids], "last")[0].unflatten(0, (3, 4))
            for layer in range(3):
                read = direction
                if family.startswith("gemma"):
                    block: Any = model.layers[layer]
                    read = frozen(family, block.post_attention_layernorm, behind[layer], direction)
                expected[layer] += heads[layer] @ read / len(tokens)
    assert found.signed is not None
    np.testing.assert_allclose(found.signed, expected.numpy(), atol=2e-5, rtol=2e-3)
    np.testing.assert_array_equal(found.head_scores, np.abs(found.signed))


def test_head_importance_is_the_gradient_of_a_gate(tiny_model: Any) -> None:
    model, tokens = tiny_model("qwen2"), token_pairs(3)
    found = methods.get("hisp").find(Inputs(model, tokens)).head_scores
    expected = torch.zeros(3, 4)
    for index, ids in enumerate(tokens.clean):
        gates = torch.ones(3, 4, requires_grad=True)
        handles = [
            part.register_forward_pre_hook(
                lambda _m, args, layer=layer, gates=gates: (
                    (args[0].unflatten(-1, (4, -1)) * gates[layer][:, None]).flatten(-2),
                )
            )
            for layer, part in enumerate(model.projections)
        ]
        logits = model.module(input_ids=torch.tensor([ids])).logits[0, -1]
        right, wrong = tokens.answers[index], tokens.wrong_answers[index]
        (gradient,) = torch.autograd.grad(logits[right].logsumexp(0) - logits[wrong].logsumexp(0), gates)
        expected += gradient.abs()
        for handle in handles:
            handle.remove()
    expected /= expected.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["mean-diff", "code-flip", "dla", "act-norm", "random", "hisp"])
def test_methods_without_edges_say_so(tiny_model: Any, name: str) -> None:
    with pytest.raises(HeadcodesError, match=f"level of method '{name}' must be node"):
        methods.get(name).find(Inputs(tiny_model("gpt2"), token_pairs()), "edge")
