"""Scores of pairs of heads: along the edges between the best heads, elsewhere the product of the heads' scores."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.activations.cache import kept
from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.graph import split_slot
from headcodes.interventions.carried import carried_edges, composed_edges, edges_between

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from headcodes.methods.findings import Findings
    from headcodes.methods.inputs import Inputs

# Between so many of the best heads, and on so many pairs, edges are scored one by one: in about the time that EAP takes
# for all of its edges. Chosen on ioi and greater-than (docs/results.md).
_N_HEADS, _N_PAIRS = 32, 6


def propose_pairs(findings: Findings, inputs: Inputs, combine: Callable[[Tensor], Tensor] | None = None) -> None:
    """Fill ``pair_scores``, ``pairs_proposed_by`` and, with gradients, ``carried`` of ``findings``, whose heads have
    their scores.

    Between two of the 32 best heads a pair gets, with gradients, what its edges into query, key and value carry
    together (``carried_edges``, on six answered pairs), combined over pairs as the heads' own products are; without,
    the product of the heads' scores times how strongly they compose (``composed_edges``, the strongest of the three).
    Any other pair gets the product of its heads' scores, scaled by least squares through 0 to the pairs scored so.
    Counts of code pairs do not find a model's edges (docs/methods.md).

    Args:
        combine: [n_pairs, n] signed products to [n] scores; None: no backward pass is to be had.

    Warns:
        HeadcodesWarning: a family whose query, key and value projections are unknown, or too little memory: every pair
            gets the product of its heads' scores.
    """
    flat = findings.head_scores.ravel()
    scores = np.outer(flat, flat)
    findings.mention_scores, findings.pairs_proposed_by = None, "products"
    best = [int(i) for i in np.argsort(-flat, kind="stable")[:_N_HEADS] if flat[i] > 0]
    try:
        with findings.timed("pairs"):
            found = _between(findings, inputs, [divmod(i, inputs.model.n_heads) for i in best], scores, combine)
    except HeadcodesError as error:
        reason = f"pairs of heads are scored by the product of their scores alone: {error.must}; got {error.got}"
        warnings.warn(reason, HeadcodesWarning, stacklevel=4)
        found = {}
    if found:
        findings.pairs_proposed_by = "composition" if combine is None else "gradients"
        ends, values = tuple(np.array(list(found)).T), np.array(list(found.values()))
        own = scores[ends]
        square = float(own @ own)
        scores *= float(values @ own) / square if square > 0 else 0.0
        scores[ends] = scores[ends[::-1]] = values
    np.fill_diagonal(scores, 0.0)
    findings.pair_scores = scores


def _between(
    findings: Findings,
    inputs: Inputs,
    heads: list[tuple[int, int]],
    products: Float[np.ndarray, "n_component n_component"],
    combine: Callable[[Tensor], Tensor] | None,
) -> dict[tuple[int, int], float]:
    """Return the score of every pair of ``heads`` in different layers, by their numbers, the earlier one first."""
    model = inputs.model
    clean = inputs.logit_differences[0][: inputs.n_proposing]
    rows = np.flatnonzero(clean > 0)[:_N_PAIRS].tolist() or range(min(_N_PAIRS, len(clean)))
    tokens = inputs.tokens.subset(rows)

    def make() -> dict[str, Tensor]:
        if combine is None:
            return {"strengths": torch.from_numpy(composed_edges(model, heads)[1])}
        return {"carried": torch.from_numpy(carried_edges(model, tokens, heads)[1])}

    what = f"{'composed' if combine is None else 'carried'} {heads}"
    made = kept(model, tokens, what, make) if inputs.cache else make()
    edges = edges_between(model, heads)
    if combine is not None:
        findings.carried = edges, made["carried"].numpy()
    number = {name: place for place, name in enumerate(model.components)}
    columns: dict[tuple[int, int], list[int]] = {}
    for column, (sender, receiver) in enumerate(edges):
        columns.setdefault((number[sender], number[split_slot(receiver)[0]]), []).append(column)
    if combine is None:
        return {pair: float(products[pair] * made["strengths"][its].max()) for pair, its in columns.items()}
    if not columns:
        return {}
    together = torch.stack([made["carried"][:, its].sum(dim=1) for its in columns.values()], dim=1)
    return dict(zip(columns, combine(together).tolist(), strict=True))
