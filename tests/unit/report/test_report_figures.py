from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace
from io import BytesIO
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.report import curve_figures, figures
from headcodes.report.curves import curves_against
from headcodes.report.plots import to_matplotlib

# Machado, Oliveira & Fernandes 2009, severity 1.0, in linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def seen_lab(colors: tuple[str, ...], blindness: str) -> np.ndarray:
    """CIELAB of sRGB colours as seen with a colour blindness (D65)."""
    rgb = np.array([[int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)] for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.array(BLINDNESS[blindness]).T, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], -1)


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_scores_grow_lighter_for_every_eye(blindness: str) -> None:
    lightness = seen_lab(figures.SEQUENTIAL, blindness)[:, 0]
    assert (np.diff(lightness) > 2).all()
    assert np.ptp(lightness) > 70


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_signs_differ_and_strength_darkens_for_every_eye(blindness: str) -> None:
    lab = seen_lab(figures.DIVERGING, blindness)
    middle = len(lab) // 2
    assert (np.diff(lab[: middle + 1, 0]) > 0).all()
    assert (np.diff(lab[middle:, 0]) < 0).all()
    apart = [float(np.linalg.norm(lab[middle - k] - lab[middle + k])) for k in (2, 3, 4)]
    assert min(apart) > 20  # 2.3 is just noticeable


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_categories_are_told_apart_by_every_eye(blindness: str) -> None:
    lab = seen_lab(figures.CATEGORIES[:4], blindness)
    apart = [np.linalg.norm(lab[i] - lab[j]) for i in range(4) for j in range(i)]
    assert min(apart) > 10


def test_head_map_puts_layers_across_and_heads_down() -> None:
    values = np.array([[0.0, 5.0], [2.0, np.nan], [5.0, 1.0]])
    cells, frames = figures.heads_figure(values, chosen=[(0, 1), (2, 0)])["data"]
    assert cells["z"].shape == (2, 3)
    # Scores by the root of their share of the largest; the scale's ticks and what hovering shows are scores.
    np.testing.assert_allclose(cells["z"], np.sqrt(values.T / 5), rtol=1e-6)
    np.testing.assert_array_equal(cells["customdata"][..., 0], values.T.astype(np.float32))
    ticks = dict(zip(cells["colorbar"]["ticktext"], cells["colorbar"]["tickvals"], strict=True))
    assert ticks["1.25"] == pytest.approx(0.5)
    assert (ticks["0"], ticks["5"]) == (0, 1)
    ranks = cells["customdata"][..., 1].T
    assert ranks.tolist() == [[5, 1], [3, 6], [2, 4]]  # ties go to the lower index, NaN last
    assert list(zip(frames["x"], frames["y"], strict=True)) == [(0, 1), (2, 0)]


def test_signed_values_have_zero_in_the_middle_and_p_values_are_logarithms() -> None:
    signed = figures.heads_figure(np.array([[-1.0, 4.0]]), what="causal effect")["data"][0]
    assert (signed["zmin"], signed["zmax"]) == (-4.0, 4.0)
    assert signed["colorscale"][5][1] == figures.DIVERGING[5]
    p = figures.heads_figure(np.array([[0.01, 1.0]]), what="p-value")["data"][0]
    np.testing.assert_allclose(p["z"].ravel(), [2, 0])
    assert p["customdata"][:, 0, 0] == pytest.approx([0.01, 1.0])
    assert p["customdata"][:, 0, 1].tolist() == [1, 2]


def test_head_map_of_nothing_but_zeros_draws() -> None:
    cells = figures.heads_figure(np.zeros((1, 1)))["data"][0]
    assert cells["zmin"] < cells["zmax"]


def circuit() -> Circuit:
    return Circuit(
        n_layers=30,
        n_heads=4,
        nodes=("a20.h1", "a3.h1", "m3", "a9.h0"),
        edges=(("a3.h1", "a20.h1"), ("a3.h1", "a9.h0"), ("m3", "a20.h1<q>")),
        node_scores={"a20.h1": 9.0, "a3.h1": 4.0, "a9.h0": 1.0},
        edge_scores={("a3.h1", "a20.h1"): 7.0, ("a3.h1", "a9.h0"): 1.0},
    )


