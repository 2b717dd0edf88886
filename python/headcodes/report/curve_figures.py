"""Figures of curves, seconds and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headcodes.report.figures import CATEGORIES, EDGE, Figure, plain

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Curve:
    """A curve against a truth, or over circuit size.

    Attributes:
        kind: "ROC", "precision-recall", "faithfulness" or another name: curves of one kind share a picture.
        label: whose curve it is.
        x, y: points in order.
        low, high: a band around y, where there is one.
        chance: whether it stands for chance (drawn dotted).
        summary: its figure in words: "AUC 0.91".
    """

    kind: str
    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    chance: bool = False
    summary: str = ""


AXES = {
    "ROC": ("false positive rate", "true positive rate"),
    "precision-recall": ("recall", "precision"),
    "faithfulness": ("heads kept, best first", "faithfulness (1: the whole model)"),
    "completeness": ("heads taken away, best first", "faithfulness of the rest"),
}


def curves_figure(curves: Sequence[Curve]) -> Figure:
    """Draw curves of one kind; each differs from the others in colour and in dash."""
    kind = curves[0].kind
    data: list[Figure] = []
    dashes = ("solid", "dash", "dashdot", "longdash", "longdashdot", "dot")
    for i, curve in enumerate(curves):
        color = EDGE if curve.chance else CATEGORIES[i % len(CATEGORIES)]
        label = plain(f"{curve.label}: {curve.summary}" if curve.summary else curve.label)
        if curve.low and curve.high:
            data.append(
                {
                    "type": "scatter",
                    "x": [*curve.x, *reversed(curve.x)],
                    "y": [*curve.high, *reversed(curve.low)],
                    "fill": "toself",
                    "fillcolor": _faint(color),
                    "line": {"width": 0},
                    "hoverinfo": "skip",
                    "showlegend": False,
                }
            )
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": list(curve.x),
                "y": list(curve.y),
                "line": {"color": color, "dash": "dot" if curve.chance else dashes[i % len(dashes)], "width": 2},
                "hovertemplate": "%{x:.3g}, %{y:.3g}",
            }
        )
    if kind == "ROC":
        data.append(
            {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "chance", "hoverinfo": "skip"}
            | {"line": {"color": EDGE, "dash": "dot", "width": 1}}
        )
    x_title, y_title = AXES.get(kind, ("", plain(kind)))
    axis = {"zeroline": False}
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": x_title}, **axis},
            "yaxis": {"title": {"text": y_title}, **axis},
            "height": 360,
            "margin": {"l": 56, "r": 10, "t": 10, "b": 44},
            "showlegend": True,
            "legend": {"orientation": "h", "y": -0.22},
        },
    }


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.18)"


def timings_figure(timings_s: Mapping[str, float]) -> Figure:
    """Draw seconds a stage, without the total and without stages that did not run."""
    stages = [stage for stage, seconds in timings_s.items() if stage != "total" and seconds > 0]
    seconds = [timings_s[stage] for stage in stages]
    return {
        "data": [
            {
                "type": "bar",
                "orientation": "h",
                "y": [plain(stage) for stage in stages],
                "x": seconds,
                "text": [f"{second:.2f} s" for second in seconds],
                "textposition": "outside",
                "cliponaxis": False,
                "marker": {"color": CATEGORIES[0]},
                "hovertemplate": "%{y}: %{x:.3f} s<extra></extra>",
            }
        ],
        "layout": {
            "xaxis": {
                "title": {"text": "seconds"},
                "rangemode": "tozero",
                "range": [0, 1.18 * max(seconds, default=1)],
            },
            "yaxis": {"autorange": "reversed", "ticks": ""},
            "height": 90 + 30 * max(1, len(stages)),
            "margin": {"l": 84, "r": 30, "t": 10, "b": 44},
        },
    }


def seeds_figure(scores_by_seed: Mapping[int, Float[np.ndarray, "n_layers n_heads"]], n_most: int = 20) -> Figure:
    """Draw every seed's score of the heads that are best on average, one mark a seed, the mean as a line."""
    seeds = sorted(scores_by_seed)
    stacked = np.stack([scores_by_seed[seed] for seed in seeds]).reshape(len(seeds), -1)
    n_heads = scores_by_seed[seeds[0]].shape[1]
    mean = stacked.mean(0)
    best = np.argsort(-mean, kind="stable")[:n_most]
    names = [f"a{i // n_heads}.h{i % n_heads}" for i in best]
    symbols = ("circle", "square", "diamond", "cross", "x", "triangle-up")
    data: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": f"seed {seed}",
            "x": names,
            "y": row[best].tolist(),
            "marker": {
                "color": CATEGORIES[i % len(CATEGORIES)],
                "symbol": symbols[(i + i // len(symbols)) % len(symbols)],
                "size": 8,
                "opacity": 0.85,
            },
            "hovertemplate": f"%{{x}}, seed {seed}: %{{y:.4~g}}<extra></extra>",
        }
        for i, (seed, row) in enumerate(zip(seeds, stacked, strict=True))
    ]
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "mean",
            "x": names,
            "y": mean[best].tolist(),
            "marker": {"symbol": "line-ew-open", "size": 18, "line": {"width": 2}, "color": EDGE},
            "hovertemplate": "%{x}, mean: %{y:.4~g}<extra></extra>",
        }
    )
    return {
        "data": data,
        "layout": {
            "xaxis": {"title": {"text": "heads, best on average first"}, "type": "category", "tickangle": -60},
            "yaxis": {"title": {"text": "score"}, "rangemode": "tozero"},
            "height": 380,
            "margin": {"l": 56, "r": 10, "t": 10, "b": 90},
            "legend": {"orientation": "h", "y": 1.12},
        },
    }
