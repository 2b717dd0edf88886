"""Random scores: what any method must be told apart from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.methods.findings import Findings

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score every head by a uniform draw from [0, 1); the model is not run."""
    model = inputs.model
    findings = Findings.of(model)
    generator = torch.Generator().manual_seed(seed)
    findings.set_heads(torch.rand(model.n_layers * model.n_heads, generator=generator, dtype=torch.float64))
    return findings
