"""Scores of edges between heads from one backward pass, each sender's change carried on through the MLPs.

Plain edge attribution (Syed et al. 2023, arXiv 2310.10348) multiplies what a sender writes with the gradient at what a
receiver reads: it follows the residual stream alone, and misses what reaches the receiver through MLPs in between. Here
the sender's change is carried through them: with the sender replaced by its activation on the corrupted prompt, all
other heads held at their clean activations and MLPs computed again, as exact path patching does, the change of the
stream that enters the receiver's layer is multiplied with the gradient at what the receiver reads. To first order in
the receiver, exact in everything before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headcodes.graph import check_heads, head_name
from headcodes.interventions.reads import Reads, edge_bytes_per_token
from headcodes.interventions.runs import Batch, Parts, batches, graph_bytes, ready, require_equal_lengths, run
from headcodes.models.hooks import Edit, edit_input
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs

# Senders run side by side: few, so that their streams stay small beside the gradients.
_SENDERS_AT_ONCE = 8


def carried_edges(
    model: Model, tokens: TokenPairs, heads: Sequence[tuple[int, int]]
) -> tuple[list[tuple[str, str]], Float[np.ndarray, "n_pairs n_edge"]]:
    """Score every edge from one of ``heads`` to what a later one of them reads, query, key and value apart.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        heads: (layer, head), in any order.

    Returns:
        The edges ``(sender, receiver<slot>)`` and their signed scores in logits, float64, pair by pair: to first order
        what ``path_effects`` finds. No edges where no two heads lie in different layers.

    Raises:
        HeadcodesError: prompts of unequal length; a head that the model does not have; a model without a known final
            norm, or of a family whose query, key and value projections are unknown.
    """
    check_heads(heads, model.n_layers, model.n_heads)
    require_equal_lengths(tokens, "carrying changes along edges")
    ordered = sorted(set(heads))
    senders = [sender for sender in ordered if sender[0] < ordered[-1][0]] if ordered else []
    receivers = [head for head in ordered if head[0] > ordered[0][0]] if ordered else []
    edges = [(s, r, slot) for s in senders for r in receivers if s[0] < r[0] for slot in "qkv"]
    names = [(head_name(*s), f"{head_name(*r)}<{slot}>") for s, r, slot in edges]
    scores = np.zeros((len(tokens), len(edges)))
    if not edges:
        return names, scores
    place = {edge: column for column, edge in enumerate(edges)}
    layers = sorted({layer for layer, _ in receivers})
    with ready(model), progress("scoring edges", total=len(tokens)) as advance:
        for batch in batches(tokens, edge_bytes_per_token(model), graph_bytes(model.device)):
            with torch.no_grad():
                corrupt = run(model, batch.corrupt, batch)
            reads = Reads(model)
            clean = run(model, batch.clean, batch, also=reads.recording())
            found = torch.autograd.grad(batch.logit_diff(clean.logits).sum(), clean.z, retain_graph=True)
            gradients = {layer: reads.head_reads(layer, clean.z[layer], found[layer]) for layer in layers}
            del found
            for first in range(0, len(senders), _SENDERS_AT_ONCE):
                some = senders[first : first + _SENDERS_AT_ONCE]
                for layer, change in _changes(model, batch, clean, corrupt, some, layers).items():
                    products = torch.einsum("sbtm,hbtm->shb", change, gradients[layer].to(change.device))
                    table = products.double().cpu().numpy()
                    here = [receiver for receiver in receivers if receiver[0] == layer]
                    for (row, sender), receiver, (part, slot) in product(enumerate(some), here, enumerate("qkv")):
                        if sender[0] < layer:
                            column = place[sender, receiver, slot]
                            scores[batch.rows, column] = table[row, part * model.n_heads + receiver[1]]
            advance(len(batch.rows))
    return names, scores


def _changes(
    model: Model,
    batch: Batch,
    clean: Parts,
    corrupt: Parts,
    senders: Sequence[tuple[int, int]],
    layers: Sequence[int],
) -> dict[int, Float[Tensor, "sender batch seq d_model"]]:
    """Return what the stream that enters some layers loses with each sender corrupted, fp32."""
    n = len(senders) + 1  # the clean run stands last, so that what it rounds to is taken away too
    streams: dict[int, Tensor] = {}

    def held(layer: int) -> Tensor:
        z: Tensor = clean.z[layer].detach().unflatten(-1, (model.n_heads, -1))
        rows: Tensor = z.expand(n, *z.shape).clone()
        for row, (where, head) in enumerate(senders):
            if where == layer:
                rows[row, :, :, head] = corrupt.z[layer].unflatten(-1, (model.n_heads, -1))[:, :, head]
        return rows.flatten(0, 1).flatten(-2)

    def hold(layer: int) -> Edit:
        return lambda _z: held(layer)

    def note(layer: int) -> Edit:
        def keep(x: Tensor) -> Tensor:
            streams[layer] = x.float().unflatten(0, (n, -1))
            return x

        return keep

    with ExitStack() as hooks, torch.no_grad():
        for layer, projection in enumerate(model.projections):
            hooks.enter_context(edit_input(projection, hold(layer)))
        for layer in layers:
            hooks.enter_context(edit_input(model.layers[layer], note(layer)))
        model.trace(batch.clean.repeat(n, 1))
    return {layer: stream[-1:] - stream[:-1] for layer, stream in streams.items()}
