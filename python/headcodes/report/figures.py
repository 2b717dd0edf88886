"""Figures as plain plotly dictionaries: built once, drawn by the page, by notebooks and (same colours) by matplotlib.

A figure is ``{"data": [...], "layout": {...}}`` of lists, strings and NumPy arrays. Nothing here imports plotly, so
that ``discover --out`` does not wait for it. Every string from outside goes through ``plain``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.graph import parse_head, split_slot
from headcodes.report.layout import Edge, Point, layout

if TYPE_CHECKING:
    from jaxtyping import Float


Figure = dict[str, Any]

# matplotlib's cividis and ColorBrewer's RdBu (reversed): both keep their order for every kind of colour blindness
# (tests/unit/report/test_report_figures.py simulates three).
SEQUENTIAL = (
    *("#00224e", "#083370", "#35456c", "#4f576c", "#666970", "#7d7c78"),
    *("#948e77", "#aea371", "#c8b866", "#e5cf52", "#fee838"),
)
DIVERGING = (
    *("#053061", "#2065ab", "#4393c3", "#90c4dd", "#d1e5f0", "#f7f6f6"),
    *("#fddbc7", "#f3a481", "#d6604d", "#b1182b", "#67001f"),
)
# Okabe and Ito's set without black and yellow, which vanish on a dark or a light page.
CATEGORIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
EDGE = "#8a8f98"
_N_EDGE_WIDTHS = 4
# What an edge enters: its name in the legend, its colour, and how far its line lies beside those of the other two.
_SLOTS = {
    "q": ("into the query", CATEGORIES[0], -0.08),
    "k": ("into the key", CATEGORIES[1], 0.0),
    "v": ("into the value", CATEGORIES[2], 0.08),
}

# Direction marks reorder what follows them, control characters show as nothing: both are written out.
_INVISIBLE = re.compile("[\u0000-\u001f\u007f-\u009f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")


def plain(text: str, most: int = 160) -> str:
    """Return ``text`` for plotly, which reads a little HTML: escaped, invisible characters named, cut at ``most``."""
    if len(text) > most:
        text = f"{text[:most]}… ({len(text):,} characters)"
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _INVISIBLE.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


def colorscale(colors: Sequence[str]) -> list[list[Any]]:
    """Return plotly's form of a colour scale with equal steps."""
    return [[i / (len(colors) - 1), color] for i, color in enumerate(colors)]


