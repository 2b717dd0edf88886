"""Workers and their GPUs, as far as that can be told without one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from headcodes.scan import Plan, scan
from headcodes.scan.cells import DEVICE_LOST, Worker, loses_device
from headcodes.scan.local import visible_gpus
from headcodes.scan.run import survey

LOST = RuntimeError("CUDA error: an illegal memory access was encountered")


@pytest.mark.parametrize(
    ("worker", "n_gpus", "named", "want"),
    [
        (0, 2, None, "0"),
        (3, 2, None, "1"),
        (1, 2, "4,6", "6"),
        (2, 2, "4,6", "4"),
        (0, 0, None, None),
        # The plan says cuda:1, the second of these: a worker that saw one alone would have no such device.
        (0, 0, "4,6", "4,6"),
        (1, 0, "4,6", "4,6"),
    ],
)
def test_what_a_worker_sees(worker: int, n_gpus: int, named: str | None, want: str | None) -> None:
    assert visible_gpus(worker, n_gpus, named) == want


def test_which_errors_lose_the_device() -> None:
    assert loses_device(LOST)
    assert not loses_device(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert not loses_device(RuntimeError("CUDA error: out of memory"))
    assert not loses_device(ValueError("a shape"))


def job(tmp_path: Path) -> Any:
    plan = Plan.from_lists("planted-ioi", "ioi", "act-norm", "0", n_prompts=6)
    return survey(plan, tmp_path).jobs[0]


def test_a_lost_device_ends_a_worker_that_another_can_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class EndError(Exception):
        pass

    def end(status: int) -> None:
        raise EndError(status)

    def broken(*_: Any, **__: Any) -> Any:
        raise LOST

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr("headcodes.discovery.explain", broken)
    with pytest.raises(EndError) as ended:
        Worker(expendable=True).do(*job(tmp_path))
    assert ended.value.args == (DEVICE_LOST,)
    row, _ = Worker().do(*job(tmp_path))
    assert row["status"] == "failed"


def test_memory_is_given_back_between_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from headcodes.scan.cells import give_back

    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("now"))
    give_back("cpu")
    assert not emptied
    give_back("cuda:1")
    assert emptied == ["now"]


def test_memory_is_asked_back_before_every_model_and_every_capture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = Worker()
    held: list[tuple[bool, bool]] = []
    monkeypatch.setattr(
        "headcodes.scan.cells.give_back",
        lambda _device: held.append((worker._model is not None, worker._inputs is not None)),
    )
    plan = Plan.from_lists("planted-ioi,planted-ioi-48", "ioi", "act-norm", "0,1", n_prompts=6)
    for each in survey(plan, tmp_path).jobs:
        assert worker.do(*each)[0]["status"] == "done"
    # The last model is let go before the next one is asked for, and the last capture before another.
    assert held == [(False, False), (True, False)] * 2


@pytest.mark.parametrize(("share", "want"), [(1.0, 2), (0.5, 4), (0.25, 6)])
def test_workers_share_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, want: int) -> None:
    """Two GPUs and six cells: as many workers as shares, and no more than cells."""
    asked: list[tuple[int, int]] = []

    def processes(_jobs: Any, n_workers: int, n_gpus: int, _started: Any) -> Any:
        asked.append((n_workers, n_gpus))
        yield from ()

    monkeypatch.setattr("headcodes.scan.run._n_gpus", lambda _cell: 2)
    monkeypatch.setattr("headcodes.scan.local.processes", processes)
    plan = Plan.from_lists("planted-ioi", "ioi", "act-norm", "0-5", n_prompts=6)
    assert list(scan(plan, tmp_path, gpu_share=share)) == []
    assert asked == [(want, 2)]
    seen = {visible_gpus(worker, 2, None) for worker in range(want)}
    assert seen == {"0", "1"}
