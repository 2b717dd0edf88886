"""Scans as users run them: stopped, killed, continued, in one process and in several."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headcodes.scan import load_store, scan
from headcodes.scan.ahead import weight_files
from headcodes.scan.estimate import estimate
from headcodes.scan.run import survey
from headcodes.store.cells import Store
from scan_command import PLANTED, planted_plan
from scan_plan import results


def test_module_and_command_are_the_same() -> None:
    said = [
        subprocess.run([*words, "scan", "--help"], capture_output=True, text=True, check=True).stdout
        for words in ([sys.executable, "-m", "headcodes.cli"], [str(Path(sys.executable).with_name("headcodes"))])
    ]
    assert "--retry-failed" in said[0]
    assert said[0].partition("[OPTIONS]")[2].split() == said[1].partition("[OPTIONS]")[2].split()


def test_one_load_a_model_and_one_capture_a_set_of_prompts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: Path
) -> None:
    from headcodes.methods import inputs
    from headcodes.scan import cells

    calls: list[str] = []
    for module, name in ((cells, "_load"), (inputs, "capture_pairs")):
        made = getattr(module, name)

        def counted(*args: Any, made: Any = made, name: str = name, **kwargs: Any) -> Any:
            calls.append(name)
            return made(*args, **kwargs)

        monkeypatch.setattr(module, name, counted)
    rows = list(scan(planted_plan(), tmp_path))
    assert [row["status"] for row in rows] == ["done"] * 3
    assert calls == ["_load", "capture_pairs"]
    assert results(tmp_path) == results(undisturbed)
    assert list(scan(planted_plan(), tmp_path)) == []
    assert calls == ["_load", "capture_pairs"]


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


def test_failures_are_rows_with_one_clear_message_each(folder: Path, tmp_path: Path, run_scan: Any) -> None:
    gone = tmp_path / "gone"
    shutil.copytree(folder, gone)
    lists = ["--models", f"{gone},planted-induction,{folder}", "--methods", "act-norm,mean-diff", "--n-prompts", "6"]
    store = tmp_path / "store"
    (gone / "model.safetensors").unlink()
    status, out, err = run_scan(*lists, "--store", store)
    assert status == 1
    assert not out
    rows = {(Path(row["model"]).name, row["method"]): row for row in load_store(store).to_pylist()}
    for method in ("act-norm", "mean-diff"):
        assert rows[folder.name, method]["status"] == "done"
        assert "whole and readable" in rows["gone", method]["error"]
        assert "the tokenizer must carry the task ioi" in rows["planted-induction", method]["error"]
        assert rows["gone", method]["head_scores"] is None
    summary = err.splitlines()[-3:]
    assert "2 of 6 cells done" in summary[0]
    assert all("2 cells failed: " in line for line in summary[1:])
    assert "Traceback" not in err

    # Left alone until asked for; the model that is whole again is another one than the broken.
    status, _, err = run_scan(*lists, "--store", store)
    assert (status, "4 failed before" in err) == (0, True)
    shutil.copy(folder / "model.safetensors", gone)
    status, _, err = run_scan(*lists, "--store", store, "--retry-failed")
    assert status == 1
    assert "4 of 6 cells done, 2 of them now" in err

    from headcodes.report.folders import read_runs

    records = read_runs([store])
    assert [record.error is None for record in records].count(True) == 4
    from headcodes.report.page import render

    page = render(records)
    assert "the tokenizer must carry the task ioi" in page


def test_a_report_of_a_store_shows_what_a_report_of_a_run_does(
    undisturbed: Path, tmp_path: Path, run_scan: Any
) -> None:
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
    status, out, _ = run_scan(*words, "--store", tmp_path, "--dry-run", "--json-lines")
    assert status == 0
    wanted_id = next(row["identity"] for row in load_store(undisturbed).to_pylist() if row["method"] == "code-flip")
    assert [json.loads(line)["identity"] for line in out.splitlines()] == [wanted_id]


def test_a_dry_run_prints_cells_and_makes_nothing(
    folder: Path, tmp_path: Path, run_scan: Any, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi

    from headcodes.models import sources

    # A hub that knows every model and says nothing of its files.
    monkeypatch.setattr(sources, "hub_answers", lambda: True)
    monkeypatch.setattr(HfApi, "model_info", lambda *_, **__: SimpleNamespace(sha="0", siblings=[]))
    store = tmp_path / "store"
    lists = ["--models", f"{folder},some/model", "--seeds", "0-2"]
    status, out, err = run_scan(*lists, "--store", store, "--dry-run")
    assert status == 0
    assert len(out.splitlines()) == 6
    assert not store.exists()
    assert "6 of 6 cells to do" in err
    assert "time: about" in err
    assert "memory: about" in err
    assert "download: some/model, size unknown" in err
    status, out, _ = run_scan(*lists, "--store", store, "--dry-run", "--json-lines")
    assert {json.loads(line)["seed"] for line in out.splitlines()} == {0, 1, 2}
    status, out, err = run_scan(*PLANTED, "--store", undisturbed, "--dry-run")
    assert (out, err) == ("", "headcodes: 0 of 3 cells to do\n")


def test_models_that_cannot_be_had_are_refused_before_any_cell(
    tmp_path: Path, run_scan: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    from headcodes.models import load, sources

    monkeypatch.setattr(load, "load_model", lambda *_, **__: pytest.fail("nothing shall be loaded"))
    store = tmp_path / "store"

    def refused(model: str, says: str) -> None:
        for more in ((), ("--dry-run",), ("--engine", "ray")):
            status, out, err = run_scan("--models", f"planted-ioi,{model}", "--n-prompts", "6", "--store", store, *more)
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


@pytest.mark.parametrize("times", [None, [], [("total", 1.5)], [("load", None), ("capture", 1.0), ("total", 1.5)]])
def test_rows_that_lack_a_time_are_not_estimated_from(undisturbed: Path, tmp_path: Path, times: Any) -> None:
    jobs = survey(planted_plan(seeds="5-8"), undisturbed).jobs
    store = Store(tmp_path / "store")
    for row in load_store(undisturbed).to_pylist():
        store.write(row | {"timings_s": times, "arrays_sha256": None}, {})
    assert estimate(jobs, store.folder).measured == 0


def test_bad_options_are_one_message(tmp_path: Path, run_scan: Any) -> None:
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
        status, out, err = run_scan(*words, "--store", tmp_path / "store")
        assert (status, out) == (2, ""), words
        assert says in err
        assert "Traceback" not in err
    assert not (tmp_path / "store" / "cells").exists()
