"""Every kernel compiles to real A100 and H100 code, in a process without the interpreter, and its registers hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

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
        assert row["shared_bytes"] <= row["estimated_shared_bytes"], f"pruning would let it through: {label}"
        product = {"fp32": {"FFMA"}}.get(row["precision"], {"HMMA", "HGMMA"})
        used = product & set(row["instructions"])
        assert used, f"no {' or '.join(sorted(product))}: {label}"
        # Whole warp groups of 64 rows multiply with Hopper's own instruction.
        if row["capability"] == 90 and row["precision"] != "fp32" and row["blocks"]["BLOCK_N"] >= 64:
            assert "HGMMA" in used, f"falls back to Ampere's instruction: {label}"


def test_every_kernel_and_precision_compiles_without_spills(tmp_path):
    rows = compiled(tmp_path, "--first-only", "--d-head", "128")
    assert {(r["kernel"], r["precision"], r["capability"]) for r in rows} == {
        (kernel, precision, capability)
        for kernel in ("folded", "unfolded")
        for precision in ("fp32", "tf32", "bf16", "fp16")
        for capability in (80, 90)
    }
    check(rows)


# Bytes of shared memory a block may have: H100, A100, and the cards of 99 KiB (RTX 30 to 50, L4, L40).
CARDS = {90: 232_448, 80: 166_912, 89: 101_376}


@pytest.mark.parametrize("capability", [90, 89])
def test_no_configuration_that_does_not_fit_a_card_is_launched_on_it(tmp_path, capability):
    """In the widest type, with the widest heads held whole: there most configurations are too large."""
    limit = CARDS[capability]
    wanted = ["--precision", "tf32", "--d-head", "256", "--capability", str(capability), "--shared-limit", str(limit)]
    rows = compiled(tmp_path, *wanted)
    assert {row["kernel"] for row in rows} == {"folded", "unfolded"}
    assert all(row["shared_bytes"] <= limit for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("capability", CARDS)
def test_every_configuration_that_a_card_gets_fits_it(tmp_path, capability):
    limit = CARDS[capability]
    sizes = ["64", "128", "256", "512"]
    rows = compiled(tmp_path, "--d-head", *sizes, "--capability", str(capability), "--shared-limit", str(limit))
    assert len({(row["kernel"], row["precision"], row["d_head"]) for row in rows}) == 2 * 4 * len(sizes)
    assert all(row["shared_bytes"] <= limit for row in rows)


@pytest.mark.slow
def test_every_configuration_compiles_without_spills(tmp_path):
    check(compiled(tmp_path))


@pytest.mark.slow
def test_heads_of_uneven_and_of_very_wide_dimension_compile(tmp_path):
    assert compiled(tmp_path, "--first-only", "--d-head", "80", "512")


def test_the_interpreter_is_refused():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "headcodes_kernels.aot"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "TRITON_INTERPRET" in done.stderr
