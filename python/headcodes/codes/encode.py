"""Codes: for every prompt and head, the number of its strongest latent. Only here is a backend chosen."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from headcodes.errors import HeadcodesError, HeadcodesWarning

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.activations.capture import HeadActivations
    from headcodes.codes.sae import SparseAutoencoder


BACKENDS = ("auto", "torch", "triton")
DEAD = -1

# Elements of the largest intermediate of the torch backend: 4 MiB in fp32. Times are flat from a tenth of it to
# thirty times as much (docs/performance.md).
TILE_ELEMENTS = 1 << 20
# Bytes of heads' weights in fp32, as they are or folded, held at once on a GPU; more are encoded part by part.
FOLDED_BYTES = 1 << 31
# What a backend writes for a row whose largest latent is no finite number; never handed to a caller.
NOT_FINITE = -(2**31)


def encode(
    activations: HeadActivations,
    sae: SparseAutoencoder | Sequence[SparseAutoencoder],
    *,
    shift: Float[Tensor, "*n_sae n_component d_model"] | None = None,
    scale: float | Float[Tensor, "*n_sae n_component"] | None = None,
    dead: int = DEAD,
    backend: str = "auto",
) -> Int[Tensor, "*n_sae n_prompt n_component"]:
    """Return each head's code on each prompt: the strongest of ``relu((x - b_dec) @ W_enc + b_enc)``.

    Of equal latents the one of the lowest number counts. ``x = (z @ W_O - shift) * scale`` is a head's output in the
    residual stream, [d_model]. It is never stored: the encoder is applied through ``W_O @ W_enc`` per head, or tile
    by tile, whichever `folding_pays` says. Since ``scale`` is positive, ``z @ W_O @ W_enc`` plus
    ``(b_enc - b_dec @ W_enc) / scale - shift @ W_enc`` has the same largest latent and the same sign, and that is
    what is computed, in fp32: with products of rounded numbers one code in a hundred is another, and what a GPU would
    save is a few thousandths of a discovery (docs/performance.md).

    Args:
        activations: ``z`` [n_prompt, n_component, d_head] and ``W_O`` [n_component, d_head, d_model], of any float
            dtypes, on one device.
        sae: one autoencoder, or several of one shape (seeds), which share one pass (one launch on a GPU).
        shift: subtracted from every head's output, [n_component, d_model]; [n_sae, n_component, d_model] gives each
            autoencoder its own. None: nothing.
        scale: multiplies every head's output: a positive number, [n_component] or [n_sae, n_component]. None: 1.
        dead: the code of a row without any active latent: -1 (counts nowhere) or 0 (the published recipe, where
            such a row looks like latent 0).
        backend: "torch", "triton", or "auto": ``HEADCODES_BACKEND`` if set, else Triton on CUDA tensors where it
            can be imported and can compile, else torch. A named backend is used or refused, never replaced.

    Returns:
        int32 [n_prompt, n_component] on the activations' device; for a sequence of autoencoders
        [n_sae, n_prompt, n_component].

    Warns:
        HeadcodesWarning: "auto" takes torch on a GPU, with the reason.

    Raises:
        HeadcodesError: shapes that do not fit, a scale that is not positive, a backend that cannot run here,
            weights or activations that are not finite.
    """
    z, W_O = activations.z, activations.W_O
    saes = list(sae) if isinstance(sae, Sequence) else [sae]
    _check_shapes(z, W_O, saes)
    if dead not in (-1, 0):
        raise HeadcodesError("dead must be -1 or 0", repr(dead), "Use -1 unless you reproduce the published recipe.")
    chosen = _announced(backend, z.device)

    n_prompt, n_component, d_head = z.shape
    d_model, d_sae = saes[0].W_enc.shape
    shift = _per_sae(shift, (len(saes), n_component, d_model), "shift", z.device)
    scale = _positive_scale(scale, (len(saes), n_component), z.device)
    encoders = [
        _Encoder(s, None if shift is None else shift[i], None if scale is None else scale[i], z.device)
        for i, s in enumerate(saes)
    ]
    fold = folding_pays(n_prompt, d_head, d_model, d_sae)
    if chosen == "triton":
        codes = _encode_triton(z, W_O, encoders, dead=dead, fold=fold)
    else:
        codes = torch.empty(len(saes), n_prompt, n_component, dtype=torch.int32, device=z.device)
        tiles = _folded_tiles if fold else _unfolded_tiles
        for encoder, out in zip(encoders, codes, strict=True):
            _running_argmax(tiles(z, W_O, encoder), dead, out)
    _check_finite(codes)
    return codes if isinstance(sae, Sequence) else codes[0]


def folding_pays(n_prompt: int, d_head: int, d_model: int, d_sae: int) -> bool:
    """Say whether ``z @ (W_O @ W_enc)`` costs fewer multiplications than ``(z @ W_O) @ W_enc``.

    Per head, folding takes d_head*d_model*d_sae once and then d_head*d_sae a prompt; not folding takes
    d_model*d_head and then d_model*d_sae a prompt. Folding wins from about d_head prompts on.
    """
    folded = d_head * d_sae * (d_model + n_prompt)
    unfolded = n_prompt * d_model * (d_head + d_sae)
    return folded <= unfolded


def resolve_backend(backend: str, device: torch.device) -> str:
    """Return "torch" or "triton" for tensors on ``device``.

    "auto" takes ``HEADCODES_BACKEND`` where that is set, else Triton for CUDA tensors where it can be imported and
    can compile (compute capability 8.0, a C compiler), else torch.

    Raises:
        HeadcodesError: the name is unknown, or the named backend cannot run on ``device``.
    """
    source = "backend"
    if backend == "auto" and (named := os.environ.get("HEADCODES_BACKEND")):
        source, backend = "HEADCODES_BACKEND", named
    if backend not in BACKENDS:
        raise HeadcodesError(f"{source} must be one of {', '.join(BACKENDS)}", repr(backend), "Use 'auto'.")
    if backend == "torch" or (backend == "auto" and device.type != "cuda"):
        return "torch"
    refusal = _why_not_triton(device)
    if backend == "auto":
        return "torch" if refusal else "triton"
    if refusal:
        raise HeadcodesError(f"{source} 'triton' must be able to run", refusal, "Use 'torch' or 'auto'.")
    return "triton"


def _announced(backend: str, device: torch.device) -> str:
    """Return what ``resolve_backend`` does, with a warning where "auto" falls back on torch."""
    chosen = resolve_backend(backend, device)
    if chosen == "torch" and backend == "auto" and device.type == "cuda" and not os.environ.get("HEADCODES_BACKEND"):
        reason = _why_not_triton(device)
        warnings.warn(f"encoding runs in torch, more slowly than in Triton: {reason}", HeadcodesWarning, stacklevel=3)
    return chosen


def _why_not_triton(device: torch.device) -> str | None:
    try:
        from headcodes_kernels.encode_argmax import why_not
    except ImportError as error:
        return f"no importable triton ({error})"
    return why_not(device)


def _check_shapes(z: Tensor, W_O: Tensor, saes: Sequence[SparseAutoencoder]) -> None:
    if not saes:
        raise HeadcodesError(
            "there must be at least one autoencoder to encode with", "an empty list", "Train one first."
        )
    if z.ndim != 3 or not z.is_floating_point():
        raise HeadcodesError(
            "z must be a float tensor [n_prompt, n_component, d_head]",
            f"{z.dtype} {list(z.shape)}",
            "Use capture().",
        )
    if W_O.ndim != 3 or W_O.shape[:2] != z.shape[1:] or not W_O.is_floating_point():
        raise HeadcodesError(
            f"W_O must be a float tensor [n_component, d_head, d_model] = [{z.shape[1]}, {z.shape[2]}, ...]",
            f"{W_O.dtype} {list(W_O.shape)}",
            "Take z and W_O from the same model.",
        )
    if z.device != W_O.device:
        raise HeadcodesError("z and W_O must be on one device", f"{z.device} and {W_O.device}", "Move one of them.")
    d_model, d_sae = W_O.shape[2], saes[0].W_enc.shape[-1]
    for sae in saes:
        if tuple(sae.W_enc.shape) != (d_model, d_sae):
            raise HeadcodesError(
                f"every autoencoder must have W_enc [d_model, d_sae] = [{d_model}, {d_sae}]",
                str(list(sae.W_enc.shape)),
                "Use autoencoders trained on this model, all with the same number of latents.",
            )


def _per_sae(value: Tensor | None, shape: tuple[int, ...], name: str, device: torch.device) -> Tensor | None:
    if value is None:
        return None
    if tuple(value.shape) not in (shape, shape[1:]):
        raise HeadcodesError(
            f"{name} must have shape {list(shape[1:])}, or {list(shape)} for one per autoencoder",
            str(list(value.shape)),
            "Compute it from the same activations.",
        )
    return value.detach().to(device, torch.float32).expand(shape)


def _positive_scale(
    scale: float | Tensor | None, shape: tuple[int, ...], device: torch.device
) -> Float[Tensor, "n_sae n_component"] | None:
    if scale is not None and (not isinstance(scale, Tensor) or scale.ndim == 0):
        scale = torch.full(shape, float(scale))
    scale = _per_sae(scale, shape, "scale", device)
    if scale is not None and not ((scale > 0) & torch.isfinite(scale) & torch.isfinite(1 / scale)).all():
        raise HeadcodesError(
            "scale must be positive and finite",
            f"smallest {scale.min().item():g}, largest {scale.max().item():g}",
            "Use 1 for a head whose output does not vary.",
        )
    return scale


class _Encoder:
    """One autoencoder's encoder in fp32, with shift and scale of the heads taken into its bias."""

    def __init__(self, sae: SparseAutoencoder, shift: Tensor | None, scale: Tensor | None, device: torch.device):
        self.W_enc: Float[Tensor, "d_model d_sae"] = sae.W_enc.detach().to(device, torch.float32)
        b_enc, b_dec = (b.detach().to(device, torch.float32) for b in (sae.b_enc, sae.b_dec))
        self._b_enc = b_enc - b_dec @ self.W_enc
        self._shift, self._scale = shift, scale
        if not (torch.isfinite(self.W_enc).all() and torch.isfinite(self._b_enc).all()):
            raise HeadcodesError(
                "an autoencoder's weights must be finite",
                "nan or infinity",
                "Train it again with a smaller learning rate, or on scaled activations.",
            )

    def bias(self, heads: slice, latents: slice) -> Float[Tensor, "heads_or_1 latents"]:
        """``(b_enc - b_dec @ W_enc) / scale - shift @ W_enc``, the part asked for."""
        bias = self._b_enc[None, latents]
        if self._scale is not None:
            bias = bias / self._scale[heads, None]
        if self._shift is not None:
            bias = bias - self._shift[heads] @ self.W_enc[:, latents]
        return bias


