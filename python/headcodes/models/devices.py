"""Devices, dtypes and threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from jaxtyping import Float

_DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}

_OTHER_KINDS = ("mps", "xpu", "hpu", "npu", "xla", "mtia", "mlu", "vulkan", "ipu")


def choose_device(device: str | torch.device) -> torch.device:
    """Return the device that "auto" stands for, or the one named.

    Raises:
        HeadcodesError: a device that torch does not have here, or of another kind than cpu and cuda.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    refuse_kind(str(device))
    try:
        found = torch.empty(0, device=device).device
        if found.type == "meta":
            raise RuntimeError("it holds no numbers")
        return torch.device(device)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise HeadcodesError(
            "The device must be one that torch has here", f"{device!s} ({reason})", "Use auto, cpu or cuda."
        ) from error


def refuse_kind(*devices: str) -> None:
    """Raise where a device is of a kind on which headcodes was never tried.

    Training runs as a CUDA graph there or on the CPU, and sums are checked in float64, which Apple's devices lack.

    Raises:
        HeadcodesError: a device that is neither cpu nor cuda ("meta" stands for weights that are offloaded).
    """
    for device in devices:
        kind = device.partition(":")[0]
        # What torch does not know is a typing error, of which it says more.
        if kind in _OTHER_KINDS or kind == torch._C._get_privateuse1_backend_name():
            raise HeadcodesError("The device must be cpu or cuda", device, "Use device='cpu'.")


def choose_dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype:
    """Return the dtype that "auto" stands for on a device (bfloat16 where it computes in it, else float32), or the
    one named.

    Raises:
        HeadcodesError: another dtype than float32, bfloat16 or float16.
    """
    if dtype == "auto":
        return torch.bfloat16 if _computes_bf16(device) else torch.float32
    found = _DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found is None or found not in _DTYPES.values():
        raise HeadcodesError(
            "The dtype must be auto, float32, bfloat16 or float16", str(dtype), "Leave it at auto if in doubt."
        )
    return found


def free_bytes(device: torch.device) -> int:
    """Return how much memory can still be had on a device: what its driver, or the operating system, says now."""
    if device.type == "cuda":
        # What torch holds and does not use is as good as free.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    return int(psutil.virtual_memory().available)


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Without one of these, bf16 products run, but slower than fp32.
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(feature) for feature in ("avx512_bf16", "amx_tile"))


@contextmanager
def torch_threads(threads: int | None) -> Iterator[None]:
    """Give torch, and with it the C++ core, that many threads, and torch its own number back afterwards."""
    if threads is None:
        yield
        return
    if threads < 1:
        raise HeadcodesError("threads must be at least 1", str(threads), "Leave it out to use every core.")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def brought(parts: Sequence[Tensor]) -> Float[Tensor, "n_part ..."]:
    """Return tensors of one shape, wherever they lie, stacked on the CPU in float64; the host waits once."""
    device = parts[0].device
    return torch.stack([part.to(device) for part in parts]).cpu().double()


class EachDevice:
    """Small tensors of the CPU, copied to a device when they are first wanted there.

    Layers may lie on several devices, and a copy a layer would make the host wait that often.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._copies: dict[torch.device, tuple[Tensor, ...]] = {torch.device("cpu"): tensors}

    def on(self, device: torch.device) -> tuple[Tensor, ...]:
        """Return the tensors on ``device``."""
        if device not in self._copies:
            self._copies[device] = tuple(tensor.to(device) for tensor in self._copies[torch.device("cpu")])
        return self._copies[device]
