"""Which block sizes the autotuner tries, per kernel. None of them is measured here: the device decides."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import triton

# Set before anything imports the kernels, as Triton itself asks for.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "on", "yes", "y")


def _config(num_warps: int, num_stages: int, **blocks: int) -> triton.Config:
    return triton.Config(blocks, num_warps=num_warps, num_stages=num_stages)


# IEEE fp32 runs on the ordinary cores, fully unrolled: small blocks, d_head in steps of BLOCK_D. What a configuration
# costs is counted in docs/performance.md; tests/aot holds each to its registers and to SHARED_BYTES.
FOLDED = [
    _config(4, 2, BLOCK_N=16, BLOCK_D=32, BLOCK_S=64),
    _config(4, 2, BLOCK_N=32, BLOCK_D=32, BLOCK_S=64),
    _config(8, 2, BLOCK_N=64, BLOCK_D=32, BLOCK_S=64),
    _config(8, 2, BLOCK_N=128, BLOCK_D=16, BLOCK_S=64),
]
# A tile of z . W_O is made anew for every tile of latents: 200 of them take one tile of 256 in less than four of 64.
UNFOLDED = [
    _config(4, 2, BLOCK_N=16, BLOCK_D=32, BLOCK_M=16, BLOCK_S=64),
    _config(4, 2, BLOCK_N=32, BLOCK_D=32, BLOCK_M=16, BLOCK_S=64),
    _config(4, 2, BLOCK_N=16, BLOCK_D=32, BLOCK_M=16, BLOCK_S=256),
    _config(8, 2, BLOCK_N=32, BLOCK_D=32, BLOCK_M=16, BLOCK_S=256),
]
# The interpreter times nothing. Blocks this small make several tiles of the smallest shapes.
_TINY_FOLDED = [_config(4, 1, BLOCK_N=16, BLOCK_D=16, BLOCK_S=32)]
_TINY_UNFOLDED = [_config(4, 1, BLOCK_N=16, BLOCK_D=16, BLOCK_M=16, BLOCK_S=32)]

# Bytes of shared memory that every card from compute capability 8.0 on gives a block: 99 KiB (RTX 30 to 50, L4, L40).
SHARED_BYTES = 101_376


def configs(kernel: str) -> list[triton.Config]:
    """Return what to try for "folded" or "unfolded"."""
    if INTERPRETED:
        return _TINY_FOLDED if kernel == "folded" else _TINY_UNFOLDED
    return FOLDED if kernel == "folded" else UNFOLDED


def prune(configs: list[triton.Config], nargs: dict[str, Any], **_: Any) -> list[triton.Config]:
    """Leave out tiles longer than the prompts rounded up to a power of two."""
    longest = max(16, triton.next_power_of_2(nargs["n_prompt"]))
    return [c for c in configs if c.kwargs["BLOCK_N"] <= longest]


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
