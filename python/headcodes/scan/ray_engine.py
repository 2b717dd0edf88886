"""The engine of a Ray cluster: the same cells and the same store; Ray places workers and replaces dead ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from headcodes.errors import HeadcodesError, missing_package
from headcodes.scan.cells import Job, Queue, Worker, failed
from headcodes.scan.estimate import worker_bytes
from headcodes.scan.plan import Cell

if TYPE_CHECKING:
    from headcodes.scan.cells import Outcome

# What can change a result, or where models and caches lie: the same on every machine.
_SHARED = ("HEADCODES_BACKEND", "HEADCODES_ISA")


def on_ray(
    jobs: Sequence[Job],
    workers: int | None,
    address: str | None,
    gpu_share: float,
    started: Callable[[Cell], object],
) -> Iterator[Outcome]:
    """Do cells on a cluster, in actors that each keep a model.

    An actor that dies, alone or with its machine, is started again by Ray wherever there is room, and does its cell
    once more; if it dies again, the cell has failed. Rows come back to this process, which alone writes the store;
    models and prompt files must lie under the same paths on every machine.

    Raises:
        HeadcodesError: Ray is not installed, no cluster answers, or none of its machines has what a cell needs.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_package("ray", "the engine 'ray'", '"headcodes[ray]"') from error
    begun = not ray.is_initialized()
    if begun:
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        try:
            ray.init(
                where, log_to_driver=False, logging_level="error", include_dashboard=False if where == "local" else None
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise HeadcodesError(
                "a Ray cluster must answer",
                f"{where}: {str(error).splitlines()[0]}",
                "Check --address and `ray status`.",
            ) from error
    try:
        yield from _on_cluster(ray, jobs, workers, gpu_share, started)
    finally:
        if begun:
            ray.shutdown()


def _on_cluster(
    ray: Any, jobs: Sequence[Job], workers: int | None, gpu_share: float, started: Callable[[Cell], object]
) -> Iterator[Outcome]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needs = needs_of(jobs, gpu_share, nodes)
    room = sum(fit(node, needs) for node in nodes)
    if room < 1:
        del needs["memory"]  # never what is lacking
        have = "; ".join(sorted(", ".join(f"{name} {node.get(name, 0):g}" for name in needs) for node in nodes))
        raise HeadcodesError(
            f"a machine of the cluster must have {' and '.join(f'{name} {need:g}' for name, need in needs.items())}",
            have or "no machine",
            "Lower the plan's threads, or add a machine.",
        )
    actor = ray.remote(Worker).options(
        num_cpus=needs["CPU"],
        num_gpus=needs.get("GPU", 0),
        memory=int(needs["memory"]),
        max_restarts=-1,
        max_task_retries=-1,
        runtime_env={"env_vars": {name: os.environ[name] for name in _SHARED if name in os.environ}},
    )
    queue = Queue(jobs)
    actors = {number: actor.remote(expendable=True) for number in range(min(workers or room, room, len(jobs)))}
    # What each actor was last asked, with its cell; None where it was asked whether it is there. That is asked until
    # it is: before its first cell, since an actor without a place would hold cells back, and after a death.
    waiting: dict[Any, tuple[int, Job | None]] = {
        actor.ready.remote(): (number, None) for number, actor in actors.items()
    }
    interrupted: dict[int, Job] = {}
    deaths: set[str] = set()
    n_left = len(jobs)
    try:
        while n_left:
            (finished,), _ = ray.wait(list(waiting), num_returns=1)
            number, job = waiting.pop(finished)
            outcome = None
            try:
                outcome = ray.get(finished)
            except ray.exceptions.RayError as error:
                if isinstance(error, HeadcodesError):
                    raise HeadcodesError(error.must, error.got, error.mend) from None
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                if job is None:
                    raise HeadcodesError(
                        "workers must start on the cluster", reason, "Install the same headcodes on every machine."
                    ) from error
                if job[0] in deaths:
                    outcome = failed(*job, f"its worker died, twice ({type(error).__name__}: {reason})"), {}
                else:
                    deaths.add(job[0])
                    interrupted[number] = job
                waiting[actors[number].ready.remote()] = number, None
            else:
                following = interrupted.pop(number, None) or queue.take(number)
                if following is not None:
                    started(following[1])
                    # Ray itself would try again on an actor that it does not yet know to be lost, and lose the try.
                    do = actors[number].do.options(max_task_retries=0)
                    waiting[do.remote(*following, queue.ahead(following[1]))] = number, following
                else:
                    # An actor whose machine was lost may have a cell to do and wait for this one's room.
                    ray.kill(actors.pop(number))
            if outcome is not None:
                n_left -= 1
                yield outcome
    finally:
        for actor in actors.values():
            ray.kill(actor)


def needs_of(jobs: Sequence[Job], gpu_share: float, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what Ray sets aside for an actor: as much as the most demanding of the cells may take.

    Memory is an estimate, and no reason to refuse a plan: a model that is larger than every machine gets a machine of
    its own to fail on, and the other models are done.
    """
    needs = {"CPU": float(max(cell.threads for _, cell in jobs))}
    if jobs[0][1].device.startswith("cuda"):
        needs["GPU"] = gpu_share
    largest = max((node.get("memory", 0.0) for node in nodes if fit(node, needs)), default=0.0)
    return needs | {"memory": min(float(worker_bytes(jobs)), largest)}


def fit(node: Mapping[str, float], needs: Mapping[str, float]) -> int:
    """Return how many actors a machine has room for."""
    return int(min(node.get(name, 0.0) / need for name, need in needs.items() if need))
