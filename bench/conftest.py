"""No time without right results, and a ledger of times.

Before the first benchmark of a file runs, the tests of the operation that it times are run once; where they are red the
file's benchmarks skip, so that no time and no ratio of a wrong result is ever printed or kept. What `make bench` keeps,
it also appends to bench/results/ledger.csv.
"""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headcodes.files import atomic_write, checksum
from headcodes.provenance import versions

ROOT = Path(__file__).resolve().parents[1]
# What must be green before a file's benchmarks count.
TESTS = {
    "test_capture": ("unit/activations/test_activations.py",),
    "test_check": ("unit/models/test_check.py",),
    "test_discover": (
        "integration/test_discovery.py",
        "integration/test_discovery_seeds.py",
        "unit/evaluation/test_confirm.py",
        "unit/interventions/test_paths.py",
    ),
    "test_encode": ("unit/codes/test_codes.py",),
    "test_overlap": ("unit/overlap/test_overlap.py", "unit/overlap/test_significance.py"),
    "test_overlap_significance": ("unit/overlap/test_significance.py",),
    "test_report": ("unit/report/test_report.py", "unit/report/test_report_figures.py"),
    "test_scan": ("unit/scan/test_scan_plan.py", "unit/scan/test_scan_store.py"),
    "test_store": ("unit/store/test_packs.py", "unit/scan/test_scan_store.py", "unit/report/test_report_folders.py"),
    "test_train": ("unit/codes/test_sae.py",),
}
COLUMNS = (
    *("date", "file", "benchmark", "rounds", "min_s", "p25_s", "median_s", "p75_s", "max_s", "extra"),
    *("cpu", "cores", "threads", "gpu", "versions", "commit"),
)


@pytest.fixture(scope="module", autouse=True)
def green(request: pytest.FixtureRequest) -> None:
    """Skip the file's benchmarks where the tests of what it times are red."""
    if request.config.getoption("benchmark_enable"):
        name = request.path.stem
        reason = red(TESTS[name])
        if reason is not None:
            pytest.skip(f"nothing is timed while its tests are red: {reason}")


def red(tests: tuple[str, ...]) -> str | None:
    """Run test files and return how they fail, None where they do not; that is remembered until sources change."""
    files = [ROOT / "tests" / test for test in tests]
    sources = sorted(
        path
        for folder in ("python", "kernels", "csrc")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".hpp")
    )
    state = [checksum(path) for path in (*sources, *files)]
    verdict = ROOT / "build" / "green" / checksum(json.dumps(state).encode())[:24]
    if verdict.exists():
        return None
    command = [sys.executable, "-m", "pytest", *map(str, files), "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode != 0:
        lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()
        return f"{', '.join(tests)} ({lines[-1] if lines else f'status {done.returncode}'})"
    with atomic_write(verdict) as path:
        path.write_text("\n".join(tests), encoding="utf-8")
    return None


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    """Append what is being kept to the ledger."""
    if not config.getoption("benchmark_autosave"):
        return
    machine = {
        "date": output_json["datetime"],
        "cpu": output_json["machine_info"]["cpu"].get("brand_raw", ""),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "versions": " ".join(f"{name} {version}" for name, version in versions().items()),
        "commit": output_json["commit_info"].get("id", "") + "+" * bool(output_json["commit_info"].get("dirty")),
    }
    ledger = ROOT / "bench" / "results" / "ledger.csv"
    text = io.StringIO()
    sheet = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not ledger.exists():
        sheet.writeheader()
    for each in output_json["benchmarks"]:
        stats = each["stats"]
        percentiles = {f"p{25 * part}_s": stats[f"q{part}"] for part in (1, 3)}
        times = {f"{name}_s": stats[name] for name in ("min", "median", "max")}
        sheet.writerow(
            machine
            | {key: f"{seconds:.6g}" for key, seconds in (percentiles | times).items()}
            | {
                "file": Path(each["fullname"].split("::")[0]).name,
                "benchmark": each["name"],
                "rounds": stats["rounds"],
                "extra": json.dumps(each["extra_info"], default=float),
            }
        )
    before = ledger.read_text(encoding="utf-8") if ledger.exists() else ""
    with atomic_write(ledger) as path:
        path.write_text(before + text.getvalue(), encoding="utf-8")
