"""Rows and tables of a comparison."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np

from headcodes.comparison.page import render
from headcodes.files import atomic_write

SCHEMA = 1
Status = Literal["ok", "over budget", "not possible", "failed"]


@dataclass(frozen=True)
class Row:
    """One cell.

    Attributes:
        model, task, method, level, seed: which cell this is.
        n_pairs: prompt pairs that the method was given.
        status: "ok", "over budget", "not possible" (the method says why) or "failed".
        note: why, where it is not "ok", or has no areas.
        auc, ap: ROC AUC and average precision of the head scores against ``truth``.
        mention_auc: of the mention scores, the published "edge level". pair_auc, pair_ap: of the pair scores, where the
            truth knows pairs: the planted ones, or on other models the confirmed paths between the heads of the truth.
        cpr, cmd: at node level over shares of the heads (``faithfulness.head_cpr_cmd``), at edge level over shares of
            the edges (``faithfulness.edge_cpr_cmd``), where the method scores edges and the model lets them be cut.
        seconds: from tokens to scores, the model loaded; ``peak_bytes`` beside what was held before, where the system
            says.
        truth: name of what it was judged against.
        labels: [n_layers, n_heads], which heads are in the truth. scores: likewise, one a head. sizes, faithfulness:
            of the curve, where one was made.
    """

    model: str
    task: str
    method: str
    level: str
    seed: int
    n_pairs: int
    status: Status
    note: str = ""
    auc: float | None = None
    ap: float | None = None
    mention_auc: float | None = None
    pair_auc: float | None = None
    pair_ap: float | None = None
    cpr: float | None = None
    cmd: float | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    truth: str = ""
    labels: list[list[bool]] | None = None
    scores: list[list[float]] | None = None
    sizes: list[int] | None = None
    faithfulness: list[float] | None = None


_FIGURES = ("auc", "ap", "mention_auc", "pair_auc", "pair_ap", "cpr", "cmd", "seconds", "peak_bytes")


@dataclass(frozen=True)
class Summary:
    """One method on one task over its seeds: of every figure the mean, and half the width of its 95% t interval."""

    model: str
    task: str
    method: str
    level: str
    n_seeds: int
    n_ok: int
    note: str
    means: dict[str, float | None]
    halves: dict[str, float | None]


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Return one summary a model, task, method and level, in the order they came."""
    groups: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.task, row.method, row.level), []).append(row)
    found = []
    for (model, task, method, level), cells in groups.items():
        good = [row for row in cells if row.status == "ok"]
        notes = dict.fromkeys(f"{row.status}: {row.note}" for row in cells if row.status != "ok")
        means: dict[str, float | None] = {}
        halves: dict[str, float | None] = {}
        for figure in _FIGURES:
            known = [value for row in good if (value := getattr(row, figure)) is not None]
            values = np.array(known, dtype=np.float64)
            means[figure] = float(values.mean()) if values.size else None
            halves[figure] = half_width(values) if values.size > 1 else None
        found.append(Summary(model, task, method, level, len(cells), len(good), "; ".join(notes), means, halves))
    return found


def half_width(values: np.ndarray) -> float:
    """Return half of the 95% t interval of a mean over seeds."""
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))


def table(rows: Sequence[Row]) -> str:
    """Return the table for a terminal: a line a task and method."""
    lines = [
        f"{'task':<16} {'method':<19} {'AUC':>13} {'AP':>13} {'pairs: AUC, AP':>14} {'CPR':>6} {'CMD':>6}"
        f" {'seconds':>9} {'peak MB':>8}  seeds"
    ]

    def shown(value: float | None, half: float | None = None, digits: int = 3) -> str:
        if value is None:
            return "-"
        return f"{value:.{digits}f}" + ("" if half is None else f" ±{half:.{digits}f}")

    for each in summarise(rows):
        means, halves = each.means, each.halves
        peak = means["peak_bytes"]
        lines.append(
            f"{each.task:<16} {each.method:<19} {shown(means['auc'], halves['auc']):>13}"
            f" {shown(means['ap'], halves['ap']):>13} {shown(means['pair_auc']):>7} {shown(means['pair_ap']):>6}"
            f" {shown(means['cpr'], None, 2):>6}"
            f" {shown(means['cmd'], None, 2):>6} {shown(means['seconds'], None, 2):>9}"
            f" {shown(None if peak is None else peak / 1e6, None, 0):>8}"
            f"  {each.n_ok}/{each.n_seeds}{'  ' + each.note if each.note else ''}"
        )
    return "\n".join(lines)


def write(rows: Sequence[Row], out: Path) -> None:
    """Write ``results.csv``, ``results.json`` and ``page.html`` into ``out``."""
    names = [field.name for field in fields(Row) if field.name not in ("labels", "scores", "sizes", "faithfulness")]
    text = io.StringIO()
    sheet = csv.DictWriter(text, names)
    sheet.writeheader()
    sheet.writerows({name: getattr(row, name) for name in names} for row in rows)
    document = {
        "schema": SCHEMA,
        "kind": "bench",
        "rows": [asdict(row) for row in rows],
        "summary": [asdict(each) for each in summarise(rows)],
    }
    for name, content in (
        ("results.csv", text.getvalue()),
        ("results.json", json.dumps(document, allow_nan=False)),
        ("page.html", render(rows, table(rows))),
    ):
        with atomic_write(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
