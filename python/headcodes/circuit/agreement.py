"""How far the scores of several seeds agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headcodes.circuit.circuit import Circuit

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class SeedScores:
    """The scores of every seed, and how far they agree.

    A spread is the sample standard deviation over seeds, 0 where there is only one. A consensus is the share of seeds
    whose own circuit of ``top`` heads (``Circuit.from_scores``: the best heads with a score above 0, and the best
    pairs among them that point forward) has the head or the pair; for mention scores, the circuit that they would
    choose.

    Attributes:
        seeds: of the method, in the order of the rows.
        head_scores: float64.
        pair_scores: float64; edge level only.
        mention_scores: float64; edge level only.
    """

    seeds: tuple[int, ...]
    head_scores: Float[np.ndarray, "n_seed n_layers n_heads"]
    pair_scores: Float[np.ndarray, "n_seed n_component n_component"] | None = None
    mention_scores: Float[np.ndarray, "n_seed n_component"] | None = None

    @property
    def head_spread(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """Spread of every head's score."""
        return _spread(self.head_scores)

    @property
    def pair_spread(self) -> Float[np.ndarray, "n_component n_component"] | None:
        """Spread of every pair's score; None at node level."""
        return None if self.pair_scores is None else _spread(self.pair_scores)

    @property
    def mention_spread(self) -> Float[np.ndarray, " n_component"] | None:
        """Spread of every head's mention score; None at node level."""
        return None if self.mention_scores is None else _spread(self.mention_scores)

    def circuits(self, top: int = 20) -> list[Circuit]:
        """Return the circuit that each seed alone would give.

        Raises:
            HeadcodesError: ``top`` is below 1.
        """
        pairs = [None] * len(self.seeds) if self.pair_scores is None else self.pair_scores
        return [
            Circuit.from_scores(heads, top=top, pair_scores=own)
            for heads, own in zip(self.head_scores, pairs, strict=True)
        ]

    def head_consensus(self, top: int = 20) -> Float[np.ndarray, "n_layers n_heads"]:
        """Return the share of seeds whose circuit has each head."""
        return _shares(self.circuits(top))

    def pair_consensus(self, top: int = 20) -> Float[np.ndarray, "n_component n_component"] | None:
        """Return the share of seeds whose circuit has each pair, symmetric; None at node level."""
        if self.pair_scores is None:
            return None
        circuits = self.circuits(top)
        place = {name: i for i, name in enumerate(circuits[0].node_scores)}
        share = np.zeros(self.pair_scores.shape[1:])
        for (source, destination), n_seeds in Counter(edge for circuit in circuits for edge in circuit.edges).items():
            i, j = place[source], place[destination]
            share[i, j] = share[j, i] = n_seeds / len(circuits)
        return share

    def mention_consensus(self, top: int = 20) -> Float[np.ndarray, " n_component"] | None:
        """Return the share of seeds in which each head is among the ``top`` most mentioned; None at node level."""
        if self.mention_scores is None:
            return None
        scores = self.mention_scores.reshape(self.head_scores.shape)
        return _shares([Circuit.from_scores(heads, top=top) for heads in scores]).ravel()

    def agreement(self, top: int = 20) -> dict[str, np.ndarray]:
        """Return spread and consensus of every score there is, under the names that files give them."""
        found = {
            "head_spread": self.head_spread,
            "head_consensus": self.head_consensus(top),
            "pair_spread": self.pair_spread,
            "pair_consensus": self.pair_consensus(top),
            "mention_spread": self.mention_spread,
            "mention_consensus": self.mention_consensus(top),
        }
        return {name: values for name, values in found.items() if values is not None}


def _spread(scores: np.ndarray) -> np.ndarray:
    return scores.std(axis=0, ddof=1) if len(scores) > 1 else np.zeros_like(scores[0])


def _shares(circuits: Sequence[Circuit]) -> Float[np.ndarray, "n_layers n_heads"]:
    """Return the share of the circuits that has each head."""
    n_circuits = Counter(node for circuit in circuits for node in circuit.nodes)
    counts = np.array([n_circuits[name] for name in circuits[0].node_scores])
    return counts.reshape(circuits[0].n_layers, circuits[0].n_heads) / len(circuits)
