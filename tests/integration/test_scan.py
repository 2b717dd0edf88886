"""Scans as users run them: stopped, killed, continued, in one process and in several."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headcodes.errors import HeadcodesError
from headcodes.scan import Plan, load_store, scan
from headcodes.scan.cells import Worker, weight_files
from headcodes.scan.estimate import estimate
from headcodes.scan.local import processes
from headcodes.scan.run import survey
from scan_plan import LISTS, SMALL, arrays, as_words, results

PLANTED = ["--models", "planted-ioi", "--methods", "act-norm,mean-diff,code-flip", "--seeds", "1", "--n-prompts", "12"]
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
# One server imports for all; processes forked from it start at once.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["headcodes.discovery", "headcodes.models.planted", "transformers.models.mistral"])
CHILD = """
import os, sys
for number, name in ((1, out), (2, err)):
    os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
exec(before)
sys.argv = ["headcodes", "scan", *arguments]
import headcodes.cli
headcodes.cli.main()
"""


@dataclass
class Ended:
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: object, before: str = "", **names: object) -> Ended:
    """``headcodes scan`` in a process of its own, in which ``before`` is executed first."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        given = {"out": str(out), "err": str(err), "before": before, "arguments": [str(word) for word in arguments]}
        process = SERVER.Process(target=exec, args=(CHILD, {"__name__": "child", **given, **names}))
        process.start()
        process.join()
        assert process.exitcode is not None
        return Ended(process.exitcode, out.read_text(), err.read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("undisturbed")
    done = command(*PLANTED, "--store", store, "--json-lines")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["identity"] for line in lines} == set(results(store))
    assert len(done.stderr.splitlines()) == 4
    return store


def test_module_and_command_are_the_same() -> None:
    said = [
        subprocess.run([*words, "scan", "--help"], capture_output=True, text=True, check=True).stdout
        for words in ([sys.executable, "-m", "headcodes.cli"], [str(Path(sys.executable).with_name("headcodes"))])
    ]
    assert "--retry-failed" in said[0]
    assert said[0].partition("[OPTIONS]")[2].split() == said[1].partition("[OPTIONS]")[2].split()


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


def planted_plan(**changes: Any) -> Plan:
    return Plan.from_lists(
        changes.pop("models", "planted-ioi"),
        changes.pop("tasks", "ioi"),
        changes.pop("methods", "act-norm,mean-diff,code-flip"),
        changes.pop("seeds", "1"),
        n_prompts=12,
        **changes,
    )


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


def test_one_load_a_model_and_one_capture_a_set_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    from headcodes.methods import inputs
    from headcodes.scan import cells

    calls: list[str] = []
    for module, name in ((cells, "_load"), (inputs, "capture")):
        made = getattr(module, name)

        def counted(*args: Any, made: Any = made, name: str = name, **kwargs: Any) -> Any:
            calls.append(name)
            return made(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    rows = list(scan(planted_plan(), tmp_path))
    assert [row["status"] for row in rows] == ["done"] * 3
    assert calls == ["_load", "capture"]
    assert results(tmp_path) == results(undisturbed)
    assert list(scan(planted_plan(), tmp_path)) == []
    assert calls == ["_load", "capture"]


def test_a_row_says_what_discover_says(undisturbed: Path) -> None:
    from headcodes import discover, load_model
    from headcodes.tasks import get

    model = load_model("planted-ioi")
    pairs = get("ioi").build(model.tokenizer, n=12, seed=0)
    rows = {(row["method"], row["seed"]): row for row in load_store(undisturbed).to_pylist()}
    for method, seed in rows:
        result, row = discover(model, pairs, method=method, seed=seed, threads=1, verify=None), rows[method, seed]
        assert row["head_scores"] == result.head_scores.ravel().tolist()
        assert row["share_right"] == result.task_check.share_right
        assert (row["n_layers"], row["n_heads"], row["negative"]) == (6, 8, pairs.negative)
        assert dict(row["versions"]) == result.versions


@pytest.fixture
def folder(tiny_folder: Any, tmp_path: Path) -> Path:
    return tiny_folder(tmp_path / "tiny-llama")


@pytest.fixture
def run(run: Callable[..., tuple[int, str, str]]) -> Callable[..., tuple[int, str, str]]:
    """``run("--models", ...)`` is `headcodes scan`."""
    return partial(run, "scan")


def test_failures_are_rows_with_one_clear_message_each(folder: Path, tmp_path: Path, run: Any) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone)
    lists = ["--models", f"{gone},planted-induction,{folder}", "--methods", "act-norm,mean-diff", "--n-prompts", "6"]
    store = tmp_path / "store"
    (gone / "model.safetensors").unlink()
    status, out, err = run(*lists, "--store", store)
    assert status == 1
    assert not out
    rows = {(Path(row["model"]).name, row["method"]): row for row in load_store(store).to_pylist()}
    for method in ("act-norm", "mean-diff"):
        assert rows["tiny-llama", method]["status"] == "done"
        assert "whole and readable" in rows["gone", method]["error"]
        assert "the tokenizer must carry the task ioi" in rows["planted-induction", method]["error"]
        assert rows["gone", method]["head_scores"] is None
    summary = err.splitlines()[-3:]
    assert "2 of 6 cells done" in summary[0]
    assert all("2 cells failed: " in line for line in summary[1:])
    assert "Traceback" not in err

    # Left alone until asked for; the model that is whole again is another one than the broken.
    status, _, err = run(*lists, "--store", store)
    assert (status, "4 failed before" in err) == (0, True)
    shutil.copy(folder / "model.safetensors", gone)
    status, _, err = run(*lists, "--store", store, "--retry-failed")
    assert status == 1
    assert "4 of 6 cells done, 2 of them now" in err

    from headcodes.report.folders import read_runs

    records = read_runs([store])
    assert [record.error is None for record in records].count(True) == 4
    from headcodes.report.page import render

    page = render(records)
    assert "the tokenizer must carry the task ioi" in page


