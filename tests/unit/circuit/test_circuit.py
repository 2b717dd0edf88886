from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from headcodes.circuit.circuit import Circuit
from headcodes.circuit.formats import export, with_edges
from headcodes.errors import HeadcodesError
from headcodes.graph import Edges, parse_head, split_slot, stage

DOC = Path(__file__).parents[3] / "docs" / "circuit-json.md"


def test_top_heads_fall_by_score_and_ties_go_to_the_lower_index() -> None:
    scores = [[1.0, 3.0, 0.0], [3.0, -2.0, 2.0]]
    circuit = Circuit.from_scores(scores, top=3)
    assert circuit.nodes == ("a0.h1", "a1.h0", "a1.h2")
    assert circuit.heads == [(0, 1), (1, 0), (1, 2)]
    assert circuit.head_mask.tolist() == [[False, True, False], [True, False, True]]
    np.testing.assert_array_equal(circuit.head_scores, scores)
    many = Circuit.from_scores(np.tile([1.0, 2.0], (10, 10)), top=100)
    assert many.heads == [(layer, head) for layer in range(10) for head in range(1, 20, 2)]


def test_heads_without_evidence_are_never_taken() -> None:
    assert Circuit.from_scores([[0.0, 0.0], [1.0, -5.0]], top=4).nodes == ("a1.h0",)
    assert Circuit.from_scores(np.zeros((3, 3)), top=2).nodes == ()


def test_scores_of_chosen_edges_stay_where_all_edges_get_theirs() -> None:
    """A path that was patched keeps its effect: what was proposed does not take its place."""
    circuit = Circuit(1, 2, ("a0.h0",), (("a0.h0", "logits"),), {"a0.h0": 1.0}, {("a0.h0", "logits"): 9.0})
    scores = np.array([[2.0], [3.0], [np.nan]])
    found = with_edges(circuit, Edges(["input", "a0.h0", "m0"], ["logits"], scores))
    assert found.edge_scores == {("input", "logits"): 2.0, ("a0.h0", "logits"): 9.0}
    assert found.edges == circuit.edges


def test_edges_join_chosen_heads_forward_strongest_first() -> None:
    scores = [[5.0, 4.0], [3.0, 0.0], [2.0, 1.0]]
    pairs = np.zeros((6, 6))
    pairs[0, 1] = pairs[1, 0] = 99  # one layer: no edge
    pairs[2, 0] = 98  # backwards: not read
    pairs[0, 2], pairs[1, 2], pairs[0, 4], pairs[2, 4] = 1, 7, 7, 0
    pairs[0, 5] = 50  # a2.h1 is not among the top four
    circuit = Circuit.from_scores(scores, top=4, pair_scores=pairs)
    assert circuit.edges == (("a0.h0", "a2.h0"), ("a0.h1", "a1.h0"), ("a0.h0", "a1.h0"))
    assert circuit.edge_scores["a0.h1", "a1.h0"] == 7
    assert Circuit.from_scores(scores, top=4, pair_scores=pairs, top_edges=1).edges == (("a0.h0", "a2.h0"),)
    dense = Circuit.from_scores(np.ones((4, 1)), top=4, pair_scores=np.ones((4, 4)), top_edges=None)
    assert len(dense.edges) == 6  # every pair of four layers, fewer than twice the heads
    assert len(Circuit.from_scores(np.ones((8, 1)), top=8, pair_scores=np.ones((8, 8))).edges) == 16
    wide = Circuit.from_scores(scores, top=2, pair_scores=np.ones((6, 6)))
    assert wide.edges == ()


def test_file_round_trip_keeps_everything(tmp_path: Path) -> None:
    circuit = Circuit(
        n_layers=3,
        n_heads=2,
        nodes=("input", "a2.h1", "m0", "logits"),
        edges=(("input", "m0"), ("m0", "a2.h1<q>"), ("a2.h1", "logits")),
        node_scores={"a2.h1": 0.1 + 0.2, "a0.h0": -1e-300},
        edge_scores={("m0", "a2.h1<q>"): 2.0, ("a0.h0", "a2.h1<k>"): -0.5},
        d_model=16,
        parallel_attn_mlp=True,
        model="m",
        task="ioi",
        method="eap",
        meta={"seed": 3},
    )
    path = tmp_path / "new" / "circuit.json"
    circuit.to_json(path)
    assert Circuit.from_json(path) == circuit
    assert list(path.parent.iterdir()) == [path]


