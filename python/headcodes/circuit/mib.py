"""Graph files of EAP-IG and MIB."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from math import isnan
from pathlib import Path
from typing import Any

from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, checked, read_json, reading
from headcodes.graph import Graph, parse_head, parse_part, split_slot

_MOST_EDGES = 20_000_000
# MIB's nine sizes of a submission of circuits: at most this share of the edges.
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)

# The folders of a submission, {task}_{model}, and the shape of each model: layers, heads a layer, d_model.
MIB_FOLDERS = (
    *("ioi_gpt2", "ioi_qwen2.5", "ioi_gemma2", "ioi_llama3", "mcqa_qwen2.5", "mcqa_gemma2", "mcqa_llama3"),
    *("arithmetic-addition_llama3", "arithmetic-subtraction_llama3"),
    *("arc-easy_gemma2", "arc-easy_llama3", "arc-challenge_llama3"),
)
MIB_MODELS = {"gpt2": (12, 12, 768), "qwen2.5": (24, 14, 896), "gemma2": (26, 8, 2304), "llama3": (32, 32, 4096)}


def mib_graph(circuit: Circuit) -> Graph:
    """Return the nodes and edges of the circuit's model, which these files take to have MLPs."""
    return Graph(circuit.n_layers, circuit.n_heads, parallel_attn_mlp=circuit.parallel_attn_mlp)


def check_n_edges(circuit: Circuit) -> None:
    """Refuse what would be written until the disk is full.

    Raises:
        HeadcodesError: the graph of the circuit's model has more than 20 million edges.
    """
    n_edges = mib_graph(circuit).n_edges
    if n_edges > _MOST_EDGES:
        raise HeadcodesError(
            f"a graph with an edge for every source and destination must have at most {_MOST_EDGES:,} edges",
            f"{n_edges:,}, of {circuit.n_layers} layers of {circuit.n_heads} heads",
            "Export it as circuit or graphml.",
        )


def to_mib(circuit: Circuit) -> dict[str, Any]:
    """Return the circuit as an EAP-IG / MIB graph (``Graph.from_json`` there reads the file).

    Raises:
        HeadcodesError: ``d_model`` is unknown, which the form demands.
    """
    if circuit.d_model is None:
        raise HeadcodesError(
            "MIB's graphs must carry the width of the residual stream",
            "a circuit without d_model",
            "Set d_model in circuit.json.",
        )
    check_n_edges(circuit)
    score, member = filled_graph(circuit)
    nodes: dict[str, Any] = {}
    for name in [*mib_graph(circuit).sources, "logits"]:
        nodes[name] = {"in_graph": name == "logits" or _node_member(circuit, name)}
        if name in circuit.node_scores:
            nodes[name]["score"] = circuit.node_scores[name]
    return {
        "cfg": {
            "n_layers": circuit.n_layers,
            "n_heads": circuit.n_heads,
            "parallel_attn_mlp": circuit.parallel_attn_mlp,
            "d_model": circuit.d_model,
        },
        "nodes": nodes,
        "edges": {
            f"{source}->{destination}": {"score": score(source, destination), "in_graph": member(source, destination)}
            for source, destination in mib_graph(circuit).named_edges()
        },
    }


def from_mib(data: Any, *, model: str = "", task: str = "", method: str = "") -> Circuit:
    """Build a circuit from an EAP-IG / MIB graph; every score and every membership is kept.

    Args:
        data: The parsed JSON.
        model: Name to keep, as for ``task`` and ``method``: the form has no place for them.
        task: See ``model``.
        method: See ``model``.

    Raises:
        HeadcodesError: not such a graph.
    """
    from headcodes.circuit.schema import MibGraph

    graph = checked(MibGraph, data, "a MIB graph", "Give the file that Graph.to_json of EAP-IG wrote.")
    edges = {(source, end): row for name, row in graph.edges.items() for source, end in [name.split("->")]}
    return Circuit(
        **vars(graph.cfg),
        nodes=tuple(name for name, row in graph.nodes.items() if row.in_graph),
        edges=tuple(edge for edge, row in edges.items() if row["in_graph"]),
        node_scores={name: row.score for name, row in graph.nodes.items() if not isnan(row.score)},
        edge_scores={edge: row["score"] for edge, row in edges.items()},
        model=model,
        task=task,
        method=method,
    )


