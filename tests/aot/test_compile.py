"""Kernels become real A100 and H100 code, in a process without the interpreter; registers and shared memory hold it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

pytest.importorskip("triton")
_configs = pytest.importorskip("headcodes_kernels._configs")

# Spilling a register or two outside the loops costs nothing that could be seen.
FREE_STACK_BYTES = 16


def compiled(tmp_path, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    command = [sys.executable, "-W", "ignore", "-m", "headcodes_kernels.aot", "--json", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows):
    for row in rows:
        label = {k: v for k, v in row.items() if k != "instructions"}
        assert row["stack_bytes"] <= FREE_STACK_BYTES, f"registers spill: {label}"
        assert row["instructions"].get("FFMA", 0) > 100, f"no IEEE product: {label}"
        assert not {"HMMA", "HGMMA"} & set(row["instructions"]), f"rounded products: {label}"
        assert row["shared_bytes"] <= _configs.SHARED_BYTES, f"does not fit a card of 99 KiB: {label}"


def test_every_configuration_compiles_without_spills_and_fits_the_smallest_card(tmp_path):
    """Whatever the autotuner launches fits an RTX 30 to 50, L4 or L40, hence also A100 and H100."""
    rows = compiled(tmp_path, "--d-head", "128", "256")
    assert Counter((row["kernel"], row["capability"], row["d_head"]) for row in rows) == {
        (kernel, capability, d_head): len(getattr(_configs, kernel.upper()))
        for kernel in ("folded", "unfolded")
        for capability in (80, 90)
        for d_head in (128, 256)
    }
    check(rows)
    # A head's width is an argument of the code and not built into it: wide heads ask for no more of a card.
    narrow, wide = ([row | {"d_head": None} for row in rows if row["d_head"] == d_head] for d_head in (128, 256))
    assert narrow == wide


@pytest.mark.slow
def test_heads_of_other_widths_compile(tmp_path):
    rows = compiled(tmp_path, "--d-head", "64", "80", "256", "512", "--capability", "80", "89", "90")
    check(rows)


def test_the_interpreter_is_refused():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "headcodes_kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "TRITON_INTERPRET" in done.stderr
