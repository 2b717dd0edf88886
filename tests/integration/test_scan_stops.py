"""Scans that are stopped, killed, out of memory or out of disk, and go on where they were."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from headcodes.errors import HeadcodesError
from headcodes.scan import scan
from headcodes.scan.cells import Worker
from headcodes.scan.local import processes
from headcodes.scan.run import survey
from scan_command import PLANTED, command, planted_plan
from scan_plan import LISTS, SMALL, arrays, as_words, results

MANY = ["--models", "planted-ioi", "--methods", "act-norm,mean-diff", "--seeds", "0-19", "--n-prompts", "6"]


# A scan that kills itself without warning, inside its nth call of one function: the worst moments are inside.
DYING = """
import os, signal
import headcodes.methods
calls = 0
def dying(made):
    def call(*args, **kwargs):
        global calls
        calls += 1
        found = made(*args, **kwargs)
        if calls == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    return call
if where == "cell":
    headcodes.methods.Method.score = dying(headcodes.methods.Method.score)
else:
    os.fsync = dying(os.fsync)
"""


def test_three_kills_lose_nothing_and_do_nothing_twice(undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    kept = 0
    # In the second cell; in writing the arrays of the third; in writing its row, the arrays being there.
    for where, nth, after in (("cell", 2, 1), ("write", 2, 2), ("write", 2, 2)):
        died = command(*PLANTED, "--store", store, before=DYING, where=where, nth=nth)
        assert died.returncode == -signal.SIGKILL, died.stderr
        found = results(store)
        assert len(found) == after, (where, nth)
        assert set(found.items()) <= set(results(undisturbed).items())
        assert len(found) >= kept
        kept = len(found)
        if where == "write":
            assert list(store.rglob("*.part")), "the kill fell inside a write"
    before = {path: path.stat().st_mtime_ns for path in (store / "cells").iterdir()}
    done = command(*PLANTED, "--store", store)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 cells done, 1 of them now" in done.stderr
    assert results(store) == results(undisturbed)
    assert arrays(store) == arrays(undisturbed)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.suffix == ".parquet")


def test_a_worker_that_is_killed_is_replaced_and_changes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    rows = scan(planted_plan(), tmp_path, workers=2)
    first = next(rows)
    victim = multiprocessing.active_children()[0]
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    identities = [first["identity"], *(row["identity"] for row in rows)]
    assert len(identities) == len(set(identities)) == 3
    assert results(tmp_path) == results(undisturbed)
    assert arrays(tmp_path) == arrays(undisturbed)
    assert not multiprocessing.active_children()


def test_a_cell_that_kills_its_worker_twice_has_failed_and_others_go_on(tmp_path: Path) -> None:
    jobs = survey(planted_plan(methods="act-norm"), tmp_path).jobs
    over = threading.Event()
    killed = set()

    def kill() -> None:
        while len(killed) < 2 and not over.wait(0.01):
            for child in multiprocessing.active_children():
                if child.pid is not None and child.pid not in killed:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.add(child.pid)

    killer = threading.Thread(target=kill)
    outcomes = processes(jobs, 1, 0, lambda _cell: killer.start())
    row, found = next(outcomes)
    over.set()
    killer.join()
    outcomes.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert len(killed) == 2
    assert (row["status"], found) == ("failed", {})
    assert row["identity"] == jobs[0][0]
    assert "killed by signal 9 (SIGKILL)" in row["error"]
    assert "twice" in row["error"]


@pytest.mark.parametrize("error", ["torch", "cpu", "python"])
def test_out_of_memory_is_a_row_and_the_next_model_goes_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    import torch

    from headcodes.models import load as opening

    raised = {
        "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.\nmore"),
        "cpu": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes."),
        "python": MemoryError(),
    }[error]
    made = opening.load_model

    def load(source: str, **settings: Any) -> Any:
        if source == str(folder):
            raise raised
        return made(source, **settings)

    monkeypatch.setattr(opening, "load_model", load)
    plan = planted_plan(models=f"{folder},planted-ioi", methods="act-norm,mean-diff", seeds="0")
    rows = list(scan(plan, tmp_path / "store"))
    assert [row["status"] for row in rows] == ["failed", "failed", "done", "done"]
    for row in rows[:2]:
        assert row["error"].startswith("out of memory: ")
        assert "--workers" in row["error"]
        assert "\n" not in row["error"]


def test_a_full_disk_ends_the_scan_and_keeps_its_cells(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, run_scan: Any
) -> None:
    synced = os.fsync
    calls = iter(range(99))

    def fsync(handle: int) -> None:
        if next(calls) >= 2:  # the third cell's arrays
            raise OSError(28, os.strerror(28))
        synced(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        status, _, err = run_scan(*PLANTED, "--store", tmp_path / "store")
    assert status == 2
    assert err.splitlines()[-1].startswith("headcodes: the store of a scan must be writable; got")
    assert "No space left on device" in err
    assert len(results(tmp_path / "store")) == 2
    assert run_scan(*PLANTED, "--store", tmp_path / "store")[0] == 0
    assert results(tmp_path / "store") == results(undisturbed)


def test_ctrl_c_drops_the_cell_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_scan: Any
) -> None:
    done = Worker.do
    calls = iter(range(99))

    def do(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return done(*args)

    monkeypatch.setattr(Worker, "do", do)
    status, _, err = run_scan(*PLANTED, "--store", tmp_path / "my store")
    assert status == 130
    assert "1 of 3 cells done" in err
    assert f"To go on: headcodes scan {' '.join(PLANTED)} --store '{tmp_path}/my store'" in err
    assert len(results(tmp_path / "my store")) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_ctrl_c_while_workers_start_is_for_their_parent_alone() -> None:
    """It reaches all that runs in front of a terminal, also a server of workers that still imports."""
    code = """