def heads_figure(
    values: Float[np.ndarray, "n_layers n_heads"],
    *,
    what: str = "score",
    chosen: Sequence[tuple[int, int]] = (),
) -> Figure:
    """Draw a number a head: layers from left to right, heads from top to bottom, chosen heads framed.

    Signed values get a scale with zero in its middle. Values called p-value or q-value are drawn as -log10, scores by
    the root of their size: on a linear scale one head would hide the others.

    Args:
        values: NaN where a head has none.
        what: what the numbers are; shown beside the scale.
        chosen: (layer, head) of the heads to frame.
    """
    n_layers, n_heads = values.shape
    shown = np.asarray(values, dtype=np.float64)
    title = what
    if what in ("p-value", "q-value"):
        shown = -np.log10(np.maximum(shown, 1e-300))
        title = f"−log₁₀ {what}"
    rooted = what.startswith("score") or what == "mention score"
    largest = float(np.nanmax(np.abs(shown), initial=0.0))
    if rooted and largest:
        shown = np.sign(shown) * np.sqrt(np.abs(shown) / largest)
    finite = shown[np.isfinite(shown)]
    signed = bool(finite.size and finite.min() < 0)
    reach = float(np.abs(finite).max()) if finite.size else 1.0
    rank = np.empty(values.size, dtype=np.int32)
    rank[np.argsort(-np.nan_to_num(shown, nan=-np.inf).ravel(), kind="stable")] = np.arange(1, values.size + 1)
    bar: Figure = {"title": {"text": title, "side": "right"}, "thickness": 12, "outlinewidth": 0}
    if rooted and largest:
        shares = np.array([-1, -0.5, -0.1, 0, 0.1, 0.5, 1] if signed else [0, 0.1, 0.25, 0.5, 1])
        bar["tickvals"] = (np.sign(shares) * np.sqrt(np.abs(shares))).tolist()
        bar["ticktext"] = [f"{share * largest:.3g}" for share in shares]
    cells = {
        "type": "heatmap",
        "z": shown.T.astype(np.float32),
        "customdata": np.stack([values.astype(np.float32), rank.reshape(values.shape)], -1).transpose(1, 0, 2),
        "hovertemplate": f"a%{{x}}.h%{{y}}<br>{what} %{{customdata[0]:.4~g}}<br>"
        f"rank %{{customdata[1]}} of {values.size}<extra></extra>",
        "colorscale": colorscale(DIVERGING if signed else SEQUENTIAL),
        "zmin": -reach if signed else 0.0,
        "zmax": reach or 1.0,
        "xgap": 1,
        "ygap": 1,
        "colorbar": bar,
    }
    frames = {
        "type": "scatter",
        "mode": "markers",
        "x": [layer for layer, _ in chosen],
        "y": [head for _, head in chosen],
        "marker": {"symbol": "square-open", "size": 13, "color": "#d55e00", "line": {"width": 2}},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return {
        "data": [cells, frames],
        "layout": {
            "xaxis": {"title": {"text": "layer"}, "dtick": _tick(n_layers), "range": [-0.5, n_layers - 0.5], **_BARE},
            "yaxis": {"title": {"text": "head"}, "dtick": _tick(n_heads), "range": [n_heads - 0.5, -0.5], **_BARE},
            "height": int(min(720, 110 + max(18.0, 150 / n_heads) * n_heads)),
            "margin": {"l": 48, "r": 10, "t": 10, "b": 44},
        },
    }


_BARE = {"showgrid": False, "zeroline": False, "ticks": ""}


def _tick(n: int) -> int:
    return next((step for step in (1, 2, 5, 10, 20, 50) if n / step <= 16), 100)


def circuit_figure(
    circuit: Circuit,
    node_notes: Mapping[str, str] | None = None,
    edge_notes: Mapping[tuple[str, str], str] | None = None,
) -> Figure:
    """Draw a circuit as a layered graph, data flowing from left to right; ``headcodes.report.layout`` places it.

    Colour: a node's score or effect; of an edge, whether it enters a query, key or value. Width: the size of an edge's
    score or effect, in four steps; dotted where the effect is negative. Paths that were patched and not confirmed are
    drawn faint, the largest ones, as many as are confirmed. Notes are shown on hovering, below the numbers; they are
    taken as they are, so pass foreign text through ``plain`` first.
    """
    node_notes, edge_notes = node_notes or {}, edge_notes or {}
    faint = _unconfirmed(circuit)
    drawn = replace(circuit, edges=(*circuit.edges, *faint))
    placed = layout(drawn)
    places = placed.nodes
    names = list(dict.fromkeys([*circuit.nodes, *places]))  # the order in which arrow keys walk: best first
    scores = np.array([circuit.node_scores.get(name, math.nan) for name in names])
    lines = [_beside(_curve(placed.edges[edge]), edge) for edge in drawn.edges]
    data = _edge_lines(drawn, len(circuit.edges), lines)
    if lines:
        marks = _marks(lines)
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [x for x, _ in marks],
                "y": [y for _, y in marks],
                "marker": {"size": 7, "symbol": "diamond", "color": EDGE},
                "hovertext": [
                    f"<b>{plain(f'{source} → {target}')}</b><br>{_worth(circuit, (source, target))}"
                    + edge_notes.get((source, target), "")
                    for source, target in drawn.edges
                ],
                "hoverinfo": "text",
                "showlegend": False,
            }
        )
    finite = scores[np.isfinite(scores)]
    signed = bool(finite.size and finite.min() < 0)
    reach = float(np.abs(finite).max()) if finite.size else 1.0
    data.append(
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [places[name][0] for name in names],
            "y": [places[name][1] for name in names],
            "text": names,
            "textposition": _text_positions({name: places[name] for name in names}),
            "cliponaxis": False,
            "marker": {
                "size": 20,
                "color": scores.astype(np.float32),  # NaN, a part without a score, is drawn grey
                "colorscale": colorscale(DIVERGING if signed else SEQUENTIAL),
                "cmin": -reach if signed else 0.0,
                "cmax": reach or 1.0,
                "showscale": True,
                "colorbar": {
                    "title": {"text": "effect" if circuit.effects else "score", "side": "right"},
                    "thickness": 12,
                    "outlinewidth": 0,
                },
                "line": {"width": 1.5, "color": EDGE},
            },
            "customdata": names,
            "hovertext": [f"<b>{name}</b><br>{_worth(circuit, name)}" + node_notes.get(name, "") for name in names],
            "hoverinfo": "text",
            "showlegend": False,
        }
    )
    rows = [y for _, y in places.values()] + [y for line in placed.edges.values() for _, y in line] or [0.0]
    numbers: Figure = {"tickvals": [], "ticktext": []}
    if placed.by_head:
        ticks = range(0, circuit.n_heads, _tick(circuit.n_heads))
        numbers = {"title": {"text": "head"}, "tickvals": [-1, *ticks], "ticktext": ["MLP", *map(str, ticks)]}
    return {
        "data": data,
        "layout": {
            "xaxis": {
                "title": {"text": "layer (only those with a chosen part)"},
                "tickvals": list(range(len(placed.columns))),
                "ticktext": [_column_label(name) for name in placed.columns],
                "range": [-0.7, len(placed.columns) - 0.3],
                **_BARE,
            },
            "yaxis": {**numbers, "range": [max(rows) + 0.8, min(rows) - 0.9], **_BARE},
            "height": int(min(760, max(320, 120 + 46 * (max(rows) - min(rows) + 1)))),
            "showlegend": any("name" in trace for trace in data),
            "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
            "hovermode": "closest",
            "margin": {"l": 48, "r": 10, "t": 16, "b": 44},
        },
    }


