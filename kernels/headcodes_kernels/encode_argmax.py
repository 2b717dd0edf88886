"""Host side: check, allocate, launch."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import torch
import triton
from torch import Tensor

from headcodes_kernels import _configs
from headcodes_kernels._encode_argmax import NARROW, encode_argmax_kernel, encode_argmax_unfolded_kernel

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Rows of weights padded to this many latents lie so that the compiler may load 16 bytes at a time; of these, the kernel
# looks at the first LATENT_MULTIPLE of a whole number that hold the real ones.
ROW_MULTIPLE = 16
LATENT_MULTIPLE: int = NARROW.value
# Ampere: the oldest that the kernels are compiled for in the tests.
_LEAST_CAPABILITY = 8

_KERNELS = {
    "folded": (encode_argmax_kernel, ["d_head", "d_sae", "N_CLASS"]),
    "unfolded": (encode_argmax_unfolded_kernel, ["d_head", "d_model", "d_sae", "N_CLASS"]),
}
_tuned = {name: _configs.autotune(_configs.configs(name), key)(kernel) for name, (kernel, key) in _KERNELS.items()}


def interpreted() -> bool:
    """Say whether the kernels were built for Triton's interpreter, which runs them on CPU tensors (tests only)."""
    return _configs.INTERPRETED


def why_not(device: torch.device) -> str | None:
    """Say why the kernels cannot be compiled for a device, or None where they can."""
    if interpreted():
        return None
    if device.type != "cuda":
        return f"tensors on {device.type}, where Triton makes no code"
    major, minor = torch.cuda.get_device_capability(device)
    if major < _LEAST_CAPABILITY:
        return f"compute capability {major}.{minor}, and the kernels are made for {_LEAST_CAPABILITY}.0 and later"
    # Triton builds the function that launches a kernel with the system's compiler.
    if not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        return "no C compiler (gcc, clang, or CC), which Triton needs"
    return None


def encode_argmax(
    z: Float[Tensor, "n_prompt n_component d_head"],
    weight: Float[Tensor, "*n_sae n_component d_head d_sae"],
    bias: Float[Tensor, "*n_sae n_component d_sae"],
    *,
    dead: int = -1,
    out: Int[Tensor, "*n_sae n_prompt n_component"] | None = None,
) -> Int[Tensor, "*n_sae n_prompt n_component"]:
    """Return ``argmax_s relu(z[n, c] @ weight[c, :, s] + bias[c, s])`` as int32, ties to the lowest latent.

    Args:
        z: activations of any float dtype, innermost stride 1.
        weight: folded weights, ``W_O[c] @ W_enc``, fp32; one leading dimension more for several autoencoders in one
            launch. Where d_sae is no multiple of 8 it is copied into padded rows first: avoid that by padding it, and
            ``bias``, with zeros. Rows whose stride is a multiple of 16 load fastest.
        bias: fp32.
        dead: the code of a row whose latents are all zero or below.
        out: where to write, int32, contiguous.

    Returns:
        int32 [n_prompt, n_component], or [n_sae, n_prompt, n_component]. A row whose largest latent is nan or
        infinite gets -2**31.

    Raises:
        ValueError: shapes, dtypes, devices or strides that do not fit.
    """
    many = weight.ndim == 4
    weight, bias = (weight, bias) if many else (weight[None], bias[None])
    _check(z, weight=weight, bias=bias)
    n_prompt, n_component, d_head = z.shape
    n_sae, d_sae = weight.shape[0], weight.shape[-1]
    if tuple(weight.shape) != (n_sae, n_component, d_head, d_sae):
        raise ValueError(
            f"weight must be [n_component, d_head, d_sae] = [{n_component}, {d_head}, {d_sae}] per autoencoder; "
            f"got {list(weight.shape[1:])}"
        )
    _check_bias(bias, (n_sae, n_component, d_sae))
    codes = _codes(out, many, (n_sae, n_prompt, n_component), z.device)
    if codes.numel():
        weight, bias = _padded(weight), _padded(bias)
        _launch("folded", z, [weight], bias, codes, [d_head, weight.shape[-1]], dead)
    return codes if many else codes[0]


