"""The report of a real scan: SmolLM2, three tasks, three methods; and the screenshots of README and docs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headcodes import tasks
from headcodes.discovery import explain
from headcodes.evaluation.evaluate import evaluate_circuit
from headcodes.methods.inputs import Inputs
from headcodes.prompts.tokens import tokenize
from headcodes.report import write_report

from .conftest import Opened

pytestmark = [pytest.mark.real, pytest.mark.slow]
TASKS, METHODS = ("ioi", "greater-than", "gendered-pronoun"), ("default", "paper", "mean-diff")
# Ignored by git: a good one is copied to docs/images by hand, after a look at it.
PICTURES = Path(__file__).parents[2] / "out" / "report"


@pytest.fixture(scope="module")
def scan(smollm2: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scan")
    for task in TASKS:
        tokens = tokenize(tasks.get(task).build(smollm2.tokenizer, n=60, seed=0), smollm2.tokenizer, "auto")
        inputs = Inputs(smollm2, tokens)
        for method in METHODS:
            result = explain(inputs, method, level="node" if method == "mean-diff" else "edge", seed=0)
            result.save(folder / f"{task}-{method}", model=smollm2)
            if task == "ioi":
                judge = {"n_pairs": 8, "n_resamples": 100, "with_curve": method == "default", "n_random": 2}
                found = evaluate_circuit(result.circuit(), smollm2, tokens, **judge).as_dict()
                (folder / f"{task}-{method}" / "evaluation.json").write_text(json.dumps(found), encoding="utf-8")
    write_report([folder], folder / "report.html")
    PICTURES.mkdir(parents=True, exist_ok=True)
    return folder / "report.html"


@pytest.mark.parametrize(
    ("name", "at", "context"),
    [
        ("overview-light", "", {"color_scheme": "light"}),
        ("run-light", "#run-6", {"color_scheme": "light", "viewport": {"width": 1280, "height": 1590}}),
        ("run-dark", "#run-6", {"color_scheme": "dark", "viewport": {"width": 1280, "height": 1590}}),
        ("compare-light", "#compare-6-8", {"color_scheme": "light", "viewport": {"width": 1280, "height": 1640}}),
        ("run-phone", "#run-6", {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}),
    ],
)
def test_a_real_scan_reads_well(
    open_report: Callable[..., Opened], scan: Path, name: str, at: str, context: dict[str, Any]
) -> None:
    assert scan.stat().st_size < 15e6
    opened = open_report(scan, at=at, **context)
    page = opened.page
    if not at:
        assert page.locator("#runs tbody tr").count() == len(TASKS) * len(METHODS)
        assert page.locator(".matrix .cell").count() == len(TASKS)
    if at == "#run-6":
        assert "smollm2-135m · ioi · default" in page.locator("h1:visible").inner_text()
        menu = page.locator('select[data-role="quantity"] option').all_inner_texts()
        where = ["score: changed", "score: between", "score: last"]
        assert menu == ["score", *where, "causal effect"]
        titles = page.locator("#view-run h2").all_inner_texts()
        places = "Where in the prompt"
        assert titles[:6] == ["Heads", "Circuit", places, "Codes", "Attention", "Against a truth"]
    for plot in page.locator(".plot:visible").all():
        plot.scroll_into_view_if_needed()
        plot.locator("svg.main-svg").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    page.evaluate("scrollTo(0, 0)")
    page.screenshot(path=PICTURES / f"{name}.png", full_page=not at)
