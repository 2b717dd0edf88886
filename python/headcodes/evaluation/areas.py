"""CPR and CMD: MIB's areas over circuits of rising size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.integrate import trapezoid

from headcodes.circuit.mib import MIB_SHARES
from headcodes.errors import HeadcodesError
from headcodes.evaluation.faithfulness import Ablation, behaviour
from headcodes.interventions.ablate import EdgeAblation
from headcodes.interventions.reads import edge_bytes_per_token, graph_of
from headcodes.interventions.runs import batches
from headcodes.metrics import normalised
from headcodes.models.memory import graph_bytes
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    from headcodes.graph import Edges
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


# MIB's shares of the edges, and all of them.
SHARES = (*MIB_SHARES, 1.0)


def cpr_cmd(
    evaluate: Callable[[list[int]], float],
    scores: ArrayLike,
    *,
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """MIB's two areas over circuits of rising size.

    CPR (circuit performance ratio, larger is better) is the area under f where parts are taken by signed
    score: what helps comes first. CMD (circuit-model distance, 0 is best) is the area of |1 - f| where they
    are taken by absolute score: what matters comes first. Trapezoids between the shares, as MIB draws them; a
    circuit of share p holds the int(p * n) largest of n parts.

    Args:
        evaluate: Takes indices of the chosen parts (edges, or heads) and returns f, 0 for the empty circuit
            and 1 for the whole model.
        scores: One a part, signed.
        shares: Sizes as shares of all parts, rising.

    Returns:
        ``{"cpr", "cmd", "shares", "f_signed", "f_absolute"}``.
    """
    flat = np.asarray(scores, dtype=np.float64).ravel()
    known: dict[tuple[int, ...], float] = {}

    def curve_of(values: Float[np.ndarray, " n"]) -> list[float]:
        order = np.argsort(-values, kind="stable")
        points = []
        for share in shares:
            taken = tuple(sorted(order[: int(share * len(flat))].tolist()))
            if taken not in known:
                known[taken] = float(evaluate(list(taken)))
            points.append(known[taken])
        return points

    signed, absolute = curve_of(flat), curve_of(np.abs(flat))
    return {
        "cpr": float(trapezoid(signed, shares)),
        "cmd": float(trapezoid([abs(1 - value) for value in absolute], shares)),
        "shares": list(shares),
        "f_signed": signed,
        "f_absolute": absolute,
    }


def head_cpr_cmd(
    model: Model,
    tokens: TokenPairs,
    head_scores: ArrayLike,
    *,
    ablation: Ablation = "resample",
    shares: Sequence[float] = SHARES,
) -> dict[str, Any]:
    """CPR and CMD over shares of the heads. MIB's own, over shares of edges (``edge_cpr_cmd``), are other numbers.

    With a further column of scores, those of MLPs, over shares of heads and MLPs. All circuits run side by side.
    Arguments as ``curve``; returns as ``cpr_cmd``, and ``engine``.
    """
    shape = np.shape(head_scores)
    engines = []
    real = np.flatnonzero(model.real_parts(shape[1]))

    def together(wanted: list[tuple[int, ...]]) -> list[float]:
        kept = np.zeros((1 + len(wanted), *shape), dtype=bool)
        for mask, taken in zip(kept[1:], wanted, strict=True):
            mask.ravel()[real[list(taken)]] = True
        found = behaviour(model, tokens, kept, ablation=ablation)
        engines.append(found.engine)
        return list(normalised(found.logit_diff, empty=2)[3:].tolist())

    flat = np.asarray(head_scores).ravel()[real]
    return _cpr_cmd_together(together, flat, shares) | {"engine": vars(engines[-1])}


def edge_cpr_cmd(
    model: Model,
    tokens: TokenPairs,
    edges: Edges,
    *,
    shares: Sequence[float] = SHARES,
    memory_bytes: int | None = None,
) -> dict[str, Any]:
    """CPR and CMD over shares of the edges of the whole graph, as MIB defines them.

    An edge outside the circuit carries its source's output on the corrupted prompt; m is the mean logit difference.
    As in MIB's public code, a circuit of share p takes the int(p * n) edges of largest score, wherever they lie (its
    greedy search from the logits back is an option there, off by default). MIB then prunes edges that lead nowhere or
    come from nowhere. That changes no m: a part none of whose edges is kept has its activation on the corrupted prompt
    anyway. So nothing is pruned here.

    Batches of pairs are run one after another, every circuit on each, so that memory is that of one batch: the model's
    own, and twice what all sources write.

    Args:
        model: Left as it was found.
        tokens: Pairs whose two prompts have equally many tokens.
        edges: Of this model, signed scores; NaN where there is no edge.
        shares: Sizes as shares of all edges, rising.
        memory_bytes: What one batch of pairs may take; it has one pair at least. None: ``graph_bytes``.

    Returns:
        As ``cpr_cmd``, and ``n_edges``.

    Raises:
        HeadcodesError: edges of another model, scores that are not finite where the graph has an edge, pairs of unequal
            length, a model whose edges cannot be cut (``interventions.ablate.EdgeAblation``); the full model does not
            differ from the empty one.
    """
    graph = graph_of(model)
    real = np.array(sorted(graph.edges()))
    if (edges.sources, edges.destinations) != (graph.sources, graph.destinations):
        raise HeadcodesError(
            f"the edges must be those of {model!r}",
            f"{len(edges.sources)} sources and {len(edges.destinations)} destinations of another graph",
            "Give scores found in this model.",
        )
    scores = edges.scores[tuple(real.T)]
    if not np.isfinite(scores).all():
        raise HeadcodesError(
            "every edge of the graph must have a finite score",
            f"{int((~np.isfinite(scores)).sum())} without one",
            "Give 0 where nothing is known.",
        )

    def together(wanted: list[tuple[int, ...]]) -> list[float]:
        lost = np.zeros(1 + len(wanted))
        whole = 0.0
        with progress("cutting edges", total=len(tokens) * len(lost)) as advance:
            for batch in batches(tokens, edge_bytes_per_token(model), memory_bytes or graph_bytes(model.device)):
                part = EdgeAblation(model, tokens.subset(batch.rows), "resample", "logit-diff")
                whole += part.clean_logit_diff * len(batch.rows)
                for place, taken in enumerate([(), *wanted]):
                    removed = torch.zeros(edges.scores.shape, dtype=torch.bool)
                    removed[tuple(real.T)] = True
                    removed[tuple(real[list(taken)].T)] = False
                    lost[place] += part.loss(removed) * len(batch.rows)
                    advance(len(batch.rows))
        means = whole / len(tokens) - np.array([0.0, *(lost / len(tokens))])
        return list(normalised(means[None], empty=1)[2:].tolist())

    return _cpr_cmd_together(together, scores, shares) | {"n_edges": len(real)}


def _cpr_cmd_together(
    together: Callable[[list[tuple[int, ...]]], list[float]], scores: ArrayLike, shares: Sequence[float]
) -> dict[str, Any]:
    """``cpr_cmd`` where f is worked out for all circuits in one go: ``together`` takes the indices of each."""
    wanted: list[tuple[int, ...]] = []

    def note(taken: list[int]) -> float:
        wanted.append(tuple(taken))
        return 0.0

    cpr_cmd(note, scores, shares=shares)
    known = dict(zip(wanted, together(wanted), strict=True))
    return cpr_cmd(lambda taken: known[tuple(taken)], scores, shares=shares)
