"""Activation norm: how much a head writes at all; the floor that every method should beat."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair, mean

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by the mean norm, in d_model, of its outputs on the positives.

    |z . W_O|^2 = z G z^T with G = W_O W_O^T, so outputs d_model wide are never made.
    """
    activations = inputs.activations
    findings = Findings.of(inputs.model)
    with findings.timed("score"):
        norms = []
        for heads in activations.layers():  # fp32 weights of one layer at a time
            z = activations.z[: len(inputs.tokens), heads].float().transpose(0, 1)
            W_O = activations.W_O[heads].float()
            squares = ((z @ (W_O @ W_O.transpose(1, 2))) * z).sum(-1)
            norms.append(squares.clamp_min(0).sqrt())
        findings.set_by_pair(ByPair(torch.cat(norms).T.cpu().double(), mean))
        if (mlps := activations.mlps) is not None:
            findings.set_mlps(mlps[: len(inputs.tokens)].norm(dim=-1).mean(0).cpu().double().numpy())
    return findings
