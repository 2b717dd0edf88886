"""Scores of edges between heads: what a sender's change does to a later head, and what that does to the answer.

``carried_edges`` takes one backward pass. Plain edge attribution (Syed et al. 2023, arXiv 2310.10348) multiplies what a
sender writes with the gradient at what a receiver reads: it follows the residual stream alone, misses what reaches the
receiver through MLPs in between, and takes the receiver's attention to be linear. Here the sender's change is carried
on exactly as far as the receiver's result: with the sender replaced by its activation on the corrupted prompt, all
other heads held at their clean activations and MLPs computed again, as path patching does, the receiver works out its
result with one of query, key and value from that run. The change of the result is multiplied with the gradient at it:
first order is what follows the receiver alone.

``composed_edges`` takes no gradient: how much of what a sender can write a receiver can read, from the weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headcodes.errors import HeadcodesError
from headcodes.graph import check_heads, head_name, split_slot
from headcodes.interventions.edits import EditPlan
from headcodes.interventions.gradients import arrived, refuse_without_gradient, with_gradients
from headcodes.interventions.runs import batches, ready, require_equal_lengths
from headcodes.interventions.walk import run_edited
from headcodes.models.devices import brought
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.models.slots import slot_projection
from headcodes.models.weights import matrix_of
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.interventions.base_runs import Prepared
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


def carried_edges(
    model: Model, tokens: TokenPairs, heads: Sequence[tuple[int, int]], prepared: Prepared | None = None
) -> tuple[list[tuple[str, str]], Float[np.ndarray, "n_pairs n_edge"]]:
    """Score every edge from one of ``heads`` to what a later one of them reads, query, key and value apart.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        heads: (layer, head), in any order.
        prepared: see ``run_edited``.

    Returns:
        The edges ``(sender, receiver<slot>)`` and their signed scores in logits, float64, pair by pair: to first order
        in the receiver's result what ``path_effects`` finds. No edges where no two heads lie in different layers.

    Raises:
        HeadcodesError: prompts of unequal length; a head that the model does not have; a family whose query, key and
            value projections are unknown; ``refuse_without_gradient``, before anything is run.
    """
    require_equal_lengths(tokens, "carrying changes along edges")
    edges = _edges(model, heads)
    scores = np.zeros((len(tokens), len(edges)))
    if not edges:
        return [], scores
    layers = sorted({receiver[0] for _, receiver, _ in edges})
    rows = sorted({(sender, slot) for sender, _, slot in edges})
    refuse_without_gradient(model, tokens)
    try:
        with progress("scoring edges", total=len(tokens)) as advance:
            for index, own in _gradients(model, tokens, layers):
                found: dict[tuple[tuple[int, int], str, int], Tensor] = {}
                plan = _Carried(rows, own, found)
                run_edited(model, tokens.subset([index]), plan, done=lambda _indices, _logits: None, prepared=prepared)
                by_row = dict(zip(found, brought(list(found.values())).numpy(), strict=True))
                scores[index] = [by_row[sender, slot, layer][head] for sender, (layer, head), slot in edges]
                advance(1)
    except torch.OutOfMemoryError as error:
        raise HeadcodesError(
            "edges are proposed by a backward pass, which must fit", f"too little on {model.device}", "Free memory."
        ) from error
    return _named(edges), scores


def edges_between(model: Model, heads: Sequence[tuple[int, int]], apart: bool = True) -> list[tuple[str, str]]:
    """Return all edges from one of ``heads`` to what a later one of them reads: query, key and value apart, or as one.

    Raises:
        HeadcodesError: a head that the model does not have.
    """
    edges = _named(_edges(model, heads))
    return edges if apart else list(dict.fromkeys((sender, split_slot(receiver)[0]) for sender, receiver in edges))


@torch.no_grad()
def composed_edges(
    model: Model, heads: Sequence[tuple[int, int]]
) -> tuple[list[tuple[str, str]], Float[np.ndarray, " n_edge"]]:
    """Return the edges of ``carried_edges`` and how strongly each composes: ||W_O W|| / (||W_O|| ||W||), Frobenius
    norms, W_O [d_head, d_model] the sender's output and W [d_model, d_head] what makes the receiver's query, key or
    value (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits). Norms between the two are left out.

    Raises:
        HeadcodesError: a head that the model does not have, or a family whose query, key and value projections are
            unknown.
    """
    edges = _edges(model, heads)
    group = model.n_heads // model.n_kv_heads
    written = {sender: model.W_O[sender[0]][sender[1]].float() for sender, _, _ in edges}
    read: dict[tuple[tuple[int, int], str], Tensor] = {}
    for _, receiver, slot in edges:
        if (receiver, slot) not in read:
            module, cut = slot_projection(model, receiver[0], slot)
            place = receiver[1] if slot == "q" else receiver[1] // group
            read[receiver, slot] = cut(matrix_of(module))[:, place].float()

    def strength(sender: tuple[int, int], receiver: tuple[int, int], slot: str) -> float:
        ours, theirs = written[sender], read[receiver, slot].to(written[sender].device)
        return float((ours @ theirs).norm() / (ours.norm() * theirs.norm()).clamp_min(1e-30))

    return _named(edges), np.array([strength(*edge) for edge in edges])


_Edge = tuple[tuple[int, int], tuple[int, int], str]


def _edges(model: Model, heads: Sequence[tuple[int, int]]) -> list[_Edge]:
    check_heads(heads, model.n_layers, model.n_heads)
    ordered = sorted(set(heads))
    return [(s, r, slot) for s in ordered for r in ordered if s[0] < r[0] for slot in "qkv"]


def _named(edges: Sequence[_Edge]) -> list[tuple[str, str]]:
    return [(head_name(*sender), f"{head_name(*receiver)}<{slot}>") for sender, receiver, slot in edges]


def _gradients(
    model: Model, tokens: TokenPairs, layers: Sequence[int]
) -> Iterator[tuple[int, dict[int, Float[Tensor, "seq head d_head"]]]]:
    """Yield each pair's number and the gradient of its clean logit difference at the heads' results of some layers,
    a batch's at a time."""
    for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
        with ready(model):
            by_place = with_gradients(model, batch, "logit-diff")[1]
        gradients = arrived(model, by_place, [("z", layer) for layer in layers])
        del by_place
        for place, row in enumerate(batch.rows):
            own = [gradient[place, : int(batch.last[place]) + 1] for gradient in gradients]
            yield (
                row,
                {layer: z.unflatten(-1, (model.n_heads, -1)).float() for layer, z in zip(layers, own, strict=True)},
            )