def _unconfirmed(circuit: Circuit) -> list[Edge]:
    """Return the patched paths of largest effect that are not confirmed, as many as are, between chosen parts."""
    quiet = [name for name, row in circuit.effects.items() if "->" in name and not row.get("confirmed")]
    quiet.sort(key=lambda name: -abs(circuit.effects[name]["effect"]))
    edges = [(source, target) for source, _, target in (name.partition("->") for name in quiet)]
    inside = [edge for edge in edges if {edge[0], split_slot(edge[1])[0]} <= set(circuit.nodes)]
    return inside[: len(circuit.edges)]


def _beside(line: tuple[list[float], list[float]], edge: Edge) -> tuple[list[float], list[float]]:
    """Move a line into a query or a value off that into the key, which joins the same two heads."""
    shift = _SLOTS[slot][2] if (slot := split_slot(edge[1])[1]) else 0.0
    return line[0], [y + shift for y in line[1]]


def _edge_lines(circuit: Circuit, n_confirmed: int, lines: Sequence[tuple[list[float], list[float]]]) -> list[Figure]:
    """Return the lines of edges, those of one look as one, and the legend's entries; faint from ``n_confirmed`` on."""
    weights = np.array([abs(circuit.edge_scores.get(edge, 1.0)) for edge in circuit.edges])
    steps = _steps(weights, _N_EDGE_WIDTHS)
    looks: dict[tuple[str | None, bool, bool, int], tuple[list[float | None], list[float | None]]] = {}
    for place, (edge, (x, y), step) in enumerate(zip(circuit.edges, lines, steps, strict=True)):
        negative = circuit.effects.get("->".join(edge), {}).get("effect", 0.0) < 0
        look = split_slot(edge[1])[1], negative, place >= n_confirmed, step
        its_x, its_y = looks.setdefault(look, ([], []))
        its_x += [*x, None]
        its_y += [*y, None]
    data: list[Figure] = []
    for (slot, negative, faint, step), (xs, ys) in sorted(looks.items(), key=lambda item: (*map(str, item[0]),)):
        color = EDGE if slot is None else _SLOTS[slot][1]
        line = {"color": color, "width": 1 + step, "dash": "dot" if negative else "solid"}
        trace = {"type": "scatter", "mode": "lines", "x": xs, "y": ys, "line": line, "hoverinfo": "skip"}
        data.append(trace | {"opacity": 0.15 if faint else 0.6 + 0.1 * step, "showlegend": False})
    entries = [
        (name, {"color": color, "width": 3}, 1.0)
        for slot, (name, color, _) in _SLOTS.items()
        if slot in {k[0] for k in looks}
    ]
    entries += [("negative effect", {"color": EDGE, "width": 3, "dash": "dot"}, 1.0)] * any(look[1] for look in looks)
    entries += [("patched, not confirmed", {"color": EDGE, "width": 3}, 0.3)] * any(look[2] for look in looks)
    legend = {"type": "scatter", "mode": "lines", "x": [None], "y": [None], "hoverinfo": "skip"}
    return data + [legend | {"name": name, "line": line, "opacity": opacity} for name, line, opacity in entries]


