"""Edge attribution patching, plain and with integrated gradients.

A node u's score is the sum over positions of (u_clean - u_corrupt) . dL/du, with L the logit difference: to first
order what the metric loses when u is replaced by its activation on the corrupted prompt. An edge u -> v takes the
gradient with respect to what v reads from the residual stream (before v's norm; a head's query, key and value apart),
so that the scores of all edges that leave u add up to u's own. Corrupted and clean change sides against the papers'
formula because L is what they call the negative loss: positive scores belong to parts that help.

The four methods differ in where gradients are taken:

- ``eap``: on the clean run (Syed et al. 2023, arXiv 2310.10348).
- ``eap-ig-inputs``: the mean over runs whose first layer gets corrupt + k/m (clean - corrupt), k = 1..m (Hanna et al.
  2024, arXiv 2403.17806, equation 3; m = 5).
- ``eap-ig-inputs-left``: the same for k = 0..m-1, as the authors' program has it today: the corrupted end of the path
  instead of the clean one.
- ``eap-ig-activations``: for the heads of each layer, each MLP and the embedding apart, the mean over runs in which
  that part itself goes from corrupt to clean in m steps, all before it being clean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from headcodes.activations.capture import mlps_of
from headcodes.graph import Edges
from headcodes.interventions.gradients import arrived, gradients_at, refuse_without_gradient, with_gradients
from headcodes.interventions.metric import measure, refuse_flat, whole_vocabulary
from headcodes.interventions.reads import Reads, edge_bytes_per_token, graph_of
from headcodes.interventions.runs import (
    NO_EDITS,
    POSITION_GROUPS,
    Batch,
    Edits,
    Parts,
    batches,
    chosen_positions,
    position_groups,
    ready,
    require_equal_lengths,
    run,
)
from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair, abs_mean
from headcodes.models.devices import EachDevice
from headcodes.models.memory import graph_bytes, node_bytes_per_token, parts_bytes_per_token
from headcodes.progress import progress
from headcodes.prompts.alignment import align
from headcodes.settings import Metric

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model

STEPS = 5

Kind = Literal["input", "z", "mlp"]


def find(name: str, inputs: Inputs, level: Level, seed: int, *, steps: int = STEPS) -> Findings:
    """Score every head, MLP and the embedding; at edge level every edge between them as well.

    ``head_scores`` are magnitudes, as the methods' authors rank parts; ``signed`` and ``edges`` keep the sign. A pair
    of heads gets the sum of the magnitudes of its query, key and value edges.

    Args:
        steps: of the integrals.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length; no gradients can be had
            (``refuse_without_gradient``); at edge level, a model whose query, key and value projections are unknown.
    """
    model, tokens = inputs.model, inputs.tokens
    require_equal_lengths(tokens, name)
    metric = inputs.metric or "logit-diff"
    if name in ("eap", "relp", "relp-ah"):
        refuse_flat(metric, name)
    findings = Findings.of(model)
    if inputs.with_mlps:
        mlps_of(model)
    alignment = align(tokens)
    n_groups = len(POSITION_GROUPS) + len(alignment.labels)
    totals = _Totals(model, len(tokens), edges=level == "edge", n_groups=n_groups)
    per_token = edge_bytes_per_token(model) if level == "edge" else node_bytes_per_token(model)
    beside = parts_bytes_per_token(model) if name.startswith("eap-ig") else 0  # the clean run's, all the time
    refuse_without_gradient(model, tokens, per_token if level == "edge" else None, beside)
    passes = {
        "eap": _clean,
        "relp": _clean,  # under the rules of methods.relp, as relp-ah
        "relp-ah": _clean,
        "eap-ig-inputs": _inputs,
        "eap-ig-inputs-left": _inputs_left,
        "eap-ig-activations": _activations,
    }[name]
    with findings.timed("attribute"), ready(model), progress("attributing", total=len(tokens)) as advance:
        for batch in batches(tokens, per_token, graph_bytes(model.device)):
            with torch.no_grad():
                corrupt = run(model, batch.corrupt, batch)
            totals.rows = torch.tensor(batch.rows)
            totals.groups = EachDevice(position_groups(batch, inputs.settings.positions, alignment))
            at = chosen_positions(batch, inputs.settings.positions)
            for each in passes(model, batch, corrupt, steps, metric):
                each.run(totals, at)
            advance(len(batch.rows))
    n_pairs = len(tokens)
    findings.set_signed(totals.heads.mean(0))
    findings.set_by_pair(ByPair(totals.heads, abs_mean))
    by_position = (totals.by_position / n_pairs).numpy()
    findings.by_position = by_position[:, :-1, : len(POSITION_GROUPS)]
    places = by_position[:, :, len(POSITION_GROUPS) :]
    rows = [places[:, :-1].reshape(-1, places.shape[-1]), *[places[:, -1]] * inputs.with_mlps]
    findings.alignment, findings.by_place = alignment, np.concatenate(rows)
    findings.other_nodes = {node: total / n_pairs for node, total in totals.others.items()}
    if totals.edges is not None:
        findings.edges = Edges.of(graph_of(model), (totals.edges / n_pairs).numpy())
        findings.pair_scores = pair_scores(findings.edges, model.components)
    return findings


def pair_scores(edges: Edges, components: list[str]) -> Float[np.ndarray, "n_component n_component"]:
    """Add up the magnitudes of each pair of heads' query, key and value edges; symmetric, zero diagonal."""
    rows = [edges.sources.index(name) for name in components]
    pairs = np.zeros((len(components), len(components)))
    for slot in "qkv":
        columns = [edges.destinations.index(f"{name}<{slot}>") for name in components]
        pairs += np.abs(np.nan_to_num(edges.scores[np.ix_(rows, columns)]))
    return pairs + pairs.T


