"""``headcodes bench``, and whole graphs from discovery to judgement, on the command line."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from headcodes import cli

ROOT = Path(__file__).resolve().parents[2]


pytestmark = pytest.mark.usefixtures("own_cache")


def headcodes(*arguments: object) -> Any:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def sheet(out: Path) -> dict[str, dict[str, str]]:
    with (out / "results.csv").open() as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_edges_keep_their_scores_from_discovery_to_judgement_and_export(tmp_path: Path) -> None:
    out = tmp_path / "out"
    planted = ("--model", "planted-ioi")
    found = headcodes(
        "discover", *planted, "--n-prompts", 8, "--method", "eap", "--level", "edge", "--top", 9, "--out", out
    )
    assert found.exit_code == 0, found.stderr
    assert headcodes("export", out / "circuit.json", tmp_path / "graph.json").exit_code == 0
    graph = json.loads((tmp_path / "graph.json").read_text())
    # Queries and keys have scores of their own, signs included.
    signs = {row["score"] > 0 for row in graph["edges"].values() if row["score"]}
    assert signs == {True, False}
    arguments = ("--task", "ioi", "--n-pairs", 3, "--top", 5, "--components", "heads+mlps", "--curve", "--json")
    judged = headcodes("evaluate", tmp_path / "graph.json", *planted, *arguments)
    assert judged.exit_code == 0, judged.stderr
    document = json.loads(judged.stdout)
    own = json.loads(headcodes("evaluate", out / "circuit.json", *planted, *arguments).stdout)
    assert document["edge_areas"] == own["edge_areas"]
    assert document["edge_areas"]["n_edges"] == len(graph["edges"])
    assert document["edge_areas"]["f_absolute"][-1] == pytest.approx(1, abs=1e-3)
    # MLPs of a planted model write nothing.
    assert document["truth"]["mlp_effects"] == pytest.approx([0.0] * graph["cfg"]["n_layers"], abs=1e-6)  # rounding
    assert document["components"]["roc_auc"] > 0.95
    assert "m0 +0.000" in headcodes("evaluate", out / "circuit.json", *planted, *arguments[:-2]).stdout


def test_planted_circuits_are_found_and_what_takes_too_long_is_a_row(tmp_path: Path) -> None:
    arguments = ("bench", "--model", "planted-ioi-48", "--seeds", 1, "--n-pairs", 8, "--no-faithfulness")
    done = headcodes(*arguments, "--methods", "sp,patching", "--out", tmp_path / "found")
    assert done.exit_code == 0, done.stderr
    rows = sheet(tmp_path / "found")
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(("sp", "patching"), "ok")
    assert all(float(row["auc"]) > 0.95 for row in rows.values()), rows
    over = headcodes(*arguments, "--methods", "sp,mean-diff", "--budget", 0.05, "--out", tmp_path / "over")
    assert over.exit_code == 0, over.stderr
    assert sheet(tmp_path / "over")["sp"]["status"] == "over budget"
    assert "more than 0.05 s" in over.stdout


def test_the_paper_suite_without_the_hub_says_what_is_missing(tmp_path: Path) -> None:
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub"), "HEADCODES_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "headcodes.cli", "bench", "--suite", "paper", "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=os.environ | nowhere,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0] == "missing:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "attn-only-4l (for docstring)",
        "gpt2 (for greater-than, ioi)",
    ]
    assert not (tmp_path / "out").exists()


def test_the_speed_suite_starts_the_benchmarks_of_this_checkout(
    monkeypatch: pytest.MonkeyPatch, outside_xdist: dict[str, str]
) -> None:
    started: list[tuple[list[str], Path]] = []

    def run(command: list[str], cwd: Path, check: bool) -> SimpleNamespace:
        started.append((command, cwd))
        return SimpleNamespace(returncode=5)

    monkeypatch.setattr(subprocess, "run", run)
    assert headcodes("bench", "--suite", "speed").exit_code == 5
    ((command, cwd),) = started
    assert cwd == ROOT
    assert command[1:4] == ["-m", "pytest", str(ROOT / "bench")]
    # The command itself, as far as collecting: it names every benchmark and times none.
    monkeypatch.undo()
    collecting = [*command, "--collect-only", "-q"]
    done = subprocess.run(collecting, cwd=cwd, capture_output=True, text=True, env=outside_xdist)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("test_capture", "test_encode", "test_overlap", "test_train", "test_scan", "test_report"):
        assert f"bench/{name}.py::" in done.stdout
