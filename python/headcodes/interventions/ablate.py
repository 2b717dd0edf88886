"""What a model loses when heads, or single edges, are ablated: the inner loop of ACDC.

Resample ablation replaces a part's output by its output on the pair's corrupted prompt, zero ablation by 0. The loss is
the mean KL divergence of the answer's distribution from the clean model's, over the whole vocabulary at the last
position, or the logit difference that is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.graph import Graph
from headcodes.interventions.metric import measure, whole_vocabulary
from headcodes.interventions.reads import Reads
from headcodes.interventions.runs import (
    Batch,
    Edits,
    Parts,
    batches,
    ready,
    require_equal_lengths,
    run,
)
from headcodes.models.devices import EachDevice
from headcodes.models.hooks import Edit, edit_input, first_of
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.models.relied import check_ungrouped, ungrouped
from headcodes.models.weights import matrix_of
from headcodes.settings import Metric

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


PairAblation = Literal["resample", "zero"]


@dataclass
class _Reference:
    """One batch, the outputs that replace its parts when ablated, and the whole model's logits."""

    batch: Batch
    ablated: Parts
    clean: Float[Tensor, "batch n_logit"]


class HeadAblation:
    """The loss of ablating sets of heads.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length (resample ablation).
    """

    def __init__(self, model: Model, tokens: TokenPairs, ablation: PairAblation, loss: Metric) -> None:
        if ablation == "resample":
            require_equal_lengths(tokens, "resample ablation")
        self.model, self.ablation, self.kind, self.n_pairs = model, ablation, loss, len(tokens)
        with ready(model), torch.no_grad():
            self.references = [
                self._reference(batch)
                for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device))
            ]

    @property
    def clean_logit_diff(self) -> float:
        """Mean logit difference of the whole model over pairs; with the loss "logit-diff" only."""
        return sum(float(each.batch.logit_diff(each.clean).sum()) for each in self.references) / self.n_pairs

    def _reference(self, batch: Batch) -> _Reference:
        whole = whole_vocabulary(self.kind)
        clean = run(self.model, batch.clean, batch, whole_vocabulary=whole)
        ablated = clean
        if self.ablation == "resample":
            ablated = run(self.model, batch.corrupt, batch, whole_vocabulary=whole)
        else:
            ablated = Parts(
                torch.zeros_like(clean.input),
                [torch.zeros_like(z) for z in clean.z],
                [torch.zeros_like(output) for output in clean.mlp],
                clean.logits,
            )
        return _Reference(batch, ablated, clean.logits)

    def loss(self, removed: Bool[Tensor, "n_layers n_heads"]) -> float:
        """Return the mean loss over pairs without the heads where ``removed``, on the CPU, is True."""
        columns = [row.repeat_interleave(width) for row, width in zip(removed, self.model.d_heads, strict=True)]
        gone = EachDevice(torch.cat(columns)), [len(each) for each in columns]
        total = 0.0
        with ready(self.model), torch.no_grad():
            for reference in self.references:
                edits = {
                    layer: _swapped(*gone, layer, reference.ablated.z[layer])
                    for layer in range(self.model.n_layers)
                    if bool(removed[layer].any())
                }
                parts = run(
                    self.model,
                    reference.batch.clean,
                    reference.batch,
                    edits=Edits(z=edits),
                    whole_vocabulary=whole_vocabulary(self.kind),
                )
                total += self._loss(reference, parts.logits)
        return total / self.n_pairs

    def _loss(self, reference: _Reference, logits: Tensor) -> float:
        return float(loss_of(self.kind, reference.batch, reference.clean, logits).sum())


def _swapped(gone: EachDevice, widths: list[int], layer: int, other: Tensor) -> Edit:
    return lambda z: torch.where(gone.on(z.device)[0].split(widths)[layer], other, z)


