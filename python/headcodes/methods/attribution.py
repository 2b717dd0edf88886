"""Attribution: what a head's change between the two prompts of a pair does to the answer, to first order.

One backward pass gives, for every pair of prompts and every head, p = (z_clean - z_corrupt) . dLD/dz summed over
positions: edge attribution patching's product for a node (Syed et al. 2023, arXiv 2310.10348), before it is averaged.
``default`` stands for this where gradients can be had. docs/recipe.md has what each ingredient adds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.errors import HeadcodesError
from headcodes.interventions.metric import measure, refuse_flat, whole_vocabulary
from headcodes.interventions.runs import (
    POSITION_GROUPS,
    batches,
    graph_bytes,
    node_bytes_per_token,
    position_groups,
    ready,
    run,
)
from headcodes.methods.findings import Findings
from headcodes.models.devices import EachDevice, brought, free_bytes
from headcodes.progress import progress
from headcodes.settings import Metric, Positions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs

# A first-order product is far too large in a few pairs in which attention is saturated; beyond this quantile of its
# head's magnitudes it counts no more than at it. Chosen on ioi, greater-than and planted models.
CLIP_QUANTILE = 0.9


class GradientError(HeadcodesError):
    """Gradients cannot be had for these prompts, by this model, on this machine: what was got says why."""

    @classmethod
    def because(cls, reason: str) -> GradientError:
        """Return the error whose reason is this clause."""
        return cls("a method with a backward pass must have gradients", reason, "Use --method contrast: it takes none.")


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by |mean over pairs of c| + mean over pairs of |c|, c its products clipped at their .9 quantile.

    The second term keeps heads that help some prompts and hinder others, and cancel out in the first. ``signed`` is
    the mean product as it is: to first order the logit difference lost when the head is patched. Codes are made by the
    recipe of this name; they do not change the scores.

    Raises:
        GradientError: prompts of a pair differ in length, weights are offloaded or no floats, or memory does not do.
    """
    tokens = inputs.tokens
    if not tokens.equal_lengths:
        unlike = next(i for i, ids in enumerate(tokens.clean) if len(ids) != len(tokens.corrupt[i]))
        raise GradientError.because(f"the two prompts of pair {unlike} differ in length: no common positions")
    with found[0].timed("attribute"):
        proposing = tokens.subset(range(inputs.n_proposing))
        by_position = _products(inputs, proposing)
        products = by_position.sum(-1)
    for findings in found:
        findings.set_signed(products.mean(0))
        findings.by_position = by_position.mean(0).numpy().reshape(*findings.head_scores.shape, -1)
        findings.set_heads(robust(products))
        if level == "edge":
            findings.propose_pairs()
    return found


def robust(products: Float[Tensor, "n_pairs n"]) -> Float[Tensor, " n"]:
    """Return |mean| + mean magnitude over pairs of products clipped at the .9 quantile of each column's magnitudes."""
    limit = products.abs().quantile(CLIP_QUANTILE, dim=0)
    clipped = products.clamp(-limit, limit)
    return clipped.mean(0).abs() + clipped.abs().mean(0)


def _products(inputs: Inputs, tokens: TokenPairs) -> Float[Tensor, "n_pairs n_component n_group"]:
    """Return ``products``, or what an earlier run kept of them: then no model need be opened."""
    metric = inputs.metric or "logit-diff"
    positions = inputs.settings.positions
    if not inputs.cache or positions != "mean":
        return products(inputs.model, tokens, metric, positions)
    from headcodes.activations.cache import kept

    what = "products" if metric == "logit-diff" else f"products {metric}"
    return kept(inputs.model, tokens, what, lambda: {"products": products(inputs.model, tokens, metric)})["products"]


def products(
    model: Model, tokens: TokenPairs, metric: Metric = "logit-diff", positions: Positions = "mean"
) -> Float[Tensor, "n_pairs n_component n_group"]:
    """Return (z_clean - z_corrupt) . dL/dz of every pair and head, float64, from one backward pass, L being a metric
    (``interventions.metric``) at the clean run; apart by ``runs.POSITION_GROUPS``, which add up to the whole.

    Raises:
        GradientError: see ``score``.
    """
    refuse_flat(metric, "attribution")
    if not model.dtype.is_floating_point:
        raise GradientError.because(f"the weights are stored as {model.dtype}")
    if any(part.is_meta for part in model.module.parameters()):
        raise GradientError.because("some of the weights are offloaded")
    needed, free = node_bytes_per_token(model) * max(map(len, tokens.clean)), free_bytes(model.device)
    if needed > free:
        raise GradientError.because(
            f"one pair's backward pass takes about {needed >> 20} MiB, and {free >> 20} MiB are free"
        )
    found = torch.zeros(len(tokens), model.n_components, len(POSITION_GROUPS), dtype=torch.float64)
    with ready(model), progress("attributing", total=len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            with torch.no_grad():
                corrupt = run(model, batch.corrupt, batch)
            clean = run(model, batch.clean, batch, whole_vocabulary=whole_vocabulary(metric))
            gradients = torch.autograd.grad(measure(metric, batch, clean.logits).sum(), clean.z)
            groups = EachDevice(position_groups(batch, positions))
            summed = []
            for ours, theirs, gradient in zip(clean.z, corrupt.z, gradients, strict=True):
                product = (ours.detach().float() - theirs.float()) * gradient.float()
                by_head = product.unflatten(-1, (model.n_heads, -1)).sum(3)
                summed.append(torch.einsum("bsh,bsg->bhg", by_head, *groups.on(by_head.device)))
            found[torch.tensor(batch.rows)] = brought(summed).transpose(0, 1).flatten(1, 2)
            advance(len(batch.rows))
    return found
