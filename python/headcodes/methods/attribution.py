"""Attribution: what a head's change between the two prompts of a pair does to the answer, to first order.

One backward pass gives, for every pair of prompts and every head, p = (z_clean - z_corrupt) . dLD/dz summed over
positions: edge attribution patching's product for a node (Syed et al. 2023, arXiv 2310.10348), before it is averaged.
``default`` stands for this where gradients can be had. docs/recipe.md has what each ingredient adds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from headcodes.activations.capture import mlps_of
from headcodes.interventions.gradients import GradientError, arrived, refuse_without_gradient, with_gradients
from headcodes.interventions.metric import refuse_flat
from headcodes.interventions.runs import (
    POSITION_GROUPS,
    batches,
    position_groups,
    ready,
    run,
)
from headcodes.methods.findings import Findings
from headcodes.methods.pairs import propose_pairs
from headcodes.methods.stability import ByPair
from headcodes.models.devices import EachDevice, brought
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.progress import progress
from headcodes.prompts.alignment import Alignment, align
from headcodes.settings import Metric, Positions

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from jaxtyping import Float
    from torch import Tensor

    from headcodes.interventions.runs import Batch, Parts
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


def score(name: str, found: list[Findings], inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by |mean over pairs of c| + mean over pairs of |c|, c = tanh(p / 1 logit) of its products p.

    The second term keeps heads that help some prompts and hinder others, and cancel out in the first. ``signed`` is
    the mean product as it is: to first order the logit difference lost when the head is patched. MLPs, where they are
    asked for, are scored likewise by their outputs, pairs of heads by ``propose_pairs``. Codes are made by the
    recipe of this name; they do not change the scores.

    Raises:
        GradientError: prompts of a pair differ in length, or ``refuse_without_gradient``.
    """
    tokens = inputs.tokens
    if not tokens.equal_lengths:
        unlike = next(i for i, ids in enumerate(tokens.clean) if len(ids) != len(tokens.corrupt[i]))
        raise GradientError.because(f"the two prompts of pair {unlike} differ in length: no common positions")
    with found[0].timed("attribute"):
        products = _products(inputs, tokens.subset(range(inputs.n_proposing)))
    for findings in found:
        products.fill(findings, products.of_pairs, robust)
        if level == "edge":
            propose_pairs(findings, inputs, robust)
    return found


@dataclass(frozen=True)
class Products:
    """(z_clean - z_corrupt) . dL/dz, summed over positions, of heads, layer-major, then of MLPs where they are scored.

    Attributes:
        of_pairs: of every pair, float64.
        by_group, by_place: means over pairs, apart by ``runs.POSITION_GROUPS`` and by the places of an alignment.
        alignment: None: nothing is told apart by place.
    """

    of_pairs: Float[Tensor, "n_pairs n_part"]
    by_group: Float[Tensor, "n_part n_group"]
    by_place: Float[Tensor, "n_part n_place"]
    alignment: Alignment | None

    def fill(
        self, findings: Findings, values: Float[Tensor, "n_pairs n_part"], score: Callable[[Tensor], Tensor]
    ) -> None:
        """Give findings the scores of ``values``, with means of the products as what they foretell, whole and by
        position."""
        n, means = findings.head_scores.size, self.of_pairs.mean(0)
        findings.set_signed(means[:n])
        findings.set_by_pair(ByPair(values[:, :n], score))
        if len(means) > n:
            findings.set_mlps(score(values[:, n:]).numpy(), means[n:].numpy())
        findings.by_position = self.by_group[:n].numpy().reshape(*findings.head_scores.shape, -1)
        findings.alignment, findings.by_place = self.alignment, self.by_place.numpy()


def robust(products: Float[Tensor, "n_pairs n"]) -> Float[Tensor, " n"]:
    """Return |mean| + mean magnitude over pairs of tanh(products / 1 logit).

    A first-order product is far too large in a few pairs, in which attention is saturated: none counts for more than a
    logit. Chosen on ioi, greater-than and planted models (docs/recipe.md).
    """
    bounded = products.tanh()
    return bounded.mean(0).abs() + bounded.abs().mean(0)


