"""A device that is lost ends a worker process, and neither the scan nor the cells after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from headcodes import discovery
from headcodes.scan import Plan, local, scan

serve = local._serve


def serve_and_lose(*arguments: Any) -> None:
    """Live as a worker process, whose CUDA device is lost at every cell of seed 1."""
    explain: Callable[..., Any] = discovery.explain

    def losing(*args: Any, seed: int, **kwargs: Any) -> Any:
        if seed == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return explain(*args, seed=seed, **kwargs)

    with mock.patch.object(discovery, "explain", losing):
        serve(*arguments)


def test_a_lost_device_costs_its_cell_and_no_other(tmp_path: Path) -> None:
    plan = Plan.from_lists("planted-ioi", "ioi", "act-norm", "0-3", n_prompts=6)
    with mock.patch.object(local, "_serve", serve_and_lose):
        rows = {row["seed"]: row for row in scan(plan, tmp_path, workers=2)}
    assert {seed: row["status"] for seed, row in rows.items()} == {0: "done", 1: "failed", 2: "done", 3: "done"}
    assert rows[1]["error"] == "its worker lost its CUDA device, twice"
