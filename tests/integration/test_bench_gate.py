"""Benchmarks of what is red are held back; kept ones go into the ledger; a second run is compared with the first."""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
TIMED = """
def test_sum(benchmark):
    benchmark.extra_info["of"] = 100
    benchmark.pedantic(sum, (range(100),), rounds=3)
"""
TESTED = """
from pathlib import Path

def test_it():
    runs = Path(__file__).with_name("runs")
    runs.write_text(runs.read_text() + "+" if runs.exists() else "+")
    assert {right}
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """One benchmark and the tests of what it times, and the bench folder's own conftest.py."""
    for folder in ("bench", "tests/unit/codes", "python"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(BENCH / "conftest.py", tmp_path / "bench")
    (tmp_path / "bench" / "test_encode.py").write_text(TIMED)
    (tmp_path / "python" / "encode.py").write_text("")
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --import-mode=importlib\nmarkers = slow: minutes\n")
    return tmp_path


@pytest.fixture
def bench(checkout: Path, outside_xdist: dict[str, str]) -> Callable[..., str]:
    """``bench("--benchmark-autosave")`` runs the checkout's benchmarks and gives all that was printed."""

    def call(*options: str) -> str:
        command = [sys.executable, "-m", "pytest", "bench", "--benchmark-enable", "--benchmark-only", "-rs", *options]
        done = subprocess.run(command, cwd=checkout, capture_output=True, text=True, env=outside_xdist)
        return done.stdout + done.stderr

    return call


def write_tests(checkout: Path, right: bool) -> None:
    (checkout / "tests" / "unit" / "codes" / "test_codes.py").write_text(TESTED.format(right=right))


def test_red_tests_hold_the_time_back_and_green_ones_are_run_once(checkout: Path, bench: Callable[..., str]) -> None:
    write_tests(checkout, right=False)
    out = bench("--benchmark-autosave")
    assert "1 skipped" in out, out
    assert "nothing is timed while its tests are red: unit/codes/test_codes.py (1 failed" in out
    assert "Median" not in out
    ledger = checkout / "bench" / "results" / "ledger.csv"
    assert not ledger.exists()
    write_tests(checkout, right=True)
    assert "1 passed" in bench("--benchmark-autosave")
    with ledger.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["benchmark"], row["rounds"], row["extra"]) for row in rows] == [
        ("test_encode.py", "test_sum", "3", '{"of": 100}')
    ]
    first = rows[0]
    assert float(first["min_s"]) <= float(first["p25_s"]) <= float(first["median_s"]) <= float(first["max_s"])
    assert "torch" in first["versions"]
    # Another run against the last one that was kept; nothing is kept of this one.
    out = bench("--benchmark-compare", "--benchmark-compare-fail=median:100000%")
    assert "test_sum (0001_" in out, out
    assert "test_sum (NOW)" in out
    assert ledger.read_text().count("test_sum") == 1
    assert (checkout / "tests" / "unit" / "codes" / "runs").read_text() == "++"  # once red, once green, then remembered
    # Other sources, other verdict.
    (checkout / "python" / "encode.py").write_text("changed = True")
    write_tests(checkout, right=False)
    assert "1 skipped" in bench("--benchmark-compare")


def test_every_file_of_benchmarks_has_tests_that_exist() -> None:
    import importlib.util

    spec = importlib.util.spec_from_file_location("bench_conftest", BENCH / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.TESTS) == {path.stem for path in BENCH.glob("test_*.py")}
    for tests in module.TESTS.values():
        assert all((BENCH.parent / "tests" / test).is_file() for test in tests)
