"""The page of one run in a real browser: what a reader sees and does."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from headcodes.report import RunRecord

from .conftest import MakeRun, Show

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


def test_one_run_shows_every_part(open_report: Show, make_run: MakeRun) -> None:
    opened = open_report([make_run(n_pairs=20)])
    page = opened.page
    assert "smollm2-135m · ioi · default · seed 0" in page.locator("h1").inner_text()
    titles = page.locator("h2").all_inner_texts()
    parts = ["Heads", "Circuit", "Where in the prompt", "Codes", "Attention", "Against a truth", "Time"]
    assert titles == [*parts, "Where it comes from"]
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


def test_a_chart_tells_where_in_the_prompt_a_head_matters(open_report: Show, make_run: MakeRun) -> None:
    run = make_run(n_pairs=20)
    opened = open_report([run])
    first, third = run.circuit.nodes[0], run.circuit.nodes[2]
    bars = opened.drawn("Bar chart of the score of")
    said = f"Bar chart of the score of {first} at 3 places of the prompt. It is largest at last token (to): 1."
    assert bars.get_attribute("aria-label") == said
    assert bars.locator(".points .point").count() == 3
    opened.page.locator('select[data-role="position-head"]').select_option(third)
    assert "score of " + third in str(opened.drawn("Bar chart of the score of").get_attribute("aria-label"))
    # Whoever is chosen elsewhere is shown here too.
    opened.page.get_by_role("button", name=first, exact=True).click()
    assert opened.page.locator('select[data-role="position-head"]').input_value() == first
    figure = opened.page.locator("figure", has=opened.chart("Bar chart of the score of"))
    figure.get_by_text("The same as a table").click()
    figure.locator("tbody tr").first.wait_for()
    assert [row.inner_text().split()[-1] for row in figure.locator("tbody tr").all()] == ["0.25", "-0.5", "1"]


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
    assert figures.count() == 8
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
    scored = run.arrays["scored_prompts"]
    table = page.locator("table", has_text=f"Codes of {head}")
    only = [code for code in set(codes[:40][scored[:40]]) - {-1} if code not in codes[40:][scored[40:]]]
    assert table.locator("tr.only").count() == len(only) == run_score(run, 2)
    code = only[0]
    row = table.get_by_role("row", name=f"{code} ").filter(has=page.locator(f'th:text-is("{code}")'))
    assert row.locator("td").nth(0).inner_text().strip() == str((codes[:40][scored[:40]] == code).sum())
    row.get_by_role("button").click()
    listed = table.locator("tr:visible .prompt").all_inner_texts()
    assert listed == [run.pairs[i].clean for i in range(40) if codes[i] == code]
    page.locator('input[data-role="code-filter"]').fill("then, john")
    n = sum("then, john" in text.lower() for pair in run.pairs for text in (pair.clean, pair.corrupt))
    assert f"in {n} of 80 prompts" in browser.inner_text()


def run_score(run: RunRecord, rank: int) -> int:
    """Codes of scored prompts only: the drawn scores count all prompts."""
    layer, head = run.circuit.heads[rank]
    codes, scored = run.arrays["codes"][:, layer * run.circuit.n_heads + head], run.arrays["scored_prompts"]
    half = len(codes) // 2
    return len(set(codes[:half][scored[:half]]) - set(codes[half:][scored[half:]]) - {-1})


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