class _Totals:
    """Every head's score in each pair, and sums over pairs of the other nodes and of every edge (NaN where there is
    none), float64.

    ``by_position`` [n_layers, n_heads + 1, n_group] has MLPs in its last column.
    """

    def __init__(self, model: Model, n_pairs: int, edges: bool, n_groups: int) -> None:
        self.heads = torch.zeros(n_pairs, model.n_layers, model.n_heads, dtype=torch.float64)
        self.by_position = torch.zeros(model.n_layers, model.n_heads + 1, n_groups, dtype=torch.float64)
        # Of the batch at hand.
        self.rows = torch.zeros(0, dtype=torch.long)
        self.groups: EachDevice | None = None
        self.others: dict[str, float] = {}
        self.edges: Tensor | None = None
        # Where each number goes that still lies on a device, and the numbers, weighed.
        self._waiting: list[tuple[Callable[[Tensor], object], Tensor]] = []
        if edges:
            self.edges = torch.full(graph_of(model).shape, torch.nan, dtype=torch.float64)

    def add_node(self, kind: Kind, layer: int, difference: Tensor, gradient: Tensor, weight: float) -> None:
        product = difference.float() * gradient.float()
        if kind == "z":
            by_head = product.unflatten(-1, (self.heads.shape[2], -1)).sum(3)
            of_layer, rows = self.heads[:, layer], self.rows
            self._waiting.append((lambda found: of_layer.index_add_(0, rows, found, alpha=weight), by_head.sum(1)))
            self._add_apart(self.by_position[layer, :-1], by_head, weight)
            return
        if kind == "mlp":
            self._add_apart(self.by_position[layer, -1:], product.sum(-1, keepdim=True), weight)
        node = "input" if kind == "input" else f"m{layer}"

        def add(found: Tensor) -> None:
            self.others[node] = self.others.get(node, 0.0) + weight * float(found)

        self._waiting.append((add, product.sum()))

    def _add_apart(self, to: Tensor, product: Float[Tensor, "*batch_seq n"], weight: float) -> None:
        assert self.groups is not None
        (groups,) = self.groups.on(product.device)
        # OPT's MLPs put all tokens into one row.
        apart = torch.einsum("bsn,bsg->ng", product.reshape(*groups.shape[:2], -1), groups)
        self._waiting.append((lambda found: to.add_(found, alpha=weight), apart))

    def add_edges(self, rows: slice, columns: slice, scores: Tensor, weight: float) -> None:
        assert self.edges is not None
        part = self.edges[rows, columns]
        self._waiting.append((lambda found: part.nan_to_num_(0.0).add_(found, alpha=weight), scores))

    def arrive(self) -> None:
        """Bring all that was added to the CPU, in float64: the host waits for a device once a pass."""
        if not self._waiting:
            return
        home = self._waiting[0][1].device
        flat = torch.cat([scores.reshape(-1).to(home) for _, scores in self._waiting]).cpu().double()
        for (add, scores), found in zip(
            self._waiting, flat.split([scores.numel() for _, scores in self._waiting]), strict=True
        ):
            add(found.view(scores.shape))
        self._waiting.clear()


