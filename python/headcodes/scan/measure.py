"""What a cell takes: its memory, and the seconds after which it is stopped."""

from __future__ import annotations

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class BudgetExceeded(BaseException):
    """A cell took longer than it may. No Exception, so that nothing inside a method can take it for its own."""


@contextmanager
def budget(seconds: float | None) -> Iterator[None]:
    """Raise ``BudgetExceeded`` in here after so many seconds. Only the main thread of a Unix system can be stopped."""
    can_stop = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds is None or not can_stop:
        yield
        return

    over = False

    def stop(_signal: int, _frame: object) -> None:
        nonlocal over
        over = True
        raise BudgetExceeded

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if over:  # raised where nothing can be raised (a finaliser, a callback of C code), and lost there
        raise BudgetExceeded


def begin_peak(device: str) -> int:
    """Return the bytes that this process, or its GPU, holds; ``peak_bytes`` counts from here where the system can."""
    if _on_gpu(device):
        import torch

        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # Linux: forget the peak so far
    return _status_bytes("VmRSS") or peak_bytes(device)


def peak_bytes(device: str) -> int:
    """Return the most bytes that this process, or its GPU, has held since ``begin_peak``, or ever."""
    if _on_gpu(device):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _on_gpu(device: str) -> bool:
    torch = sys.modules.get("torch")
    return device.startswith("cuda") and torch is not None and bool(torch.cuda.is_initialized())


def _status_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
