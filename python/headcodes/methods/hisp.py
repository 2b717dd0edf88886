"""Head importance score: how much the metric would change if a gate on the head were closed a little."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from headcodes.interventions.gradients import at_heads, refuse_without_gradient, with_gradients
from headcodes.interventions.metric import refuse_flat
from headcodes.interventions.runs import batches, chosen_positions, ready
from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair
from headcodes.models.devices import brought
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by the mean over positives of |z . dL/dz|, summed over positions, divided by its layer's L2 norm.

    Michel et al. 2019, equation 2, with L the logit difference, and their normalisation by layer. Corrupted prompts are
    not used: the gate closes towards zero.

    Raises:
        HeadcodesError: no gradients can be had (``gradients.refuse_without_gradient``).
    """
    model, tokens = inputs.model, inputs.tokens
    metric = inputs.metric or "logit-diff"
    refuse_flat(metric, name)
    refuse_without_gradient(model, tokens)
    findings = Findings.of(model)
    importance = torch.zeros(len(tokens), model.n_layers, model.n_heads, dtype=torch.float64)
    with findings.timed("attribute"), ready(model), progress("attributing", total=len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            parts, found_gradients = with_gradients(model, batch, metric)
            gradients = at_heads(model, found_gradients)
            at = chosen_positions(batch, inputs.settings.positions)
            found = []
            for z, gradient in zip(parts.z, gradients, strict=True):
                gate = (z.detach().float() * gradient.float()).unflatten(-1, (model.n_heads, -1))
                if at is not None:
                    gate = gate * at[..., None].to(gate)
                found.append(gate.sum((1, 3)).abs())
            importance[torch.tensor(batch.rows)] = brought(found).transpose(0, 1)
            advance(len(batch.rows))
    findings.set_by_pair(ByPair(importance, _by_layer))
    return findings


def _by_layer(importance: Float[Tensor, "n_pairs n_layers n_heads"]) -> Float[Tensor, "n_layers n_heads"]:
    total = importance.sum(0)
    norm = total.norm(dim=1, keepdim=True)
    return total / torch.where(norm > 0, norm, 1.0)
