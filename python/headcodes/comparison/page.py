"""The page of a benchmark suite: the table, and per task ROC, precision-recall and faithfulness curves, time against
quality.

One file that needs no server and no network, under the same rules as ``page``: text from outside comes in escaped,
data as JSON that no browser runs, and a content security policy allows the two scripts by their hashes.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.report import curve_figures, figures
from headcodes.report.curves import curves_against
from headcodes.report.html import _script, embed
from headcodes.report.html import asset as _asset
from headcodes.report.html import csp_hash as _csp_hash
from headcodes.report.html import encodable as _encodable
from headcodes.report.html import plotly_script as _plotly

if TYPE_CHECKING:
    from headcodes.comparison.rows import Row


_DRAW = """
for (const [id, figure] of Object.entries(JSON.parse(document.getElementById("figures").textContent)))
  Plotly.newPlot(id, figure.data, figure.layout, {displaylogo: false, responsive: true});
"""


def render(rows: Sequence[Row], table: str) -> str:
    """Return the page as text.

    Args:
        rows: every cell; curves are those of each task's first seed.
        table: the table as text.
    """
    drawn: dict[str, figures.Figure] = {}
    sections = []
    for task in dict.fromkeys(row.task for row in rows):
        pictures = {"time and quality": _time_and_quality([row for row in rows if row.task == task])}
        good = [row for row in rows if row.task == task and row.status == "ok"]
        good = [row for row in good if row.seed == good[0].seed]
        by_kind: dict[str, list[curve_figures.Curve]] = {}
        for row in good:
            curves = curves_against(row.scores or [], row.labels or [], row.method)
            if row.sizes is not None and row.faithfulness is not None:
                x = tuple(float(size) for size in row.sizes)
                summary = "" if row.cpr is None else f"CPR {row.cpr:.2f}"
                curves.append(
                    curve_figures.Curve("faithfulness", row.method, x, tuple(row.faithfulness), summary=summary)
                )
            for curve in curves:
                by_kind.setdefault(curve.kind, []).append(curve)
        pictures |= {kind: curve_figures.curves_figure(curves) for kind, curves in by_kind.items()}
        parts = []
        for kind, figure in pictures.items():
            name = f"f{len(drawn)}"
            drawn[name] = figure
            parts.append(f'<figure><figcaption>{escape(kind)}</figcaption><div id="{name}"></div></figure>')
        sections.append(f"<section><h2>{escape(task)}</h2>{''.join(parts)}</section>")
    plotly, draw = _plotly(), _script(_DRAW)
    policy = (
        f"default-src 'none'; script-src '{_csp_hash(plotly)}' '{_csp_hash(draw)}';"
        " style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    models = escape(", ".join(dict.fromkeys(row.model for row in rows)))
    html = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>headcodes bench: {models}</title><link rel="icon" href="data:,">'
        f"<style>{_asset('page.css')}</style></head>"
        f'<body><header class="top"><p class="brand">headcodes</p></header><main id="main">'
        f"<h1>Methods on {models}</h1>"
        f'<div class="scroll" role="region" aria-label="Results" tabindex="0"><pre>{escape(table)}</pre></div>'
        f'{"".join(sections)}</main><script type="application/json" id="figures">{embed(drawn)}</script>'
        f"<script>{plotly}</script><script>{draw}</script></body></html>\n"
    )
    return _encodable(html)


def _time_and_quality(rows: Sequence[Row]) -> figures.Figure:
    """Draw seconds against AUC: a point a method, the mean of its seeds."""
    data: list[dict[str, Any]] = []
    for i, method in enumerate(dict.fromkeys(row.method for row in rows)):
        cells = [row for row in rows if row.method == method]
        good = [(row.seconds, row.auc) for row in cells if row.auc is not None and row.seconds]
        if not good:
            continue
        seconds, auc = np.mean(np.array(good, dtype=np.float64), axis=0).tolist()
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": figures.plain(method),
                "text": [figures.plain(method)],
                "textposition": "top center",
                "x": [seconds],
                "y": [auc],
                "marker": {"color": figures.CATEGORIES[i % len(figures.CATEGORIES)], "size": 9},
                "hovertemplate": "%{x:.3g} s, AUC %{y:.3f}",
            }
        )
    return {
        "data": data,
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "seconds"}, "zeroline": False},
            "yaxis": {"title": {"text": "ROC AUC"}, "zeroline": False},
            "height": 360,
            "margin": {"l": 56, "r": 10, "t": 10, "b": 44},
            "showlegend": False,
        },
    }
