"""The engine of one machine: cells in this process, or in several worker processes that may die without harm."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from headcodes.errors import HeadcodesError
from headcodes.scan.cells import DEVICE_LOST, Job, Queue, Worker, failed
from headcodes.scan.plan import Cell

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from headcodes.scan.cells import Outcome


def in_process(jobs: Sequence[Job], started: Callable[[Cell], object], worker: Worker) -> Iterator[Outcome]:
    """Do cells one after another in this process."""
    queue = Queue(jobs)
    while (job := queue.take("me")) is not None:
        started(job[1])
        yield worker.do(*job, queue.ahead(job[1]))


def processes(jobs: Sequence[Job], n_workers: int, n_gpus: int, started: Callable[[Cell], object]) -> Iterator[Outcome]:
    """Do cells in ``n_workers`` processes, each on its own GPU while there are enough.

    The cell of a worker that dies is done once more by a new one; if that dies too, the cell has failed.
    """
    queue = Queue(jobs)
    pool = _Pool(n_gpus)
    deaths: dict[str, int] = {}
    try:
        for _ in range(n_workers):
            pool.add()
        busy: dict[Connection, Job] = {}
        idle = list(pool.processes)
        while True:
            while idle and (job := queue.take(pool.numbers[idle[-1]])) is not None:
                pipe = idle.pop()
                started(job[1])
                pipe.send((*job, queue.ahead(job[1])))
                busy[pipe] = job
            if not busy:
                return
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                job = busy.pop(ready)
                try:
                    outcome = ready.recv()
                except (EOFError, OSError):
                    identity, cell = job
                    death, fresh = pool.replace(ready)
                    deaths[identity] = deaths.get(identity, 0) + 1
                    if deaths[identity] == 1:
                        fresh.send((identity, cell, None))
                        busy[fresh] = job
                        continue
                    idle.append(fresh)
                    yield failed(identity, cell, f"its worker {death}, twice"), {}
                    continue
                if isinstance(outcome, HeadcodesError):
                    raise outcome
                idle.append(ready)
                yield outcome
    finally:
        pool.end()


def visible_gpus(worker: int, n_gpus: int, named: str | None) -> str | None:
    """Return what CUDA_VISIBLE_DEVICES shall be for a worker; None leaves it alone.

    Args:
        worker: its number.
        n_gpus: how many GPUs workers are spread over; 0 where the plan names one device, such as cuda:1, which then is
            counted among all that are visible here.
        named: what CUDA_VISIBLE_DEVICES is here.
    """
    if not n_gpus:
        return named
    gpus = named.split(",") if named else [str(gpu) for gpu in range(n_gpus)]
    return gpus[worker % len(gpus)]


class _Pool:
    """Worker processes by the pipe to each, numbered so that a new one takes its predecessor's place and GPU."""

    def __init__(self, n_gpus: int) -> None:
        self._n_gpus = n_gpus
        # CUDA and threads do not survive a fork; the server has neither, and imports for all workers once.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            ["headcodes.discovery", "headcodes.models.load", "transformers.modeling_utils"]
        )
        # The server is deaf to Ctrl-C once it has imported all that, which takes seconds. It is born with the signal
        # blocked, as its workers then are; one that comes meanwhile reaches this process afterwards.
        resource_tracker.ensure_running()  # or the server would start it, and unblock the signal
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            forkserver.ensure_running()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self.processes: dict[Connection, ForkServerProcess] = {}
        self.numbers: dict[Connection, int] = {}

    def add(self, number: int | None = None) -> Connection:
        number = len(self.processes) if number is None else number
        gpu = visible_gpus(number, self._n_gpus, os.environ.get("CUDA_VISIBLE_DEVICES"))
        ours, theirs = self._context.Pipe()
        # The server may be older than the environment.
        environment = {name: value for name, value in os.environ.items() if name.startswith(("HEADCODES_", "HF_"))}
        environment |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {}
        process = self._context.Process(
            target=_serve, args=(theirs, environment), name=f"headcodes-{number}", daemon=True
        )
        process.start()
        theirs.close()  # so that a worker's death is an end of file here
        self.processes[ours], self.numbers[ours] = process, number
        return ours

    def replace(self, pipe: Connection) -> tuple[str, Connection]:
        """Start another worker for a dead one; returns what became of that one, and the pipe to the new."""
        process, number = self.processes.pop(pipe), self.numbers.pop(pipe)
        pipe.close()
        process.join()
        code = process.exitcode or 0
        death = "lost its CUDA device" if code == DEVICE_LOST else f"left with status {code}"
        if code < 0:
            name = signal.Signals(-code).name
            death = f"was killed by signal {-code} ({name})"
            if name == "SIGKILL":
                death += ", as systems do where memory runs out"
        return death, self.add(number)

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()


def _serve(pipe: Connection, environment: dict[str, str]) -> None:
    """Live as a worker process: take cells from the pipe and send back what they gave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends its workers
    os.environ.update(environment)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker = Worker(expendable=True)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        try:
            outcome: Outcome | HeadcodesError = worker.do(*job)
        except HeadcodesError as error:
            outcome = error
        pipe.send(outcome)


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