def test_graph_draws_every_node_and_every_edge_once() -> None:
    drawn = figures.circuit_figure(circuit(), {"a3.h1": "<br>note"}, {("a3.h1", "a9.h0"): "<br>shared"})
    nodes = drawn["data"][-1]
    assert set(nodes["text"]) == set(circuit().nodes)
    assert nodes["hovertext"][nodes["text"].index("a3.h1")] == "<b>a3.h1</b><br>score 4<br>note"
    middles = drawn["data"][-2]
    assert len(middles["x"]) == 3
    assert "<b>a3.h1 → a9.h0</b><br>score 1<br>shared" in middles["hovertext"]
    lines = [trace for trace in drawn["data"] if trace["mode"] == "lines" and "name" not in trace]
    assert sum(trace["x"].count(None) for trace in lines) == 3
    # The strongest edge is the widest line, and each line starts and ends at its nodes.
    widest = max(lines, key=lambda trace: trace["line"]["width"])
    where = dict(zip(nodes["text"], zip(nodes["x"], nodes["y"], strict=True), strict=True))
    assert (widest["x"][0], widest["y"][0]) == pytest.approx(where["a3.h1"])
    assert (widest["x"][-2], widest["y"][-2]) == pytest.approx(where["a20.h1"])


def test_marks_lie_on_their_lines_and_not_on_each_other() -> None:
    slots = [("a3.h1", f"a20.h1<{slot}>") for slot in "qkv"]
    its = replace(circuit(), edges=(*slots, ("a3.h1", "a9.h0"), ("a9.h0", "a20.h1<q>")), edge_scores={})
    drawn = figures.circuit_figure(its)["data"]
    marks = list(zip(drawn[-2]["x"], drawn[-2]["y"], strict=True))
    assert len(set(marks)) == 5
    found = 0
    for trace in drawn[:-2]:
        x, y = trace["x"], trace["y"]
        ends = [i for i, value in enumerate(x) if value is None] if "name" not in trace else []
        for start, end in zip([0, *(i + 1 for i in ends)], ends, strict=False):
            on = [m for m in marks if x[start] < m[0] < x[end - 1]]
            found += any(np.interp(m[0], x[start:end], y[start:end]) == pytest.approx(m[1]) for m in on)
    assert found == 5


def test_paths_are_drawn_by_signed_effect_slot_and_whether_confirmed() -> None:
    paths = {("a3.h1", "a20.h1<q>"): 2.0, ("a3.h1", "a20.h1<v>"): -0.5, ("a3.h1", "a9.h0<k>"): 0.25}
    rows = [
        {"from": a, "to": b, "effect": effect, "low": effect - 0.1, "high": effect + 0.1, "confirmed": effect != 0.25}
        for (a, b), effect in paths.items()
    ]
    its = replace(
        circuit(),
        edges=tuple(paths)[:2],
        edge_scores=paths,
        effects={f"{row['from']}->{row['to']}": row for row in rows},
    )
    figure = figures.circuit_figure(its)
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    drawn = {(t["line"]["color"], t["line"]["dash"], t["opacity"] < 0.5) for t in lines if "name" not in t}
    query, key, value = figures.CATEGORIES[:3]
    assert drawn == {(query, "solid", False), (value, "dot", False), (key, "solid", True)}
    entries = [trace["name"] for trace in lines if "name" in trace]
    assert entries == ["into the query", "into the key", "into the value", "negative effect", "patched, not confirmed"]
    assert figure["layout"]["showlegend"]
    marks = figure["data"][-2]["hovertext"]
    assert marks[0] == "<b>a3.h1 → a20.h1&lt;q&gt;</b><br>effect +2 (+1.9 to +2.1)"
    assert marks[2].endswith("effect +0.25 (+0.15 to +0.35), not confirmed")


def test_lines_stay_between_the_points_they_pass() -> None:
    points = [(0.0, 0.0), (1.0, 1.0), (2.0, 5.0), (3.0, 5.0), (4.0, 4.0)]
    x, y = (np.array(its) for its in figures._curve(points))
    for (left, before), (right, after) in pairwise(points):
        its = y[(x >= left) & (x <= right)]
        assert (its[0], its[-1]) == pytest.approx((before, after))
        assert (np.diff(its) * (after - before) >= 0).all()


def test_rows_are_numbered_only_where_they_are_heads() -> None:
    assert figures.circuit_figure(circuit())["layout"]["yaxis"]["tickvals"] == []
    alone = figures.circuit_figure(replace(circuit(), edges=()))["layout"]["yaxis"]
    assert alone["ticktext"] == ["MLP", "0", "1", "2", "3"]


