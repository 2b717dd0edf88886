"""Hybrid: one backward pass, and codes that say in which pairs a head says something else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.activations.capture import HeadActivations
from headcodes.codes.recipes import Recipe, make_codes
from headcodes.codes.sae import TrainConfig
from headcodes.interventions.metric import refuse_flat
from headcodes.interventions.runs import require_equal_lengths
from headcodes.methods import attribution
from headcodes.methods.findings import Findings
from headcodes.models.devices import EachDevice, brought

if TYPE_CHECKING:
    from torch import Tensor

    from headcodes.interventions.runs import Batch, Parts
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
    the first. MLPs, where they are asked for, are scored likewise by their outputs. Codes come from the z of the same
    two forward passes, averaged over positions.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length.
    """
    model, tokens = inputs.model, inputs.tokens
    require_equal_lengths(tokens, name)
    metric = inputs.metric or "logit-diff"
    refuse_flat(metric, name)
    found = [Findings.of(model) for _ in seeds]
    n_pairs = len(tokens)
    z = torch.zeros(2 * n_pairs, model.n_components, model.d_head)
    outputs = torch.zeros(2 * n_pairs, model.n_layers, model.d_model) if inputs.with_mlps else None

    def keep_means(batch: Batch, clean: Parts, corrupt: Parts) -> None:
        """Each prompt's own positions, averaged."""
        inside = (torch.arange(batch.clean.shape[1]) <= batch.last[:, None]).float()
        shares = EachDevice(inside / inside.sum(1, keepdim=True))

        def means(ours: Tensor, theirs: Tensor) -> Tensor:
            (share,) = shares.on(ours.device)
            # OPT's MLPs put all tokens into one row.
            sides = [side.detach().float().reshape(*batch.clean.shape, -1) for side in (ours, theirs)]
            return torch.stack([torch.einsum("bs,bsx->bx", share, side) for side in sides])

        rows = torch.tensor([batch.rows, [n_pairs + row for row in batch.rows]])
        of_heads = [
            model.by_head(layer, means(*sides)) for layer, sides in enumerate(zip(clean.z, corrupt.z, strict=True))
        ]
        z[rows] = brought(of_heads).float().permute(1, 2, 0, 3, 4).flatten(2, 3)
        if outputs is not None:
            of_mlps = [means(*sides) for sides in zip(clean.mlp, corrupt.mlp, strict=True)]
            outputs[rows] = brought(of_mlps).float().permute(1, 2, 0, 3)

    with found[0].timed("attribute"):
        products = attribution.products(
            model, tokens, metric, inputs.settings.positions, inputs.with_mlps, also=keep_means
        )
    activations = HeadActivations(
        z.to(model.device),
        model.W_O.flatten(0, 1),
        model.n_layers,
        model.n_heads,
        positions="mean",
        mlps=None if outputs is None else outputs.to(model.device),
    )
    coded = make_codes(activations, RECIPE, seeds, inputs.settings.n_train, inputs.backend, found[0].timed)
    for findings, each in zip(found, coded, strict=True):
        findings.take_codes(each)
        findings.scored_prompts = np.ones(2 * n_pairs, dtype=bool)
        flips = each.codes[:n_pairs] != each.codes[n_pairs:]
        weighed = products.of_pairs * torch.from_numpy((1 + flips) / 2)
        products.fill(findings, weighed, lambda values: values.mean(0).abs() + values.abs().mean(0))
    return found
