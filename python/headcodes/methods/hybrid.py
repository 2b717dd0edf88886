"""Hybrid: one backward pass, and codes that say in which pairs a head says something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.activations.capture import HeadActivations
from headcodes.codes.recipes import Recipe, make_codes
from headcodes.codes.sae import TrainConfig
from headcodes.interventions.metric import measure, refuse_flat, whole_vocabulary
from headcodes.interventions.runs import (
    POSITION_GROUPS,
    batches,
    graph_bytes,
    node_bytes_per_token,
    position_groups,
    ready,
    require_equal_lengths,
    run,
)
from headcodes.methods.findings import Findings
from headcodes.models.devices import EachDevice, brought
from headcodes.progress import progress

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs

# A small dictionary, briefly trained, costs a tenth of the backward pass and tells flips as well as the full one
# (docs/methods.md).
RECIPE = Recipe(
    "head", "pairs", hold_out=False, dead=-1, config=TrainConfig(d_sae=64, n_epochs=20, decoder_norm="atoms")
)


def find_many(name: str, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by |mean over pairs of p| + mean over pairs of |p|, with p = (z_clean - z_corrupt) . dLD/dz.

    The products p are those of ``eap``, from one backward pass over the clean prompts, halved in pairs in which the
    head's code stays the same. The second term keeps heads that help some prompts and hinder others, and cancel out in
    the first. Codes come from the z of the same two forward passes, averaged over positions.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length.
    """
    model, tokens = inputs.model, inputs.tokens
    require_equal_lengths(tokens, name)
    metric = inputs.metric or "logit-diff"
    refuse_flat(metric, name)
    found = [Findings.of(model) for _ in seeds]
    n_pairs, shape = len(tokens), (model.n_components, model.d_head)
    by_position = torch.zeros(n_pairs, model.n_components, len(POSITION_GROUPS), dtype=torch.float64)
    z = torch.zeros(2 * n_pairs, *shape)
    with found[0].timed("attribute"), ready(model), progress("attributing", total=n_pairs) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            with torch.no_grad():
                corrupt = run(model, batch.corrupt, batch)
            clean = run(model, batch.clean, batch, whole_vocabulary=whole_vocabulary(metric))
            gradients = torch.autograd.grad(measure(metric, batch, clean.logits).sum(), clean.z)
            rows = torch.tensor(batch.rows)
            inside = (torch.arange(batch.clean.shape[1]) <= batch.last[:, None]).float()
            shares = EachDevice(inside / inside.sum(1, keepdim=True))
            groups = EachDevice(position_groups(batch, inputs.settings.positions))
            found_products, found_z = [], []
            for layer, gradient in enumerate(gradients):
                ours, theirs = clean.z[layer].detach().float(), corrupt.z[layer].float()
                product = ((ours - theirs) * gradient.float()).unflatten(-1, (model.n_heads, -1))
                found_products.append(torch.einsum("bsh,bsg->bhg", product.sum(3), *groups.on(product.device)))
                # Each prompt's own positions, averaged.
                (share,) = shares.on(ours.device)
                sides = torch.stack([torch.einsum("bs,bsx->bx", share, side) for side in (ours, theirs)])
                found_z.append(model.by_head(layer, sides))
            by_position[rows] = brought(found_products).transpose(0, 1).flatten(1, 2)
            means = brought(found_z).float()  # [layer, side, batch, ...]
            for side, offset in enumerate((0, n_pairs)):
                z[rows + offset] = means[:, side].transpose(0, 1).flatten(1, 2)
            advance(len(batch.rows))
    products = by_position.sum(-1)
    activations = HeadActivations(
        z.to(model.device), model.W_O.flatten(0, 1), model.n_layers, model.n_heads, positions="mean"
    )
    coded = make_codes(activations, RECIPE, seeds, inputs.settings.n_train, inputs.backend, found[0].timed)
    for findings, each in zip(found, coded, strict=True):
        findings.take_codes(each)
        assert findings.codes is not None
        findings.judged = np.ones(2 * n_pairs, dtype=bool)
        findings.set_signed(products.mean(0))
        findings.by_position = by_position.mean(0).numpy().reshape(*findings.head_scores.shape, -1)
        flips = findings.codes[:n_pairs] != findings.codes[n_pairs:]
        weighed = products * torch.from_numpy((1 + flips) / 2)
        findings.set_heads(weighed.mean(0).abs() + weighed.abs().mean(0))
    return found
