"""Code flips: how often a head's code changes when its prompt is corrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.methods.findings import Findings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from jaxtyping import Float

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by the share of pairs in which its clean and its corrupted code differ.

    Codes as in the recipe of this name: every head centred and scaled, pairs that the autoencoder saw left out where
    others remain. A dead row's code differs from every living one.
    """
    for findings in found:
        findings.set_heads(torch.from_numpy(flip_shares(findings, len(inputs.tokens))))
    return found


def flip_shares(findings: Findings, n_pairs: int) -> Float[np.ndarray, " n_component"]:
    """Return, of the judged pairs, the share in which each head's clean and corrupted code differ."""
    assert findings.codes is not None
    assert findings.judged is not None
    judged = findings.judged[:n_pairs] & findings.judged[n_pairs:]
    flips = findings.codes[:n_pairs][judged] != findings.codes[n_pairs:][judged]
    shares: Float[np.ndarray, " n_component"] = flips.mean(0)
    return shares