def write_mib(circuit: Circuit, path: Path | str) -> None:
    """Write the circuit as an EAP-IG / MIB graph."""
    _write_json(path, to_mib(circuit))


def read_mib(path: Path | str, **names: str) -> Circuit:
    """Read an EAP-IG / MIB graph; ``names`` as ``from_mib``.

    Raises:
        HeadcodesError: no such file, no JSON, or not such a graph.
    """
    mend = "Give the file that Graph.to_json of EAP-IG wrote."
    data = read_json(path, "a MIB graph", mend)
    with reading("a file must hold a MIB graph", path, mend):
        return from_mib(data, **names)


def write_mib_submission(
    circuits: Mapping[tuple[str, str], Circuit], folder: Path | str, *, nine: bool = False
) -> list[Path]:
    """Write a MIB submission: a folder ``{task}_{model}`` a circuit, in MIB's own names of tasks and models.

    Args:
        circuits: By (task, model): ("ioi", "gpt2").
        folder: Where the folders go.
        nine: Write nine circuits with at most .1 .2 .5 1 2 5 10 20 50 % of the edges, taken by |score|,
            instead of one ``importances.json`` with all scores. They are called by their share in per cent:
            ``0.1.json``.

    Returns:
        The files written.
    """
    written = []
    for (task, model), circuit in circuits.items():
        place = Path(folder) / f"{task}_{model}"
        graph = to_mib(circuit)
        if not nine:
            written.append(place / "importances.json")
            _write_json(written[-1], graph)
            continue
        for share in MIB_SHARES:
            written.append(place / f"{100 * share:g}.json")
            _write_json(written[-1], _cut(graph, share))
    return written


def check_mib_submission(folder: Path | str) -> None:
    """Hold a folder to the rules of MIB's circuit track.

    At least two models and two tasks; folders of the track's own tasks and models; in each either one JSON file of
    scores, all finite, or nine of membership, the k-th smallest of at most the k-th of ``MIB_SHARES`` of all edges;
    every graph of its model's shape, with all of its edges. (Files in torch's ``.pt`` form are allowed there and never
    opened here.)

    Raises:
        HeadcodesError: a rule is broken; the message names the folder or file.
    """
    places = sorted(place for place in Path(folder).iterdir() if place.is_dir()) if Path(folder).is_dir() else []
    for place in places:
        if place.name not in MIB_FOLDERS:
            raise _broken(f"a folder must be one of {', '.join(MIB_FOLDERS)}", place, "another name")
    ends = [place.name.split("_") for place in places]
    for what, names in (("tasks", {task for task, _ in ends}), ("models", {model for _, model in ends})):
        if len(names) < 2:
            raise _broken(f"a submission must hold at least two {what}", folder, f"{len(names)}")
    for place, (_, model) in zip(places, ends, strict=True):
        files = sorted(place.iterdir())
        if len(files) not in (1, len(MIB_SHARES)) or any(file.suffix != ".json" for file in files):
            names_here = ", ".join(file.name for file in files)
            raise _broken("a folder must hold one JSON file of scores or nine of membership", place, names_here)
        _check_graphs(files, model)


def _check_graphs(files: list[Path], model: str) -> None:
    shares = []
    for file in files:
        data = read_json(file, "a MIB graph", "Write it with write_mib_submission.")
        circuit = from_mib(data)
        shape = (circuit.n_layers, circuit.n_heads, circuit.d_model)
        if shape != MIB_MODELS[model]:
            raise _broken(f"{model} must have layers, heads, d_model {MIB_MODELS[model]}", file, f"{shape}")
        missing = {f"{source}->{destination}" for source, destination in mib_graph(circuit).named_edges()} ^ set(
            data["edges"]
        )
        if missing:
            raise _broken("a graph must have every edge of the model and no other", file, f"not {min(missing)}")
        shares.append(len(circuit.edges) / len(data["edges"]))
    for share, most in zip(sorted(shares), MIB_SHARES, strict=False):
        if len(files) > 1 and share > most:
            raise _broken(f"one of nine must have at most {most:.1%} of the edges", files[0].parent, f"{share:.2%}")