def test_documented_example_is_a_circuit() -> None:
    text = DOC.read_text(encoding="utf-8")
    block = re.search(r"```json\n(.*?)```", text, re.S)
    assert block
    data = json.loads(block[1])
    circuit = Circuit.from_dict(data)
    assert circuit.as_dict() == data
    assert circuit.pairs == [((0, 1), (1, 0))]
    for field in data:
        assert f"`{field}`" in text


def test_pairs_merge_the_slots_of_a_head() -> None:
    circuit = Circuit(
        n_layers=2,
        n_heads=1,
        nodes=(),
        edges=(("a0.h0", "a1.h0<q>"), ("a0.h0", "a1.h0<k>"), ("a0.h0", "m1"), ("input", "a1.h0<v>")),
    )
    assert circuit.pairs == [((0, 0), (1, 0))]


@pytest.mark.parametrize(
    ("source", "target", "parallel", "fine"),
    [
        ("a0.h0", "m0", False, True),
        ("a0.h0", "m0", True, False),
        ("m0", "a0.h1", False, False),
        ("m0", "a1.h1<v>", True, True),
        ("a0.h0", "a0.h1", False, False),
        ("input", "logits", False, True),
        ("logits", "input", False, False),
        ("input", "m1<q>", False, False),
        ("a1.h0", "a1.h0<q>", False, False),
    ],
)
def test_edges_follow_the_data(source: str, target: str, parallel: bool, fine: bool) -> None:
    def build() -> Circuit:
        edges = ((source, target),)
        return Circuit(n_layers=2, n_heads=2, nodes=(), edges=edges, parallel_attn_mlp=parallel)

    if fine:
        build()
    else:
        with pytest.raises(HeadcodesError, match="edge must go"):
            build()


@pytest.mark.parametrize("name", ["a2.h0", "a0.h2", "m2", "a0.h", "A0.h0", "a0.h0<q>", "", "a-1.h0", "a0.h0 "])
def test_unknown_names_are_refused(name: str) -> None:
    with pytest.raises(HeadcodesError, match="a node must be"):
        stage(name, n_layers=2, n_heads=2)
    with pytest.raises(HeadcodesError, match="a node must be"):
        Circuit(n_layers=2, n_heads=2, nodes=(name,))


def test_names() -> None:
    assert parse_head("a10.h3") == (10, 3)
    assert parse_head("m3") is None
    assert split_slot("a5.h1<k>") == ("a5.h1", "k")
    assert split_slot("m3") == ("m3", None)


GOOD = Circuit(n_layers=2, n_heads=2, nodes=("a0.h0",), edges=(("a0.h0", "a1.h1"),)).as_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"kind": "graph"},
        {"n_layers": "2"},
        {"n_layers": True},
        {"nodes": ["a5.h0"]},
        {"nodes": [3]},
        {"nodes": ["a0.h0", "a0.h0"]},
        {"nodes": None},
        {"edges": [["a0.h0", "a1.h1"]]},
        {"edges": [["a0.h0", "a1.h1", "x"]]},
        {"edges": [["a1.h1", "a0.h0", 1]]},
        {"edges": {"a": 1}},
        {"node_scores": {"a0.h0": float("nan")}},
        {"node_scores": [1.0]},
        {"node_scores": {"a0.h0": None}},
        {"meta": 3},
    ],
)
def test_bad_files_are_one_clear_error(change: dict[str, object]) -> None:
    with pytest.raises(HeadcodesError):
        Circuit.from_dict({**GOOD, **change})


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"null", b'{"schema": 1}'])
def test_unreadable_files_are_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(content)
    with pytest.raises(HeadcodesError):
        Circuit.from_json(path)
    with pytest.raises(HeadcodesError):
        Circuit.from_json(tmp_path / "absent.json")


@pytest.mark.parametrize(
    ("scores", "extra"),
    [
        ([1.0, 2.0], {}),
        ([[1.0, 2.0]], {"top": 0}),
        ([[1.0, 2.0]], {"pair_scores": np.zeros((3, 3))}),
        ([[1.0, float("inf")]], {}),
        ([[1.0, float("nan")]], {}),
        ([], {}),
    ],
)
def test_bad_scores_are_refused(scores: object, extra: dict[str, object]) -> None:
    with pytest.raises(HeadcodesError):
        Circuit.from_scores(scores, **{"top": 1, **extra})  # type: ignore[arg-type]


def test_a_graph_too_large_to_write_is_refused_at_once(tmp_path: Path) -> None:
    large = Circuit.from_heads([(0, 0)], n_layers=1000, n_heads=1000, d_model=8)
    for form in ("mib", "auto-circuit"):
        with pytest.raises(HeadcodesError, match="edges"):
            export(large, form, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
