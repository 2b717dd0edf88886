"""The page's figures for notebooks (plotly) and papers (matplotlib): same data, same colours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from headcodes.errors import HeadcodesError, missing_package
from headcodes.report import curve_figures, figures
from headcodes.report.codes import edge_notes, node_notes
from headcodes.report.curves import curves_against
from headcodes.report.records import RunRecord

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


Backend = Literal["plotly", "matplotlib"]
CurveKind = Literal["ROC", "precision-recall"]


def plot_heads(record: RunRecord, what: str = "score", backend: Backend = "plotly") -> Any:
    """Draw a number a head as a map, layers by heads, the chosen heads framed.

    Args:
        what: "score", "mention score", or whatever else the run knows ("p-value", "q-value").
        backend: "plotly" gives a plotly Figure, "matplotlib" a matplotlib one, whose ``savefig`` writes PNG, SVG, PDF.

    Raises:
        HeadcodesError: the run has no such numbers, or the backend is unknown or not installed.
    """
    values = record.head_values
    if what not in values:
        raise HeadcodesError(
            "what must be one of " + ", ".join(values), repr(what), "Edge level adds the mention score."
        )
    return _drawn(figures.heads_figure(values[what], what=what, chosen=record.circuit.heads), backend)


def plot_circuit(record: RunRecord, backend: Backend = "plotly") -> Any:
    """Draw the chosen heads, and at edge level the edges between them, as a layered graph.

    Raises:
        HeadcodesError: the backend is unknown or not installed.
    """
    return _drawn(figures.circuit_figure(record.circuit, node_notes(record), edge_notes(record)), backend)


def plot_curves(
    record: RunRecord,
    truth: ArrayLike,
    kind: CurveKind = "ROC",
    name: str = "truth",
    backend: Backend = "plotly",
) -> Any:
    """Draw how well the scores find the heads of a truth.

    Args:
        truth: bool [n_layers, n_heads], for example ``truths.get("ioi", "wang2022").labels``.
        name: what to call the truth.

    Raises:
        HeadcodesError: the truth has another shape, or only one class; the backend is unknown or not installed.
    """
    curves = curves_against(record.head_values["score"], truth, f"{record.document['method']} against {name}")
    return _drawn(curve_figures.curves_figure([curve for curve in curves if curve.kind == kind]), backend)


def _drawn(figure: figures.Figure, backend: str) -> Any:
    if backend == "plotly":
        import plotly.graph_objects as go

        return go.Figure(figure).update_layout(template="plotly_white")
    if backend == "matplotlib":
        return to_matplotlib(figure)
    raise HeadcodesError("backend must be plotly or matplotlib", repr(backend), "Choose one of the two.")


def to_matplotlib(figure: figures.Figure) -> Any:
    """Draw one of this package's figures by matplotlib: heat maps, lines, markers, bars, with the page's colours.

    Raises:
        HeadcodesError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "figures for papers") from error

    layout = figure["layout"]
    # No pyplot: its global state would keep every figure alive and pick a window system.
    drawn = Figure(figsize=(9, max(2.2, layout["height"] / 100)), layout="constrained")
    axes = drawn.add_subplot()
    named = False
    for trace in figure["data"]:
        if trace["type"] == "heatmap":
            _draw_cells(drawn, axes, trace)
        elif trace["type"] == "bar":
            bars = axes.barh(trace["y"], trace["x"], color=trace["marker"]["color"])
            axes.bar_label(bars, trace["text"], padding=3)
        else:
            _draw_scatter(drawn, axes, trace)
        named = named or ("name" in trace and trace.get("showlegend", True))
    for axis, its in ((axes.xaxis, layout["xaxis"]), (axes.yaxis, layout["yaxis"])):
        axis.set_label_text(its.get("title", {}).get("text", ""))
        if "tickvals" in its:
            axis.set_ticks(its["tickvals"], its["ticktext"])
        elif "dtick" in its:
            low, high = sorted(its["range"])
            axis.set_ticks(np.arange(np.ceil(low / its["dtick"]), high / its["dtick"]) * its["dtick"])
    if "range" in layout["xaxis"]:
        axes.set_xlim(layout["xaxis"]["range"])
    if "range" in layout["yaxis"]:
        axes.set_ylim(layout["yaxis"]["range"])
    if layout["yaxis"].get("autorange") == "reversed":
        axes.invert_yaxis()
    if "tickangle" in layout["xaxis"]:
        axes.tick_params(axis="x", rotation=-layout["xaxis"]["tickangle"])
    bare = ["left"] if layout["yaxis"].get("tickvals") == [] else []
    axes.spines[["top", "right", *bare]].set_visible(False)
    if named:
        axes.legend(frameon=False, fontsize="small")
    return drawn


