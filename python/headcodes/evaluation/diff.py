"""What one circuit has and another has not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.evaluation.evaluate import rank_correlation
from headcodes.evaluation.record import SCHEMA
from headcodes.graph import parse_head


@dataclass(frozen=True)
class Difference:
    """How two circuits of one model differ.

    Attributes:
        nodes_both, nodes_only_a, nodes_only_b: Names, in the circuits' order.
        edges_both, edges_only_a, edges_only_b: (source, destination).
        node_jaccard, edge_jaccard: Shared over all; None where neither circuit has any.
        score_correlation: Rank correlation of the scores of heads that both scored; None below 3 of them.
    """

    nodes_both: list[str]
    nodes_only_a: list[str]
    nodes_only_b: list[str]
    edges_both: list[tuple[str, str]]
    edges_only_a: list[tuple[str, str]]
    edges_only_b: list[tuple[str, str]]
    node_jaccard: float | None
    edge_jaccard: float | None
    score_correlation: float | None

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {"schema": SCHEMA, "kind": "difference", **vars(self)}

    def as_text(self) -> str:
        """Return a few lines for a terminal."""

        def shown(value: float | None) -> str:
            return "-" if value is None else f"{value:.3f}"

        def listed(names: Sequence[str]) -> str:
            return " ".join(names) or "none"

        def arrows(edges: Sequence[tuple[str, str]]) -> str:
            return listed([f"{source}->{target}" for source, target in edges])

        return "\n".join(
            [
                f"nodes: Jaccard {shown(self.node_jaccard)}",
                f"  rank correlation of |score| {shown(self.score_correlation)}",
                f"  both    {listed(self.nodes_both)}",
                f"  only A  {listed(self.nodes_only_a)}",
                f"  only B  {listed(self.nodes_only_b)}",
                f"edges: Jaccard {shown(self.edge_jaccard)}",
                f"  both    {arrows(self.edges_both)}",
                f"  only A  {arrows(self.edges_only_a)}",
                f"  only B  {arrows(self.edges_only_b)}",
            ]
        )


def diff(a: Circuit, b: Circuit) -> Difference:
    """Compare two circuits of models of one shape.

    Raises:
        HeadcodesError: the shapes differ.
    """
    if (a.n_layers, a.n_heads) != (b.n_layers, b.n_heads):
        raise HeadcodesError(
            "two circuits to compare belong to models of one shape",
            f"{a.n_layers} x {a.n_heads} and {b.n_layers} x {b.n_heads} heads",
            "Compare circuits of one model.",
        )
    shared = sorted(name for name in set(a.node_scores) & set(b.node_scores) if parse_head(name))
    correlation = None
    if len(shared) >= 3:
        # |score| on both sides: what orders a ranking.
        x = np.abs([a.node_scores[name] for name in shared])
        correlation = rank_correlation(x, [b.node_scores[name] for name in shared])
    nodes_a, nodes_b, edges_a, edges_b = set(a.nodes), set(b.nodes), set(a.edges), set(b.edges)
    return Difference(
        nodes_both=[name for name in a.nodes if name in nodes_b],
        nodes_only_a=[name for name in a.nodes if name not in nodes_b],
        nodes_only_b=[name for name in b.nodes if name not in nodes_a],
        edges_both=[edge for edge in a.edges if edge in edges_b],
        edges_only_a=[edge for edge in a.edges if edge not in edges_b],
        edges_only_b=[edge for edge in b.edges if edge not in edges_a],
        node_jaccard=_jaccard(nodes_a, nodes_b),
        edge_jaccard=_jaccard(edges_a, edges_b),
        score_correlation=correlation,
    )


def _jaccard(a: set[Any], b: set[Any]) -> float | None:
    return len(a & b) / len(a | b) if a | b else None
