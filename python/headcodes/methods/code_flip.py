"""Code flips: how often a head's code changes when its prompt is corrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair, mean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int32

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by the share of pairs in which its clean and its corrupted code differ.

    Codes as in the recipe of this name: every head centred and scaled, pairs that the autoencoder saw left out where
    others remain. A dead row's code differs from every living one.
    """
    for findings in found:
        assert findings.codes is not None
        findings.set_by_pair(ByPair(torch.from_numpy(_flips(findings, findings.codes)).double(), mean))
        if findings.mlp_codes is not None:
            findings.set_mlps(flip_shares(findings, findings.mlp_codes))
    return found


def flip_shares(findings: Findings, codes: Int32[np.ndarray, "n_prompt n"]) -> Float[np.ndarray, " n"]:
    """Return, of the scored pairs, the share in which each column's clean and corrupted code differ."""
    shares: Float[np.ndarray, " n"] = _flips(findings, codes).mean(0)
    return shares


def _flips(findings: Findings, codes: Int32[np.ndarray, "n_prompt n"]) -> Bool[np.ndarray, "n_scored n"]:
    assert findings.scored_prompts is not None
    scored = np.logical_and(*np.split(findings.scored_prompts, 2))
    clean, corrupt = np.split(codes, 2)
    flips: Bool[np.ndarray, "n_scored n"] = clean[scored] != corrupt[scored]
    return flips
