"""Prune scores of auto-circuit, NetworkX and GraphML, read back as those tools do (MIB: test_mib.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.circuit import auto_circuit, mib
from headcodes.circuit import formats as export
from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from made_circuits import graph_circuit, head_circuit


@pytest.mark.parametrize(
    "change",
    [
        {"cfg": {}},
        {"nodes": []},
        {"edges": {"a->b->c": {}}},
        {"edges": {"input->m9": {"score": 1, "in_graph": True}}},
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(HeadcodesError):
        mib.from_mib({**mib.to_mib(graph_circuit()), **change})
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(HeadcodesError):
        export.load_circuit(tmp_path / "x.json")
    with pytest.raises(HeadcodesError):
        export.load_circuit(tmp_path / "absent.json")
    with pytest.raises(HeadcodesError, match="mib, auto-circuit"):
        export.export(graph_circuit(), "dot", tmp_path / "x")


@pytest.mark.parametrize("form", ["mib", "auto-circuit"])
def test_graphs_that_would_fill_the_disk_are_refused(tmp_path: Path, form: str) -> None:
    circuit = Circuit.from_heads([(0, 0)], n_layers=10_000, n_heads=10_000, d_model=8)
    with pytest.raises(HeadcodesError, match="of 10000 layers of 10000 heads"):
        export.export(circuit, form, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("parallel", [False, True])
def test_prune_scores_are_where_auto_circuit_looks(tmp_path: Path, parallel: bool) -> None:
    """auto-circuit indexes a destination's tensor by [head, source], sources counted in the order they write."""
    from safetensors.numpy import load_file

    circuit = head_circuit(parallel_attn_mlp=parallel)
    auto_circuit.write_prune_scores(circuit, tmp_path / "scores.safetensors")
    scores = load_file(tmp_path / "scores.safetensors")
    names = {f"blocks.{i}.hook_{s}" for i in range(3) for s in ("q_input", "k_input", "v_input", "mlp_in")}
    assert set(scores) == names | {"blocks.2.hook_resid_post"}
    assert all(value.dtype == np.float32 for value in scores.values())
    # Sources: input 0, a0.h0 1, a0.h1 2, m0 3, a1.h0 4, a1.h1 5, m1 6, a2.h0 7, a2.h1 8, m2 9.
    assert scores["blocks.2.hook_k_input"].shape == (2, 7)
    assert scores["blocks.2.hook_k_input"][0, 4] == 5.0
    assert scores["blocks.1.hook_v_input"][0, 2] == 1.25
    assert scores["blocks.1.hook_mlp_in"].shape == ((4,) if parallel else (6,))
    assert scores["blocks.1.hook_mlp_in"][2] == 3.0
    assert scores["blocks.2.hook_resid_post"].shape == (10,)
    assert scores["blocks.2.hook_resid_post"][7] == 4.0
    back = auto_circuit.read_prune_scores(tmp_path / "scores.safetensors", circuit)
    assert back.edge_scores["a1.h0", "a2.h0<k>"] == 5.0
    assert ("a0.h1", "a2.h0<q>") not in back.edges
    again = auto_circuit.to_prune_scores(back)
    assert all(np.array_equal(again[name], scores[name]) for name in scores)
    with pytest.raises(HeadcodesError, match="very model"):
        auto_circuit.from_prune_scores(scores, Circuit(n_layers=3, n_heads=3, nodes=()))
    (tmp_path / "bad").write_bytes(b"x")
    with pytest.raises(HeadcodesError):
        auto_circuit.read_prune_scores(tmp_path / "bad", circuit)


def test_prune_scores_of_one_head_keep_its_axis() -> None:
    """auto-circuit indexes [head, source] whatever the number of heads."""
    circuit = Circuit(n_layers=2, n_heads=1, nodes=("a0.h0",), edges=(("a0.h0", "a1.h0<q>"),), d_model=4)
    scores = auto_circuit.to_prune_scores(circuit)
    assert scores["blocks.1.hook_q_input"].shape == (1, 3)
    assert scores["blocks.1.hook_mlp_in"].shape == (4,)


def test_networkx(tmp_path: Path) -> None:
    networkx = pytest.importorskip("networkx", reason="networkx is not installed")
    graph = export.to_networkx(head_circuit())
    assert set(graph.nodes) == {"a0.h1", "a1.h0", "a2.h0"}
    assert graph.nodes["a1.h0"] == {"score": 5.0, "layer": 1, "head": 0}
    assert dict(graph.edges["a1.h0", "a2.h0"]) == {"score": 40.0, "slot": ""}
    slots = Circuit(
        n_layers=2,
        n_heads=1,
        nodes=(),
        edges=(("a0.h0", "a1.h0<q>"), ("a0.h0", "a1.h0<k>"), ("a0.h0", "a1.h0<v>"), ("m0", "logits")),
        edge_scores={("a0.h0", "a1.h0<q>"): 1.0, ("a0.h0", "a1.h0<k>"): -3.0},
    )
    merged = export.to_networkx(slots)
    assert dict(merged.edges["a0.h0", "a1.h0"]) == {"score": -3.0, "slot": "qkv"}
    assert set(merged.nodes) == {"a0.h0", "a1.h0", "m0", "logits"}
    export.export(slots, "graphml", tmp_path / "graph.graphml")
    assert set(networkx.read_graphml(tmp_path / "graph.graphml").edges) == {("a0.h0", "a1.h0"), ("m0", "logits")}
