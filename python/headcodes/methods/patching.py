"""Exact patching: what every other method tries to guess."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.errors import HeadcodesError
from headcodes.interventions.patch import CausalTruth, answered, causal_truth
from headcodes.interventions.paths import path_effects
from headcodes.interventions.places import effects_by_place
from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair, abs_mean
from headcodes.prompts.alignment import align
from headcodes.settings import Metric

if TYPE_CHECKING:
    from headcodes.graph import Part
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


# So many of the largest parts are told apart by place, on so many pairs: every place of every part is a run.
_MOST_PARTS, _MOST_PAIRS = 20, 16


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by |mean effect| of resample patching it, a pair by |mean effect| along the path between them.

    As Wang et al. 2022, arXiv 2211.00593. The 20 largest parts are also patched at every place of the prompts alone
    (``by_place``; of the others it is NaN). Only pairs that the model answers right are patched. Nothing is read from
    the cache of causal truths: the time is that of the method.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length, or no pair is answered right.
    """
    model, tokens = inputs.model, inputs.tokens
    findings = Findings.of(model)
    metric = inputs.metric or "logit-diff"
    if level == "edge" and metric != "logit-diff":
        raise HeadcodesError(
            "the metric of patched paths must be logit-diff", metric, "Use level='node', or leave metric out."
        )
    with findings.timed("patch"):
        truth = causal_truth(model, tokens, inputs.components, cache=False, metric=metric)
        findings.engine = truth.engine
        mlps = zip(truth.names[model.n_components :], truth.mean_effects[model.n_components :].tolist(), strict=True)
        findings.other_nodes = dict(mlps)
        findings.set_signed(torch.from_numpy(truth.head_effects.copy()))
        findings.set_by_pair(ByPair(torch.from_numpy(truth.per_pair_head_effects.copy()), abs_mean))
        if level == "edge":
            n = model.n_components
            later = [(i, j) for i in range(n) for j in range(n) if i // model.n_heads < j // model.n_heads]
            edges = [(model.components[i], model.components[j]) for i, j in later]
            effects = np.abs(path_effects(model, tokens, edges).mean)
            pairs = np.zeros((n, n))
            for (i, j), effect in zip(later, effects, strict=True):
                pairs[i, j] = pairs[j, i] = effect
            findings.pair_scores = pairs
    with findings.timed("places"):
        _by_place(findings, inputs, truth, metric)
    return findings


def _by_place(findings: Findings, inputs: Inputs, truth: CausalTruth, metric: Metric) -> None:
    """Patch the largest parts at every place of the prompts alone."""
    model, effects = inputs.model, truth.mean_effects
    rows = np.argsort(-np.abs(effects), kind="stable")[:_MOST_PARTS].tolist()
    chosen = answered(model, inputs.tokens, _MOST_PAIRS)[0]
    findings.alignment = align(chosen)
    findings.by_place = np.full((len(effects), len(findings.alignment.labels)), np.nan)
    n = model.n_components
    parts: list[Part] = [divmod(i, model.n_heads) if i < n else (i - n, None) for i in rows]
    found = effects_by_place(model, chosen, parts, findings.alignment, metric)
    findings.by_place[rows] = found.mean(axis=0)