_MARKERS = {
    "circle": "o",
    "square": "s",
    "square-open": "s",
    "diamond": "D",
    "cross": "P",
    "x": "X",
    "triangle-up": "^",
    "line-ew-open": "_",
}
_DASHES = {"dash": "--", "dashdot": "-.", "dot": ":", "longdash": (0, (8, 3)), "longdashdot": (0, (8, 3, 1, 3))}


def _scale(colors: Sequence[Sequence[Any]]) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("headcodes", [color for _, color in colors])


def _draw_cells(drawn: Any, axes: Any, trace: figures.Figure) -> None:
    z = np.asarray(trace["z"])
    image = axes.pcolormesh(
        np.arange(z.shape[1] + 1) - 0.5,
        np.arange(z.shape[0] + 1) - 0.5,
        z,
        cmap=_scale(trace["colorscale"]),
        vmin=trace["zmin"],
        vmax=trace["zmax"],
        edgecolors="white",
        linewidth=0.5,
    )
    bar = drawn.colorbar(image, ax=axes, label=trace["colorbar"]["title"]["text"], pad=0.02)
    if "tickvals" in trace["colorbar"]:
        bar.set_ticks(trace["colorbar"]["tickvals"], labels=trace["colorbar"]["ticktext"])


def _draw_scatter(drawn: Any, axes: Any, trace: figures.Figure) -> None:
    x = [np.nan if value is None else value for value in trace["x"]]
    y = [np.nan if value is None else value for value in trace["y"]]
    label = trace.get("name")
    if "fillcolor" in trace:
        red, green, blue, alpha = (float(part) for part in trace["fillcolor"][5:-1].split(","))
        axes.fill(x, y, color=(red / 255, green / 255, blue / 255), alpha=alpha, linewidth=0)
        return
    if trace.get("mode") == "lines":
        line = trace["line"]
        style = _DASHES.get(line.get("dash", "solid"), "-")
        alpha = trace.get("opacity", 1)
        axes.plot(
            x, y, color=line["color"], linewidth=line["width"], linestyle=style, alpha=alpha, label=label, zorder=1
        )
        return
    marker = trace["marker"]
    shape = _MARKERS[marker.get("symbol", "circle")]
    # plotly's sizes are diameters in pixels, matplotlib's areas in points.
    size = (0.75 * marker["size"]) ** 2
    if "colorscale" in marker:
        colors = [np.nan if value is None else value for value in marker["color"]]
        points = axes.scatter(
            *(x, y, size, colors),
            cmap=_scale(marker["colorscale"]),
            vmin=marker["cmin"],
            vmax=marker["cmax"],
            edgecolors=marker["line"]["color"],
            plotnonfinite=True,
            zorder=3,
        )
        drawn.colorbar(points, ax=axes, label=marker["colorbar"]["title"]["text"], pad=0.02)
    elif marker.get("symbol", "").endswith("-open") and shape != "_":
        axes.scatter(
            x, y, size, marker=shape, facecolors="none", edgecolors=marker["color"], linewidths=1.5, label=label
        )
    else:
        axes.scatter(x, y, size, marker=shape, color=marker["color"], label=label, zorder=2)
    if "text" in trace:
        from matplotlib.patheffects import withStroke

        outline = [withStroke(linewidth=2, foreground="white")]  # lines pass behind names
        for text, left, up, where in zip(trace["text"], x, y, trace["textposition"], strict=True):
            shift = (0, 9) if where.startswith("top") else (0, -15)
            look = {"ha": "center", "fontsize": "x-small", "path_effects": outline}
            axes.annotate(text, (left, up), shift, textcoords="offset points", **look)