def loss_of(
    kind: Metric, batch: Batch, clean: Float[Tensor, "batch n_logit"], logits: Float[Tensor, "batch n_logit"]
) -> Float[Tensor, " batch"]:
    """Return each row's loss: KL of the answer's distribution from the clean model's, or what is lost of the metric."""
    if kind == "kl":
        expected = clean.log_softmax(1)
        return (expected.exp() * (expected - logits.log_softmax(1))).sum(1)
    return measure(kind, batch, clean) - measure(kind, batch, logits)


class EdgeAblation(HeadAblation):
    """The loss of ablating sets of edges, rows and columns as in ``graph.Graph``.

    A destination whose edges are removed reads the residual stream less their sources' outputs in this very run, plus
    their ablated ones. Exact: MLPs and later heads are computed from what they then read.

    Keys and values that several heads share (grouped queries) are told apart: an edge into one head's key changes what
    that head attends by, and nothing for the others of its group.

    Raises:
        HeadcodesError: a norm between parts and stream (Gemma 2 and 3), in which sums of parts do not exist; a family
            whose projections are unknown; grouped queries in attention that cannot be told how many keys there are.
    """

    def __init__(self, model: Model, tokens: TokenPairs, ablation: PairAblation, loss: Metric) -> None:
        check_ungrouped(model)
        if model.facts.norms_over_heads:
            raise HeadcodesError(
                "heads whose edges are cut must have a query and key of their own",
                f"{model!r}, which norms those of all heads together",
                "Use level='node', or eap for edges.",
            )
        super().__init__(model, tokens, ablation, loss)
        self.graph = Reads(model).graph
        # Once a module: those that are no plain layer are asked for it, row by row.
        self.matrix = cache(matrix_of)
        self.ablated_sources = [self._sources(reference) for reference in self.references]

    def _sources(self, reference: _Reference) -> Float[Tensor, "source batch*seq*d_model"]:
        reads = Reads(self.model)
        with ready(self.model), torch.no_grad():
            run(self.model, reference.batch.clean, reference.batch, also=reads.recording())
            for layer in range(self.model.n_layers):
                for kind in ("z", "mlp") if self.graph.has_mlps else ("z",):
                    if reads.norm_behind(kind, layer)[0] is not None:
                        raise HeadcodesError(
                            "parts whose edges are cut must add up in the residual stream",
                            f"{self.model!r}, which norms what its parts write",
                            "Use level='node', or eap for edges.",
                        )
            keys = [("input", 0)]
            for layer in range(self.model.n_layers):
                keys += [(kind, layer) for kind in (("z", "mlp") if self.graph.has_mlps else ("z",))]
            device = self.model.device
            return torch.cat(
                [reads.written(kind, layer, reference.ablated.get(kind, layer)).to(device) for kind, layer in keys]
            )

    def loss(self, removed: Bool[Tensor, "n_source n_destination"]) -> float:
        """Return the mean loss over pairs without the edges where ``removed`` is True."""
        total = 0.0
        with ready(self.model), torch.no_grad():
            for reference, ablated in zip(self.references, self.ablated_sources, strict=True):
                cut = _Cut(self.model, self.graph, removed, ablated, self.matrix)
                parts = run(
                    self.model,
                    reference.batch.clean,
                    reference.batch,
                    also=cut.cutting(),
                    whole_vocabulary=whole_vocabulary(self.kind),
                )
                total += self._loss(reference, parts.logits)
        return total / self.n_pairs


