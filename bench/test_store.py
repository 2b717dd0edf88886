"""Claims: a store of 20,000 finished cells is read for the first time, and asked what is left to do, in 2 s each; a
report of 4,000 cells is less than 10 MB.

Against the same cells with a file each, as a store has them before they are packed, in one run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.report import page as written
from headcodes.report import write_report
from headcodes.store import packs
from headcodes.store.cells import DAMAGE, SCHEMA, Store, _read_table, load_store, statuses

N_CELLS = 20_000
FOUND = {name: [("torch", "2.13"), ("headcodes", "0.1")] for name in ("versions",)} | {
    "timings_s": [("load", 1.0), ("capture", 0.5), ("total", 1.5)],
    **dict.fromkeys(("n_pairs", "n_prompts", "n_train", "threads", "prompt_seed", "peak_memory_bytes"), 1),
    **dict.fromkeys(("task", "negative", "method", "level", "device", "dtype", "positions", "host", "family"), "x"),
}


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def fill(folder: Path, n_cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a store of so many cells, each in a file of its own."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)  # writing is not what is timed
        patch.setattr(packs, "WORTH", n_cells + 1)
        store, draw = Store(folder), np.random.default_rng(0)
        for number in range(n_cells):
            row = {"identity": f"{number:032x}", "status": "done", "model": f"m{number % 20}", "seed": number // 20}
            store.write(row | FOUND | {"head_scores": draw.random(144).tolist(), "n_layers": 12, "n_heads": 12}, {})


@pytest.mark.benchmark(group="store")
@pytest.mark.parametrize("asked", ["load_store", "statuses"])
def test_a_large_store(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    fill(tmp_path, N_CELLS, monkeypatch)
    identities = [f"{number:032x}" for number in range(N_CELLS)]
    ask = {"load_store": lambda: load_store(tmp_path), "statuses": lambda: statuses(tmp_path, identities)}[asked]
    before = load_store(tmp_path)
    single_s = seconds(ask)
    pack_s = seconds(lambda: packs.pack(tmp_path / "cells", _read_table, DAMAGE))
    benchmark.pedantic(ask, rounds=3)
    after = load_store(tmp_path)
    assert after.schema.equals(SCHEMA)
    assert after.equals(before)
    assert len(list((tmp_path / "cells").iterdir())) == N_CELLS // packs.WORTH + N_CELLS % packs.WORTH
    benchmark.extra_info.update(single_s=single_s, pack_s=pack_s, ratio=single_s / benchmark.stats.stats.mean)
    print(dict(benchmark.extra_info), benchmark.stats.stats.mean)


@pytest.mark.benchmark(group="store")
def test_a_report_of_4000_cells(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path / "store", 4000, monkeypatch)
    packs.pack(tmp_path / "store" / "cells", _read_table, DAMAGE)
    page = tmp_path / "page.html"
    assert benchmark.pedantic(lambda: write_report([tmp_path / "store"], page), rounds=3) == 4000
    size = page.stat().st_size
    with monkeypatch.context() as patch:
        for name, value in (("RUN_BYTES", 1 << 40), ("DETAIL_BYTES", 1 << 40), ("MOST_ROWS", 1 << 20)):
            patch.setattr(written, name, value)
        whole_s = seconds(lambda: write_report([tmp_path / "store"], page))
    assert size < 10_000_000
    benchmark.extra_info.update(bytes=size, whole_bytes=page.stat().st_size, whole_s=whole_s)
    print(dict(benchmark.extra_info), benchmark.stats.stats.mean)
