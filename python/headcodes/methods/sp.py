"""Subnetwork probing: learn a gate for every head, paying for each that stays open."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from headcodes.interventions.ablate import HeadAblation, PairAblation, loss_of
from headcodes.interventions.metric import whole_vocabulary
from headcodes.interventions.runs import Edits, ready, run
from headcodes.methods.findings import Findings
from headcodes.models.hooks import Edit
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs

# The hard-concrete distribution's temperature and stretch, and where gates start: Louizos et al. 2018, as Cao et al.
# 2021.
BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1
START = 0.9
# Weight of the gates that stay open; epochs and rate of Adam, on all pairs at once.
REGULARISATION, N_EPOCHS, LEARNING_RATE = 1.0, 200, 0.05


def find(name: str, inputs: Inputs, level: Level, seed: int, *, ablation: PairAblation = "resample") -> Findings:
    """Score a head by the probability that its learned gate is open.

    Cao et al. 2021, arXiv 2104.03514, as Conmy et al. 2023 ran it on model parts: z becomes gate * z + (1 - gate) *
    ablated, one hard-concrete gate a head, learned by Adam on loss + regularisation * mean probability of being open.
    They took 10,000 epochs at a rate of .001 for each of a grid of regularisations; 200 at .05 go as far, and the
    probabilities rank heads at one regularisation.

    Args:
        ablation: what a closed gate puts in place: "resample" or "zero".
    """
    model, tokens = inputs.model, inputs.tokens
    loss = inputs.metric or "kl"
    findings = Findings.of(model)
    generator = torch.Generator().manual_seed(seed)
    share = (START - GAMMA) / (ZETA - GAMMA)
    mask = torch.full((model.n_layers, model.n_heads), math.log(share / (1 - share)), requires_grad=True)
    adam = torch.optim.Adam([mask], lr=LEARNING_RATE)
    with findings.timed("train"), progress("probing", total=N_EPOCHS) as advance:
        whole = HeadAblation(model, tokens, ablation, loss)
        with ready(model):
            for _ in range(N_EPOCHS):
                adam.zero_grad()
                # The device gets them once an epoch, not once a layer.
                gates = sample(mask, generator).to(model.device)
                (REGULARISATION * is_open(mask).mean()).backward(retain_graph=True)
                for reference in whole.references:
                    edits: dict[int, Edit] = {
                        layer: gate(gates[layer], reference.ablated.z[layer]) for layer in range(model.n_layers)
                    }
                    parts = run(
                        model,
                        reference.batch.clean,
                        reference.batch,
                        edits=Edits(z=edits),
                        whole_vocabulary=whole_vocabulary(loss),
                    )
                    found = loss_of(loss, reference.batch, reference.clean, parts.logits).sum() / len(tokens)
                    found.backward(inputs=[mask], retain_graph=True)
                adam.step()
                advance(1)
    findings.set_heads(is_open(mask))
    return findings


def sample(mask: Float[Tensor, "*gate"], generator: torch.Generator) -> Float[Tensor, "*gate"]:
    """Draw gates from the hard-concrete distribution: stretched to (GAMMA, ZETA), then cut to [0, 1]."""
    u = torch.rand(mask.shape, generator=generator).clamp(1e-6, 1 - 1e-6)
    soft = torch.sigmoid((u.log() - (-u).log1p() + mask) / BETA)
    return (soft * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def is_open(mask: Float[Tensor, "*gate"]) -> Float[Tensor, "*gate"]:
    """Return the probability that a gate is not zero."""
    return torch.sigmoid(mask - BETA * math.log(-GAMMA / ZETA))


def gate(open_share: Float[Tensor, " n_heads"], ablated: Float[Tensor, "batch seq n_heads*d_head"]) -> Edit:
    """Return the edit that mixes a layer's head results with what they are when ablated."""

    def mix(z: Tensor) -> Tensor:
        n_heads = len(open_share)
        heads, other = z.unflatten(-1, (n_heads, -1)), ablated.unflatten(-1, (n_heads, -1))
        share = open_share.to(z)[:, None]
        mixed: Tensor = other + share * (heads - other)
        return mixed.flatten(-2)

    return mix
