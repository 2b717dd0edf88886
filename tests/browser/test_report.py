"""The report in a real browser: what a reader sees and does."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.report import RunRecord

from .conftest import Opened

Show = Callable[..., Opened]
MakeRun = Callable[..., RunRecord]
HOSTILE = [
    "</script><script>alert('script')</script>",
    "<img src=x onerror=\"alert('img')\">",
    "'\"><svg onload=alert(1)>",
    "\u202egnihtyreve srever\u202c and \u200b\u2066isolates\u2069",
    "<a href='javascript:alert(1)'>click</a> <b>bold</b> &amp; &lt;",
    "${alert(1)} {{alert(1)}} %{x} \\u003cscript\\u003e",
    "long " + "x" * 10_000,
    "line\none\u2028two\ttab \ud83d\ude00",
]


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


def test_one_run_shows_every_part(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=20)])
    page = opened.page
    assert "smollm2-135m · ioi · default · seed 0" in page.locator("h1").inner_text()
    titles = page.locator("h2").all_inner_texts()
    assert titles == ["Heads", "Circuit", "Codes", "Attention", "Against a truth", "Time", "Where it comes from"]
    for name in ("Heat map, 30 layers by 9 heads", "Layered graph of the circuit: 20 heads", "ROC curve", "Seconds a"):
        assert opened.drawn(name).is_visible()
    assert page.locator("nav").count() == 0
    assert "--task ioi --negative abc --n-prompts 20" in page.locator("pre.command").inner_text()
    assert page.locator("dd").filter(has_text="bfloat16").count() == 1


def test_heat_map_shows_what_was_asked_for(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=20)])
    assert "0.25 to 0.75" in opened.page.get_by_role("region", name="Chosen heads").inner_text()
    assert "not membership in the circuit" in opened.page.locator("#view-run").inner_text()
    assert "--fdr 0.05 --verify 3" in opened.page.locator("pre.command").inner_text()
    menu = opened.page.locator('select[data-role="quantity"]')
    assert menu.locator("option").all_inner_texts() == ["score", "p-value", "q-value", "causal effect", "exact effect"]
    for what in ("p-value", "causal effect"):
        menu.select_option(what)
        opened.settle()
        chart = opened.chart("Heat map, 30 layers by 9 heads: " + what)
        assert chart.is_visible()
        assert what in chart.text_content()


def test_hovering_tells_scores_codes_and_overlap(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    page = opened.page
    best = run.circuit.nodes[0]
    graph = opened.drawn("Layered graph")
    drawn = graph.locator(".points:has(path)")
    nodes, edges = drawn.last, drawn.first
    tested = ("→", "pairs of codes in", "p over all pairs", "q: ")
    for points, texts in ((nodes, (best, "codes in positives only", "Then, ")), (edges, tested)):
        box = points.locator("path").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        for text in texts:
            graph.locator(".hoverlayer .hovertext", has_text=text).wait_for()
    heat_map = opened.chart("Heat map,")
    heat_map.scroll_into_view_if_needed()
    box = heat_map.locator(".nsewdrag").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 60, box["y"] + box["height"] / 18)
    for text in ("a0.h0", "score", "rank"):
        heat_map.locator(".hoverlayer .hovertext", has_text=text).wait_for()


def test_keys_walk_through_heads_and_choose_one(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    page = opened.page
    opened.chart("Heat map,").focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    figure = page.locator("figure", has=opened.chart("Heat map,"))
    assert figure.get_by_role("status").inner_text().startswith("a1.h1: score ")
    opened.chart("Layered graph").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    second = opened.page.locator("figure", has=opened.chart("Layered graph")).get_by_role("status").inner_text()
    assert second.startswith(run.circuit.nodes[1] + ": score")
    page.keyboard.press("Enter")
    assert page.locator('select[data-role="code-head"]').input_value() == run.circuit.nodes[1]
    assert page.locator('select[data-role="attention-head"]').input_value() == run.circuit.nodes[1]


def test_graph_zooms_and_returns(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=20)])
    graph = opened.chart("Layered graph")
    span = "(plot) => plot._fullLayout.xaxis.range[1] - plot._fullLayout.xaxis.range[0]"
    whole = graph.evaluate(span)
    opened.page.get_by_role("button", name="Zoom in").click()
    assert graph.evaluate(span) == pytest.approx(0.7 * whole)
    opened.page.get_by_role("button", name="Reset the view").click()
    assert graph.evaluate(span) == pytest.approx(whole)


def test_edges_that_were_tested_show_p_and_q(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    figure = opened.page.locator("figure", has=opened.chart("Layered graph"))
    figure.locator("summary").click()
    figure.locator("tbody tr").first.wait_for()
    heads = figure.locator("thead th").all_inner_texts()
    assert heads == ["from", "to", "score", "p over all pairs", "q"]
    (source, target), score = next(iter(run.circuit.edge_scores.items()))
    cells = figure.locator("tbody tr").first.locator("th, td").all_inner_texts()
    assert cells[:4] == [source, target, f"{score:.0f}", f"{1 / (1 + score):.4g}"]
    q = run.arrays["pair_q_values"][0, [layer * 9 + head for layer, head in (pair[1] for pair in run.circuit.pairs)]]
    assert np.isnan(q).any()  # q is taken among some pairs only
    shown = figure.locator("tbody td:nth-child(5)").all_inner_texts()
    assert shown == ["–" if np.isnan(one) else f"{one}" for one in q]
    plain = open_report([make_run(n_pairs=20, rich=False)])
    figure = plain.page.locator("figure", has=plain.chart("Layered graph"))
    figure.locator("summary").click()
    figure.locator("tbody tr").first.wait_for()
    assert figure.locator("thead th").all_inner_texts() == ["from", "to", "score"]


def test_charts_are_drawn_when_they_come_near_the_screen(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=20)])
    page = opened.page
    assert opened.chart("Heat map,").locator("svg.main-svg").count() > 0
    last = opened.chart("Seconds a")
    assert last.locator("svg.main-svg").count() == 0
    height = last.bounding_box()["height"]
    opened.drawn("Seconds a")
    assert last.bounding_box()["height"] == height  # what is below does not jump
    roc = opened.chart("ROC")
    page.evaluate("document.querySelectorAll('.plot').forEach((plot) => plot.dataset.had = !!plot.children.length)")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator(".plot:has(svg.main-svg)").count() == page.locator(".plot").count()
    assert roc.locator("svg.main-svg").count() > 0


def test_a_page_says_what_it_lacks_and_how_to_get_it(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20, rich=False)
    whole = replace(run, pairs=None, document={**run.document, "whole_page": "headcodes discover --task <ioi>"})
    opened = open_report([whole])
    page = opened.page
    said = page.locator(".absent li").all_inner_texts()
    assert len(said) == 2
    assert "a scan's store keeps neither" in said[0]
    assert "headcodes discover --task <ioi>" in said[0]
    assert "headcodes evaluate cell/circuit.json" in said[1]
    assert open_report([make_run(n_pairs=20)]).page.locator(".absent").count() == 0


def test_every_picture_has_words_and_a_table(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    figures = opened.page.locator("figure")
    assert figures.count() == 7
    for figure in figures.all():
        assert len(figure.get_by_role("img").first.get_attribute("aria-label")) > 20
        figure.locator("summary").click()
        figure.locator("details tbody tr").nth(1).wait_for()
        assert figure.locator("details tbody tr").count() > 1
    cells = figures.first.locator("details tbody tr").nth(3).locator("td").all_inner_texts()
    assert cells == [f"{score:.0f}" for score in run.head_values["score"][3]]


def test_code_browser_counts_prompts_of_both_sides(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=40)
    opened = open_report([run])
    page = opened.page
    head = run.circuit.nodes[2]
    page.get_by_role("button", name=head, exact=True).click()
    browser = page.locator("div", has=page.locator('select[data-role="code-head"]')).last.locator("xpath=..")
    codes = run.arrays["codes"][:, run.circuit.heads[2][0] * 9 + run.circuit.heads[2][1]]
    judged = run.arrays["judged"]
    table = page.locator("table", has_text=f"Codes of {head}")
    only = [code for code in set(codes[:40][judged[:40]]) - {-1} if code not in codes[40:][judged[40:]]]
    assert table.locator("tr.only").count() == len(only) == run_score(run, 2)
    code = only[0]
    row = table.get_by_role("row", name=f"{code} ").filter(has=page.locator(f'th:text-is("{code}")'))
    assert row.locator("td").nth(0).inner_text().strip() == str((codes[:40][judged[:40]] == code).sum())
    row.get_by_role("button").click()
    listed = table.locator("tr:visible .prompt").all_inner_texts()
    assert listed == [run.pairs[i].clean for i in range(40) if codes[i] == code]
    page.locator('input[data-role="code-filter"]').fill("then, john")
    n = sum("then, john" in text.lower() for pair in run.pairs for text in (pair.clean, pair.corrupt))
    assert f"in {n} of 80 prompts" in browser.inner_text()


def run_score(run: RunRecord, rank: int) -> int:
    """Codes of judged prompts only: the drawn scores count all prompts."""
    layer, head = run.circuit.heads[rank]
    codes, judged = run.arrays["codes"][:, layer * run.circuit.n_heads + head], run.arrays["judged"]
    half = len(codes) // 2
    return len(set(codes[:half][judged[:half]]) - set(codes[half:][judged[half:]]) - {-1})


def test_attention_of_another_head_and_prompt(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    page = opened.page
    page.locator('select[data-role="attention-head"]').select_option(run.circuit.nodes[4])
    page.locator('select[data-role="attention-prompt"]').select_option("negative of pair 2")
    chart = opened.drawn(f"Heat map of the attention of {run.circuit.nodes[4]}")
    pattern = run.attention[3].patterns[4]
    drawn = chart.evaluate("(plot) => plot.data[0].z.map((row) => [...row])")
    assert len(drawn) == len(pattern)
    for i, row in enumerate(drawn):
        assert row[: i + 1] == pytest.approx(pattern[i, : i + 1].tolist(), abs=0.003)
        assert row[i + 1 :] == [None] * (len(row) - i - 1)
    assert run.pairs[1].corrupt in page.locator("#view-run").inner_text()


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
    stats = pytest.importorskip("scipy.stats")
    value = stats.spearmanr(one.document["head_scores"], other.document["head_scores"]).statistic
    return f"{value:.4g}".rstrip("0")


def test_hostile_prompts_and_names_stay_text(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(HOSTILE[0], HOSTILE[1], HOSTILE[2], n_pairs=12, shape=(3, 3), prompts=HOSTILE)
    other = make_run(HOSTILE[4], HOSTILE[1], HOSTILE[2], n_pairs=12, shape=(3, 3), error=HOSTILE[0])
    opened = open_report([run, other, make_run(HOSTILE[0], HOSTILE[1], HOSTILE[2], seed=1, n_pairs=12, shape=(3, 3))])
    page = opened.page
    assert HOSTILE[0] in page.locator("#runs tbody tr").first.inner_text()
    page.locator("#runs tbody tr").first.get_by_role("link").click()
    page.locator("#view-run h1").wait_for()
    opened.settle()
    assert HOSTILE[0] in page.locator("#view-run h1").inner_text()
    for button in page.locator("#view-run .codes tbody button").all():
        button.click()
    listed = page.locator("#view-run .prompt").all_text_contents()
    for text in HOSTILE[:6]:
        assert text in listed
    assert any(text.startswith("long xxx") and "10,006 characters" in text and len(text) < 700 for text in listed)
    for prompt in ("positive of pair 1", "negative of pair 2"):
        page.locator('select[data-role="attention-prompt"]').select_option(prompt)
    page.evaluate("location.hash = 'compare-0-2'")
    page.locator("#view-compare h2").first.wait_for()
    opened.settle()
    # None of it became an element, in the page or in a chart.
    assert page.locator("main script, main img, main a[href^=javascript], svg a, main bdi b").count() == 0
    assert page.evaluate("document.querySelectorAll('script:not([type])').length") == 2  # the page's and plotly


def test_nothing_but_the_report_s_own_scripts_may_run(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=8, shape=(2, 2))])
    page = opened.page
    page.evaluate(
        """() => { const script = document.createElement("script"); script.textContent = "window.injected = 1";
                   document.body.append(script); fetch("https://example.invalid/").catch(() => {}); }"""
    )
    page.wait_for_timeout(100)
    assert page.evaluate("window.injected") is None
    refused = [fault for fault in opened.faults if "Content Security Policy" in fault]
    assert len(refused) >= 2
    opened.faults.clear()


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


def test_a_finger_scrolls_past_charts_and_a_tap_tells_values(open_report: Show, make_run: MakeRun) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
    opened = open_report([make_run(n_pairs=20)], **phone)
    page = opened.page
    finger = page.context.new_cdp_session(page)
    graph = opened.drawn("Layered graph")
    graph.evaluate("(plot) => plot.scrollIntoView({ block: 'center' })")
    opened.settle()
    before, span = page.evaluate("scrollY"), graph.evaluate("(plot) => plot._fullLayout.yaxis.range")
    box = graph.bounding_box()
    x, y = box["x"] + 120, box["y"] + box["height"] / 2
    finger.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
    for step in range(1, 16):
        finger.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [{"x": x, "y": y - 12 * step}]})
        page.wait_for_timeout(16)
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("(before) => scrollY > before + 100", arg=before)
    assert graph.evaluate("(plot) => plot._fullLayout.yaxis.range") == span
    heat_map = opened.drawn("Heat map,")
    box = heat_map.locator(".nsewdrag").bounding_box()
    page.touchscreen.tap(box["x"] + 60, box["y"] + 60)
    heat_map.locator(".hoverlayer .hovertext", has_text="rank").wait_for()


def test_charts_follow_the_colour_scheme(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=8, shape=(3, 3))], color_scheme="light")
    page = opened.page
    ink = "(plot) => getComputedStyle(plot.querySelector('.xtitle')).fill"
    light = opened.chart("Heat map").first.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"(before) => ({ink})(document.querySelector('.plot')) !== before", arg=light)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 29)"


def test_pictures_can_be_saved(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=8, shape=(3, 3))])
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Save score of heads as SVG").click()
    assert Path(download.value.path()).read_text(encoding="utf-8").startswith("<svg")
    with opened.page.expect_download() as download:
        opened.page.get_by_role("button", name="Save circuit as PNG").click()
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


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
