"""The same scans on a Ray cluster of two nodes on this machine, with workers and whole nodes killed in the middle."""

from __future__ import annotations

import os
import random
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headcodes.errors import HeadcodesError
from headcodes.scan import Plan, load_store, scan
from headcodes.scan.plan import Cell
from headcodes.scan.run import run_work, survey
from scan_plan import LISTS, N_CELLS, SMALL, arrays, results

PLAN = Plan.from_lists("planted-ioi,planted-ioi-480", "ioi", "act-norm,mean-diff", "0-1", n_prompts=8)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two nodes: one of one CPU; and one of two, but with memory for one worker only (1.75 GiB)."""
    pytest.importorskip("ray", reason='ray is not installed (pip install "headcodes[ray]")')
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.add_node(num_cpus=2, memory=7 << 28)
        made.wait_for_nodes()
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed")
    assert [row["status"] for row in scan(PLAN, store)] == ["done"] * 8
    return store


def raylet(node: Any) -> int:
    """The process that starts a node's workers; without it the node is lost."""
    (started,) = node.all_processes["raylet"]
    return int(started.process.pid)


def workers(*nodes: Any) -> dict[int, int]:
    """Process ids of our actors on these nodes, each with that of its node's raylet."""
    raylets = {raylet(node) for node in nodes}
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent in raylets and title.startswith(b"ray::Worker"):
            found[int(folder.name)] = parent
    return found


def kill_inside(worker: int) -> bool:
    """Kill a worker, if it is inside a cell: stopped first, so that it is still there when the blow falls."""
    try:
        os.kill(worker, signal.SIGSTOP)
        while (Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[0]) not in "TZX":
            pass  # for microseconds: the signal is on its way
        inside = b"Worker.do" in Path(f"/proc/{worker}/cmdline").read_bytes()  # Ray's title of a process at work
        os.kill(worker, signal.SIGKILL if inside else signal.SIGCONT)
    except OSError:
        return False  # it had ended
    return inside


@contextmanager
def kills(cluster: Any, most: int, in_hand: set[Cell]) -> Iterator[list[int]]:
    """Kill workers at any moment inside their cells while the body runs, none twice in a cell that stays in hand."""
    generator, over = random.Random(0), threading.Event()
    killed: list[int] = []
    at_risk: set[Cell] = set()

    def kill() -> None:
        # Nothing hangs on these pauses: they spread the moments.
        while len(killed) < most and not over.wait(generator.random() * 0.3):
            here = workers(*cluster.list_all_nodes())
            for worker in generator.sample(sorted(here), len(here)):
                # A cell whose worker was killed may begin again on the other node: no node is safe before it is done.
                if not at_risk & in_hand and kill_inside(worker):
                    killed.append(worker)
                    at_risk.update(in_hand)  # one of these is the cell, whichever
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        yield killed
    finally:
        over.set()
        killer.join()


def test_a_cluster_that_loses_its_workers_gives_the_same_rows(cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    rows = scan(PLAN, tmp_path, engine="ray", address=cluster.address)
    identities = [next(rows)["identity"]]
    here = workers(*cluster.list_all_nodes())
    assert here, "actors live on this machine's two nodes"
    assert max(Counter(here.values()).values()) == 1, "no node gets more models than fit"
    for victim in here:
        os.kill(victim, signal.SIGKILL)
    identities += [row["identity"] for row in rows]
    assert len(identities) == len(set(identities)) == 8
    assert results(tmp_path) == results(undisturbed)
    assert arrays(tmp_path) == arrays(undisturbed)
    assert list(scan(PLAN, undisturbed, engine="ray", address="nowhere:1")) == []  # nothing left to do


def test_no_room_and_no_cluster_are_one_message(cluster: Any, tmp_path: Path) -> None:
    with pytest.raises(HeadcodesError, match=r"a machine of the cluster must have CPU 3; got CPU 1; CPU 2\."):
        list(scan(replace(PLAN, threads=3), tmp_path, engine="ray", address=cluster.address))
    assert load_store(tmp_path).num_rows == 0


# --- minutes long ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_does_its_cells_on_another(cluster: Any, undisturbed: Path, tmp_path: Path) -> None:
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    rows = scan(PLAN, tmp_path, engine="ray", address=cluster.address)
    identities = [next(rows)["identity"]]
    while not workers(lost):
        identities.append(next(rows)["identity"])
    cluster.remove_node(lost, allow_graceful=False)
    identities += [row["identity"] for row in rows]
    assert len(identities) == len(set(identities)) == 8
    assert results(tmp_path) == results(undisturbed)
    assert arrays(tmp_path) == arrays(undisturbed)


@pytest.mark.slow
def test_a_cell_that_kills_its_worker_twice_has_failed_and_others_go_on(
    cluster: Any, undisturbed: Path, tmp_path: Path
) -> None:
    with kills(cluster, 2, in_hand=set()) as killed:
        first, *others = scan(PLAN, tmp_path, engine="ray", workers=1, address=cluster.address)
    assert len(killed) == 2
    assert first["status"] == "failed"
    assert "its worker died, twice" in first["error"]
    assert len(others) == 7
    truth = results(undisturbed)
    del truth[first["identity"]]
    assert {identity: row for identity, row in results(tmp_path).items() if identity in truth} == truth


@pytest.mark.slow
@pytest.mark.real
def test_ten_kills_on_a_cluster(cluster: Any, random_models: str, undisturbed_plan: Path, tmp_path: Path) -> None:
    plan = Plan.from_lists(random_models, **LISTS, **SMALL)
    n_killed = []
    while sum(n_killed) < 10:  # the small models' cells may be over before ten workers were started again
        store = tmp_path / str(len(n_killed))
        work = survey(plan, store, engine="ray")
        cells = dict(work.jobs)
        in_hand: set[Cell] = set()
        identities = []
        with kills(cluster, 10 - sum(n_killed), in_hand) as killed:
            for row in run_work(work, store, engine="ray", address=cluster.address, started=in_hand.add):
                identities.append(row["identity"])
                in_hand.discard(cells[row["identity"]])
                here = Counter(workers(*cluster.list_all_nodes()).values())
                assert max(here.values(), default=1) == 1, "no node gets more models than fit"
        assert killed
        n_killed.append(len(killed))
        assert len(identities) == len(set(identities)) == N_CELLS
        assert results(store) == results(undisturbed_plan)
        assert arrays(store) == arrays(undisturbed_plan)
    print(f"workers killed inside a cell, by scan: {n_killed}")