@dataclass
class _Pass:
    """One run over a batch's clean prompts, forward and backward, and which parts it scores.

    Attributes:
        corrupt: the corrupted run. clean: the clean one; None where this very pass is it.
        edits: what is changed on the way.
        weight: of this pass among those that are averaged.
        only: score this part alone; all parts where None.
        metric: what gradients are taken of.
    """

    model: Model
    batch: Batch
    corrupt: Parts
    clean: Parts | None = None
    edits: Edits = NO_EDITS
    weight: float = 1.0
    only: tuple[Kind, int] | None = None
    metric: Metric = "logit-diff"

    def run(self, totals: _Totals, at: Tensor | None = None) -> None:
        reference = None if self.clean is None else self.clean.logits
        reads = None
        if totals.edges is None:
            parts, gradients = with_gradients(
                self.model, self.batch, self.metric, reference=reference, edits=self.edits
            )
        else:
            reads = Reads(self.model)
            parts, gradients = self._whole_graph(reads, reference)
        arrived(self.model, gradients, self._scored(parts))
        for kind, layer in self._scored(parts):
            totals.add_node(kind, layer, self._difference(parts, kind, layer, at), gradients[kind, layer], self.weight)
        if reads is not None:
            self._score_edges(totals, reads, parts, gradients, at)
        totals.arrive()

    def _whole_graph(self, reads: Reads, reference: Tensor | None) -> tuple[Parts, dict[tuple[str, int], Tensor]]:
        """Run and differentiate with every part that edges are read from at hand, and the graph kept for more."""
        whole = whole_vocabulary(self.metric)
        also = reads.recording()
        parts = run(self.model, self.batch.clean, self.batch, edits=self.edits, also=also, whole_vocabulary=whole)
        tensors: dict[tuple[str, int], Tensor] = {key: parts.get(*key) for key in self._scored(parts)}
        tensors |= {("z", layer): z for layer, z in enumerate(parts.z)}
        tensors |= {("reads", layer): entry for layer, entry in reads.mlp_in.items()}
        tensors["logits", 0] = reads.final_in
        # What lies before an edited part has no gradient through it, and is not asked for below.
        summed = measure(self.metric, self.batch, parts.logits, reference).sum()
        return parts, gradients_at(summed, tensors, again=True)

    def _scored(self, parts: Parts) -> list[tuple[Kind, int]]:
        if self.only is not None:
            return [self.only]
        heads: list[tuple[Kind, int]] = [("z", layer) for layer in range(len(parts.z))]
        mlps: list[tuple[Kind, int]] = [("mlp", layer) for layer in range(len(parts.mlp))]
        return [("input", 0), *heads, *mlps]

    def _difference(self, parts: Parts, kind: Kind, layer: int, at: Tensor | None) -> Tensor:
        """Return a part's output on the clean prompt less that on the corrupted one, at the positions that count."""
        ours = (self.clean or parts).get(kind, layer).detach()
        found = ours - self.corrupt.get(kind, layer)
        return found if at is None else found * at.to(found)

    def _score_edges(
        self,
        totals: _Totals,
        reads: Reads,
        parts: Parts,
        gradients: dict[tuple[str, int], Tensor],
        at: Tensor | None,
    ) -> None:
        graph = reads.graph
        rows = {place: graph.rows(*place) for place in self._scored(parts)}
        start, end = min(each.start for each in rows.values()), max(each.stop for each in rows.values())
        home = self.model.device
        # Filled part by part: two copies of all would not fit where one does.
        written = torch.empty(end - start, parts.input.numel(), device=home)
        for (kind, layer), own in rows.items():
            difference = self._difference(parts, kind, layer, at)
            written[own.start - start : own.stop - start] = reads.written(kind, layer, difference).to(home)

        def add(readable: slice, columns: slice, gradient: Tensor) -> None:
            stop = min(start + len(written), readable.stop)
            if start < stop:
                scores = written[: stop - start] @ gradient.flatten(1).to(written.device).T
                totals.add_edges(slice(start, stop), columns, scores, self.weight)

        for layer in range(graph.n_layers):
            if start < graph.read_by_heads(layer).stop:
                reading = reads.head_reads(layer, parts.z[layer], gradients["z", layer])
                add(graph.read_by_heads(layer), graph.columns("qkv", layer), reading)
            if graph.has_mlps and start < graph.read_by_mlp(layer).stop:
                reading = reads.mlp_reads(layer, gradients["reads", layer])
                add(graph.read_by_mlp(layer), graph.columns("mlp", layer), reading)
        logits = graph.columns("logits", graph.n_layers)
        add(slice(0, graph.n_source), logits, gradients["logits", 0].float()[None])


