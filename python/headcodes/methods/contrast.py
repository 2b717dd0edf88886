"""Contrast: how a head's output differs between the two prompts of a pair, weighed by the answer and by the stream.

No gradient and no ablation. Two plain forward passes over some of the pairs give, for every head, how its output
differs between the two prompts of a pair, position by position. docs/recipe.md has what each ingredient adds.
``default`` stands for it where gradients cannot be had.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from headcodes.interventions.runs import Batch, batches, node_bytes_per_token, ready, run
from headcodes.methods import code_sets
from headcodes.methods.code_flip import flip_shares
from headcodes.methods.dla import answer_direction
from headcodes.methods.findings import Findings
from headcodes.models.hooks import edit_input
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.interventions.runs import Parts
    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs

# Pairs whose positions are looked at one by one; more change the ranking little (docs/recipe.md).
N_MEASURED = 64


def find_many(name: str, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score a head by the change it makes to the answer plus the change it makes to the stream, each in standard
    deviations over heads.

    To the answer: the mean over pairs of |(z_clean - z_corrupt) . W_O . (right less wrong unembedding)| at the last
    position, the final norm held at the clean prompt's scale (direct logit attribution of the difference; left out
    where the model has no known final norm). To the stream: the mean over pairs of
    sum over positions of ||(z_clean - z_corrupt) . W_O||^2 / ||residual stream||^2, from the first changed token on,
    times the share of pairs in which the head's code flips. Relative to the stream, since every reader norms what it
    reads.

    Codes are those of the recipe of this name (``headcodes.codes.recipes``); at edge level pairs of heads are scored
    by their counts, as published.
    Prompts of different length are compared from their ends, back to where they part.
    """
    found = code_sets.find_many("contrast", inputs, level, seeds)
    measured = inputs.tokens.subset(range(min(N_MEASURED, inputs.n_proposing)))
    with found[0].timed("capture"):
        to_answer, to_stream = _changes(inputs, measured)
    for findings in found:
        heard = to_stream * flip_shares(findings, len(inputs.tokens)).reshape(to_stream.shape)
        findings.head_scores = sum(
            (part / part.std() for part in (to_answer, heard) if part.std() > 0), np.zeros(heard.shape)
        )
    return found


def _changes(inputs: Inputs, measured: TokenPairs) -> tuple[np.ndarray, np.ndarray]:
    """``changes``, or what an earlier run kept of them: with the activations at hand no model need be opened."""
    if not inputs.cache:
        return changes(inputs.model, measured)
    from headcodes.activations.cache import kept

    def make() -> dict[str, Tensor]:
        to_answer, to_stream = changes(inputs.model, measured)
        return {"to_answer": torch.from_numpy(to_answer), "to_stream": torch.from_numpy(to_stream)}

    found = kept(inputs.model, measured, "changes", make)
    return found["to_answer"].numpy(), found["to_stream"].numpy()


def changes(
    model: Model, tokens: TokenPairs
) -> tuple[Float[np.ndarray, "n_layers n_heads"], Float[np.ndarray, "n_layers n_heads"]]:
    """Return the mean change of every head to the answer (logits, unsigned) and to the stream (a share of its square).

    Two forward passes a pair; what is kept of a batch is a number a head.
    """
    to_answer = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    to_stream = torch.zeros_like(to_answer)
    gram = model.W_O.float() @ model.W_O.float().transpose(-1, -2)  # [layer, head, d_head, d_head]
    with ready(model), torch.no_grad(), progress("measuring", total=len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model)):
            clean, clean_streams = _run(model, batch.clean, batch)
            ends = torch.tensor([len(tokens.corrupt[pair]) - 1 for pair in batch.rows])
            corrupt, corrupt_streams = _run(model, batch.corrupt, replace(batch, last=ends))
            at = _aligned(tokens, batch)
            direction = None
            if model.final_norm is not None:
                direction = answer_direction(model, batch, clean.logits, clean_streams[-1])
            for layer in range(model.n_layers):
                device = clean.z[layer].device
                here = [index.to(device) for index in at]
                ours = clean.z[layer].float().unflatten(-1, (model.n_heads, model.d_head))[here[0], here[1]]
                theirs = corrupt.z[layer].float().unflatten(-1, (model.n_heads, model.d_head))[here[0], here[2]]
                difference = ours - theirs  # [position, head, d_head]
                square = torch.einsum("phd,hde,phe->ph", difference, gram[layer].to(device), difference).clamp_min(0)
                stream = _squares(clean_streams[layer], at[0], at[1]) + _squares(corrupt_streams[layer], at[0], at[2])
                to_stream[layer] += (square / (stream / 2).to(device)[:, None]).sum(0).double().cpu()
                if direction is not None:
                    last = (at[1] == batch.last[at[0]]).to(device)
                    said = torch.einsum(
                        "phd,hdm,pm->ph", difference[last], model.W_O[layer].float().to(device), direction.to(device)
                    )
                    to_answer[layer] += said.abs().sum(0).double().cpu()
            advance(len(batch.rows))
    return (to_answer / len(tokens)).numpy(), (to_stream / len(tokens)).numpy()


def _run(model: Model, tokens: Tensor, batch: Batch) -> tuple[Parts, list[Tensor]]:
    """Run once; beside the parts, what enters every layer and, where it is known, the final norm."""
    streams: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        streams.append(x)
        return x

    with ExitStack() as hooks:
        for block in [*model.layers[1:], *([model.final_norm] if model.final_norm is not None else [])]:
            hooks.enter_context(edit_input(block, note))
        parts = run(model, tokens, batch)
    return parts, [parts.input, *streams]


def _squares(stream: Float[Tensor, "batch seq d_model"], row: Tensor, position: Tensor) -> Float[Tensor, " position"]:
    here = stream[row.to(stream.device), position.to(stream.device)]
    return here.float().square().sum(-1).cpu()


def _aligned(tokens: TokenPairs, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return (row of the batch, clean position, corrupted position) of all that is compared, pair after pair.

    From the first token in which the prompts differ to the end of the shorter one, both counted from the end.
    """
    found = []
    for row, pair in enumerate(batch.rows):
        clean, corrupt = tokens.clean[pair], tokens.corrupt[pair]
        shorter = min(len(clean), len(corrupt))
        alike = next((i for i in range(shorter) if clean[i] != corrupt[i]), shorter - 1)
        for back in range(shorter - alike, 0, -1):
            found.append((row, len(clean) - back, len(corrupt) - back))
    rows, ours, theirs = torch.tensor(found).unbind(1)
    return rows, ours, theirs
