"""What a method finds."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.graph import Part, parse_part, part_name
from headcodes.progress import timed

if TYPE_CHECKING:
    from jaxtyping import Float, Int32
    from torch import Tensor

    from headcodes.codes.recipes import Codes
    from headcodes.codes.sae import SparseAutoencoder
    from headcodes.graph import Edges
    from headcodes.interventions.engine import EngineUsed
    from headcodes.methods.stability import ByPair, Resampled
    from headcodes.models.model import Model
    from headcodes.prompts.alignment import Alignment
    from headcodes.settings import Components


@dataclass
class Findings:
    """What a method found.

    Attributes:
        head_scores: float64 [n_layers, n_heads], larger is more likely in the circuit.
        signed: the same with a sign, where the method has one: what the metric loses without the head.
        by_place: the parts of ``signed`` (heads layer-major, then of MLPs where they are scored) that come from each
            place of ``alignment``; NaN where they were not worked out.
        alignment: which places of the prompts are told apart; None: none.
        by_position: the parts of ``signed`` that come from each of ``interventions.runs.POSITION_GROUPS``, where the
            method tells them apart; they add up to it (before it is made robust).
        other_nodes: scores of ``input`` and ``m{layer}``, on the scale of ``head_scores`` and with the sign that
            ``signed`` would have, where the method has them.
        mlp_signed: what ``signed`` is, of every layer's MLP; None: ``other_nodes`` says it.
        components: what a circuit is chosen among: "heads", or "heads+mlps".
        by_pair: what the scores are made from, pair by pair, where the method's are (``Method.by_pair``).
        resampled: the scores of draws of the pairs, where ``stable`` was asked for.
        edges: every edge's score, where the method has them; edge level only.
        pair_scores: float64 [n_component, n_component], symmetric, zero diagonal; edge level only.
        pairs_proposed_by: what ``pair_scores`` of ``attribution`` and ``contrast`` come from: "gradients",
            "composition" or "products" (``methods.pairs``).
        carried: edges between the best heads, queries, keys and values apart, and their products [n_pair, n_edge]
            (``carried_edges``), where pairs were proposed by gradients.
        mention_scores: float64 [n_component], the published "edge level" score of a head; edge level only.
        codes: int32 [2 * n_pairs, n_component], clean prompts first; code methods only.
        mlp_codes: the same of every layer's MLP, [2 * n_pairs, n_layers], where they are asked for.
        scored_prompts: bool [2 * n_pairs], the prompts whose codes the scores were made from.
        counted: codes of the positives, codes of the negatives and the dead code (None: no code is dead), of the pairs
            that did not train the autoencoder; only of methods whose scores are the counts of ``headcodes.overlap``,
            which a permutation test can take again.
        sae: the autoencoder behind the codes.
        dead_share: share of (prompt, head) rows in which no latent is active.
        method_used: the method that ``default`` stood for; None where the method asked for ran itself.
        fallback: why ``default`` stood for a method without gradients; None where it did not.
        by_gradients: whether the scores were made from gradients, so that a backward pass is to be had.
        engine: which engine patched, and why; of the method ``patching`` only.
        n_left_out: entries of ``head_scores`` that are no heads: a hybrid's layers may have none.
        timings_s: seconds a stage.
    """

    head_scores: Float[np.ndarray, "n_layers n_heads"]
    signed: Float[np.ndarray, "n_layers n_heads"] | None = None
    by_position: Float[np.ndarray, "n_layers n_heads n_group"] | None = None
    by_place: Float[np.ndarray, "n_part n_place"] | None = None
    alignment: Alignment | None = None
    other_nodes: dict[str, float] = field(default_factory=dict)
    mlp_signed: Float[np.ndarray, " n_layers"] | None = None
    components: Components = "heads"
    by_pair: ByPair | None = None
    resampled: Resampled | None = None
    edges: Edges | None = None
    pair_scores: Float[np.ndarray, "n_component n_component"] | None = None
    pairs_proposed_by: str | None = None
    carried: tuple[list[tuple[str, str]], Float[np.ndarray, "n_pair n_edge"]] | None = None
    mention_scores: Float[np.ndarray, " n_component"] | None = None
    codes: Int32[np.ndarray, "n_prompt n_component"] | None = None
    mlp_codes: Int32[np.ndarray, "n_prompt n_layers"] | None = None
    scored_prompts: np.ndarray | None = None
    counted: tuple[Int32[np.ndarray, "n c"], Int32[np.ndarray, "n c"], int | None] | None = None
    sae: SparseAutoencoder | None = None
    dead_share: float | None = None
    method_used: str | None = None
    fallback: str | None = None
    by_gradients: bool = False
    engine: EngineUsed | None = None
    n_left_out: int = 0
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

    def set_by_pair(self, by_pair: ByPair) -> None:
        """Take what is known of each pair; ``head_scores`` follow from it."""
        self.by_pair = by_pair
        self.set_heads(by_pair.score(by_pair.values))

    @property
    def signed_scores(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """``head_scores`` with the sign of ``signed``, where the method has one: above 0 for heads that help."""
        if self.signed is None:
            return self.head_scores
        signs: Float[np.ndarray, "n_layers n_heads"] = np.where(self.signed < 0, -self.head_scores, self.head_scores)
        return signs

    @property
    def is_finite(self) -> bool:
        """Whether every head's score is a number."""
        return bool(np.isfinite(self.head_scores).all())

    def leave_out(self, layers: Sequence[int]) -> None:
        """Set all scores of heads in layers that have none to zero."""
        if not layers:
            return
        self.n_left_out = len(layers) * self.head_scores.shape[1]
        numbers = np.arange(self.head_scores.size).reshape(self.head_scores.shape)[list(layers)].ravel()
        for scores in (self.head_scores, self.signed, self.by_position):
            if scores is not None:
                scores[list(layers)] = 0
        for scores in (self.mention_scores, self.by_place, self.pair_scores):
            if scores is not None:
                scores[numbers] = 0
        if self.pair_scores is not None:
            self.pair_scores[:, numbers] = 0

    def set_mlps(
        self, scores: Float[np.ndarray, " n_mlps"], signed: Float[np.ndarray, " n_mlps"] | None = None
    ) -> None:
        """Take every MLP's score, and with a sign what ``signed`` is of a head."""
        self.mlp_signed = signed
        signs = np.ones(len(scores)) if signed is None else np.where(signed < 0, -1.0, 1.0)
        self.other_nodes |= {f"m{layer}": float(score) for layer, score in enumerate(scores * signs)}

    def take_codes(self, coded: Codes) -> None:
        """Take a seed's autoencoder and codes: of heads, then of MLPs where they have some."""
        n_heads = self.head_scores.size
        self.sae, self.dead_share = coded.sae, coded.dead_share
        self.codes, mlps = coded.codes[:, :n_heads], coded.codes[:, n_heads:]
        self.mlp_codes = mlps if mlps.shape[1] else None

    def codes_used(self, name: str, most: int = 3) -> dict[str, list[tuple[int, float]]] | None:
        """Return a part's commonest codes (code, share of prompts) on either side; None where it has none."""
        part = parse_part(name)
        assert part is not None
        layer, head = part
        codes_of = self.mlp_codes if head is None else self.codes
        if codes_of is None:
            return None
        column = codes_of[:, layer if head is None else layer * self.head_scores.shape[1] + head]
        used = {}
        for side, codes in zip(("clean", "corrupt"), np.split(column, 2), strict=True):
            values, counts = np.unique(codes, return_counts=True)
            best = np.argsort(-counts, kind="stable")[:most]
            used[side] = [(int(values[i]), float(counts[i] / len(codes))) for i in best]
        return used

    @property
    def parts(self) -> list[Part]:
        """What a circuit is chosen among: all heads, layer-major, then all MLPs where they are."""
        n_layers, n_heads = self.head_scores.shape
        heads: list[Part] = [(layer, head) for layer in range(n_layers) for head in range(n_heads)]
        return heads + ([] if self.components == "heads" else [(layer, None) for layer in range(n_layers)])

    @property
    def part_scores(self) -> Float[np.ndarray, " n_part"]:
        """Scores of ``parts``, signed like ``signed_scores``: their sizes rank."""
        heads, parts = self.signed_scores.ravel(), self.parts
        mlps = [self.other_nodes[part_name(*part)] for part in parts[heads.size :]]
        return np.concatenate([heads, np.array(mlps, dtype=np.float64)])

    @property
    def part_effects(self) -> Float[np.ndarray, " n_part"]:
        """What the method foretells of the effects of ``parts``: ``signed`` where it has one, else their scores."""
        heads = self.head_scores if self.signed is None else self.signed
        mlps = self.part_scores[heads.size :]
        if len(mlps) and self.mlp_signed is not None:
            mlps = self.mlp_signed
        return np.concatenate([heads.ravel(), mlps])

    def best_mlps(self, head_scores: Float[np.ndarray, "n_layers n_heads"], top: int) -> list[str]:
        """Return the MLPs, where they are chosen among, of the ``top`` parts of largest score; heads win ties."""
        n = head_scores.size
        sizes = np.concatenate([head_scores.ravel(), np.abs(self.part_scores[n:])])
        best = [int(i) for i in np.argsort(-sizes, kind="stable")[:top] if sizes[i] > 0]
        return [part_name(*self.parts[i]) for i in best if i >= n]

    def further_scores(self, names: Sequence[str]) -> dict[str, Any]:
        """Return what result.json says beside scores of heads: MLPs' scores where the circuit was chosen among them,
        every head's part of ``signed`` from each group of positions, and that of some nodes from each place."""
        found: dict[str, Any] = {}
        if self.components != "heads":
            mlps = self.part_scores[self.head_scores.size :]
            found = {"circuit_components": self.components, "mlp_scores": mlps.tolist()}
        if self.by_position is not None:
            from headcodes.interventions.runs import POSITION_GROUPS

            groups = self.by_position.reshape(-1, len(POSITION_GROUPS)).T
            found |= {f"scores_{name}": scores.tolist() for name, scores in zip(POSITION_GROUPS, groups, strict=True)}
        if self.by_place is not None and self.alignment is not None:
            place = {part_name(*part): row for part, row in zip(self.parts, self.by_place, strict=False)}
            rows = {name: place[name].tolist() for name in names if name in place and np.isfinite(place[name]).all()}
            found["scores_by_position"] = self.alignment.as_dict() | {"scores": rows}
        return found

    def timed(self, stage: str) -> AbstractContextManager[None]:
        """Add the seconds spent inside to ``timings_s[stage]``."""
        return timed(self.timings_s, stage)
