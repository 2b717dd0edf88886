"""Code sets: one sparse autoencoder for all heads, one integer code a head and prompt, scores by set difference.

The published method (O'Neill & Bui 2024, arXiv 2405.12522) and two variants of it. All three run the same stages; they
differ in the entries of one table.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.codes.recipes import RECIPES, Codes, Recipe, Trained, encode_heads, train_autoencoders
from headcodes.errors import HeadcodesError
from headcodes.methods.findings import Findings
from headcodes.methods.inputs import Inputs
from headcodes.overlap.counts import pair_unique_counts, unique_counts
from headcodes.overlap.mentions import mention_scores

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.overlap.significance import PairSignificance, Significance


def train(recipe: str, inputs: Inputs, seeds: Sequence[int]) -> Trained:
    """Train the autoencoders of a recipe (``headcodes.codes.recipes``), one a seed."""
    its = RECIPES[recipe]
    if recipe == "contrast" and inputs.model.dtype == torch.bfloat16:
        # Half the time at the same loss where the device computes in it; the published recipes stay in fp32.
        its = replace(its, config=replace(its.config, dtype=torch.bfloat16))
    return train_autoencoders(inputs.activations, its, seeds, inputs.settings.n_train)


def count(coded: Codes, recipe: Recipe, inputs: Inputs, level: Level) -> Findings:
    """Count the codes, at edge level the pairs of codes, that occur in positives and in no negative: the scores.

    Those of MLPs, where they are asked for, likewise; pairs are of heads alone.
    Where the recipe holds out, prompts that trained the autoencoder do not count.
    """
    findings = Findings.of(inputs.model)
    findings.take_codes(coded)
    codes, n_pairs = findings.codes, len(inputs.tokens)
    assert codes is not None
    if recipe.dead == 0:
        codes = findings.codes = np.maximum(codes, 0)
        findings.mlp_codes = None if findings.mlp_codes is None else np.maximum(findings.mlp_codes, 0)

    scored = np.ones((2, n_pairs), dtype=bool)
    if recipe.hold_out:
        scored.reshape(-1)[coded.trained] = False
        if not scored.all(axis=0).any():  # so few pairs that all were trained on: scored on the same ones
            scored[:] = True
    findings.scored_prompts = scored.reshape(-1)
    positive, negative = codes[:n_pairs][scored[0]], codes[n_pairs:][scored[1]]
    dead = None if recipe.dead == 0 else recipe.dead
    untrained = np.setdiff1d(np.arange(n_pairs), np.asarray(coded.trained) % n_pairs)
    findings.counted = codes[:n_pairs][untrained], codes[n_pairs:][untrained], dead
    with findings.timed("overlap"):
        counts = unique_counts(positive, negative, dead=dead, threads=inputs.threads)
        findings.head_scores = counts.reshape(findings.head_scores.shape).astype(np.float64)
        if (mlps := findings.mlp_codes) is not None:
            sides = mlps[:n_pairs][scored[0]], mlps[n_pairs:][scored[1]]
            findings.set_mlps(unique_counts(*sides, dead=dead, threads=inputs.threads).astype(np.float64))
        if level == "edge":
            pairs = pair_unique_counts(positive, negative, dead=dead, threads=inputs.threads)
            findings.mention_scores = mention_scores(pairs).astype(np.float64)
            findings.pair_scores = pairs.astype(np.float64)
    return findings


def permutation_tests(
    findings: Findings, inputs: Inputs, level: Level, fdr: float, seed: int
) -> tuple[Significance, PairSignificance | None]:
    """Test the counts on the pairs that did not train the autoencoder; at edge level the pairs' counts too.

    Raises:
        HeadcodesError: the autoencoder was trained on all pairs.
    """
    from headcodes.overlap.significance import node_significance, pair_significance

    assert findings.counted is not None
    positive, negative, dead = findings.counted
    if not len(positive):
        raise HeadcodesError(
            "there must be pairs for the permutation test that did not train the autoencoder",
            f"n_train={inputs.settings.n_train} with {len(inputs.tokens)} pairs",
            "Give more pairs, or train on fewer prompts.",
        )
    with findings.timed("test"):
        nodes = node_significance(positive, negative, paired=True, seed=seed, dead=dead, threads=inputs.threads)
        if level == "node":
            return nodes, None
        n_layers, n_heads = findings.head_scores.shape
        pairs = pair_significance(
            positive,
            negative,
            paired=True,
            seed=seed,
            dead=dead,
            layers=np.arange(n_layers * n_heads) // n_heads,
            selected=np.flatnonzero(nodes.q <= fdr),
            threads=inputs.threads,
        )
    return nodes, pairs


def coded(recipe: str, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Train, encode and count, one findings a seed; what the seeds share counts in the first one's seconds."""
    start = time.perf_counter()
    trained = train(recipe, inputs, seeds)
    trained_s = time.perf_counter() - start
    codes = encode_heads(inputs.activations, trained, inputs.backend)
    encoded_s = time.perf_counter() - start - trained_s
    found = [count(each, trained.recipe, inputs, level) for each in codes]
    found[0].timings_s = {"train": trained_s, "encode": encoded_s, **found[0].timings_s}
    return found


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Return the counts as they are: the published method's scores."""
    return found
