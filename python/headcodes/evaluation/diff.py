"""What one circuit has and another has not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.circuit.mib import beyond_pairs
from headcodes.errors import HeadcodesError
from headcodes.evaluation.evaluate import rank_correlation
from headcodes.evaluation.record import SCHEMA
from headcodes.graph import parse_head, split_slot


@dataclass(frozen=True)
class Difference:
    """How two circuits of one model differ.

    Attributes:
        nodes_both, nodes_only_a, nodes_only_b: Names, in the circuits' order.
        edges_both, edges_only_a, edges_only_b: (source, destination).
        edges_as: "named", or "pairs of heads" where one circuit has edges of pairs of heads and the other of query,
            key and value, of MLPs, input or logits: both are then reduced to the pairs of heads that they join.
        node_jaccard, edge_jaccard: Shared over all; None where neither circuit has any.
        score_correlation: Rank correlation of the scores of heads that both scored; None below 3 of them.
        effects_apart: (head or ``source->destination``, effect in A, effect in B) of what was patched in both and whose
            95% intervals do not meet, largest difference first.
    """

    nodes_both: list[str]
    nodes_only_a: list[str]
    nodes_only_b: list[str]
    edges_both: list[tuple[str, str]]
    edges_only_a: list[tuple[str, str]]
    edges_only_b: list[tuple[str, str]]
    edges_as: str
    node_jaccard: float | None
    edge_jaccard: float | None
    score_correlation: float | None
    effects_apart: list[tuple[str, float, float]]

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
            return listed([f"{source}->{destination}" for source, destination in edges])

        return "\n".join(
            [
                f"nodes: Jaccard {shown(self.node_jaccard)}",
                f"  rank correlation of |score| {shown(self.score_correlation)}",
                "  effects that differ "
                + listed([f"{name} {ours:+.2f}/{theirs:+.2f}" for name, ours, theirs in self.effects_apart]),
                f"  both    {listed(self.nodes_both)}",
                f"  only A  {listed(self.nodes_only_a)}",
                f"  only B  {listed(self.nodes_only_b)}",
                f"edges: Jaccard {shown(self.edge_jaccard)}"
                + ("" if self.edges_as == "named" else f" ({self.edges_as}: slots and other nodes left out)"),
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
            "two circuits to compare must belong to models of one shape",
            f"{a.n_layers} x {a.n_heads} and {b.n_layers} x {b.n_heads} heads",
            "Compare circuits of one model.",
        )
    shared = sorted(name for name in set(a.node_scores) & set(b.node_scores) if parse_head(name))
    correlation = None
    if len(shared) >= 3:
        # |score| on both sides: what orders a ranking.
        x = np.abs([a.node_scores[name] for name in shared])
        correlation = rank_correlation(x, [b.node_scores[name] for name in shared])
    nodes_a, nodes_b, listed_a, listed_b = set(a.nodes), set(b.nodes), a.edges, b.edges
    reduced = bool(a.edges and b.edges) and _kind(a.edges) != _kind(b.edges)
    if reduced:
        listed_a, listed_b = _pairs_of_heads(a.edges), _pairs_of_heads(b.edges)
    edges_a, edges_b = set(listed_a), set(listed_b)
    return Difference(
        nodes_both=[name for name in a.nodes if name in nodes_b],
        nodes_only_a=[name for name in a.nodes if name not in nodes_b],
        nodes_only_b=[name for name in b.nodes if name not in nodes_a],
        edges_both=[edge for edge in listed_a if edge in edges_b],
        edges_only_a=[edge for edge in listed_a if edge not in edges_b],
        edges_only_b=[edge for edge in listed_b if edge not in edges_a],
        edges_as="pairs of heads" if reduced else "named",
        node_jaccard=_jaccard(nodes_a, nodes_b),
        edge_jaccard=_jaccard(edges_a, edges_b),
        score_correlation=correlation,
        effects_apart=_effects_apart(a, b),
    )


def _effects_apart(a: Circuit, b: Circuit) -> list[tuple[str, float, float]]:
    both = [(name, row, b.effects[name]) for name, row in a.effects.items() if name in b.effects]
    apart = [row for row in both if row[1]["low"] > row[2]["high"] or row[2]["low"] > row[1]["high"]]
    found = [(name, float(ours["effect"]), float(theirs["effect"])) for name, ours, theirs in apart]
    return sorted(found, key=lambda row: -abs(row[1] - row[2]))


def _kind(edges: Iterable[tuple[str, str]]) -> tuple[bool, bool]:
    """Say whether edges name other parts than heads, and whether they enter heads as a whole."""
    return beyond_pairs(edges), any(parse_head(destination) is not None for _, destination in edges)


def _pairs_of_heads(edges: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    pairs = ((source, split_slot(destination)[0]) for source, destination in edges)
    return tuple(dict.fromkeys(pair for pair in pairs if parse_head(pair[0]) and parse_head(pair[1])))


def _jaccard(a: set[Any], b: set[Any]) -> float | None:
    return len(a & b) / len(a | b) if a | b else None
