"""Recipes: how head outputs become codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from headcodes.codes.encode import encode
from headcodes.codes.sae import SparseAutoencoder, TrainConfig
from headcodes.codes.train import train_many

if TYPE_CHECKING:
    from jaxtyping import Float, Int32
    from torch import Tensor

    from headcodes.activations.capture import HeadActivations


@dataclass(frozen=True)
class Recipe:
    """How codes are made.

    Attributes:
        scale: what outputs are divided by before they are encoded: nothing, one standard deviation for all heads (and
            MLPs, where activations have them), or each one's own after its mean is taken away.
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
    "contrast": Recipe("head", "pairs", hold_out=True, dead=-1, config=TrainConfig(decoder_norm="atoms", plateau=0.01)),
    # A small dictionary, briefly trained, costs a tenth of the backward pass beside it (docs/methods.md).
    "attribution": Recipe(
        "head", "pairs", hold_out=True, dead=-1, config=TrainConfig(d_sae=64, n_epochs=20, decoder_norm="atoms")
    ),
    "code-flip": Recipe("head", "pairs", hold_out=True, dead=-1, config=TrainConfig(decoder_norm="atoms")),
}


@dataclass(frozen=True)
class Codes:
    """One seed's autoencoder and the codes that it gives.

    Attributes:
        codes: of every prompt and head, -1 where no latent is active; then of MLPs, where activations have them.
        trained: the prompts it was trained on.
    """

    sae: SparseAutoencoder
    codes: Int32[np.ndarray, "n_prompt n_part"]
    trained: list[int]

    @property
    def dead_share(self) -> float:
        """Share of (prompt, head) rows in which no latent is active."""
        return float((self.codes == -1).mean())


@dataclass(frozen=True)
class Trained:
    """Autoencoders of one recipe, one a seed, and how head outputs are scaled before they are encoded.

    Attributes:
        prompts: what each was trained on.
        shift, scale: what is taken from every head's (then every MLP's) output and what it is then multiplied with;
            None: neither.
    """

    recipe: Recipe
    saes: list[SparseAutoencoder]
    prompts: list[list[int]]
    shift: Float[Tensor, "n_part d_model"] | None
    scale: Float[Tensor, " n_part"] | None


def make_codes(
    activations: HeadActivations,
    recipe: Recipe,
    seeds: Sequence[int],
    n_train: int,
    backend: str,
    timed: Callable[[str], AbstractContextManager[None]],
) -> list[Codes]:
    """Train the autoencoders of a recipe, one a seed, and give every prompt and head its code, -1 where it is dead.

    Args:
        timed: opens a context in which seconds count for a stage, "train" or "encode".
    """
    with timed("train"):
        trained = train_autoencoders(activations, recipe, seeds, n_train)
    with timed("encode"):
        return encode_heads(activations, trained, backend)


def train_autoencoders(activations: HeadActivations, recipe: Recipe, seeds: Sequence[int], n_train: int) -> Trained:
    """Train the autoencoders of a recipe, one a seed.

    Every seed draws from one generator of its own: first the prompts it trains on, then the weights. All seeds'
    training rows, ``n_train * n_component * d_model`` numbers a seed, are held at once. MLPs' outputs, where
    activations have them, are further rows.
    """
    n_pairs = len(activations.z) // 2
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    chosen = [training_prompts(recipe, n_pairs, n_train, generator) for generator in generators]
    shift, scale = normalisation(recipe, activations)
    rows = []
    for prompts in chosen:
        x = activations.head_outputs(prompts)
        if activations.mlps is not None:
            x = torch.cat([x, activations.mlps[prompts]], dim=1)
        if shift is not None:
            x = x - shift
        if scale is not None:
            x = x * scale.reshape(-1, 1)
        rows.append(x.flatten(0, 1))
    saes = [result.sae for result in train_many(rows, recipe.config, generators=generators)]
    return Trained(recipe, saes, chosen, shift, scale)


def encode_heads(activations: HeadActivations, trained: Trained, backend: str) -> list[Codes]:
    """Give every prompt and head (then MLP, where activations have them) its code by each autoencoder, -1 where no
    latent is active.

    MLPs' outputs are few rows that no output projection makes: their codes are worked out in torch on every device.
    """

    def codes_of(some: HeadActivations, rows: slice, backend: str) -> Int32[np.ndarray, "n_sae n_prompt n"]:
        shift = None if trained.shift is None else trained.shift[rows]
        scale = None if trained.scale is None else trained.scale[rows]
        return encode(some, trained.saes, shift=shift, scale=scale, dead=-1, backend=backend).cpu().numpy()

    n = activations.n_component
    codes = codes_of(activations, slice(n), backend)
    if activations.mlps is not None:
        mlps = activations.mlps
        as_they_are = torch.eye(mlps.shape[-1], device=mlps.device).expand(mlps.shape[1], -1, -1)
        rows = replace(activations, z=mlps, W_O=as_they_are, mlps=None)
        codes = np.concatenate([codes, codes_of(rows, slice(n, None), "torch")], axis=2)
    return [Codes(*each) for each in zip(trained.saes, codes, trained.prompts, strict=True)]


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
) -> tuple[Float[Tensor, "n_part d_model"] | None, Float[Tensor, " n_part"] | None]:
    """Return what to take away from every head's (then every MLP's) output, and what to multiply it with.

    Sums over prompts are taken in d_head dimensions: with S_c = sum_n z z^T and G_c = W_O W_O^T the squared norms of a
    head's outputs sum to trace(S_c G_c), so outputs d_model wide are never made.
    """
    if recipe.scale == "none":
        return None, None
    z, W_O = activations.z, activations.W_O
    n_prompt, n_component, _ = z.shape
    d_model = W_O.shape[-1]
    square = torch.empty(n_component, device=z.device)
    mean_x = torch.empty(n_component, d_model, device=z.device)
    # A layer at a time: all heads' weights in fp32 would be twice the model's own in bf16.
    for heads in activations.layers():
        z_by_head, weights = z[:, heads].float().transpose(0, 1), W_O[heads].float()
        mean_z = z_by_head.mean(1)
        if recipe.scale == "head":
            z_by_head = z_by_head - mean_z[:, None]
        gram = weights @ weights.transpose(1, 2)
        square[heads] = ((z_by_head.transpose(1, 2) @ z_by_head) * gram).sum((1, 2)) / (n_prompt * d_model)
        mean_x[heads] = torch.einsum("ch,chd->cd", mean_z, weights)
    if (mlps := activations.mlps) is not None:
        mean = mlps.mean(0)
        deviations = mlps - mean if recipe.scale == "head" else mlps
        square = torch.cat([square, deviations.square().mean((0, 2))])
        mean_x = torch.cat([mean_x, mean])
    if recipe.scale == "global":
        variance = square.mean() - mean_x.mean() ** 2
        return None, variance.rsqrt().expand(len(square))
    # A head whose output never changes has no scale of its own; 1 keeps its zero row zero.
    deviation = square.sqrt()
    return mean_x, torch.where(deviation > 1e-8, 1 / deviation.clamp_min(1e-8), 1.0)