def _clean(model: Model, batch: Batch, corrupt: Parts, steps: int, metric: Metric) -> Iterator[_Pass]:
    yield _Pass(model, batch, corrupt, metric=metric)


def _inputs(model: Model, batch: Batch, corrupt: Parts, steps: int, metric: Metric, first: int = 1) -> Iterator[_Pass]:
    with torch.no_grad():
        clean = run(model, batch.clean, batch, whole_vocabulary=whole_vocabulary(metric))
    for step in range(first, first + steps):
        edits = Edits(input=_between(corrupt.input, clean.input, step / steps))
        yield _Pass(model, batch, corrupt, clean, edits, 1 / steps, metric=metric)


def _inputs_left(model: Model, batch: Batch, corrupt: Parts, steps: int, metric: Metric) -> Iterator[_Pass]:
    yield from _inputs(model, batch, corrupt, steps, metric, first=0)


def _activations(model: Model, batch: Batch, corrupt: Parts, steps: int, metric: Metric) -> Iterator[_Pass]:
    with torch.no_grad():
        clean = run(model, batch.clean, batch, whole_vocabulary=whole_vocabulary(metric))
    keys: list[tuple[Kind, int]] = [("input", 0)]
    keys += [("z", layer) for layer in range(len(clean.z))]
    keys += [("mlp", layer) for layer in range(len(clean.mlp))]
    for kind, layer in keys:
        for step in range(1, steps + 1):
            between = _between(corrupt.get(kind, layer), clean.get(kind, layer), step / steps)
            edits = {
                "input": Edits(input=between),
                "z": Edits(z={layer: between}),
                "mlp": Edits(mlp={layer: between}),
            }[kind]
            yield _Pass(model, batch, corrupt, clean, edits, 1 / steps, (kind, layer), metric)


def _between(corrupt: Tensor, clean: Tensor, share: float) -> Callable[[Tensor], Tensor]:
    """Return an edit that puts in a point between the two runs, as a leaf that gradients are asked for."""
    point = torch.lerp(corrupt.float(), clean.float(), share).to(clean.dtype)
    return lambda _: point.detach().requires_grad_(True)
