"""Encoding against the plain way, which stores every head's output and every latent: same weights, threads and run.

Claim: codes of 500 prompts and SmolLM2's 270 heads in far less than a second, several times faster than
``relu(x @ W_enc + b_enc).argmax(-1)``, whether or not the time to make ``x = z @ W_O`` counts. The plain way holds
500 x 270 x (576 + 200) numbers; ours holds a tile.

    pytest bench/test_encode.py --benchmark-enable --benchmark-columns=median,min,max,iqr,rounds -s
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
import torch

from headcodes.codes.encode import encode

N_PROMPT, N_COMPONENT, D_HEAD, D_MODEL, D_SAE = 500, 270, 64, 576, 200


@cache
def activations() -> SimpleNamespace:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(N_PROMPT, N_COMPONENT, D_HEAD, generator=g)
    return SimpleNamespace(z=z, W_O=torch.randn(N_COMPONENT, D_HEAD, D_MODEL, generator=g) / D_HEAD**0.5)


@cache
def autoencoder(seed: int) -> SimpleNamespace:
    g = torch.Generator().manual_seed(seed)
    return SimpleNamespace(
        W_enc=torch.randn(D_MODEL, D_SAE, generator=g) / D_MODEL**0.5,
        b_enc=torch.randn(D_SAE, generator=g) * 0.1,
        b_dec=torch.randn(D_MODEL, generator=g) * 0.1,
    )


def head_outputs() -> torch.Tensor:
    return torch.einsum("ncd,cdm->ncm", activations().z, activations().W_O)


def plain(x: torch.Tensor) -> torch.Tensor:
    sae = autoencoder(1)
    return torch.relu((x - sae.b_dec) @ sae.W_enc + sae.b_enc).argmax(-1)


def plain_from_z() -> torch.Tensor:
    return plain(head_outputs())


@pytest.mark.benchmark(group="encode 500 prompts x 270 heads x 200 latents")
def test_plain_on_stored_outputs(benchmark):
    x = head_outputs()
    benchmark.pedantic(plain, (x,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="encode 500 prompts x 270 heads x 200 latents")
def test_plain_from_z(benchmark):
    benchmark.pedantic(plain_from_z, rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="encode 500 prompts x 270 heads x 200 latents")
def test_encode(benchmark):
    codes = benchmark.pedantic(encode, (activations(), autoencoder(1)), rounds=15, warmup_rounds=2)
    assert (codes != plain_from_z()).double().mean() < 1e-4


@pytest.mark.benchmark(group="encode, ten seeds")
def test_encode_ten_seeds(benchmark):
    saes = [autoencoder(seed) for seed in range(10)]
    codes = benchmark.pedantic(encode, (activations(), saes), rounds=5, warmup_rounds=1)
    assert codes.shape == (10, N_PROMPT, N_COMPONENT)


@pytest.mark.benchmark(group="encode 10 prompts x 270 heads x 200 latents")
@pytest.mark.parametrize("way", ["plain", "encode"])
def test_few_prompts(benchmark, way):
    """Where folding would cost more than it saves."""
    few = SimpleNamespace(z=activations().z[:10].contiguous(), W_O=activations().W_O)
    if way == "encode":
        benchmark.pedantic(encode, (few, autoencoder(1)), rounds=15, warmup_rounds=2)
    else:
        benchmark.pedantic(lambda: plain(torch.einsum("ncd,cdm->ncm", few.z, few.W_O)), rounds=15, warmup_rounds=2)
