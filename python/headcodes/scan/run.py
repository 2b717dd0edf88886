"""A scan from its plan to the last row: what is left to do, done by an engine, kept as it finishes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headcodes.errors import HeadcodesError
from headcodes.models.sources import check_there
from headcodes.scan.cells import Job, Worker
from headcodes.scan.plan import Cell, Plan, forget_models
from headcodes.store.cells import Store, statuses

if TYPE_CHECKING:
    from headcodes.scan.cells import Outcome

ScanEngine = Literal["local", "ray"]
Started = Callable[[Cell], object]


@dataclass(frozen=True)
class Work:
    """What a plan asks for, held against what a store has.

    Attributes:
        jobs: the cells still to be done, with their identities, in the plan's order.
        n_cells: in the whole plan, each cell once.
        n_done: finished before.
        n_failed: failed before, and left alone.
    """

    jobs: tuple[Job, ...]
    n_cells: int
    n_done: int
    n_failed: int


def survey(plan: Plan, store: Path | str, *, engine: ScanEngine = "local", retry_failed: bool = False) -> Work:
    """Return what is left to do of a plan; the store need not exist and is not written.

    Raises:
        HeadcodesError: the plan's device is not on this machine; a model of the plan cannot be had.
    """
    forget_models()
    for model, revision in plan.models:
        check_there(model, revision)
    cells = {cell.identity(): cell for cell in plan.cells(here=engine == "local")}
    known = statuses(store, cells)
    left_alone = ("done",) if retry_failed else ("done", "failed")
    return Work(
        jobs=tuple((identity, cell) for identity, cell in cells.items() if known.get(identity) not in left_alone),
        n_cells=len(cells),
        n_done=sum(status == "done" for status in known.values()),
        n_failed=0 if retry_failed else sum(status == "failed" for status in known.values()),
    )


def scan(
    plan: Plan,
    store: Path | str,
    *,
    engine: ScanEngine = "local",
    workers: int | None = None,
    address: str | None = None,
    gpu_share: float = 1.0,
    retry_failed: bool = False,
) -> Iterator[dict[str, Any]]:
    """Do what a store lacks of a plan, and yield each cell's row (docs/store.md) once it is kept.

    Left before its end, or killed, a scan continues where it stopped when it is started again. Only this process
    writes the store; several scans, on several machines, may share one.

    Args:
        store: a folder, made where it does not exist.
        engine: "local", this machine; or "ray", a cluster (``pip install "headcodes[ray]"``).
        workers: how many cells at once. None: one a GPU, or one; with "ray" as many as the cluster has room for.
            One local worker computes in this process. Results do not depend on the number.
        address: of a running Ray cluster; None starts one on this machine.
        gpu_share: of a GPU that a worker takes; 0.5 lets two workers share one.
        retry_failed: do failed cells again, which are otherwise left alone.

    Raises:
        HeadcodesError: the plan's device is not there, or one of its models; ``workers`` below 1; the store cannot be
            written (also while rows are taken); no Ray, or no room in its cluster. Whatever goes wrong in a cell is a
            row instead.
    """
    work = survey(plan, store, engine=engine, retry_failed=retry_failed)
    return run_work(work, store, engine=engine, workers=workers, address=address, gpu_share=gpu_share)


def run_work(
    work: Work,
    store: Path | str,
    *,
    engine: ScanEngine = "local",
    workers: int | None = None,
    address: str | None = None,
    gpu_share: float = 1.0,
    started: Started = lambda _cell: None,
    worker: Worker | None = None,
) -> Iterator[dict[str, Any]]:
    """Do surveyed work as ``scan`` does; ``started`` is called with each cell that is begun.

    Args:
        worker: does the cells in this process; the caller can go on using its model.
    """
    if workers is not None and workers < 1:
        raise HeadcodesError("a scan must have at least one worker", str(workers), "Leave --workers out if in doubt.")
    if not 0 < gpu_share <= 1:
        raise HeadcodesError("a worker's share of a GPU must lie in (0, 1]", str(gpu_share), "0.5 lets two share one.")
    return _rows(work, Store(store), engine, workers, address, gpu_share, started, worker)


def _rows(
    work: Work,
    store: Store,
    engine: ScanEngine,
    workers: int | None,
    address: str | None,
    gpu_share: float,
    started: Started,
    worker: Worker | None,
) -> Iterator[dict[str, Any]]:
    if not work.jobs:
        return
    outcomes: Iterator[Outcome]
    if engine == "ray":
        from headcodes.scan.ray_engine import on_ray

        outcomes = on_ray(work.jobs, workers, address, gpu_share, started)
    else:
        from headcodes.scan.local import in_process, processes

        n_gpus = _n_gpus(work.jobs[0][1])
        n_workers = 1 if worker else min(workers or int(n_gpus / gpu_share) or 1, len(work.jobs))
        outcomes = (
            in_process(work.jobs, started, worker or Worker())
            # On a GPU a lost device costs its process: that shall not be this one.
            if worker or (n_workers == 1 and not work.jobs[0][1].device.startswith("cuda"))
            else processes(work.jobs, n_workers, n_gpus, started)
        )
    try:
        for row, arrays in outcomes:
            yield store.write(row, arrays)
    finally:
        outcomes.close()  # type: ignore[attr-defined]  # generators; this ends their workers at once


def _n_gpus(cell: Cell) -> int:
    if cell.device != "cuda":
        return 0
    import torch

    return int(torch.cuda.device_count())
