"""Which block sizes the autotuner tries, per kernel. None of them is measured here: the device decides."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import triton

# Set before anything imports the kernels, as Triton itself asks for.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _config(num_warps: int, num_stages: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


# Tensor cores (bf16, fp16, tf32). A running maximum and its place take two registers an element beside the product's
# one: larger tiles than these spill (tests/aot looks).
FOLDED_TENSOR = [
    _config(4, 2, BLOCK_N=16, BLOCK_S=32),  # fits 99 KiB in tf32 with heads 256 wide
    _config(4, 3, BLOCK_N=16, BLOCK_S=128),
    _config(4, 3, BLOCK_N=64, BLOCK_S=64),
    _config(4, 4, BLOCK_N=64, BLOCK_S=64),
    _config(8, 3, BLOCK_N=64, BLOCK_S=64),
    _config(8, 3, BLOCK_N=64, BLOCK_S=128),
    _config(4, 3, BLOCK_N=128, BLOCK_S=32),
    _config(8, 3, BLOCK_N=128, BLOCK_S=64),
    _config(8, 3, BLOCK_N=256, BLOCK_S=32),
]
UNFOLDED_TENSOR = [
    _config(4, 2, BLOCK_N=16, BLOCK_M=16, BLOCK_S=32),  # fits 99 KiB in tf32 with heads 256 wide
    _config(4, 2, BLOCK_N=16, BLOCK_M=32, BLOCK_S=128),
    _config(8, 3, BLOCK_N=16, BLOCK_M=64, BLOCK_S=128),
    _config(4, 2, BLOCK_N=64, BLOCK_M=32, BLOCK_S=128),
    _config(8, 3, BLOCK_N=64, BLOCK_M=32, BLOCK_S=128),
    _config(8, 2, BLOCK_N=64, BLOCK_M=32, BLOCK_S=256),
    _config(8, 3, BLOCK_N=128, BLOCK_M=32, BLOCK_S=128),
]
# IEEE fp32 runs on the ordinary cores, fully unrolled: small blocks, and d_head in steps of FMA_BLOCK_D.
FMA_BLOCK_D = 32
FOLDED_FMA = [
    _config(4, 2, BLOCK_N=16, BLOCK_S=64),
    _config(4, 2, BLOCK_N=32, BLOCK_S=32),
    _config(8, 2, BLOCK_N=32, BLOCK_S=128),
    _config(8, 2, BLOCK_N=64, BLOCK_S=128),
]
UNFOLDED_FMA = [
    _config(4, 2, BLOCK_N=16, BLOCK_M=16, BLOCK_S=64),
    _config(4, 2, BLOCK_N=32, BLOCK_M=16, BLOCK_S=64),
    _config(8, 2, BLOCK_N=64, BLOCK_M=16, BLOCK_S=128),
]
# The interpreter times nothing. Blocks this small make several tiles of the smallest shapes; 32 latents a tile leave
# one half empty, since latents are padded to 16.
_TINY_FOLDED = [_config(4, 1, BLOCK_N=16, BLOCK_S=32)]
_TINY_UNFOLDED = [_config(4, 1, BLOCK_N=16, BLOCK_M=16, BLOCK_S=32)]

# The largest d_head whose tile of z is held whole; beyond it both operands come in steps of 64.
_WHOLE_D = 256


def configs(kernel: str, precision: str) -> list[triton.Config]:
    """Return what to try for "folded" or "unfolded" in "fp32", "tf32", "bf16" or "fp16"."""
    if INTERPRETED:
        return _TINY_FOLDED if kernel == "folded" else _TINY_UNFOLDED
    if precision == "fp32":
        return FOLDED_FMA if kernel == "folded" else UNFOLDED_FMA
    return FOLDED_TENSOR if kernel == "folded" else UNFOLDED_TENSOR


def flags(precision: str, d_head: int) -> dict[str, Any]:
    """Return the compile-time arguments that follow from precision and d_head, the same for both kernels."""
    covering = max(16, triton.next_power_of_2(d_head))
    step = FMA_BLOCK_D if precision == "fp32" else covering if covering <= _WHOLE_D else 64
    return {
        "BLOCK_D": step,
        "WHOLE_D": step >= d_head,
        "INPUT_PRECISION": "tf32" if precision == "tf32" else "ieee",
    }


def shared_bytes(blocks: Mapping[str, int], num_stages: int, itemsize: int, capability: int) -> int:
    """Bytes of shared memory that a configuration asks for, at most: operand tiles a stage, and tiles of z and x.

    Held to the compiled kernels' own figures (tests/aot). Where Hopper's warp groups of 64 rows multiply a whole head,
    it is that figure exactly; elsewhere up to half as much again.
    """
    n, d, s, m = blocks["BLOCK_N"], blocks["BLOCK_D"], blocks["BLOCK_S"], blocks.get("BLOCK_M", 0)
    stage = m * (d + s) if m else d * s
    if not blocks["WHOLE_D"]:
        stage += n * d
    elif capability >= 90 and n >= 64 and not m:
        return itemsize * (num_stages * stage + n * d)
    # Exchanging partial row maxima between warps takes a little even where the tiles take nothing.
    return itemsize * (num_stages * stage + n * (d + m)) + 8 * n * 16


def fitting(
    configs: Sequence[triton.Config], blocks: Mapping[str, Any], itemsize: int, limit: int, capability: int
) -> list[triton.Config]:
    """Return the configurations that fit ``limit`` bytes of shared memory a block. No other is ever launched."""
    return [c for c in configs if shared_bytes({**blocks, **c.kwargs}, c.num_stages, itemsize, capability) <= limit]


def prune(configs: list[triton.Config], nargs: dict[str, Any], **blocks: Any) -> list[triton.Config]:
    """Leave out what does not fit into shared memory, and tiles longer than the prompts rounded up to a power of two.

    Raises:
        RuntimeError: nothing fits.
    """
    weight: torch.Tensor = nargs["out_ptr"] if "out_ptr" in nargs else nargs["weight_ptr"]
    limit = triton.runtime.driver.active.utils.get_device_properties(weight.device.index)["max_shared_mem"]
    major, minor = torch.cuda.get_device_capability(weight.device)
    fit = fitting(configs, blocks, weight.element_size(), limit, 10 * major + minor)
    if not fit:
        raise RuntimeError(f"no configuration of the kernel fits {limit} bytes of shared memory on {weight.device}")
    longest = max(16, triton.next_power_of_2(nargs["n_prompt"]))
    return [c for c in fit if c.kwargs["BLOCK_N"] <= longest] or fit[:1]


def autotune(configs: Sequence[triton.Config], key: Sequence[str]) -> Any:
    """``triton.autotune`` that remembers its choices on disk, and says so where it has none and tries.

    Warns:
        RuntimeWarning: this Triton keeps nothing on disk.
    """
    if len(configs) == 1:
        return triton.autotune(configs=list(configs), key=list(key))
    keep = {"cache_results": True} if "cache_results" in inspect.signature(triton.autotune).parameters else {}
    if not keep:
        warnings.warn(
            "this Triton keeps no choice of block sizes: every process tries all", RuntimeWarning, stacklevel=2
        )
    return triton.autotune(
        configs=list(configs), key=list(key), prune_configs_by={"early_config_prune": prune}, do_bench=_timed, **keep
    )


def _timed(call: Callable[[], Any], quantiles: Sequence[float]) -> Any:
    """Time a configuration as Triton does; the first time say what takes so long."""
    _say_once()
    return triton.runtime.driver.active.get_benchmarker()(call, quantiles=quantiles)


@cache
def _say_once() -> None:
    print(
        "headcodes: compiling kernels and trying their block sizes on this GPU, once a shape: seconds", file=sys.stderr
    )