def encode_argmax_unfolded(
    z: Float[Tensor, "n_prompt n_component d_head"],
    W_O: Float[Tensor, "n_component d_head d_model"],
    W_enc: Float[Tensor, "*n_sae d_model d_sae"],
    bias: Float[Tensor, "*n_sae n_component d_sae"],
    *,
    dead: int = -1,
    out: Int[Tensor, "*n_sae n_prompt n_component"] | None = None,
) -> Int[Tensor, "*n_sae n_prompt n_component"]:
    """Return ``argmax_s relu((z[n, c] @ W_O[c]) @ W_enc[:, s] + bias[c, s])``, which suits few prompts.

    As `encode_argmax`; ``W_O`` and ``W_enc`` are fp32.
    """
    many = W_enc.ndim == 3
    W_enc, bias = (W_enc, bias) if many else (W_enc[None], bias[None])
    _check(z, W_O=W_O, W_enc=W_enc, bias=bias)
    n_prompt, n_component, d_head = z.shape
    n_sae, d_model, d_sae = W_enc.shape
    if tuple(W_O.shape) != (n_component, d_head, d_model):
        raise ValueError(
            f"W_O must be [n_component, d_head, d_model] = [{n_component}, {d_head}, {d_model}]; got {list(W_O.shape)}"
        )
    _check_bias(bias, (n_sae, n_component, d_sae))
    codes = _codes(out, many, (n_sae, n_prompt, n_component), z.device)
    if codes.numel():
        _launch("unfolded", z, [W_O, W_enc], bias, codes, [d_head, d_model, d_sae], dead)
    return codes if many else codes[0]


def _launch(
    kernel: str,
    z: Tensor,
    weights: list[Tensor],
    bias: Tensor,
    codes: Tensor,
    widths: list[int],
    dead: int,
) -> None:
    """Start one program per tile of prompts, autoencoder and head; ``widths`` as the kernel takes them."""
    n_sae, n_prompt, n_component = codes.shape
    strides = [stride for tensor in (z, *weights, bias) for stride in tensor.stride()[:-1]]
    # The device of the tensors, not the current one: Triton launches on the current one.
    with torch.cuda.device_of(z):
        _tuned[kernel][lambda blocks: (triton.cdiv(n_prompt, blocks["BLOCK_N"]) * n_component * n_sae,)](
            z,
            *weights,
            bias,
            codes,
            n_prompt,
            n_component,
            n_sae,
            *widths,
            *strides,
            dead,
            N_CLASS=_prompt_class(n_prompt),
        )


def _prompt_class(n_prompt: int) -> int:
    """One tuning run for all prompt counts between two powers of two, and for all above 512."""
    return int(min(1024, max(16, triton.next_power_of_2(n_prompt))))


def _check(z: Tensor, **weights: Tensor) -> None:
    if z.ndim != 3 or not z.is_floating_point():
        raise ValueError(f"z must be float [n_prompt, n_component, d_head]; got {z.dtype} {list(z.shape)}")
    if z.device.type != "cuda" and not interpreted():
        raise ValueError(f"the kernels run on CUDA tensors; got z on {z.device}")
    for name, tensor in weights.items():
        if tensor.dtype != torch.float32:
            raise ValueError(f"{name} must be torch.float32; got {tensor.dtype}")
    for name, tensor in {"z": z, **weights}.items():
        if tensor.device != z.device:
            raise ValueError(f"{name} must be on z's device, {z.device}; got {tensor.device}")
        if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
            raise ValueError(f"{name} must have innermost stride 1; got strides {list(tensor.stride())}")


def _check_bias(bias: Tensor, shape: tuple[int, int, int]) -> None:
    if tuple(bias.shape) != shape:
        raise ValueError(
            f"bias must be [n_component, d_sae] = {list(shape[1:])} per autoencoder; got {list(bias.shape)}"
        )


def _codes(out: Tensor | None, many: bool, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    if out is None:
        return torch.empty(shape, dtype=torch.int32, device=device)
    codes = out if many else out[None]
    if tuple(codes.shape) != shape or codes.dtype != torch.int32 or codes.device != device or not codes.is_contiguous():
        raise ValueError(
            f"out must be contiguous torch.int32 {list(shape if many else shape[1:])} on {device}; "
            f"got {out.dtype} {list(out.shape)} on {out.device}"
        )
    return codes


def _padded(x: Tensor) -> Tensor:
    """Return rows with a whole number of narrow tiles, of zeros where there was nothing: they win over nothing."""
    n = x.shape[-1]
    if n % LATENT_MULTIPLE == 0:
        return x
    return torch.nn.functional.pad(x, (0, -n % ROW_MULTIPLE))[..., : n + -n % LATENT_MULTIPLE]