def _text_positions(places: Mapping[str, tuple[float, float]]) -> list[str]:
    """Put names above their nodes, or below where a neighbour's name is in the way."""
    taken: list[tuple[float, float]] = []
    found: dict[str, str] = {}
    for name, (x, y) in sorted(places.items(), key=lambda item: item[1]):
        above, below = (x, y - 0.5), (x, y + 0.5)
        free = [
            spot for spot in (above, below) if all(abs(spot[1] - v) > 0.35 or abs(spot[0] - u) > 1 for u, v in taken)
        ]
        spot = free[0] if free else above
        taken.append(spot)
        found[name] = "top center" if spot == above else "bottom center"
    return [found[name] for name in places]


def _column_label(name: str) -> str:
    head = parse_head(name)
    return str(head[0]) if head else name


def _curve(points: Sequence[Point]) -> tuple[list[float], list[float]]:
    """Return a smooth line through points a column apart, level at both ends, that overshoots nowhere."""
    rises = [after[1] - before[1] for before, after in pairwise(points)]
    # Fritsch and Butland's slopes: the harmonic mean where a line goes on rising or falling, level where it turns.
    inner = [2 * a * b / (a + b) if a * b > 0 else 0.0 for a, b in pairwise(rises)]
    x, y = [points[0][0]], [points[0][1]]
    for (start, low), rise, (before, after) in zip(points, rises, pairwise([0.0, *inner, 0.0]), strict=False):
        for t in np.linspace(0, 1, 9)[1:].tolist() if rise else (1.0,):
            x.append(round(start + t, 3))
            y.append(round(low + rise * t * t * (3 - 2 * t) + t * (1 - t) * (before * (1 - t) - after * t), 3))
    return x, y


def _marks(lines: Sequence[tuple[list[float], list[float]]]) -> list[Point]:
    """Return a place on each line to point at: half-way, between two columns."""
    marks: list[Point] = []
    for x, y in lines:
        at = int((x[0] + x[-1]) / 2) + 0.5
        # Edges into several slots of a head are one line: their marks stand behind each other on it.
        while (mark := (at, float(np.interp(at, x, y)))) in marks:
            at = round(at + 0.12, 2)
        marks.append(mark)
    return marks


def _steps(weights: np.ndarray, n: int) -> list[int]:
    """Sort weights into ``n`` steps of equal width between the smallest and the largest."""
    if not weights.size or weights.max() == weights.min():
        return [n // 2] * len(weights)
    share = (weights - weights.min()) / (weights.max() - weights.min())
    return [min(int(one * n), n - 1) for one in share]


def _worth(circuit: Circuit, part: str | Edge) -> str:
    """Return a part's effect with its interval where it was patched, else its score."""
    row = circuit.effects.get(part if isinstance(part, str) else "->".join(part))
    if row is not None:
        off = "" if row.get("confirmed", True) else ", not confirmed"
        return f"effect {row['effect']:+.3g} ({row['low']:+.3g} to {row['high']:+.3g}){off}"
    score = circuit.node_scores.get(part) if isinstance(part, str) else circuit.edge_scores.get(part)
    return "no score" if score is None else f"score {number(score)}"


def number(value: float) -> str:
    """Return a number with four digits that count, whole numbers whole."""
    return f"{value:,.0f}" if float(value).is_integer() and abs(value) < 1e9 else f"{value:.4g}"
