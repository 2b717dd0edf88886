"""Code sets: one sparse autoencoder for all heads, one integer code a head and prompt, scores by set difference.

The published method (O'Neill & Bui 2024, arXiv 2405.12522) and two that mend it. All three walk the same way; they
differ in the entries of one table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from headcodes.codes import encode
from headcodes.methods.inputs import Findings, Inputs
from headcodes.overlap import pair_unique_counts, unique_counts
from headcodes.sae import TrainConfig, train_many
from headcodes.scores import mention_scores

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.activations import HeadActivations
    from headcodes.methods import Level


@dataclass(frozen=True)
class Recipe:
    """How codes are made.

    Attributes:
        scale: what head outputs are divided by before they meet the autoencoder: nothing, one standard deviation for
            all heads, or each head's own after its mean is taken away.
        train_on: "prompts" draws training prompts from all prompts of both sides; "pairs" draws pairs, so that
            both sides weigh the same.
        hold_out: whether codes of training prompts are left out of the scores.
        dead: the code of a row in which no latent is active: 0 mixes it with latent 0, as published; -1 never counts.
        config: of the training.
    """

    scale: Literal["none", "global", "head"]
    train_on: Literal["prompts", "pairs"]
    hold_out: bool
    dead: Literal[-1, 0]
    config: TrainConfig


_PUBLISHED = TrainConfig()

RECIPES = {
    "paper": Recipe("none", "prompts", hold_out=False, dead=0, config=_PUBLISHED),
    "paper-scaled": Recipe("global", "prompts", hold_out=False, dead=0, config=_PUBLISHED),
    "default": Recipe("head", "pairs", hold_out=True, dead=-1, config=TrainConfig(decoder_norm="atoms", plateau=0.01)),
    "code-flip": Recipe("head", "pairs", hold_out=True, dead=-1, config=TrainConfig(decoder_norm="atoms")),
}


def find_many(name: str, inputs: Inputs, level: Level, seeds: Sequence[int]) -> list[Findings]:
    """Score heads by the number of codes that occur in positives and in no negative; pairs likewise by code pairs."""
    recipe = RECIPES[name]
    activations = inputs.activations
    found = [Findings(head_scores=np.zeros((activations.n_layers, activations.n_heads))) for _ in seeds]
    if name == "default" and inputs.model.dtype == torch.bfloat16:
        # Half the time at the same loss where the device computes in it; the published recipes stay in fp32.
        recipe = replace(recipe, config=replace(recipe.config, dtype=torch.bfloat16))
    chosen = make_codes(found, activations, recipe, seeds, inputs.n_train, inputs.backend)
    for findings, trained in zip(found, chosen, strict=True):
        _count(findings, recipe, trained, inputs, level)
    return found


def _count(findings: Findings, recipe: Recipe, trained: list[int], inputs: Inputs, level: Level) -> None:
    """Fill in the scores that follow from a seed's codes, ``trained`` being the prompts of its autoencoder."""
    codes, n_pairs = findings.codes, len(inputs.tokens)
    assert codes is not None
    if recipe.dead == 0:
        codes = findings.codes = np.maximum(codes, 0)

    judged = np.ones((2, n_pairs), dtype=bool)
    if recipe.hold_out:
        judged.reshape(-1)[trained] = False
        if not judged.all(axis=0).any():  # so few pairs that all were trained on: judged on the same ones
            judged[:] = True
    findings.judged = judged.reshape(-1)
    positive, negative = codes[:n_pairs][judged[0]], codes[n_pairs:][judged[1]]
    dead = None if recipe.dead == 0 else recipe.dead
    untrained = np.setdiff1d(np.arange(n_pairs), np.asarray(trained) % n_pairs)
    findings.counted = codes[:n_pairs][untrained], codes[n_pairs:][untrained], dead
    with findings.timed("overlap"):
        counts = unique_counts(positive, negative, dead=dead, threads=inputs.threads)
        findings.head_scores = counts.reshape(findings.head_scores.shape).astype(np.float64)
        if level == "edge":
            pairs = pair_unique_counts(positive, negative, dead=dead, threads=inputs.threads)
            findings.mention_scores = mention_scores(pairs).astype(np.float64)
            findings.pair_scores = pairs.astype(np.float64)