def test_a_report_of_a_store_shows_what_a_report_of_a_run_does(undisturbed: Path, tmp_path: Path, run: Any) -> None:
    from headcodes import discover, load_model
    from headcodes.report.folders import read_runs
    from headcodes.tasks import get

    model = load_model("planted-ioi")
    result = discover(model, get("ioi").build(model.tokenizer, n=12, seed=0), method="code-flip", seed=1, threads=1)
    wanted = result.record()
    (found,) = (record for record in read_runs([undisturbed]) if record.document["method"] == "code-flip")
    # A scan calls a model as its plan does.
    assert replace(found.circuit, model=wanted.circuit.model) == wanted.circuit
    assert found.document["task_check"].items() <= wanted.document["task_check"].items()
    assert (found.arrays["codes"] == wanted.arrays["codes"]).all()
    same = ("task", "negative", "method", "level", "seed", "n_train", "positions", "dtype", "head_scores")
    assert {name: found.document[name] for name in same} == {name: wanted.document[name] for name in same}
    # The command on the page is that of this very cell.
    words = shlex.split(found.command)[2:-2]
    status, out, _ = run(*words, "--store", tmp_path, "--dry-run", "--json-lines")
    assert status == 0
    wanted_id = next(row["identity"] for row in load_store(undisturbed).to_pylist() if row["method"] == "code-flip")
    assert [json.loads(line)["identity"] for line in out.splitlines()] == [wanted_id]


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
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, run: Any
) -> None:
    synced = os.fsync
    calls = iter(range(99))

    def fsync(handle: int) -> None:
        if next(calls) >= 2:  # the third cell's arrays
            raise OSError(28, os.strerror(28))
        synced(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        status, _, err = run(*PLANTED, "--store", tmp_path / "store")
    assert status == 2
    assert err.splitlines()[-1].startswith("headcodes: the store of a scan must be writable; got")
    assert "No space left on device" in err
    assert len(results(tmp_path / "store")) == 2
    assert run(*PLANTED, "--store", tmp_path / "store")[0] == 0
    assert results(tmp_path / "store") == results(undisturbed)


def test_ctrl_c_drops_the_cell_and_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    done = Worker.do
    calls = iter(range(99))

    def do(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return done(*args)

    monkeypatch.setattr(Worker, "do", do)
    status, _, err = run(*PLANTED, "--store", tmp_path / "my store")
    assert status == 130
    assert "1 of 3 cells done" in err
    assert f"To go on: headcodes scan {' '.join(PLANTED)} --store '{tmp_path}/my store'" in err
    assert len(results(tmp_path / "my store")) == 1
    assert not list(tmp_path.rglob("*.part"))


def test_code_that_changes_during_a_scan_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headcodes.scan import plan

    rows = scan(planted_plan(), tmp_path)
    next(rows)
    monkeypatch.setattr(plan, "code_checksum", lambda: "edited")
    with pytest.raises(HeadcodesError, match="start the scan again"):
        next(rows)
    assert len(results(tmp_path)) == 1


def test_a_dry_run_prints_cells_and_makes_nothing(
    folder: Path, tmp_path: Path, run: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    from headcodes.models import sources

    # A hub that knows every model and says nothing of its files.
    monkeypatch.setattr(sources, "hub_answers", lambda: True)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="0", siblings=[]))
    store = tmp_path / "store"
    lists = ["--models", f"{folder},some/model", "--seeds", "0-2"]
    status, out, err = run(*lists, "--store", store, "--dry-run")
    assert status == 0
    assert len(out.splitlines()) == 6
    assert not store.exists()
    assert "6 of 6 cells to do" in err
    assert "time: about" in err
    assert "memory: about" in err
    assert "download: some/model, size unknown" in err
    status, out, _ = run(*lists, "--store", store, "--dry-run", "--json-lines")
    assert {json.loads(line)["seed"] for line in out.splitlines()} == {0, 1, 2}
    status, out, err = run(*PLANTED, "--store", undisturbed, "--dry-run")
    assert (out, err) == ("", "headcodes: 0 of 3 cells to do\n")


def test_models_that_cannot_be_had_are_refused_before_any_cell(
    tmp_path: Path, run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from headcodes.models import load, sources

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("nothing shall be loaded"))
    store = tmp_path / "store"

    def refused(model: str, says: str) -> None:
        for more in ((), ("--dry-run",), ("--engine", "ray")):
            status, out, err = run("--models", f"planted-ioi,{model}", "--n-prompts", "6", "--store", store, *more)
            assert (status, out, len(err.splitlines())) == (2, "", 1), err
            assert says in err
            assert not store.exists()

    (tmp_path / "empty").mkdir()
    refused(str(tmp_path / "none"), "none, which does not exist")
    refused(str(tmp_path / "empty"), "with neither")
    refused("./none.gguf", "which does not exist")
    refused("planted-iio", "'planted-iio'")
    refused("planted-ioi-99999999999", "99999999999 heads")
    refused("planted-ioi@main", "must have no revision")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused("no/such-model", "HF_HUB_OFFLINE=1")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sources, "hub_answers", lambda: True)

    def answer(error: Exception) -> None:
        def model_info(*_: Any, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(HfApi, "model_info", model_info)

    response = SimpleNamespace(headers={}, request=None, url="")
    answer(RepositoryNotFoundError("404 no such repository", response=response))  # type: ignore[arg-type]
    refused("no/such-model", "no/such-model, not loaded (404 no such repository)")
    answer(RevisionNotFoundError("404 no such revision", response=response))  # type: ignore[arg-type]
    refused("openai-community/gpt2@step9", "404 no such revision")
    # A hub that fails may work again when the cell's turn has come.
    answer(OSError("timed out"))
    sources.check_there("some/model")


def test_an_estimate_comes_from_what_was_measured(undisturbed: Path, folder: Path) -> None:
    measured = estimate(survey(planted_plan(seeds="5-8"), undisturbed).jobs, undisturbed)
    assert measured.measured == 1
    rows = [dict(row["timings_s"]) for row in load_store(undisturbed).to_pylist()]
    per_cell = [row["total"] - row["capture"] for row in rows]
    shared = [row["load"] + row["capture"] for row in rows]
    assert 12 * min(per_cell) + min(shared) <= measured.seconds <= 12 * max(per_cell) + max(shared)
    jobs = survey(planted_plan(models=str(folder), dtype="float32"), undisturbed).jobs
    guessed = estimate(jobs, undisturbed)
    assert guessed.measured == 0
    weights = (folder / "model.safetensors").stat().st_size
    assert weight_files(jobs[0][1]) == [folder / "model.safetensors"]
    assert guessed.memory_bytes == weights + (1 << 30)


def test_bad_options_are_one_message(tmp_path: Path, run: Any) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("models: [planted-ioi]\nmethod: [paper]\n")
    for words, says in (
        ([], "neither a plan file nor --models"),
        ([plan], "line 2: the unknown key 'method'"),
        ([plan, "--seeds", "1"], "--seeds beside"),
        (["--models", "planted-ioi", "--methods", "papre"], "Did you mean 'paper'"),
        (["--models", "planted-ioi", "--device", "cudda"], "cudda"),
        (["--models", "planted-ioi", "--gpu-share", "2"], "share of a GPU"),
    ):
        status, out, err = run(*words, "--store", tmp_path / "store")
        assert (status, out) == (2, ""), words
        assert says in err
        assert "Traceback" not in err
    assert not (tmp_path / "store" / "cells").exists()


# --- minutes long ---------------------------------------------------------------------------------------------------

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
