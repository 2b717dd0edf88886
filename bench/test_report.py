"""Claim: a report of 50 runs stays under 15 MB, can be used in under 2 s with the charts on screen drawn soon after,
takes less than 500 MB, and is written in seconds. The benchmark's own time is until those charts are drawn."""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headcodes.report import write_report

_SHOW = Path(__file__).parents[1] / "tests" / "browser" / "conftest.py"
# The page's own clock: from outside, a busy page is only seen once it has drawn its charts.
_WATCH = """new MutationObserver(() => {
    if (document.documentElement?.dataset.ready) window.usable ??= performance.now();
}).observe(document, { attributes: true, subtree: true, childList: true });"""


@pytest.fixture(scope="module")
def samples() -> Any:
    """The browser tests' own runs and browser flags."""
    spec = importlib.util.spec_from_file_location("report_samples", _SHOW)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def report(samples: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    runs = [
        samples.sample_run(model, task, method)
        for model in ("alpha", "beta")
        for task in ("ioi", "greater-than", "docstring", "induction", "agreement")
        for method in ("default", "paper", "paper-scaled", "hybrid", "mean-diff")
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    before_s = time.perf_counter()
    assert write_report(runs, path) == 50
    return path, time.perf_counter() - before_s


@pytest.mark.parametrize("at", ["", "#run-3", "#compare-3-4"])
def test_opening_a_report_of_50_runs(benchmark: Any, samples: Any, report: tuple[Path, float], at: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path, write_s = report
    chromium = samples.find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=list(samples.FLAGS))
        memory: list[float] = []
        usable_s: list[float] = []

        def opened() -> None:
            page = browser.new_page()
            page.add_init_script(_WATCH)
            page.goto(path.as_uri() + at)
            page.wait_for_selector('html[data-drawn="yes"]', state="attached")
            usable_s.append(page.evaluate("usable") / 1e3)
            session = page.context.new_cdp_session(page)
            session.send("Performance.enable")
            metrics = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
            memory.append(metrics["JSHeapUsedSize"] / 1e6)
            page.close()

        benchmark.pedantic(opened, rounds=5, iterations=1, warmup_rounds=1)
        browser.close()
    benchmark.extra_info |= {
        "size_mb": path.stat().st_size / 1e6,
        "write_s": write_s,
        "heap_mb": max(memory),
        "usable_s": statistics.median(usable_s),
    }