def test_empty_circuit_draws() -> None:
    go.Figure(figures.circuit_figure(Circuit(n_layers=2, n_heads=2, nodes=())))


def test_foreign_text_is_escaped_named_and_cut() -> None:
    assert figures.plain("<b>&\u202e\n\u200b") == "&lt;b&gt;&amp;[U+202E][U+000A][U+200B]"
    assert figures.plain("x" * 200, most=5) == "xxxxx… (200 characters)"


def test_curves_agree_with_a_count_by_hand() -> None:
    roc, precision_recall = curves_against([[3.0, 1.0], [2.0, 0.0]], [[True, True], [False, False]], "m")
    assert list(zip(roc.x, roc.y, strict=True))[:2] == [(0, 0), (0, 0.5)]
    assert (roc.x[-1], roc.y[-1]) == (1, 1)
    assert roc.summary == "AUC 0.750"
    assert precision_recall.x == (0, 0.5, 0.5, 1, 1)
    assert precision_recall.y == pytest.approx((1, 1, 1 / 2, 2 / 3, 1 / 2))
    assert precision_recall.summary == "AP 0.833"
    with pytest.raises(HeadcodesError, match="one label a head"):
        curves_against([[1.0, 2.0]], [True], "m")


def test_seed_figure_orders_heads_by_their_mean() -> None:
    drawn = curve_figures.seeds_figure({1: np.array([[0.0, 4.0, 1.0]]), 0: np.array([[5.0, 2.0, 0.0]])}, n_most=2)
    assert [trace["name"] for trace in drawn["data"]] == ["seed 0", "seed 1", "mean"]
    assert drawn["data"][0]["x"] == ["a0.h1", "a0.h0"]
    assert drawn["data"][2]["y"] == [3.0, 2.5]


FIGURES = {
    "heads": figures.heads_figure(np.arange(6.0).reshape(3, 2), chosen=[(2, 1)]),
    "circuit": figures.circuit_figure(circuit()),
    "curves": curve_figures.curves_figure(
        [
            curve_figures.Curve("faithfulness", "one", (0.0, 1.0), (0.0, 1.0), summary="CPR 1"),
            curve_figures.Curve("faithfulness", "chance", (0.0, 1.0), (0.0, 1.0), (0.0, 0.8), (0.2, 1.0), chance=True),
        ]
    ),
    "timings": curve_figures.timings_figure({"capture": 1.0, "train": 2.0, "total": 3.0}),
    "seeds": curve_figures.seeds_figure({0: np.ones((2, 2)), 1: np.eye(2)}),
}


@pytest.mark.parametrize("name", FIGURES)
def test_plotly_accepts_every_figure(name: str) -> None:
    go.Figure(FIGURES[name])


@pytest.mark.parametrize("name", FIGURES)
def test_matplotlib_draws_the_same_figure(name: str) -> None:
    pytest.importorskip("matplotlib")
    drawn = to_matplotlib(FIGURES[name])
    file = BytesIO()
    drawn.savefig(file, format="svg")
    root = ET.fromstring(file.getvalue())
    assert root.tag.endswith("svg")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF"}
    for kind, start in starts.items():
        file = BytesIO()
        drawn.savefig(file, format=kind, dpi=30)
        assert file.getvalue().startswith(start)


def test_matplotlib_uses_the_page_s_colours() -> None:
    colors = pytest.importorskip("matplotlib.colors")
    axes = to_matplotlib(FIGURES["heads"]).axes[0]
    mesh = axes.collections[0]
    assert colors.to_hex(mesh.cmap(0.0)) == figures.SEQUENTIAL[0]
    assert colors.to_hex(mesh.cmap(1.0)) == figures.SEQUENTIAL[-1]
    np.testing.assert_allclose(mesh.get_array(), np.sqrt(np.arange(6.0).reshape(3, 2).T / 5), rtol=1e-6)


def test_names_of_neighbours_do_not_collide() -> None:
    row = Circuit.from_heads([(0, 1), (1, 1), (2, 1), (1, 2)], n_layers=3, n_heads=4)
    drawn = figures.circuit_figure(row)["data"][-1]
    where = dict(zip(drawn["text"], drawn["textposition"], strict=True))
    assert where["a0.h1"] == "top center"
    assert where["a1.h1"] == "bottom center"
    assert where["a2.h1"] == "top center"
    assert where["a1.h2"] == "bottom center"  # the name of a1.h1 stands between the two
