"""Mean difference: how far a head's mean output moves between the positives and the negatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.methods.findings import Findings

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by the norm, in d_model, of its mean output over positives less that over negatives.

    The output is linear in z, so the mean is taken in d_head, and only one row a head is projected.
    """
    activations = inputs.activations
    findings = Findings.of(inputs.model)
    with findings.timed("score"):
        n_pairs = len(inputs.tokens)
        difference = activations.z[:n_pairs].float().mean(0) - activations.z[n_pairs:].float().mean(0)
        norms = [
            torch.einsum("ch,chd->cd", difference[heads], activations.W_O[heads].float()).norm(dim=-1)
            for heads in activations.layers()  # fp32 weights of one layer at a time
        ]
        findings.set_heads(torch.cat(norms))
        if (mlps := activations.mlps) is not None:
            findings.set_mlps((mlps[:n_pairs].mean(0) - mlps[n_pairs:].mean(0)).norm(dim=-1).cpu().double().numpy())
    return findings