# Heads, prompts, number of the first latent, and the latents before the relu (over scale): [heads, prompts, latents].
_Tile = tuple[slice, slice, int, Tensor]


def _steps(total: int, step: int) -> Iterator[slice]:
    for start in range(0, total, step):
        yield slice(start, min(start + step, total))


def _folded_tiles(z: Tensor, W_O: Tensor, encoder: _Encoder) -> Iterator[_Tile]:
    n_prompt, n_component, d_head = z.shape
    d_model, d_sae = encoder.W_enc.shape
    n_rows = max(1, min(n_prompt, 2048))
    n_latents = min(d_sae, max(128, TILE_ELEMENTS // n_rows))
    n_heads = max(1, TILE_ELEMENTS // max(n_latents * max(n_rows, d_head), d_head * d_model))
    for heads in _steps(n_component, n_heads):
        rows = W_O[heads].float().reshape(-1, d_model)
        for latents in _steps(d_sae, n_latents):
            folded = (rows @ encoder.W_enc[:, latents]).view(-1, d_head, latents.stop - latents.start)
            offset = encoder.bias(heads, latents)[:, None]
            for prompts in _steps(n_prompt, n_rows):
                z_tile = z[prompts, heads].float().transpose(0, 1)
                yield heads, prompts, latents.start, torch.baddbmm(offset, z_tile, folded)


def _unfolded_tiles(z: Tensor, W_O: Tensor, encoder: _Encoder) -> Iterator[_Tile]:
    n_prompt, n_component, d_head = z.shape
    d_model, d_sae = encoder.W_enc.shape
    n_latents = min(d_sae, 4096)
    width = max(d_model, n_latents)
    n_rows = max(1, min(n_prompt, TILE_ELEMENTS // width))
    n_heads = max(1, TILE_ELEMENTS // (width * max(n_rows, d_head)))
    for heads in _steps(n_component, n_heads):
        out = W_O[heads].float()
        for prompts in _steps(n_prompt, n_rows):
            x = torch.bmm(z[prompts, heads].float().transpose(0, 1), out)
            for latents in _steps(d_sae, n_latents):
                bias = encoder.bias(heads, latents)[:, None]
                yield heads, prompts, latents.start, x @ encoder.W_enc[:, latents] + bias


def _running_argmax(tiles: Iterator[_Tile], dead: int, codes: Int[Tensor, "n_prompt n_component"]) -> None:
    best = torch.full(codes.T.shape, -torch.inf, device=codes.device)
    for heads, prompts, first, latents in tiles:
        value, index = latents.max(-1)
        before = best[heads, prompts]
        # Strictly larger: of equal latents the one of the lowest number stays.
        winner = torch.where(value > before, index.int() + first, codes[prompts, heads].T)
        codes[prompts, heads] = winner.T
        torch.maximum(before, value, out=before)  # keeps nan
    best = best.T
    codes.masked_fill_(best <= 0, dead).masked_fill_(~torch.isfinite(best), NOT_FINITE)


def _encode_triton(
    z: Tensor, W_O: Tensor, encoders: list[_Encoder], *, dead: int, fold: bool
) -> Int[Tensor, "n_sae n_prompt n_component"]:
    from headcodes_kernels.encode_argmax import LATENT_MULTIPLE, ROW_MULTIPLE, encode_argmax, encode_argmax_unfolded

    n_prompt, n_component, d_head = z.shape
    d_sae = encoders[0].W_enc.shape[1]
    everything = slice(None)
    bias = torch.stack([e.bias(everything, everything).expand(n_component, d_sae) for e in encoders])
    W_enc = torch.stack([encoder.W_enc for encoder in encoders])
    # Latents that are always 0 never win. Adding them here costs less than it would to pad the folded weights.
    W_enc, bias = (torch.nn.functional.pad(x, (0, -d_sae % ROW_MULTIPLE)) for x in (W_enc, bias))
    looked_at = slice(d_sae + -d_sae % LATENT_MULTIPLE)
    n_sae, d_model, d_sae = W_enc.shape
    codes = torch.empty(n_sae, n_prompt, n_component, dtype=torch.int32, device=z.device)
    step = max(1, FOLDED_BYTES // (4 * d_head * max(n_sae * d_sae * fold, d_model)))
    for heads in _steps(n_component, step):
        weights, z_part, bias_part = W_O[heads].float(), z[:, heads], bias[:, heads, looked_at]
        if fold:
            folded = torch.matmul(weights.reshape(-1, d_model), W_enc).view(n_sae, -1, d_head, d_sae)
            codes[:, :, heads] = encode_argmax(z_part, folded[..., looked_at], bias_part, dead=dead)
        else:
            codes[:, :, heads] = encode_argmax_unfolded(z_part, weights, W_enc[..., looked_at], bias_part, dead=dead)
    return codes


def _check_finite(codes: Int[Tensor, "n_sae n_prompt n_component"]) -> None:
    broken = codes == NOT_FINITE
    if broken.any():
        _, prompt, component = broken.nonzero()[0].tolist()
        raise HeadcodesError(
            "every head's latents must be finite",
            f"{int(broken.sum())} rows with nan or infinity, first prompt {prompt}, component {component}",
            "Capture in fp32 or bf16 (fp16 overflows in some models), and look at that prompt.",
        )
