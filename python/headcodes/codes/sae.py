"""The discrete sparse autoencoder: one dictionary shared by all heads, trained in seconds.

The optimisation problem is O'Neill & Bui's (2024, arXiv 2405.12522): latents ``relu((x - b_dec) W_enc + b_enc)``,
reconstruction ``latents W_dec + b_dec``, loss = mean squared error over all entries + ``l1`` times the mean over rows
of the latents' L1 norm, full-batch Adam. Both weight matrices are renormalised before every forward pass, and the part
of the gradient that would only change the norms is taken out before the step.

Nothing here goes through autograd: the gradients of a two-layer ReLU autoencoder are written out below. With
``R = latents W_dec + b_dec - x`` they need ``R`` only inside products, so that ``R`` itself, a ``[n_rows, d_in]``
matrix, is never made: ``R W_dec^T = latents (W_dec W_dec^T) - (x - b_dec) W_dec^T``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, read_json, reading, regular

if TYPE_CHECKING:
    from jaxtyping import Float


_CONFIG_FILE = "cfg.json"
_WEIGHTS_FILE = "sae_weights.safetensors"


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """What is optimised, and how precisely.

    The defaults are the published settings.

    Attributes:
        d_sae: number of latents.
        l1: weight of the sparsity term. Not scale-free: dividing inputs by ``s`` acts like multiplying it by ``s``.
        lr: Adam's step size (betas .9 and .999, eps 1e-8).
        n_epochs: full-batch epochs, at most.
        decoder_norm: ``"rows"`` normalises, for every input dimension, the weights over all latents (the published
            code does); ``"atoms"`` normalises every latent's decoder direction (what was meant).
        dtype: precision of the large matrix products, ``torch.float32`` or ``torch.bfloat16``. Parameters, gradients
            and Adam's moments are fp32 either way.
        plateau: stop once the loss of an epoch lies less than this share below the loss 25 epochs before; 0 never
            stops early.
    """

    d_sae: int = 200
    l1: float = 0.02
    lr: float = 1e-3
    n_epochs: int = 500
    decoder_norm: Literal["rows", "atoms"] = "rows"
    dtype: torch.dtype = torch.float32
    plateau: float = 0.0

    def __post_init__(self) -> None:
        for name in ("d_sae", "n_epochs"):
            if getattr(self, name) < 1:
                raise HeadcodesError(
                    f"{name} must be at least 1", str(getattr(self, name)), "Give a positive whole number."
                )
        if self.decoder_norm not in ("rows", "atoms"):
            raise HeadcodesError(
                'decoder_norm must be "rows" or "atoms"', repr(self.decoder_norm), "Name one of the two."
            )
        if self.dtype not in (torch.float32, torch.bfloat16):
            raise HeadcodesError(
                "dtype must be torch.float32 or torch.bfloat16", str(self.dtype), "Name one of the two."
            )


@dataclass(slots=True)
class SparseAutoencoder:
    """A trained autoencoder, in SAELens's names and shapes.

    Pre-activations are ``(x - b_dec) @ W_enc + b_enc``, the reconstruction is ``relu(...) @ W_dec + b_dec``.

    Attributes:
        W_enc: fp32 ``[d_in, d_sae]``.
        b_enc: fp32 ``[d_sae]``.
        W_dec: fp32 ``[d_sae, d_in]``.
        b_dec: fp32 ``[d_in]``.
    """

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]

    @property
    def d_in(self) -> int:
        """Width of the inputs."""
        return self.W_enc.shape[0]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_enc.shape[1]

    def to(self, device: torch.device | str) -> SparseAutoencoder:
        """Return the same autoencoder with its tensors on ``device``."""
        return SparseAutoencoder(*(t.to(device) for t in (self.W_enc, self.b_enc, self.W_dec, self.b_dec)))

    def save(self, folder: Path | str) -> None:
        """Write ``cfg.json`` and ``sae_weights.safetensors`` into ``folder``, as ``sae_lens.SAE.load_from_disk`` reads.

        Each file appears whole or not at all; the configuration is written last.
        """
        folder = Path(folder)
        names = ("W_enc", "b_enc", "W_dec", "b_dec")
        weights = {name: getattr(self, name).detach().cpu().contiguous() for name in names}
        with atomic_write(folder / _WEIGHTS_FILE) as path:
            save_file(weights, path)
        config = {
            "architecture": "standard",
            "d_in": self.d_in,
            "d_sae": self.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": True,
            "normalize_activations": "none",
            "reshape_activations": "none",
            # SAELens takes a file without metadata for one of its old formats.
            "metadata": {"trained_with": "headcodes"},
        }
        with atomic_write(folder / _CONFIG_FILE) as path:
            path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path | str) -> SparseAutoencoder:
        """Read an autoencoder that this class or SAELens saved.

        Raises:
            HeadcodesError: a file is missing or damaged, or holds an autoencoder of another kind than SAELens's
                ``standard`` one with ``apply_b_dec_to_input`` and unnormalised inputs.
        """
        folder = Path(folder)
        mend = "Give a folder with cfg.json and sae_weights.safetensors, as SparseAutoencoder.save writes them."
        config: Any = read_json(folder / _CONFIG_FILE, "an autoencoder's configuration", mend)
        with reading("an autoencoder's folder must be readable", folder, mend):
            weights = load_file(regular(folder / _WEIGHTS_FILE))
            wanted = {
                "architecture": "standard",
                "apply_b_dec_to_input": True,
                "normalize_activations": "none",
                "reshape_activations": "none",
            }
            for key, value in wanted.items():
                got = config.get(key, value) if isinstance(config, dict) else config
                if got != value:
                    raise HeadcodesError(f"{key} in cfg.json must be {value!r}", repr(got), mend)
            d_in, d_sae = config.get("d_in"), config.get("d_sae")
            shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
            for name, shape in shapes.items():
                got = tuple(weights[name].shape) if name in weights else "nothing"
                if got != shape:
                    raise HeadcodesError(f"{name} in {_WEIGHTS_FILE} must have shape {shape}", str(got), mend)
        return cls(**{name: weights[name].float() for name in shapes})
