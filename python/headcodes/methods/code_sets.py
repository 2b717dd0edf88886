"""Code sets: one sparse autoencoder for all heads, one integer code a head and prompt, scores by set difference.

The published method (O'Neill & Bui 2024, arXiv 2405.12522) and two that mend it. All three walk the same way; they
differ in the entries of one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.codes.recipes import RECIPES, Recipe, make_codes
from headcodes.methods.findings import Findings
from headcodes.methods.inputs import Inputs
from headcodes.overlap.counts import pair_unique_counts, unique_counts
from headcodes.overlap.mentions import mention_scores

if TYPE_CHECKING:
    from headcodes.methods import Level


def find_many(name: str, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score heads by the number of codes that occur in positives and in no negative; pairs likewise by code pairs."""
    recipe = RECIPES[name]
    activations = inputs.activations
    found = [Findings(head_scores=np.zeros((activations.n_layers, activations.n_heads))) for _ in seeds]
    if name == "contrast" and inputs.model.dtype == torch.bfloat16:
        # Half the time at the same loss where the device computes in it; the published recipes stay in fp32.
        recipe = replace(recipe, config=replace(recipe.config, dtype=torch.bfloat16))
    coded = make_codes(activations, recipe, seeds, inputs.settings.n_train, inputs.backend, found[0].timed)
    for findings, each in zip(found, coded, strict=True):
        findings.take_codes(each)
        _count(findings, recipe, each.trained, inputs, level)
    return found


def _count(findings: Findings, recipe: Recipe, trained: list[int], inputs: Inputs, level: Level) -> None:
    """Fill in the scores that follow from a seed's codes, ``trained`` being the prompts of its autoencoder."""
    codes, n_pairs = findings.codes, len(inputs.tokens)
    assert codes is not None
    if recipe.dead == 0:
        codes = findings.codes = np.maximum(codes, 0)

    judged = np.ones((2, n_pairs), dtype=bool)
    if recipe.hold_out:
        judged.reshape(-1)[trained] = False
        if not judged.all(axis=0).any():  # so few pairs that all were trained on: judged on the same ones
            judged[:] = True
    findings.judged = judged.reshape(-1)
    positive, negative = codes[:n_pairs][judged[0]], codes[n_pairs:][judged[1]]
    dead = None if recipe.dead == 0 else recipe.dead
    untrained = np.setdiff1d(np.arange(n_pairs), np.asarray(trained) % n_pairs)
    findings.counted = codes[:n_pairs][untrained], codes[n_pairs:][untrained], dead
    with findings.timed("overlap"):
        counts = unique_counts(positive, negative, dead=dead, threads=inputs.threads)
        findings.head_scores = counts.reshape(findings.head_scores.shape).astype(np.float64)
        if level == "edge":
            pairs = pair_unique_counts(positive, negative, dead=dead, threads=inputs.threads)
            findings.mention_scores = mention_scores(pairs).astype(np.float64)
            findings.pair_scores = pairs.astype(np.float64)
