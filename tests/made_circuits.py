"""Small circuits, of heads and of a whole graph."""

from __future__ import annotations

from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit

SCORES = np.array([[0.0, 3.0], [5.0, 0.5], [4.0, 0.0]])


def head_circuit(pairs: bool = True, **fields: Any) -> Circuit:
    pair_scores = np.zeros((6, 6))
    pair_scores[1, 2], pair_scores[2, 4] = 10, 40
    given = {"top": 3, "d_model": 16, **fields}
    return Circuit.from_scores(SCORES, pair_scores=pair_scores if pairs else None, **given)


def graph_circuit() -> Circuit:
    return Circuit(
        n_layers=2,
        n_heads=2,
        d_model=8,
        nodes=("input", "a0.h1", "m1", "logits"),
        edges=(("input", "a0.h1<q>"), ("a0.h1", "m1"), ("m1", "logits")),
        node_scores={"a0.h1": 0.25, "m1": -2.0},
        edge_scores={("input", "a0.h1<q>"): 0.1, ("a0.h1", "m1"): -0.7, ("m1", "logits"): 3.0, ("m0", "m1"): 1e-3},
    )