import os, signal, threading
from headcodes.scan.local import _Pool
n_heard = 0
def hear(*_):
    global n_heard
    n_heard += 1
signal.signal(signal.SIGINT, hear)
started = threading.Event()
def interrupt():
    while not started.wait(0.05):
        os.killpg(0, signal.SIGINT)
thread = threading.Thread(target=interrupt)
thread.start()
pool = _Pool(0)
try:
    pipe = pool.add()
finally:
    started.set()
    thread.join()
os.killpg(0, signal.SIGINT)
print(n_heard > 1, pipe.poll(1), pool.processes[pipe].is_alive())
pool.end()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True)
    assert (done.stdout, done.stderr) == ("True False True\n", "")


def test_code_that_changes_during_a_scan_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.scan import plan

    rows = scan(planted_plan(), tmp_path)
    next(rows)
    monkeypatch.setattr(plan, "code_checksum", lambda: "edited")
    with pytest.raises(HeadcodesError, match="start the scan again"):
        next(rows)
    assert len(results(tmp_path)) == 1


# Says on standard output when a cell begins and is done, and when its files are being written and are kept.
TALKING = """
import sys
from headcodes.scan import cells
from headcodes.store import cells as store
import headcodes.cli
def talking(owner, name, said):
    made = getattr(owner, name)
    def call(*args):
        print(said, flush=True)
        found = made(*args)
        print(said + " over", flush=True)
        return found
    setattr(owner, name, call)
talking(cells.Worker, "do", "cell")
talking(store.Store, "write", "write")
sys.argv = ["headcodes", *sys.argv[1:]]
headcodes.cli.main()
"""


@pytest.mark.slow
@pytest.mark.real
def test_twenty_kills(random_models: str, undisturbed_plan: Path, tmp_path: Path) -> None:
    store = tmp_path / "killed"
    arguments = as_words(models=random_models, **LISTS, **SMALL, store=store)
    truth = results(undisturbed_plan)
    generator = random.Random(0)
    inside = {"cell": 0, "write": 0}
    n_kept = 0
    while sum(inside.values()) < 20:
        # Half of the kills in a cell, half in a write; both after a few whole cells at most, so that all fit in.
        target = "cell" if sum(inside.values()) % 2 else "write"
        child = subprocess.Popen(
            [sys.executable, "-c", TALKING, "scan", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert child.stdout is not None
        skip = generator.randrange(3)
        said = ""
        for line in child.stdout:
            said = line.strip()
            if said == target:
                if skip == 0:
                    break
                skip -= 1
        # Nothing is waited for: the kill shall fall at any moment inside, and what it fell into is counted below.
        time.sleep(generator.random() * (0.5 if target == "cell" else 0.003))
        child.kill()
        rest = [line.strip() for line in child.stdout]
        assert child.wait() == -signal.SIGKILL
        last = rest[-1] if rest else said
        if last in inside:
            inside[last] += 1
        found = results(store)
        assert set(found.items()) <= set(truth.items())
        assert len(found) >= n_kept
        n_kept = len(found)
        assert n_kept < len(truth), "the kills came too late to mean anything"
    print(f"kills inside: {inside}; {n_kept} of {len(truth)} cells were kept before the last start")
    done = command(*arguments)
    assert done.returncode == 0, done.stderr
    assert results(store) == truth
    assert arrays(store) == arrays(undisturbed_plan)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="a small file system needs root to mount")
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=False)
    if mounted.returncode != 0:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        done = command(*MANY, "--store", disk / "store")
        assert done.returncode == 2
        assert "No space left on device" in done.stderr.splitlines()[-1]
        kept = results(disk / "store")
        assert 0 < len(kept) < 40
        assert not list(disk.rglob("*.part"))
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        done = command(*MANY, "--store", disk / "store")
        assert done.returncode == 2
        assert "Read-only file system" in done.stderr.splitlines()[-1]
        assert results(disk / "store") == kept
    finally:
        subprocess.run(["umount", disk], check=True)
