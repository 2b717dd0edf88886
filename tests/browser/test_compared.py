"""The overview's checkpoints and tasks in a real browser: light and dark, desk and phone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headcodes.report import RunRecord

from .conftest import Opened

HOSTILE = "<img src=x onerror=alert(1)> \u202e"
LOOKS = {
    f"{scheme}-{device}": {"color_scheme": scheme, "viewport": {"width": width, "height": 900}}
    for scheme in ("light", "dark")
    for device, width in (("desk", 1280), ("phone", 390))
}


@pytest.fixture(scope="module")
def along(make_run: Callable[..., RunRecord]) -> list[RunRecord]:
    """Five checkpoints of a model, two draws each, two tasks; a revision's name is hostile."""
    names = ["step1000", "step2000", "step4000", "step8000", f"{HOSTILE}16000"]
    runs = []
    for place, name in enumerate(names):
        for task in ("ioi", "induction"):
            for seed in (0, 1):
                run = make_run("pythia", task, seed=seed, n_pairs=20, rich=False, shape=(12, 8))
                scores = [score * (0.1 + place) / 4 for score in run.document["head_scores"]]
                document = dict(run.document) | {"revision": name, "head_scores": scores}
                runs.append(replace(run, document=document))
    return runs


@pytest.mark.parametrize("look", LOOKS)
def test_checkpoints_and_tasks_are_drawn_and_fit(
    open_report: Callable[..., Opened], along: list[RunRecord], look: str
) -> None:
    opened = open_report(along, **LOOKS[look])
    page: Any = opened.page
    assert page.locator("#checkpoint-groups h2").inner_text() == "Along checkpoints"
    assert page.locator('select[data-role="checkpoints"] option').count() == 2
    lines = opened.drawn("Scores of 10 heads along 5 checkpoints")
    assert lines.locator(".scatterlayer .trace").count() == 10
    opened.drawn("Matrix of 40 heads by 5 checkpoints: score")
    caption = page.locator("#checkpoint-groups figcaption").first.inner_text()
    assert "<img" in caption
    assert "\u202e" not in caption  # a mark that turns the direction is written out
    opened.drawn("Matrix of")
    assert "shared by all 2 tasks" in page.locator('[data-role="shared"]').inner_text()
    assert page.get_by_role("region", name="Heads and their tasks").locator("tbody tr").count() >= 20
    # What is wide scrolls in a box of its own, never the page.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    if folder := os.environ.get("HEADCODES_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{look}.png", full_page=True)


def test_another_group_and_the_tables(open_report: Callable[..., Opened], along: list[RunRecord]) -> None:
    opened = open_report(along)
    page: Any = opened.page
    page.locator('select[data-role="checkpoints"]').select_option("1")
    opened.drawn("Scores of 10 heads along 5 checkpoints")
    label = page.locator('select[data-role="checkpoints"] option').nth(1).inner_text()
    assert label.startswith("pythia · i")
    details = page.locator("#checkpoint-groups details").nth(1)
    details.locator("summary").click()
    rows = details.locator("tbody tr")
    rows.nth(39).wait_for()
    assert rows.count() == 40


def test_a_scan_of_one_model_and_task_has_neither(
    open_report: Callable[..., Opened], make_run: Callable[..., RunRecord]
) -> None:
    opened = open_report([make_run(seed=seed, n_pairs=8, rich=False, shape=(4, 4)) for seed in range(2)])
    assert not opened.page.locator("#checkpoint-groups *").count()
    assert not opened.page.locator("#task-groups *").count()
