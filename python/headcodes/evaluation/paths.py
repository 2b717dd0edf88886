"""Judging edges: exact path patching of every two heads that matter, against the edges that a circuit scores."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from headcodes import metrics
from headcodes.activations.cache import kept
from headcodes.files import checksum
from headcodes.graph import split_slot
from headcodes.interventions.carried import edges_between
from headcodes.interventions.patch import answered
from headcodes.interventions.paths import PathEffects, path_effects

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headcodes.interventions.patch import CausalTruth
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs

# Prompt pairs that paths are patched on: their number grows with the square of that of the heads.
N_PATH_PAIRS = 8


def path_truth(
    model: Model,
    tokens: TokenPairs,
    heads: list[tuple[int, int]],
    *,
    pairs: int = N_PATH_PAIRS,
    apart: bool = False,
    seed: int = 0,
) -> PathEffects:
    """Patch the paths between every two of ``heads`` that lie in different layers, query, key and value together.

    The effects of every prompt pair are kept in the cache, so that an interrupted run goes on where it stopped.

    Args:
        model: Preferably in float32.
        tokens: Pairs whose two prompts have equally many tokens; the first ``pairs`` answered ones are used.
        heads: (layer, head); at least two of different layers.
        apart: Patch query, key and value each by itself instead.
        seed: Of the bootstrap.

    Raises:
        HeadcodesError: as ``path_effects``.
    """
    edges = edges_between(model, heads, apart)
    chosen, clean_ld, corrupt_ld, *_ = answered(model, tokens, pairs)
    what = f"paths {checksum(json.dumps(edges).encode())}"
    rows, engines = [], []
    for index in range(len(chosen)):
        one = chosen.subset([index])
        known = clean_ld[[index]], corrupt_ld[[index]]

        def make(one: TokenPairs = one, known: Any = known) -> dict[str, torch.Tensor]:
            found = path_effects(model, one, edges, known=known)
            engines.append(found.engine)
            return {"effects": torch.from_numpy(found.effects[0])}

        rows.append(kept(model, one, what, make)["effects"].numpy())
    effects = np.stack(rows)
    low, high = metrics.mean_intervals(effects, seed=seed)
    return PathEffects(edges, effects, effects.mean(axis=0), low, high, clean_ld, engines[-1] if engines else None)


def judge_paths(
    pair_scores: np.ndarray[Any, Any],
    slot_scores: Mapping[tuple[str, str], float],
    model: Model,
    tokens: TokenPairs,
    truth: CausalTruth,
    top: int,
    seed: int = 0,
) -> dict[str, Any]:
    """Return how well scores of pairs find the paths between the ``top`` heads of largest effect.

    Args:
        pair_scores: [n_component, n_component], components layer-major, larger is better; only (i, j) with
            layer_i < layer_j is read, among those heads.
        slot_scores: sizes of the scores of edges that name a query, key or value (``a5.h5<q>``), 0 for those that are
            not there; where there are any, each of the three is patched and judged by itself too.

    Returns:
        ``n_paths``, ``n_edges_in_truth`` (interval excludes 0, effect at least 1% of the logit difference),
        ``n_pairs``, ``engine``, ``largest`` paths with effect and interval, and ``pair_auc`` and
        ``pair_average_precision``, None where the scores are all alike or the truth has but one kind; with
        ``slot_scores`` also ``by_slot``, the same of paths into "qkv" (each query, key and value a path of its own),
        "q", "k" and "v".

    Raises:
        HeadcodesError: as ``path_truth``.
    """
    order = np.argsort(-np.abs(truth.head_effects).ravel(), kind="stable")[:top]
    heads = [divmod(int(i), model.n_heads) for i in order]
    found = path_truth(model, tokens, heads, seed=seed)
    number = {name: place for place, name in enumerate(model.components)}
    scores = np.array([pair_scores[number[a], number[b]] for a, b in found.edges])
    by_slot: dict[str, Any] = {}
    if slot_scores:
        apart = path_truth(model, tokens, heads, apart=True, seed=seed)
        sizes = np.array([slot_scores.get(edge, 0.0) for edge in apart.edges])
        slots = np.array([split_slot(receiver)[1] for _, receiver in apart.edges])
        by_slot = {"by_slot": {some: _judged(apart, sizes, np.isin(slots, list(some))) for some in ("qkv", *"qkv")}}
    return _judged(found, scores, np.ones(len(scores), dtype=bool)) | by_slot


def _judged(found: PathEffects, scores: np.ndarray[Any, Any], asked: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Judge the scores of those paths that are asked for."""
    inside = set(found.confirmed())
    rows = [row for row, is_asked in zip(found.as_rows(), asked, strict=True) if is_asked]
    labels, scores = np.array([(row["from"], row["to"]) in inside for row in rows]), scores[asked]
    judged = 0 < labels.sum() < len(labels) and bool(np.ptp(scores) > 0)
    return {
        "n_paths": len(labels),
        "n_edges_in_truth": int(labels.sum()),
        "n_pairs": len(found.effects),
        "engine": None if found.engine is None else vars(found.engine),
        "largest": sorted(rows, key=lambda row: -abs(row["effect"]))[:10],
        "pair_auc": metrics.roc_auc(scores, labels) if judged else None,
        "pair_average_precision": metrics.average_precision(scores, labels) if judged else None,
    }