def _products(inputs: Inputs, tokens: TokenPairs) -> Products:
    """Return ``products``, or what an earlier run kept of them: then no model need be opened."""
    positions = inputs.settings.positions

    def made() -> Products:
        metric = inputs.metric or "logit-diff"
        refuse_flat(metric, "attribution")
        return products(inputs.model, tokens, metric, positions, inputs.with_mlps)

    if not inputs.cache or positions != "mean":
        return made()
    from headcodes.activations.cache import kept

    what = " ".join(["products", *filter(None, [inputs.metric]), *["with MLPs"] * inputs.with_mlps])

    def make() -> dict[str, Tensor]:
        its = made()
        return {"of_pairs": its.of_pairs, "by_group": its.by_group, "by_place": its.by_place}

    return Products(**kept(inputs.model, tokens, what, make), alignment=align(tokens))


def products(
    model: Model,
    tokens: TokenPairs,
    metric: Metric = "logit-diff",
    positions: Positions = "mean",
    mlps: bool = False,
    also: Callable[[Batch, Parts, Parts], None] | None = None,
) -> Products:
    """Return (z_clean - z_corrupt) . dL/dz of every pair and head, from one backward pass, L being a metric
    (``interventions.metric``) at the clean run; with ``mlps`` the same of MLPs' outputs.

    Args:
        also: given every batch with its clean and its corrupted run.

    Raises:
        GradientError: see ``refuse_without_gradient``.
        HeadcodesError: prompts of a pair differ in length; MLPs of a model that has none.
    """
    refuse_without_gradient(model, tokens)
    if mlps:
        mlps_of(model)
    alignment = align(tokens)
    n_groups, n_columns = len(POSITION_GROUPS), model.n_heads + mlps
    of_pairs = torch.zeros(len(tokens), model.n_layers, n_columns, dtype=torch.float64)
    summed = torch.zeros(model.n_layers, n_columns, n_groups + len(alignment.labels), dtype=torch.float64)
    with ready(model), progress("attributing", total=len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            with torch.no_grad():
                corrupt = run(model, batch.corrupt, batch)
            clean, at_parts = with_gradients(model, batch, metric)
            kinds = ("z", "mlp") if mlps else ("z",)
            gradients = arrived(model, at_parts, [(kind, layer) for kind in kinds for layer in range(model.n_layers)])
            groups = EachDevice(position_groups(batch, positions, alignment))
            found = []
            for layer in range(model.n_layers):
                difference = clean.z[layer].detach().float() - corrupt.z[layer].float()
                product = (difference * gradients[layer].float()).unflatten(-1, (model.n_heads, -1)).sum(3)
                if mlps:
                    difference = clean.mlp[layer].detach().float() - corrupt.mlp[layer].float()
                    its = (difference * gradients[model.n_layers + layer].float()).sum(-1)
                    its = its.reshape(*batch.clean.shape, 1)  # OPT puts all tokens into one row
                    product = torch.cat([product, its.to(product.device)], -1)
                found.append(torch.einsum("bsh,bsg->bhg", product, *groups.on(product.device)))
            by_batch = brought(found)  # [layer, batch, column, group]
            of_pairs[torch.tensor(batch.rows)] = by_batch[..., :n_groups].sum(-1).transpose(0, 1)
            summed += by_batch.sum(1)
            if also is not None:
                also(batch, clean, corrupt)
            advance(len(batch.rows))

    def in_order(table: Tensor) -> Tensor:
        """Heads, layer-major, then MLPs; the first two axes are layers and columns."""
        heads = table[:, : model.n_heads].flatten(0, 1)
        return torch.cat([heads, table[:, model.n_heads :].flatten(0, 1)])

    means = in_order(summed / len(tokens))
    of_parts = in_order(of_pairs.permute(1, 2, 0)).T.contiguous()
    return Products(of_parts, means[:, :n_groups].contiguous(), means[:, n_groups:].contiguous(), alignment)
