"""A small result for pages, and what a page is made of."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from typing import Any

import numpy as np

from headcodes.methods.findings import Findings
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.task_check import TaskCheck
from headcodes.result import Result

# The worked example of the published method (positives, then negatives), as two layers of two heads.
CODES = [[1, 4, 2, 7], [1, 5, 2, 7], [3, 5, 6, 0], [1, 4, 2, 0], [2, 5, 2, 7], [3, 4, 2, 0]]


NODE, U = [0, 0, 1, 0], [[0, 2, 1, 1], [2, 0, 1, 2], [1, 1, 0, 1], [1, 2, 1, 0]]


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \u2028 \u202e \ud800 \"'{{ 7*7 }}"


def result(level: str = "edge", **changes: Any) -> Result:
    texts = [(f"clean {i}", f"corrupt {i}") for i in range(3)]
    findings = Findings(
        head_scores=np.array([1.0, 2.0, 3.0, 0.0]).reshape(2, 2),
        pair_scores=np.array(U, dtype=float) if level == "edge" else None,
        mention_scores=np.array([2.0, 4.0, 0.0, 2.0]) if level == "edge" else None,
        codes=np.array(CODES, dtype=np.int32),
        scored_prompts=np.ones(6, dtype=bool),
        dead_share=0.25,
    )
    fields: dict[str, Any] = {
        "model": "tiny",
        "revision": None,
        "d_model": 8,
        "parallel_attn_mlp": False,
        "pairs": PromptPairs(tuple(PromptPair(a, b, (" x",), (" y",)) for a, b in texts), "made-up", "swapped"),
        "method": "paper",
        "level": level,
        "seed": 3,
        "bos": "auto",
        "bos_added": True,
        "positions": "mean",
        "n_train": 10,
        "dtype": "float32",
        "threads": 1,
        "backend": "torch",
        "task_check": TaskCheck(3, 1.0, 2.5, 0.0, 0.5, np.ones(3, dtype=bool)),
        "findings": findings,
        "timings_s": {"capture": 0.5, "train": 1.0, "total": 1.5},
        "versions": {"python": "3.11"},
    }
    return Result(**(fields | changes))


class Parts(HTMLParser):
    """The scripts of a page, its policy, and every attribute that could reach outside it."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[str | None, str | None, str]] = []
        self.policy, self.links, self.handlers = "", [], []
        self._script: tuple[str | None, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "script":
            self._script = found.get("type"), found.get("id")
            self.scripts.append((*self._script, ""))
        if found.get("http-equiv") == "Content-Security-Policy":
            self.policy = found["content"] or ""
        self.links += [value for name, value in attrs if name in ("src", "href", "action") and value is not None]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            kind, name, text = self.scripts[-1]
            self.scripts[-1] = kind, name, text + data

    @property
    def blocks(self) -> dict[str | None, Any]:
        return {name: json.loads(text) for kind, name, text in self.scripts if kind == "application/json"}