class _Cut:
    """One pass in which destinations read a stream without some of its sources."""

    def __init__(
        self, model: Model, graph: Graph, removed: Tensor, ablated: Tensor, matrix: Callable[[nn.Module], Tensor]
    ) -> None:
        self.model, self.graph, self.ablated, self.matrix = model, graph, ablated, matrix
        # Which edges go is asked of the host's copy: the device would have to be waited for.
        self.removed, self.gone = removed, removed.float().to(ablated.device)
        self.reads = Reads(model)
        self.group_size = model.n_heads // model.n_kv_heads
        # Each source's output in this pass less its ablated one, taken as the pass computes it.
        self.gap = torch.zeros_like(ablated)

    @contextmanager
    def cutting(self) -> Iterator[None]:
        """Register the hooks."""
        model, reads = self.model, self.reads
        with ExitStack() as hooks:
            hooks.enter_context(reads.recording())
            if self.group_size > 1:
                hooks.enter_context(ungrouped(model))
            hooks.enter_context(edit_input(model.layers[0], self._keep_input(self.graph.rows("input", 0))))
            for layer in range(model.n_layers):
                for slot in "qkv":
                    module, _ = reads.slots[layer][slot]
                    hooks.callback(module.register_forward_hook(self._slot(layer, slot)).remove)
                hooks.enter_context(edit_input(model.projections[layer], self._heads(layer)))
                part = model.mlp(layer)
                if part is not None:
                    hooks.enter_context(edit_input(reads.mlp_reader(layer), self._mlp(layer)))
                    hooks.callback(part.register_forward_hook(self._keep_mlp_output(layer)).remove)
            assert model.final_norm is not None
            hooks.enter_context(edit_input(model.final_norm, self._final))
            yield

    def _keep_output(self, row: slice, output: Tensor) -> None:
        self.gap[row] = output.to(self.gap.device) - self.ablated[row]

    def _keep_input(self, row: slice) -> Edit:
        def note(x: Tensor) -> Tensor:
            self._keep_output(row, x.float().reshape(1, -1))
            return x

        return note

    def _heads(self, layer: int) -> Edit:
        def note(z: Tensor) -> Tensor:
            heads = self.model.by_head(layer, z.float()) * self.model.facts.scale("z", layer)
            weights = self.model.W_O[layer].to(z.device).float()
            self._keep_output(self.graph.rows("z", layer), torch.einsum("bshd,hdm->hbsm", heads, weights).flatten(1))
            return z

        return note

    def _keep_mlp_output(self, layer: int) -> Any:
        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            output = first_of(output)
            self._keep_output(
                self.graph.rows("mlp", layer), self.model.facts.scale("mlp", layer) * output.float().reshape(1, -1)
            )

        return note

    def _change(self, readable: slice, columns: slice) -> Tensor | None:
        """Return what leaves the stream for each of some destinations, or None where nothing does."""
        if not bool(self.removed[readable, columns].any()):
            return None
        return self.gone[readable, columns].T @ self.gap[readable]

    def _slot(self, layer: int, slot: str) -> Any:
        # Keys and values of grouped queries are made once a head, in one order with the queries.
        shared = self.group_size > 1 and slot != "q"

        def by_head(values: Tensor, dim: int) -> Tensor:
            return values.repeat_interleave(self.group_size, dim) if shared else values

        def replace(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            change = self._change(self.graph.read_by_heads(layer), self.graph.columns(slot, layer))
            cut = self.reads.slots[layer][slot][1]
            if change is None:
                return by_head(cut(output), -2).flatten(-2) if shared else None
            norm, stream = self.reads.norm_before(layer, args[0])
            read = stream - change.view(-1, *stream.shape).to(stream)
            normed: Tensor = read if norm is None else norm.forward(read)
            bias = getattr(module, "bias", None)
            values = torch.einsum("hbsm,mhd->bshd", normed, by_head(cut(self.matrix(module)), -2))
            if bias is not None:
                values = values + by_head(cut(bias), -2)
            if shared:
                return values.flatten(-2)
            output = output.clone()
            cut.put(output, values)
            return output

        return replace

    def _mlp(self, layer: int) -> Edit:
        def replace(x: Tensor) -> Tensor:
            change = self._change(self.graph.read_by_mlp(layer), self.graph.columns("mlp", layer))
            if change is None:
                return x
            norm, stream = self.reads.mlp_norm(layer)
            read = stream - change.view(stream.shape).to(stream)
            return read if norm is None else norm.forward(read)

        return replace

    def _final(self, x: Tensor) -> Tensor:
        change = self._change(slice(0, self.graph.n_source), self.graph.columns("logits", self.graph.n_layers))
        return x if change is None else x - change.view(x.shape).to(x)
