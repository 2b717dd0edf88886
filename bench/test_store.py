"""Claim: a store of 20,000 finished cells is read for the first time, and asked what is left to do, in 2 s each.

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


@pytest.mark.benchmark(group="store")
@pytest.mark.parametrize("asked", ["load_store", "statuses"])
def test_a_large_store(benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    worth = packs.WORTH
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)  # writing is not what is timed
        patch.setattr(packs, "WORTH", N_CELLS + 1)
        store, draw = Store(tmp_path), np.random.default_rng(0)
        for number in range(N_CELLS):
            row = {"identity": f"{number:032x}", "status": "done", "model": f"m{number % 20}", "seed": number}
            store.write(row | FOUND | {"head_scores": draw.random(144).tolist()}, {})
    identities = [f"{number:032x}" for number in range(N_CELLS)]
    ask = {"load_store": lambda: load_store(tmp_path), "statuses": lambda: statuses(tmp_path, identities)}[asked]
    before = load_store(tmp_path)
    single_s = seconds(ask)
    pack_s = seconds(lambda: packs.pack(tmp_path / "cells", _read_table, DAMAGE))
    benchmark.pedantic(ask, rounds=3)
    after = load_store(tmp_path)
    assert after.schema.equals(SCHEMA)
    assert after.equals(before)
    assert len(list((tmp_path / "cells").iterdir())) == N_CELLS // worth + N_CELLS % worth
    benchmark.extra_info.update(single_s=single_s, pack_s=pack_s, ratio=single_s / benchmark.stats.stats.mean)
    print(dict(benchmark.extra_info), benchmark.stats.stats.mean)
