"""Where a circuit's nodes and edges are drawn: one column a stage, its parts ordered so that few edges cross."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from headcodes.circuit.circuit import Circuit
from headcodes.graph import parse_head, split_slot, stage

Point = tuple[float, float]
Edge = tuple[str, str]

# Heights in rows: a node has its name above it; a line that passes through a column needs less.
_NODE, _LINE = 1.0, 0.4
# Sweeps over all columns; the best of them is kept, since a later one can be worse.
_SWEEPS = 12


@dataclass(frozen=True)
class Layout:
    """Places of a circuit's parts: x counts columns, y rows, downwards.

    Attributes:
        columns: one part of each column, left to right: its name says which layer the column is.
        nodes: every chosen node and every end of an edge.
        edges: the points an edge passes from its source to its destination, one a column.
        by_head: whether a row is a head's number.
    """

    columns: Sequence[str]
    nodes: Mapping[str, Point]
    edges: Mapping[Edge, Sequence[Point]]
    by_head: bool


def layout(circuit: Circuit) -> Layout:
    """Place a circuit: one column a stage that occurs, early to the left.

    Without edges each head is in the row of its number, as in the heat map; with edges the rows are those of a
    Sugiyama layout. The same nodes and edges are always placed alike.
    """
    ends = {edge: (edge[0], split_slot(edge[1])[0]) for edge in circuit.edges}
    stages = {
        name: stage(
            name, n_layers=circuit.n_layers, n_heads=circuit.n_heads, parallel_attn_mlp=circuit.parallel_attn_mlp
        )
        for name in {*circuit.nodes, *(end for pair in ends.values() for end in pair)}
    }
    rows = {name: _row(name, circuit.n_heads) for name in stages}
    names = sorted(stages, key=lambda name: (stages[name], rows[name], name))
    numbers = {moment: i for i, moment in enumerate(sorted(set(stages.values())))}
    column = {name: numbers[stages[name]] for name in names}
    first = list({column[name]: name for name in reversed(names)}.values())[::-1]
    if not ends:
        return Layout(first, {name: (float(column[name]), rows[name]) for name in names}, {}, by_head=True)
    nodes, paths = _layered(column, sorted(set(ends.values())))
    return Layout(first, nodes, {edge: paths[pair] for edge, pair in ends.items()}, by_head=False)


def _row(name: str, n_heads: int) -> float:
    head = parse_head(name)
    return float(head[1]) if head else (-1.0 if name.startswith("m") else (n_heads - 1) / 2)


def _parts(names: Iterable[str], edges: Sequence[Edge]) -> list[tuple[list[str], list[Edge]]]:
    """Return connected parts as (names, edges), the one of most edges first."""
    part = {name: {name} for name in names}
    for source, destination in edges:
        joined = part[source] | part[destination]
        for name in joined:
            part[name] = joined
    found = {min(its): its for its in part.values()}
    parts = [
        ([name for name in part if name in its], [edge for edge in edges if edge[0] in its]) for its in found.values()
    ]
    return sorted(parts, key=lambda its: -len(its[1]))


def _layered(column: Mapping[str, int], edges: Sequence[Edge]) -> tuple[dict[str, Point], dict[Edge, list[Point]]]:
    """Place every connected part by itself, each below those before it, as high as it fits."""
    nodes: dict[str, Point] = {}
    paths: dict[Edge, list[Point]] = {}
    bottom: dict[int, float] = defaultdict(float)
    for names, its_edges in _parts(column, edges):
        places, lines = _placed({name: column[name] for name in names}, its_edges)
        # What stands highest and lowest in each column the part covers.
        reach: dict[int, list[float]] = defaultdict(list)
        for x, y in places.values():
            reach[int(x)] += [y - _NODE / 2, y + _NODE / 2]
        for line in lines.values():
            for x, y in line[1:-1]:
                reach[int(x)] += [y - _LINE / 2, y + _LINE / 2]
        shift = max(bottom[x] - min(its) for x, its in reach.items())
        for x, its in reach.items():
            bottom[x] = max(its) + shift
        nodes |= {name: (x, y + shift) for name, (x, y) in places.items()}
        paths |= {edge: [(x, y + shift) for x, y in line] for edge, line in lines.items()}
    return nodes, paths


def _placed(column: Mapping[str, int], edges: Sequence[Edge]) -> tuple[dict[str, Point], dict[Edge, list[Point]]]:
    """Place one connected part: grandalf orders each column and sets the rows."""
    from grandalf.graphs import Edge as Arc
    from grandalf.graphs import Vertex, graph_core
    from grandalf.layouts import Layer, SugiyamaLayout

    class Box:
        """What grandalf asks of a vertex's view; its w is our height, since our data flows to the right."""

        w, h = _NODE, 1.0
        xy = (0.0, 0.0)

    first = min(column.values())

    class Sugiyama(SugiyamaLayout):
        """With a column for a stage, where grandalf takes the distance from the roots."""

        def rank_all(self, roots: Any, optimize: bool = False) -> None:
            for vertex in self.g.sV:
                rank = self.grx[vertex].rank = column[vertex.data] - first
                self.layers += [Layer() for _ in range(rank + 1 - len(self.layers))]
                self.layers[rank].append(vertex)

    vertices = {name: Vertex(name) for name in column}
    for vertex in vertices.values():
        vertex.view = Box()
    # Not grandalf's Graph, which finds parts too: it keeps their edges in an order of memory addresses.
    part = graph_core(
        list(vertices.values()), [Arc(vertices[source], vertices[destination]) for source, destination in edges]
    )
    drawn = Sugiyama(part)
    drawn.xspace, drawn.dw = 0.0, _LINE
    drawn.init_all(roots=[], inverted_edges=[])
    best: tuple[int, list[list[Any]]] | None = None
    for _ in range(_SWEEPS):
        for _ in drawn.ordering_step():
            pass
        crossings = _crossings(drawn, part)
        if best is None or crossings < best[0]:
            best = crossings, [list(layer) for layer in drawn.layers]
    assert best is not None
    for layer, order in zip(drawn.layers, best[1], strict=True):
        layer[:] = order
        for position, vertex in enumerate(order):
            drawn.grx[vertex].pos = position
    drawn.setxy()
    place: dict[Any, Point] = {}
    for rank, layer in enumerate(drawn.layers):
        lowest = -float("inf")
        for vertex in layer:
            # Brandes and Köpf's rows, of which grandalf takes a mean, can come too close to each other.
            y = max(vertex.view.xy[0], lowest + vertex.view.w / 2)
            lowest = y + vertex.view.w / 2
            place[vertex] = float(first + rank), y
    lines = {(edge.v[0].data, edge.v[1].data): [place[stop] for stop in _stops(drawn, edge)] for edge in part.sE}
    return {vertex.data: place[vertex] for vertex in part.sV}, lines


def _stops(drawn: Any, edge: Any) -> list[Any]:
    """Return what an edge passes: its source, a dummy in every column between, its destination."""
    between = drawn.ctrls.get(edge)
    return list(edge.v) if between is None else [between[rank] for rank in sorted(between)]


def _crossings(drawn: Any, part: Any) -> int:
    steps: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for edge in part.sE:
        stops = [drawn.grx[stop] for stop in _stops(drawn, edge)]
        for here, there in pairwise(stops):
            steps[here.rank].append((here.pos, there.pos))
    return sum((a - c) * (b - d) < 0 for its in steps.values() for i, (a, b) in enumerate(its) for c, d in its[:i])
