"""Where the circuit graph puts its nodes and lines."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.graph import stage
from headcodes.report.layout import Layout, layout


def random_circuit(seed: int, top: int = 20) -> Circuit:
    generator = np.random.default_rng(seed)
    scores = generator.random((12, 8))
    return Circuit.from_scores(scores, top=top, pair_scores=generator.random((96, 96)))


def crossings(lines: list[list[tuple[float, float]]]) -> int:
    steps = [step for line in lines for step in pairwise(line)]
    return sum(
        a[0] == c[0] and (a[1] - c[1]) * (b[1] - d[1]) < -1e-9 for i, (a, b) in enumerate(steps) for c, d in steps[:i]
    )


def by_number(placed: Layout) -> list[list[tuple[float, float]]]:
    """The same edges as straight lines between heads in the rows of their numbers."""
    found = []
    for source, target in placed.edges:
        (x0, y0), (x1, y1) = ((placed.nodes[end][0], float(end.split("h")[1])) for end in (source, target))
        found.append([(x, y0 + (y1 - y0) * (x - x0) / (x1 - x0)) for x in np.arange(x0, x1 + 1)])
    return found


@pytest.mark.parametrize("seed", range(5))
def test_lines_cross_less_than_between_heads_in_the_rows_of_their_numbers(seed: int) -> None:
    placed = layout(random_circuit(seed))
    assert not placed.by_head
    assert crossings([list(line) for line in placed.edges.values()]) < 0.7 * crossings(by_number(placed))


def test_two_crossed_edges_are_uncrossed() -> None:
    pairs = [((0, 0), (1, 1)), ((0, 1), (1, 0)), ((0, 0), (2, 1)), ((0, 1), (2, 0))]
    crossed = Circuit.from_heads([(i, j) for i in range(3) for j in range(2)], n_layers=3, n_heads=2, pairs=pairs)
    assert crossings([list(line) for line in layout(crossed).edges.values()]) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("top", [3, 12, 30])
def test_nothing_lies_on_a_node_and_lines_join_their_ends(seed: int, top: int) -> None:
    circuit = random_circuit(seed, top)
    placed = layout(circuit)
    assert set(placed.nodes) == set(circuit.nodes)
    assert set(placed.edges) == set(circuit.edges)
    spots = sorted(placed.nodes.values())
    assert all(x != u or v - y >= 1 - 1e-9 for (x, y), (u, v) in pairwise(spots))
    for (source, target), line in placed.edges.items():
        assert (line[0], line[-1]) == (placed.nodes[source], placed.nodes[target])
        assert [x for x, _ in line] == list(np.arange(line[0][0], line[-1][0] + 1))
        for x, y in line[1:-1]:
            assert min((abs(y - v) for u, v in spots if u == x), default=9.0) > 0.6


def test_columns_are_the_stages_that_occur() -> None:
    circuit = Circuit(
        n_layers=30,
        n_heads=4,
        nodes=("a20.h1", "a3.h1", "m3", "a9.h0"),
        edges=(("a3.h1", "a20.h1"), ("a3.h1", "a9.h0"), ("m3", "a20.h1<q>"), ("input", "m3")),
    )
    placed = layout(circuit)
    assert list(placed.columns) == ["input", "a3.h1", "m3", "a9.h0", "a20.h1"]
    for name, (x, _) in placed.nodes.items():
        its = placed.columns[int(x)]
        assert stage(name, n_layers=30, n_heads=4) == stage(its, n_layers=30, n_heads=4)


def test_without_edges_a_head_is_in_the_row_of_its_number() -> None:
    placed = layout(Circuit(n_layers=9, n_heads=5, nodes=("a7.h3", "a2.h0", "m2", "logits")))
    assert placed.by_head
    assert placed.nodes == {"a2.h0": (0, 0), "m2": (1, -1), "a7.h3": (2, 3), "logits": (3, 2)}


def test_parts_without_a_joint_stand_apart() -> None:
    pairs = [((0, 0), (3, 0)), ((1, 1), (2, 1)), ((0, 2), (3, 2))]
    heads = [(0, 0), (3, 0), (1, 1), (2, 1), (0, 2), (3, 2), (1, 3), (5, 0)]
    placed = layout(Circuit.from_heads(heads, n_layers=6, n_heads=4, pairs=pairs))
    assert crossings([list(line) for line in placed.edges.values()]) == 0
    assert placed.nodes["a5.h0"][1] == min(y for _, y in placed.nodes.values())  # alone in its column: at the top
    assert len({y for x, y in placed.nodes.values() if x == 1}) == 2


_PLACE = """
import numpy as np
from headcodes.circuit.circuit import Circuit
from headcodes.report.layout import layout
generator = np.random.default_rng(3)
junk = [object() for _ in range(int(__import__("sys").argv[1]))]
print(layout(Circuit.from_scores(generator.random((12, 8)), top=20, pair_scores=generator.random((96, 96)))))
"""


def test_the_same_circuit_is_placed_alike_in_every_process() -> None:
    said = {
        subprocess.run(
            [sys.executable, "-c", _PLACE, str(n)], env={"PYTHONHASHSEED": str(n)}, capture_output=True, check=True
        ).stdout
        for n in (1, 20_000)
    }
    assert len(said) == 1
    assert "a1" in said.pop().decode()