def _broken(must: str, place: Path | str, got: str) -> HeadcodesError:
    return HeadcodesError(must, f"{place}: {got}", "The track's README has the rules.")


def _cut(graph: dict[str, Any], share: float) -> dict[str, Any]:
    """Keep the edges of largest |score|, at most ``share`` of all, and the nodes that they touch."""
    edges = graph["edges"]
    order = sorted(edges, key=lambda name: -abs(edges[name]["score"]))[: int(share * len(edges))]
    chosen = set(order)
    touched = {end for name in chosen for end in (name.split("->")[0], split_slot(name.split("->")[1])[0])}
    return {
        "cfg": graph["cfg"],
        "nodes": {
            name: {**row, "in_graph": name in touched or name == "logits"} for name, row in graph["nodes"].items()
        },
        "edges": {name: {**row, "in_graph": name in chosen} for name, row in edges.items()},
    }


def beyond_pairs(edges: Iterable[tuple[str, str]]) -> bool:
    """Whether any of the edges is not one between two heads, or to a slot of one: it has an MLP, input or logits."""
    return any(
        parse_head(source) is None or parse_head(split_slot(destination)[0]) is None for source, destination in edges
    )


def chooses_mlps(circuit: Circuit) -> bool:
    """Whether nodes were chosen among MLPs too: some are in and some are not, or ``meta`` says so.

    A graph that keeps every MLP, as ours do where nothing chose among them, says as little as one that names none.
    """
    n_mlps = sum(head is None for _, head in circuit.parts)
    return 0 < n_mlps < circuit.n_layers or circuit.meta.get("components") == "heads+mlps"


def _chooses_all(circuit: Circuit) -> bool:
    """Whether the choice of edges beyond pairs of heads is the circuit's own."""
    only_parts = bool(circuit.nodes) and len(circuit.parts) == len(circuit.nodes)
    return beyond_pairs(circuit.edges) or (beyond_pairs(circuit.edge_scores) and not only_parts)


def _node_member(circuit: Circuit, name: str) -> bool:
    """Whether a node is in the graph: what was not chosen among, the embedding mostly, stays."""
    if name in circuit.nodes:
        return True
    if parse_head(name) or _chooses_all(circuit):
        return False
    if name == "input":
        return "logits" not in circuit.nodes  # a graph that names its ends has chosen among them
    return not chooses_mlps(circuit) and not any(parse_head(node) is None for node in circuit.nodes)


def filled_graph(circuit: Circuit) -> tuple[Callable[[str, str], float], Callable[[str, str], bool]]:
    """Return the score and the membership of every edge, filled in by the rule of this module."""
    chosen = set(circuit.edges)
    # MLPs have a say where nodes were chosen among them.
    scored = parse_part if chooses_mlps(circuit) else parse_head
    scores = {name: score for name, score in circuit.node_scores.items() if scored(name)}
    scores = scores or dict.fromkeys(circuit.nodes, 1.0)
    best = max((abs(score) for score in scores.values()), default=0.0) or 1.0
    strongest_pair = max((abs(score) for score in circuit.edge_scores.values()), default=0.0) or 1.0

    def own(source: str, destination: str) -> float:
        return circuit.edge_scores.get((source, destination), 0.0)

    def made(source: str, destination: str) -> float:
        name = split_slot(destination)[0]
        ends = [scores.get(end, 0.0) for end in (source, name) if scored(end)]
        if circuit.edge_scores and parse_head(source) and parse_head(name):
            score = circuit.edge_scores.get((source, destination), circuit.edge_scores.get((source, name), 0.0))
            return score * best / strongest_pair
        return min(ends, key=abs) if ends else best

    chooses_all, members = _chooses_all(circuit), {n for n in mib_graph(circuit).sources if _node_member(circuit, n)}

    def member(source: str, destination: str) -> bool:
        if chooses_all:
            return (source, destination) in chosen
        name = split_slot(destination)[0]
        if parse_head(source) and parse_head(name) and chosen:
            return (source, destination) in chosen or (source, name) in chosen
        return source in members and (name == "logits" or name in members)

    return (own if beyond_pairs((*circuit.edge_scores, *circuit.edges)) else made), member


def _write_json(path: Path | str, data: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")