class _Carried(EditPlan):
    """A row for every sender and slot: its head corrupted, all others held at clean. A receiver's result, worked out
    from the row's own queries, keys or values and the clean run's of the other two, is scored, then put back."""

    def __init__(
        self,
        rows: Sequence[tuple[tuple[int, int], str]],
        gradients: dict[int, Tensor],
        found: dict[tuple[tuple[int, int], str, int], Tensor],
    ) -> None:
        self.rows = list(rows)
        self.starts = [sender[0] for sender, _ in self.rows]
        self.gradients = gradients
        self.found = found

    def edit_heads(self, layer: int, z: Tensor) -> None:
        later = [row for row in self.rows if row[0][0] < layer]  # the first ones: senders are in order
        if later and layer in self.gradients:
            gradient = self.gradients[layer][-z.shape[2] :].to(z.device)
            scores = torch.einsum("rpshd,shd->rh", (z[:1] - z[2 : 2 + len(later)]).float(), gradient)
            self.found.update(((*row, layer), score) for row, score in zip(later, scores, strict=True))
        for row, (sender, _) in enumerate(self.rows, start=2):
            if sender[0] <= layer:
                z[row] = z[0]
                if sender[0] == layer:
                    z[row, :, :, sender[1]] = z[1, :, :, sender[1]]

    def slots(self, layer: int) -> str:
        return "qkv" if layer in self.gradients and self.starts[0] < layer else ""

    def edit_slot(self, layer: int, slot: str, values: Tensor) -> None:
        for row, (sender, own) in enumerate(self.rows, start=2):
            if sender[0] < layer and own != slot:
                values[row] = values[0]

    def part(self, rows: slice) -> EditPlan:
        return _Carried(self.rows[rows], self.gradients, self.found)
