"""MIB's graphs and submissions, read by a copy of their own reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes import discover, tasks
from headcodes.circuit import auto_circuit, mib
from headcodes.circuit import formats as export
from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError, HeadcodesWarning
from made_circuits import SCORES, graph_circuit, head_circuit


class MibGraph:
    """What MIB makes of a graph file: real edges, scores by name, node scores NaN where there are none."""

    def __init__(self, path: Path) -> None:
        data = json.loads(path.read_text())
        cfg = data["cfg"]
        assert set(cfg) == {"n_layers", "n_heads", "parallel_attn_mlp", "d_model"}
        self.real: list[str] = []
        residual = ["input"]
        for layer in range(cfg["n_layers"]):
            heads = [f"a{layer}.h{head}" for head in range(cfg["n_heads"])]
            mlp = f"m{layer}"
            self.real += [f"{source}->{head}<{slot}>" for source in residual for head in heads for slot in "qkv"]
            if not cfg["parallel_attn_mlp"]:
                residual += heads
            self.real += [f"{source}->{mlp}" for source in residual]
            residual += [mlp] if not cfg["parallel_attn_mlp"] else [*heads, mlp]
        self.real += [f"{source}->logits" for source in residual]
        assert set(data["nodes"]) == {*residual, "logits"}
        assert set(data["edges"]) == set(self.real)
        self.node_scores = {name: row.get("score", np.nan) for name, row in data["nodes"].items() if name != "logits"}
        self.nodes = {name for name, row in data["nodes"].items() if row["in_graph"]}
        self.scores = {name: row["score"] for name, row in data["edges"].items()}
        self.edges = {name for name, row in data["edges"].items() if row["in_graph"]}

    def pruned(self, edges: set[str]) -> tuple[set[str], set[str]]:
        """Drop nodes without an edge in or out, and edges without their nodes, until nothing changes."""
        while True:
            sources = {name.split("->")[0] for name in edges}
            targets = {name.split("->")[1].split("<")[0] for name in edges} | {"input"}
            nodes = (sources & targets) | {"logits"}
            kept = {
                name for name in edges if name.split("->")[0] in nodes and name.split("->")[1].split("<")[0] in nodes
            }
            if kept == edges:
                return nodes - {"logits"}, edges
            edges = kept

    def top(self, n: int) -> tuple[set[str], set[str]]:
        return self.pruned(set(sorted(self.real, key=lambda name: -abs(self.scores[name]))[:n]))

    def top_nodes(self, n: int) -> set[str]:
        """The n best-scored nodes; unscored ones are always kept."""
        scored = [name for name, score in self.node_scores.items() if not np.isnan(score)]
        best = sorted(scored, key=lambda name: -abs(self.node_scores[name]))[:n]
        return {*best, *(set(self.node_scores) - set(scored))}


def test_gpt2s_graph_has_its_32491_edges() -> None:
    gpt2 = Circuit(n_layers=12, n_heads=12, nodes=(), d_model=768)
    graph = mib.mib_graph(gpt2)
    assert graph.n_edges == len(set(graph.named_edges())) == len(set(graph.edges_from_logits())) == 32491
    assert graph.shape == (len(graph.sources), len(graph.destinations)) == (157, 445)


@pytest.mark.parametrize("parallel", [False, True])
def test_head_circuit_reaches_mib_with_scores_and_membership(tmp_path: Path, parallel: bool) -> None:
    circuit = head_circuit(parallel_attn_mlp=parallel)
    assert set(circuit.nodes) == {"a0.h1", "a1.h0", "a2.h0"}
    mib.write_mib(circuit, tmp_path / "graph.json")
    graph = MibGraph(tmp_path / "graph.json")
    assert {name for name in graph.nodes if name.startswith("a")} == set(circuit.nodes)
    assert {"input", "m0", "m1", "m2", "logits"} <= graph.nodes
    for layer in range(3):
        for head in range(2):
            assert graph.node_scores[f"a{layer}.h{head}"] == SCORES[layer, head]
        assert np.isnan(graph.node_scores[f"m{layer}"])
    # The best pair is worth as much as the best head; the pair with a quarter of its score a quarter of that.
    assert graph.scores["a1.h0->a2.h0<k>"] == 5.0
    assert graph.scores["a0.h1->a1.h0<v>"] == 1.25
    assert graph.scores["a0.h1->a2.h0<q>"] == 0.0
    assert (graph.scores["input->a2.h0<q>"], graph.scores["a0.h1->m1"], graph.scores["m0->m1"]) == (4.0, 3.0, 5.0)
    assert {name for name in graph.edges if name.count("a") == 2 and "h1->a" in name} == {
        f"a0.h1->a1.h0<{slot}>" for slot in "qkv"
    }
    assert graph.pruned(graph.edges)[0] == graph.nodes - {"logits"}
    # The stronger half of the edges makes a graph that is not empty.
    nodes, edges = graph.top(len(graph.real) // 2)
    assert edges
    assert {"a1.h0", "a2.h0"} <= nodes
    assert graph.top_nodes(2) == {"a1.h0", "a2.h0", "input", "m0", "m1", "m2"}


def test_without_pairs_edges_are_made_from_their_heads(tmp_path: Path) -> None:
    mib.write_mib(head_circuit(pairs=False), tmp_path / "graph.json")
    graph = MibGraph(tmp_path / "graph.json")
    assert graph.scores["a0.h1->a1.h0<q>"] == 3.0
    assert graph.scores["a0.h0->a1.h0<q>"] == 0.0
    assert "a0.h1->a2.h0<q>" in graph.edges
    assert "a0.h0->a2.h0<q>" not in graph.edges
    # Heads alone, without any score, still make a graph.
    bare = Circuit.from_heads([(0, 1), (1, 0)], n_layers=2, n_heads=2, d_model=4)
    mib.write_mib(bare, tmp_path / "bare.json")
    graph = MibGraph(tmp_path / "bare.json")
    assert graph.pruned(graph.edges)[0] == {"input", "m0", "m1", "a0.h1", "a1.h0"}
    assert graph.scores["a0.h1->a1.h0<v>"] == 1.0


def test_round_trip_keeps_scores_and_membership(tmp_path: Path) -> None:
    circuit = graph_circuit()
    mib.write_mib(circuit, tmp_path / "graph.json")
    graph = MibGraph(tmp_path / "graph.json")
    assert graph.nodes == set(circuit.nodes)
    assert graph.edges == {"input->a0.h1<q>", "a0.h1->m1", "m1->logits"}
    assert graph.scores["m0->m1"] == 1e-3
    assert graph.scores["input->m0"] == 0
    back = mib.read_mib(tmp_path / "graph.json", model="m")
    assert set(back.nodes) == set(circuit.nodes)
    assert set(back.edges) == set(circuit.edges)
    assert back.node_scores == circuit.node_scores
    assert {edge: score for edge, score in back.edge_scores.items() if score} == circuit.edge_scores
    assert (back.model, back.d_model, back.n_layers) == ("m", 8, 2)
    assert mib.to_mib(back) == mib.to_mib(circuit)
    assert export.load_circuit(tmp_path / "graph.json").edge_scores == back.edge_scores
    circuit.to_json(tmp_path / "circuit.json")
    assert export.load_circuit(tmp_path / "circuit.json") == circuit


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3"])
def test_a_saved_runs_own_edge_scores_reach_mib(tiny_model: Any, tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    pairs = tasks.get("ioi").build(model.tokenizer, 3, seed=0)
    with pytest.warns(HeadcodesWarning, match="answers only"):
        result = discover(model, pairs, method="eap", level="edge")
    result.save(tmp_path, top=5)
    export.export(export.load_circuit(tmp_path / "circuit.json"), "mib", tmp_path / "graph.json")
    graph = MibGraph(tmp_path / "graph.json")
    edges, others = result.findings.edges, result.findings.other_nodes
    assert edges is not None
    expected = {
        f"{source}->{target}": edges.scores[i, j]
        for i, source in enumerate(edges.sources)
        for j, target in enumerate(edges.destinations)
        if not np.isnan(edges.scores[i, j])
    }
    assert graph.scores == expected
    assert all(expected[f"input->{target}"] != 0 for target in ("a0.h0<v>", "a1.h3<k>", "m0"))
    # What is no head is scored, and stays; of the heads, those that the circuit chose.
    assert graph.node_scores["m1"] == others["m1"] != 0
    assert graph.node_scores["input"] == others["input"]
    chosen = result.circuit(5)
    assert graph.nodes == {*chosen.nodes, "input", "m0", "m1", "m2", "logits"}
    assert {name.split("<")[0] for name in graph.edges if name.count(".h") == 2} == {
        f"{source}->{target}" for source, target in chosen.edges
    }
    assert f"input->{chosen.nodes[0]}<q>" in graph.edges
    # circuit.json itself holds what was chosen; the other forms get every edge, too.
    saved = Circuit.from_json(tmp_path / "circuit.json")
    assert saved.edge_scores_file == "scores.safetensors"
    assert set(saved.edge_scores) == set(chosen.edges)
    export.export(export.load_circuit(tmp_path / "circuit.json"), "circuit", tmp_path / "alone" / "circuit.json")
    alone = export.load_circuit(tmp_path / "alone" / "circuit.json")
    assert alone == export.with_edges(chosen, edges)
    assert {edge: alone.edge_scores[edge] for edge in chosen.edges} == chosen.edge_scores
    assert mib.to_mib(alone) == json.loads((tmp_path / "graph.json").read_text())
    scores = auto_circuit.to_prune_scores(alone)
    assert scores["blocks.1.hook_mlp_in"][0] == np.float32(expected["input->m1"])


def test_edge_scores_that_a_circuit_names_must_be_there(tmp_path: Path) -> None:
    import torch
    from safetensors.numpy import save_file
    from safetensors.torch import save_file as save_torch

    path = tmp_path / "circuit.json"
    head_circuit(edge_scores_file="scores.safetensors").to_json(path)
    names = {"edge_sources": "input", "edge_destinations": "m0 logits"}
    with pytest.raises(HeadcodesError, match="lie beside it"):
        export.load_circuit(path)
    save_file({"head_scores": SCORES}, tmp_path / "scores.safetensors", names)
    with pytest.raises(HeadcodesError, match="lie beside it"):
        export.load_circuit(path)
    save_file({"edge_scores": np.ones((2, 2))}, tmp_path / "scores.safetensors", names)
    with pytest.raises(HeadcodesError, match="1 x 2 edges"):
        export.load_circuit(path)
    save_torch({"edge_scores": torch.ones(1, 2, dtype=torch.bfloat16)}, tmp_path / "scores.safetensors", names)
    with pytest.raises(HeadcodesError, match="bfloat16"):  # numpy has no such type
        export.load_circuit(path)
    save_file({"edge_scores": np.array([[np.nan, 2.0]])}, tmp_path / "scores.safetensors", names)
    assert export.load_circuit(path).edge_scores["input", "logits"] == 2
    assert ("input", "m0") not in export.load_circuit(path).edge_scores
    (tmp_path / "below").mkdir()
    head_circuit(edge_scores_file="../scores.safetensors").to_json(tmp_path / "below" / "circuit.json")
    with pytest.raises(HeadcodesError, match="plain file name"):
        export.load_circuit(tmp_path / "below" / "circuit.json")


def test_mibs_own_nan_means_unscored() -> None:
    data = mib.to_mib(graph_circuit())
    data["nodes"]["m0"]["score"] = float("nan")
    assert mib.from_mib(data).node_scores == graph_circuit().node_scores


@pytest.mark.parametrize("circuit", [head_circuit(), graph_circuit()])
def test_submission(tmp_path: Path, circuit: Circuit) -> None:
    files = mib.write_mib_submission({("ioi", "gpt2"): circuit, ("mcqa", "gemma2"): circuit}, tmp_path)
    assert files == [tmp_path / "ioi_gpt2" / "importances.json", tmp_path / "mcqa_gemma2" / "importances.json"]
    MibGraph(files[0])
    nine = mib.write_mib_submission({("ioi", "gpt2"): circuit}, tmp_path / "nine", nine=True)
    assert [path.name for path in nine] == [f"{p}.json" for p in ("0.1", "0.2", "0.5", "1", "2", "5", "10", "20", "50")]
    assert len(list((tmp_path / "nine" / "ioi_gpt2").iterdir())) == 9
    for path, share in zip(nine, (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), strict=True):
        graph = MibGraph(path)
        assert len(graph.edges) <= share * len(graph.real)
        assert len(graph.edges) == int(share * len(graph.real))
        least = min((abs(graph.scores[name]) for name in graph.edges), default=np.inf)
        assert all(abs(graph.scores[name]) <= least for name in set(graph.real) - graph.edges)


def test_a_submission_is_held_to_the_tracks_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mib, "MIB_MODELS", dict.fromkeys(mib.MIB_MODELS, (3, 2, 8)))
    circuit = head_circuit(d_model=8)
    good = {("ioi", "gpt2"): circuit, ("arc-easy", "llama3"): circuit}
    mib.write_mib_submission(good, tmp_path / "good")
    mib.check_mib_submission(tmp_path / "good")
    mib.write_mib_submission(good, tmp_path / "nine", nine=True)
    mib.check_mib_submission(tmp_path / "nine")

    def refused(match: str, change: Callable[[Path], object], nine: bool = False) -> None:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / ("nine" if nine else "good"), folder)
        change(folder)
        with pytest.raises(HeadcodesError, match=match):
            mib.check_mib_submission(folder)

    scores = "ioi_gpt2/importances.json"
    refused("one of ioi_gpt2", lambda f: (f / "ioi_gpt2").rename(f / "ioi_gpt3"))
    refused("two tasks", lambda f: (f / "arc-easy_llama3").rename(f / "ioi_llama3"))
    refused("two models", lambda f: (f / "ioi_gpt2").rename(f / "ioi_llama3"))
    refused("one JSON file", lambda f: (f / scores).with_name("second.json").write_text("{}"))
    refused("one JSON file", lambda f: (f / scores).rename(f / "ioi_gpt2" / "scores.pt"))
    refused("layers, heads, d_model", lambda f: mib.write_mib(head_circuit(d_model=9), f / scores))

    def without_an_edge(folder: Path) -> None:
        graph = json.loads((folder / scores).read_text())
        del graph["edges"]["input->m0"]
        (folder / scores).write_text(json.dumps(graph))

    refused("every edge", without_an_edge)
    refused(
        "of nine must have at most",
        lambda f: shutil.copy(f / "ioi_gpt2" / "50.json", f / "ioi_gpt2" / "0.1.json"),
        nine=True,
    )
    with pytest.raises(HeadcodesError, match="two tasks"):
        mib.check_mib_submission(tmp_path / "absent")
    # The track's own names; GPT-2's shape is the one of its 32,491 edges above.
    assert len(mib.MIB_FOLDERS) == 12
    assert {name.split("_")[1] for name in mib.MIB_FOLDERS} == set(mib.MIB_MODELS)


def test_mib_needs_the_width() -> None:
    with pytest.raises(HeadcodesError, match="d_model"):
        mib.to_mib(head_circuit(d_model=None))