def make_codes(
    found: Sequence[Findings],
    activations: HeadActivations,
    recipe: Recipe,
    seeds: Sequence[int],
    n_train: int,
    backend: str,
) -> list[list[int]]:
    """Train the autoencoders of a recipe, one a seed, and give every prompt and head its code, -1 where it is dead.

    A seed's autoencoder, codes and share of dead rows go into its findings, the seconds of both stages into the first
    of them. Every seed draws from one generator of its own: first the prompts it trains on, which are returned, then
    the weights. All seeds' training rows, ``n_train * n_component * d_model`` numbers a seed, are held at once.
    """
    n_pairs = len(activations.z) // 2
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chosen = [training_prompts(recipe, n_pairs, n_train, generator) for generator in generators]
    with found[0].timed("train"):
        shift, scale = normalisation(recipe, activations)
        rows = []
        for prompts in chosen:
            x = activations.head_outputs(prompts)
            if shift is not None:
                x = x - shift
            if scale is not None:
                x = x * scale.reshape(-1, 1)
            rows.append(x.flatten(0, 1))
        saes = [result.sae for result in train_many(rows, recipe.config, generators=generators)]
    with found[0].timed("encode"):
        codes = encode(activations, saes, shift=shift, scale=scale, dead=-1, backend=backend).cpu().numpy()
    for findings, sae, own in zip(found, saes, codes, strict=True):
        findings.sae, findings.codes, findings.dead_share = sae, own, float((own == -1).mean())
    return chosen


def training_prompts(recipe: Recipe, n_pairs: int, n_train: int, generator: torch.Generator) -> list[int]:
    """Draw the prompts to train on: indices into all clean prompts followed by all corrupted ones.

    ``"prompts"``: the first ``n_train`` of one permutation of all. ``"pairs"``: both sides of half as many pairs, and
    never more than half of all pairs, so that something is left to judge.
    """
    if recipe.train_on == "prompts":
        return torch.randperm(2 * n_pairs, generator=generator)[:n_train].tolist()
    n_chosen = max(1, min(n_train // 2, n_pairs // 2))
    chosen = torch.randperm(n_pairs, generator=generator)[:n_chosen].tolist()
    return chosen + [n_pairs + i for i in chosen]


def normalisation(
    recipe: Recipe, activations: HeadActivations
) -> tuple[Float[Tensor, "n_component d_model"] | None, Float[Tensor, " n_component"] | None]:
    """Return what to take away from every head's output, and what to multiply it with.

    Sums over prompts are taken in d_head dimensions: with S_c = sum_n z z^T and G_c = W_O W_O^T the squared norms of a
    head's outputs sum to trace(S_c G_c), so outputs d_model wide are never made.
    """
    if recipe.scale == "none":
        return None, None
    z, W_O = activations.z.float(), activations.W_O.float()
    n_prompt, n_component, _ = z.shape
    d_model = W_O.shape[-1]
    mean_z = z.mean(0)
    if recipe.scale == "head":
        z = z - mean_z
    gram = W_O @ W_O.transpose(1, 2)
    z_by_head = z.transpose(0, 1)
    square = ((z_by_head.transpose(1, 2) @ z_by_head) * gram).sum((1, 2)) / (n_prompt * d_model)
    mean_x = torch.einsum("ch,chd->cd", mean_z, W_O)
    if recipe.scale == "global":
        variance = square.mean() - mean_x.mean() ** 2
        return None, variance.rsqrt().expand(n_component)
    # A head that always says the same has no scale of its own; 1 keeps its zero row zero.
    deviation = square.sqrt()
    return mean_x, torch.where(deviation > 1e-8, 1 / deviation.clamp_min(1e-8), 1.0)
