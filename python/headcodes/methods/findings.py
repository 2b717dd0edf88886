"""What a method finds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, Int32
    from torch import Tensor

    from headcodes.codes.recipes import Codes
    from headcodes.codes.sae import SparseAutoencoder
    from headcodes.graph import Edges
    from headcodes.interventions.walk import EngineUsed
    from headcodes.models.model import Model


@dataclass
class Findings:
    """What a method found.

    Attributes:
        head_scores: float64 [n_layers, n_heads], larger is more likely in the circuit.
        signed: the same with a sign, where the method has one: what the metric loses without the head.
        by_position: the parts of ``signed`` that come from each of ``interventions.runs.POSITION_GROUPS``, where the
            method tells them apart; they add up to it (before it is made robust).
        other_nodes: scores, signed like ``signed``, of ``input`` and ``m{layer}``, where the method has them.
        edges: every edge's score, where the method has them; edge level only.
        pair_scores: float64 [n_component, n_component], symmetric, zero diagonal; edge level only.
        mention_scores: float64 [n_component], the published "edge level" score of a head; edge level only.
        codes: int32 [2 * n_pairs, n_component], clean prompts first; code methods only.
        judged: bool [2 * n_pairs], the prompts whose codes the scores were made from.
        counted: codes of the positives, codes of the negatives and the dead code (None: no code is dead), of the pairs
            that did not train the autoencoder; only of methods whose scores are the counts of ``headcodes.overlap``,
            which a permutation test can take again.
        sae: the autoencoder behind the codes.
        dead_share: share of (prompt, head) rows in which no latent is active.
        method_used: the method that ``default`` stood for; None where the method asked for ran itself.
        fallback: why ``default`` stood for a method without gradients; None where it did not.
        engine: which engine patched, and why; of the method ``patching`` only.
        timings_s: seconds a stage.
    """

    head_scores: Float[np.ndarray, "n_layers n_heads"]
    signed: Float[np.ndarray, "n_layers n_heads"] | None = None
    by_position: Float[np.ndarray, "n_layers n_heads n_group"] | None = None
    other_nodes: dict[str, float] = field(default_factory=dict)
    edges: Edges | None = None
    pair_scores: Float[np.ndarray, "n_component n_component"] | None = None
    mention_scores: Float[np.ndarray, " n_component"] | None = None
    codes: Int32[np.ndarray, "n_prompt n_component"] | None = None
    judged: np.ndarray | None = None
    counted: tuple[Int32[np.ndarray, "n c"], Int32[np.ndarray, "n c"], int | None] | None = None
    sae: SparseAutoencoder | None = None
    dead_share: float | None = None
    method_used: str | None = None
    fallback: str | None = None
    engine: EngineUsed | None = None
    timings_s: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Model) -> Findings:
        """Return findings about ``model`` with every score at zero, for a method to fill in."""
        return cls(head_scores=np.zeros((model.n_layers, model.n_heads)))

    def set_heads(self, scores: Float[Tensor, ...]) -> None:
        """Take scores of all heads, layer-major in any shape, as ``head_scores``."""
        self.head_scores = scores.detach().cpu().double().numpy().reshape(self.head_scores.shape)

    def set_signed(self, scores: Float[Tensor, ...]) -> None:
        """Take signed scores of all heads: ``head_scores`` are their magnitudes, as their authors rank them."""
        self.set_heads(scores)
        self.signed, self.head_scores = self.head_scores, np.abs(self.head_scores)

    @property
    def signed_scores(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """``head_scores`` with the sign of ``signed``, where the method has one: above 0 for heads that help."""
        if self.signed is None:
            return self.head_scores
        signs: Float[np.ndarray, "n_layers n_heads"] = np.where(self.signed < 0, -self.head_scores, self.head_scores)
        return signs

    def propose_pairs(self) -> None:
        """Score every pair of heads by the product of its heads' scores: knows nothing of pairs, and finds the model's
        edges far better than counts of code pairs do (docs/methods.md)."""
        flat = self.head_scores.ravel()
        self.pair_scores = np.outer(flat, flat)
        np.fill_diagonal(self.pair_scores, 0.0)
        self.mention_scores = None

    def take_codes(self, coded: Codes) -> None:
        """Take a seed's autoencoder and codes."""
        self.sae, self.codes, self.dead_share = coded.sae, coded.codes, coded.dead_share

    def codes_used(self, component: int, most: int = 3) -> dict[str, list[tuple[int, float]]] | None:
        """Return a head's commonest codes (code, share of prompts) on either side; None for methods without codes."""
        if self.codes is None:
            return None
        used = {}
        for side, codes in zip(("clean", "corrupt"), np.split(self.codes[:, component], 2), strict=True):
            values, counts = np.unique(codes, return_counts=True)
            best = np.argsort(-counts, kind="stable")[:most]
            used[side] = [(int(values[i]), float(counts[i] / len(codes))) for i in best]
        return used

    def best_mlps(self, head_scores: Float[np.ndarray, "n_layers n_heads"], top: int) -> list[str]:
        """Return the MLPs among the ``top`` heads and MLPs of largest score; heads win ties."""
        others = {name: abs(score) for name, score in self.other_nodes.items() if name.startswith("m")}
        heads = [(-score, 0, "") for score in head_scores.ravel()]
        ranked = sorted(heads + [(-score, 1, name) for name, score in others.items()])
        return [name for score, is_mlp, name in ranked[:top] if is_mlp and score < 0]

    def scores_by_position(self) -> dict[str, list[float]]:
        """Return every head's part of ``signed`` from each group of positions, by its name in result.json."""
        if self.by_position is None:
            return {}
        from headcodes.interventions.runs import POSITION_GROUPS

        found = self.by_position.reshape(-1, len(POSITION_GROUPS)).T
        return {f"scores_{name}": scores.tolist() for name, scores in zip(POSITION_GROUPS, found, strict=True)}

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to ``timings_s[stage]``."""
        start = time.perf_counter()
        yield
        self.timings_s[stage] = self.timings_s.get(stage, 0.0) + time.perf_counter() - start
