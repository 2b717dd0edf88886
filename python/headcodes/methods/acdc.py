"""ACDC: remove whatever can go without much loss, from the logits back, at every threshold of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from headcodes.errors import HeadcodesError
from headcodes.graph import Edges
from headcodes.interventions.ablate import EdgeAblation, HeadAblation, PairAblation
from headcodes.interventions.reads import graph_of
from headcodes.methods.eap import pair_scores
from headcodes.methods.findings import Findings
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model

# In the loss's unit.
THRESHOLDS = tuple(float(threshold) for threshold in 10 ** np.linspace(-4, 0, 21))
MOST_EDGES = 5000


def find(name: str, inputs: Inputs, level: Level, seed: int, *, ablation: PairAblation = "resample") -> Findings:
    """Score every edge (a head, where edges are too many) by the largest threshold at which it survives, 0 if at
    none.

    Conmy et al. 2023, arXiv 2304.14997, algorithm 1: candidates are visited from the logits back, and one goes for
    good when the loss grows by less than the threshold. Defaults are the paper's best setting, and its sweep:
    resample ablation, KL divergence, 21 thresholds from 1e-4 to 1. Models of up to 5000 edges are searched edge by
    edge, and a head scores as the best of the edges it writes to; larger ones, and those with grouped-query attention
    or norms behind their parts, head by head.

    Args:
        ablation: "resample" or "zero".

    Raises:
        HeadcodesError: edges asked for in a model that can only be searched by heads.
    """
    model, tokens = inputs.model, inputs.tokens
    loss = inputs.metric or "kl"
    findings = Findings.of(model)
    by_edges = _fits(model)
    if level == "edge" and not by_edges:
        raise HeadcodesError(
            f"acdc must have at most {MOST_EDGES} edges to search, of heads with keys and values of their own",
            f"{graph_of(model).n_edges} edges, {model.n_heads} heads on {model.n_kv_heads} keys and values",
            "Use level='node', which searches heads, or eap for edges.",
        )
    steps = sorted(THRESHOLDS)
    with findings.timed("search"):
        if not by_edges:
            heads = HeadAblation(model, tokens, ablation, loss)
            order = [(layer, head) for layer in reversed(range(model.n_layers)) for head in range(model.n_heads)]
            shape = (model.n_layers, model.n_heads)
            findings.set_heads(torch.from_numpy(sweep(order, shape, heads.loss, steps)))
            return findings
        edges = EdgeAblation(model, tokens, ablation, loss)
        graph = graph_of(model)
        sources, destinations = graph.sources, graph.destinations
        writes = {name: row for row, name in enumerate(sources)}
        # The row of the node that reads in each column; -1 for the logits, which are always wanted.
        reader = np.array([writes.get(name.split("<")[0], -1) for name in destinations])

        def is_idle(removed: Bool[Tensor, "n_source n_destination"], column: int) -> bool:
            return bool(reader[column] >= 0 and removed[reader[column], real[reader[column]]].all())

        order = graph.edges_from_logits()
        mask = np.zeros(graph.shape, dtype=bool)
        mask[tuple(zip(*order, strict=True))] = True
        real = torch.from_numpy(mask)
        found = sweep(order, mask.shape, edges.loss, steps, is_idle)
    findings.edges = Edges.of(graph, np.where(mask, found, np.nan))
    heads_rows = [writes[name] for name in model.components]
    findings.set_heads(torch.from_numpy(found[heads_rows].max(axis=1)))
    if level == "edge":
        findings.pair_scores = pair_scores(findings.edges, model.components)
    else:
        findings.edges = None
    return findings


def _fits(model: Model) -> bool:
    facts = model.facts
    if model.n_kv_heads != model.n_heads or facts.edges is not None or facts.norms_behind or facts.norms_over_heads:
        return False
    return graph_of(model).n_edges <= MOST_EDGES


def sweep(
    order: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    loss: Callable[[Tensor], float],
    thresholds: Sequence[float],
    is_idle: Callable[[Tensor, int], bool] = lambda _removed, _column: False,
) -> Float[np.ndarray, "row column"]:
    """Run the search at every threshold and return each candidate's largest one at which it stays.

    Searches agree until the first candidate that one keeps and another removes, so they run as one and part there: no
    loss is worked out twice for the same state.

    Args:
        order: candidates, as they are visited.
        loss: of a set of removed candidates, bool of ``shape``.
        thresholds: ascending.
        is_idle: whether nothing reads what a candidate's column feeds: it goes unseen.
    """
    survives = np.zeros(shape)
    start = torch.zeros(shape, dtype=torch.bool)
    todo = [(0, start, loss(start), list(thresholds))]
    with progress("searching", total=len(order) * len(thresholds)) as advance:
        while todo:
            place, removed, current, running = todo.pop()
            for index in range(place, len(order)):
                candidate = order[index]
                if is_idle(removed, candidate[1]):
                    removed[candidate] = True
                    advance(len(running))
                    continue
                trial = removed.clone()
                trial[candidate] = True
                without = loss(trial)
                keeping = [threshold for threshold in running if without - current >= threshold]
                if keeping:
                    survives[candidate] = max(survives[candidate], keeping[-1])
                advance(len(running))
                if len(keeping) == len(running):
                    continue
                if keeping:
                    todo.append((index + 1, removed.clone(), current, keeping))
                    running = running[len(keeping) :]
                removed, current = trial, without
    return survives
