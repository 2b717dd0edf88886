"""Many runs on one page: overview, comparison, and what holds on every view."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from headcodes.report import RunRecord

from .conftest import MakeRun, Opened, Show


@pytest.fixture(scope="module")
def scan(make_run: MakeRun) -> list[RunRecord]:
    """Two models, two tasks, three seeds; one run at node level and one that failed."""
    runs = [
        make_run(model, task, seed=seed, n_pairs=30, seconds=10.0 * seed + len(task), share_right=right)
        for model, task, right in (("alpha", "ioi", 0.99), ("alpha", "greater-than", 0.7), ("beta", "ioi", 0.9))
        for seed in range(3)
    ]
    node = make_run("beta", "docstring", level="node", rich=False, shape=(4, 4), n_pairs=8)
    return [*runs, node, make_run("gamma", "ioi", shape=(2, 2), n_pairs=4, error="out of memory at <layer> 3")]


def shown_rows(opened: Opened, column: int) -> list[str]:
    rows = opened.page.locator("#runs tbody tr:visible:not(:has(.error))")
    return [row.locator("td").nth(column).inner_text().split()[0] for row in rows.all()]


def test_overview_sorts(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    header = page.locator("#runs thead th").filter(has_text="seconds")
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    seconds = [float(value) for value in shown_rows(opened, 10)]
    assert seconds == sorted(seconds)
    header.get_by_role("button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert [float(value) for value in shown_rows(opened, 10)] == sorted(seconds, reverse=True)
    page.locator("#runs thead button").filter(has_text="task").first.click()
    tasks = shown_rows(opened, 2)
    assert tasks == sorted(tasks)
    assert header.get_attribute("aria-sort") == "none"


def test_overview_filters_by_words_columns_and_cells(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    assert page.locator("#count").inner_text() == "11 runs"
    page.locator('select[data-column="model"]').select_option("alpha")
    page.locator("#filter-text").fill("GREATER")
    assert shown_rows(opened, 2) == ["greater-than"] * 3
    assert page.locator("#count").inner_text() == "3 of 11 runs"
    page.get_by_role("button", name="Clear").click()
    page.locator("#count", has_text=re.compile("^11 runs$")).wait_for()
    page.locator(".cell", has_text="90% right").click()
    assert shown_rows(opened, 1) == ["beta"] * 3
    assert page.locator("#runs tbody tr .flag").count() == 3  # 70% right, whether shown or not


def test_failed_runs_say_why(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    row = page.locator("#runs tbody tr", has_text="gamma")
    assert "failed: out of memory at <layer> 3" in row.inner_text()
    row.get_by_role("link").click()
    page.locator("#view-run .error").wait_for()
    assert page.locator("#view-run figure").count() == 0


def test_a_run_opens_from_the_overview_and_back(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    page.locator("#runs tbody tr").nth(4).get_by_role("link").click()
    page.locator("#view-run h1").wait_for()
    opened.settle()
    assert "alpha · greater-than · default · seed 1" in page.locator("#view-run h1").inner_text()
    assert "answers only 70.0%" in page.locator("#view-run .warning").inner_text()
    assert page.locator("#view-run").get_by_role("img", name="Scores of the best heads under 3 seeds").is_visible()
    page.go_back()
    page.locator("#view-overview").wait_for()
    assert not page.locator("#view-run").is_visible()
    node = open_report(scan, at="#run-9")
    assert "at node level only heads are scored" in node.page.locator("#view-run").inner_text()


def test_of_many_runs_those_without_a_view_stand_in_the_list(
    open_report: Show, scan: list[RunRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    from headcodes.report import page as written

    monkeypatch.setattr(written, "RUN_BYTES", 100_000)
    opened = open_report(scan, at="#run-8")  # the third seed of its kind
    page = opened.page
    assert page.locator("#view-overview").is_visible()
    assert not page.locator("#view-run").is_visible()
    n_views = page.locator("#runs tbody tr").get_by_role("link").count()
    assert 0 < n_views < len(scan) == page.locator("#runs tbody tr").count()
    assert f"{len(scan) - n_views} of the runs" in page.locator("#view-overview .warning").inner_text()
    assert page.locator("#count").inner_text() == "11 runs"
    page.locator("#runs tbody tr").get_by_role("link").first.click()
    page.locator("#view-run h1").wait_for()
    opened.settle()
    page.go_back()
    page.get_by_role("link", name="Compare two").click()
    assert page.locator("#pick-first option").count() == page.locator("#runs .pick").count() < n_views + 1
    opened.settle()


def test_a_run_of_several_seeds_shows_how_far_they_agree(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20, rich=False)
    scores = run.head_values["score"] + np.arange(12)[:, None, None] % 3
    more = {"seeds": list(range(12)), "head_spread": scores.std(0).ravel().tolist(), "head_consensus": [0.5] * 270}
    pairs = {"pair_spread": np.full((270, 270), 1.5), "pair_consensus": np.full((270, 270), 0.25)}
    arrays = {**run.arrays, **pairs, "head_scores_by_seed": scores}
    opened = open_report([replace(run, document={**run.document, **more}, arrays=arrays)])
    page = opened.page
    assert "mean of 12 seeds" in page.locator("h1").inner_text()
    assert "means over 12 seeds" in page.locator("#view-run").inner_text()
    menu = page.locator('select[data-role="quantity"] option').all_inner_texts()
    assert menu == ["score", "spread", "consensus"]
    chart = opened.drawn("Scores of the best heads under 12 seeds")
    looks = chart.evaluate("(plot) => plot.data.slice(0, 12).map((one) => one.marker.color + one.marker.symbol)")
    assert len(set(looks)) == 12
    figure = page.locator("figure", has=opened.chart("Layered graph"))
    figure.locator("summary").click()
    figure.locator("tbody tr").first.wait_for()
    assert figure.locator("tbody tr").first.locator("td").all_inner_texts()[-2:] == ["1.5", "0.25"]


def test_two_runs_side_by_side(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    for row in (0, 1):
        page.locator("#runs tbody tr").nth(row).get_by_role("checkbox").click()
    page.locator("#view-compare h2").first.wait_for()
    opened.settle()
    first, second = scan[0].circuit.nodes, scan[1].circuit.nodes
    said = page.locator('[data-role="agreement"]').inner_text()
    assert f"{len(set(first) & set(second))} chosen heads in both" in said
    assert f"(Spearman): {spearman(scan[0], scan[1])}" in said
    maps = opened.chart("Heat map")
    assert maps.count() == 2
    left, right = (one.bounding_box() for one in maps.all())
    assert left["x"] + left["width"] <= right["x"]
    assert left["y"] == right["y"]
    assert opened.chart("Layered graph").count() == 2
    page.locator("#pick-second").select_option("9")
    page.locator('[data-role="agreement"]', has_text="differ in shape").wait_for()
    assert page.locator("#pick-first").input_value() == "0"


def spearman(one: RunRecord, other: RunRecord) -> str:
    value = spearmanr(one.document["head_scores"], other.document["head_scores"]).statistic
    return f"{value:.4g}".rstrip("0")


@pytest.mark.parametrize(
    ("at", "scheme"), [("", "light"), ("", "dark"), ("#run-0", "light"), ("#run-0", "dark"), ("#compare-0-9", "dark")]
)
def test_axe_finds_no_serious_fault(open_report: Show, scan: list[RunRecord], at: str, scheme: str) -> None:
    opened = open_report(scan, at=at, color_scheme=scheme)
    page = opened.page
    for summary in page.locator("main summary:visible").all():
        summary.click()
    for button in page.locator(".codes tbody button").all()[:2]:
        button.click()
    # In an isolated world the page's policy does not bind: axe is ours to run.
    axe = (Path(__file__).parent / "vendor" / "axe.min.js").read_text(encoding="utf-8")
    page.evaluate(axe)
    found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")["violations"]
    serious = [
        (fault["id"], fault["nodes"][0]["html"][:200], len(fault["nodes"]))
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]
    assert serious == []


@pytest.mark.parametrize("at", ["", "#run-0", "#compare-0-3"])
def test_a_phone_scrolls_downwards_only(open_report: Show, scan: list[RunRecord], at: str) -> None:
    opened = open_report(scan, at=at, viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 390


def test_tab_reaches_the_content_and_focus_is_visible(open_report: Show, scan: list[RunRecord]) -> None:
    opened = open_report(scan)
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    assert page.locator(".skip").bounding_box()["x"] >= 0
    seen: list[Any] = []
    for _ in range(14):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert "filter-text" in seen
    page.locator("#filter-text").focus()
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
