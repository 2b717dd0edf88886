"""A real browser, and runs for it to show."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.report import RunRecord, write_report
from headcodes.report.attention import AttentionPattern
from headcodes.report.curve_figures import Curve

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_NAMES = ("John", "Mary", "Tom", "James", "Dan", "Martin", "Amy", "Jessica")


def find_chromium() -> str | None:
    """Path of an installed Chromium; Playwright's own build cannot be had everywhere."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; skips where Playwright or Chromium is not installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed (pip install playwright)"
    )
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("there is no Chromium (on Debian: apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        yield running
        running.close()


@dataclass
class Opened:
    """A page in the browser, with everything that went wrong in it and everything it asked the network for."""

    page: Any
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def settle(self) -> None:
        """Wait until every chart on the screen is drawn."""
        self.page.wait_for_selector('html[data-drawn="yes"]', state="attached")

    def chart(self, name: str) -> Any:
        """The picture whose text alternative starts with ``name``; none is drawn before it comes near the screen."""
        return self.page.locator(f'.plot[aria-label^="{name}"]')

    def drawn(self, name: str) -> Any:
        """The same picture, scrolled to and drawn."""
        its = self.chart(name).first
        its.scroll_into_view_if_needed()
        its.locator("svg.main-svg").first.wait_for()
        self.settle()
        return its


Show = Callable[..., Opened]
MakeRun = Callable[..., RunRecord]


@pytest.fixture
def open_report(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """``open_report(runs, at="", **context)`` writes a report and opens it; at the end, nothing may have gone wrong."""
    opened: list[tuple[Any, Opened]] = []

    def show(runs: Sequence[RunRecord] | Path, at: str = "", **context: Any) -> Opened:
        path = runs if isinstance(runs, Path) else tmp_path / f"report{len(opened)}.html"
        if not isinstance(runs, Path):
            write_report(runs, path)
        window = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | context))
        page = window.new_page()
        its = Opened(page)
        page.on("console", lambda m: m.type in ("error", "warning") and its.faults.append(m.text))
        page.on("pageerror", lambda error: its.faults.append(str(error)))
        page.on("dialog", lambda dialog: (its.faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: its.requests.append(request.url))
        page.goto(path.as_uri() + at)
        its.settle()
        opened.append((window, its))
        return its

    yield show
    for window, its in opened:
        window.close()
        assert its.faults == []
        outside = [url for url in its.requests if not url.startswith(("file:", "data:", "blob:"))]
        assert outside == []
        assert sum(url.startswith("file:") for url in its.requests) == 1  # the report itself


@pytest.fixture(scope="session")
def make_run() -> Callable[..., RunRecord]:
    """``make_run(**changes)``: see ``sample_run``."""
    return sample_run


def sample_run(
    model: str = "smollm2-135m",
    task: str = "ioi",
    method: str = "default",
    level: str = "edge",
    seed: int = 0,
    shape: tuple[int, int] = (30, 9),
    n_pairs: int = 250,
    share_right: float = 0.996,
    rich: bool = True,
    prompts: Sequence[str] = (),
    seconds: float = 12.1,
    error: str | None = None,
) -> RunRecord:
    """A run as large as one of SmolLM2 unless told otherwise, a circuit planted in codes drawn at random."""
    generator = np.random.default_rng([seed, *map(ord, task + method)])
    n_layers, n_heads = shape
    n_heads_all = n_layers * n_heads
    planted = np.random.default_rng(list(map(ord, task))).permutation(n_heads_all)[: min(25, n_heads_all)]
    codes = generator.integers(-1, 6, (2 * n_pairs, n_heads_all))
    for strength, head in enumerate(planted[::-1]):
        codes[:n_pairs, head] = generator.integers(5, 7 + strength + generator.integers(0, 5), n_pairs)
    scores = np.array([len(np.setdiff1d(codes[:n_pairs, i], codes[n_pairs:, i])) for i in range(n_heads_all)], float)
    pair_scores = None
    if level == "edge":
        pair_scores = np.zeros((n_heads_all, n_heads_all))
        strong = np.ix_(planted, planted)
        pair_scores[strong] = np.sqrt(np.outer(scores[planted], scores[planted])).round() + generator.integers(0, 9)
    circuit = Circuit.from_scores(
        scores.reshape(shape), top=20, pair_scores=pair_scores, model=model, task=task, method=method
    )
    texts = []
    for i in range(n_pairs):
        a, b, c = generator.choice(_NAMES, 3, replace=False)
        start = f"Then, {a} and {b} went to the store."
        texts.append(
            (prompts[i], prompts[i] + "?")
            if i < len(prompts)
            else (f"{start} {b} gave a drink to", f"{start} {c} gave a drink to")
        )
    pairs = PromptPairs(tuple(PromptPair(x, y, (" yes",), (" no",)) for x, y in texts), task, "abc")
    arrays: dict[str, np.ndarray] = {
        "codes": codes.astype(np.int32),
        "scored_prompts": np.arange(2 * n_pairs) % n_pairs > 4,
    }
    more: dict[str, Any] = {}
    curves: list[Curve] = []
    attention: list[AttentionPattern] = []
    if rich:
        p = np.clip(generator.random(n_heads_all) ** 2 / (1 + scores), 1e-4, 1)
        more = {"fdr": 0.05, "n_permutations": 10_000, "p_values": p.tolist(), "q_values": (3 * p).clip(0, 1).tolist()}
        rows = [{"head": node, "effect": 0.5, "low": 0.25, "high": 0.75} for node in circuit.nodes[:3]]
        more["verification"] = rows
        more["scores_by_position"] = {
            "kind": "run",
            "labels": ["change 1", "after the changes", "last token"],
            "examples": [" Mary", " gave a drink", " to"],
            "scores": {node: [0.25, -0.5, float(place)] for place, node in enumerate(circuit.nodes, start=1)},
        }
        if level == "edge":
            arrays["pair_p_family"] = np.clip(1 / (1 + pair_scores), 1e-4, 1)
            arrays["pair_q_values"] = np.where(np.arange(n_heads_all) % 4, 0.02, np.nan) * np.ones_like(pair_scores)
        arrays["causal_effects"] = generator.normal(0, 0.1, n_heads_all)
        arrays["causal_effects"][planted] += generator.normal(0, 1.4, len(planted))
        x = np.linspace(0, 1, 30)
        curves = [
            Curve("ROC", method, tuple(x), tuple(x**0.3), summary="AUC 0.77"),
            Curve("precision-recall", method, tuple(x), tuple(1 - 0.7 * x), summary="AP 0.65"),
            Curve("faithfulness", method, tuple(x), tuple(1 - np.exp(-6 * x)), summary="CPR 0.83"),
            Curve("faithfulness", "random heads", tuple(x), tuple(x), tuple(0.8 * x), tuple(1.2 * x), chance=True),
        ]
        for index, side in ((0, "clean"), (0, "corrupt"), (1, "clean"), (1, "corrupt")):
            words = getattr(pairs[index], side)[:90].split(" ")
            tokens = (words[0], *(f" {word}" for word in words[1:]))
            weights = np.tril(generator.random((len(circuit.heads), len(tokens), len(tokens))) ** 6 + 1e-6)
            weights /= weights.sum(-1, keepdims=True)
            attention.append(AttentionPattern(side, index, tokens, tuple(circuit.heads), weights.astype(np.float32)))
    document: dict[str, Any] = {
        "schema": 1,
        "model": model,
        "revision": None,
        "task": task,
        "negative": "abc",
        "method": method,
        "level": level,
        "seed": seed,
        "bos": "auto",
        "bos_added": False,
        "positions": "mean",
        "n_prompts": n_pairs,
        "n_train": 10,
        "dtype": "bfloat16",
        "threads": 2,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "head_scores": scores.tolist(),
        "circuit": circuit.as_lists(),
        "task_check": {
            "n_pairs": n_pairs,
            "share_right": share_right,
            "positive_logit_diff": 5.1,
            "negative_logit_diff": -0.1,
        },
        "dead_share": 0.31,
        "timings_s": {"load": 1.2, "capture": 7.1, "train": 2.2, "encode": 0.5, "overlap": 0.05, "total": seconds},
        "backend": "torch",
        "versions": {"python": "3.11.7", "headcodes": "0.1.0", "torch": "2.13.0"},
    }
    return RunRecord(document | more, circuit, arrays, pairs, attention, curves, error)
