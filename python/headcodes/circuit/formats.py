"""Circuits in the forms that other tools read: EAP-IG and MIB, auto-circuit, NetworkX.

MIB's graph has an edge for everything that writes before something reads: ``input``, heads and MLPs write;
the query, key and value of each head, MLPs and ``logits`` read. A circuit of headcodes mostly knows heads,
and pairs of heads. What it does not say is filled in by one rule, so that the pruned graph does not come out
empty:

- Nodes without a score (input, MLPs, logits) get none, which MIB reads as "always kept".
- A head-to-head edge gets its pair's score, scaled so that the best pair is worth as much as the best head;
  where the circuit has no pair scores, the smaller score of its two heads. Query, key and value share it.
- Any other edge gets the score of the head at its end; one without a head gets the best head's: it is always
kept. Where nodes were chosen among MLPs too, their scores count like those of heads.

A circuit that itself has scores of edges to slots, MLPs, input or logits (from EAP, or read from such a
file) is written with them as they are, with 0 for edges without a score. Which edges and nodes are chosen is
filled in only where the circuit has chosen nothing but heads, and pairs of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from headcodes.circuit.auto_circuit import write_prune_scores
from headcodes.circuit.circuit import Circuit
from headcodes.circuit.mib import from_mib, write_mib
from headcodes.errors import HeadcodesError, missing_package
from headcodes.files import atomic_write, read_json, reading, regular
from headcodes.graph import Edges, parse_head, split_slot


def to_networkx(circuit: Circuit) -> Any:
    """Return the circuit as a networkx.DiGraph: nodes with ``score``, ``layer``, ``head``, edges with
    ``score``, ``slot``.

    Edges into several slots of a head become one, with the slots in one string and the score of largest size.

    Raises:
        HeadcodesError: networkx is not installed.
    """
    try:
        import networkx
    except ImportError as error:
        raise missing_package("networkx", "a NetworkX graph") from error
    graph = networkx.DiGraph(model=circuit.model, task=circuit.task, method=circuit.method)

    def add(name: str) -> None:
        head = parse_head(name)
        layer = head[0] if head else int(name[1:]) if name[0] == "m" else None
        graph.add_node(name, score=circuit.node_scores.get(name), layer=layer, head=head[1] if head else None)

    for name in circuit.nodes:
        add(name)
    for source, destination in circuit.edges:
        name, slot = split_slot(destination)
        for end in (source, name):
            if end not in graph:
                add(end)
        score = circuit.edge_scores.get((source, destination))
        old: dict[str, Any] = {"score": None, "slot": ""}
        if graph.has_edge(source, name):
            old = graph.edges[source, name]
        if old["score"] is not None and (score is None or abs(old["score"]) >= abs(score)):
            score = old["score"]
        graph.add_edge(source, name, score=score, slot=old["slot"] + (slot or ""))
    return graph


def _write_graphml(circuit: Circuit, path: Path | str) -> None:
    import networkx

    graph = to_networkx(circuit)
    for _, attributes in (*graph.nodes(data=True), *((edge[:2], edge[2]) for edge in graph.edges(data=True))):
        # GraphML has no word for "none".
        for name in [name for name, value in attributes.items() if value is None]:
            del attributes[name]
    with atomic_write(path) as temporary:
        networkx.write_graphml(graph, temporary)


FORMATS: dict[str, Callable[[Circuit, Path | str], None]] = {
    "mib": write_mib,
    "auto-circuit": write_prune_scores,
    "circuit": lambda circuit, path: circuit.to_json(path),
    "graphml": _write_graphml,
}


def export(circuit: Circuit, form: str, path: Path | str) -> None:
    """Write a circuit in one of ``FORMATS``: mib, auto-circuit, circuit (ours), graphml (through NetworkX).

    Raises:
        HeadcodesError: another form, or what the form itself demands.
    """
    if form not in FORMATS:
        raise HeadcodesError(f"a form must be one of {', '.join(FORMATS)}", repr(form), "Choose one of them.")
    FORMATS[form](circuit, path)


def load_circuit(path: Path | str) -> Circuit:
    """Read a circuit from our circuit.json or a MIB graph, whichever the file is.

    Where a circuit.json names a file of edge scores (``edge_scores_file``, docs/circuit-json.md), they are read too.

    Raises:
        HeadcodesError: neither, or the file of edge scores is not there, or not one.
    """
    mend = "Give a circuit.json of ours, or a MIB graph."
    data = read_json(path, "a circuit file", mend)
    with reading("a circuit file must hold a circuit", path, mend):
        if isinstance(data, dict) and "cfg" in data:
            return from_mib(data)
        circuit = Circuit.from_dict(data)
    if circuit.edge_scores_file is None:
        return circuit
    return replace(with_edges(circuit, _read_edges(Path(path), circuit.edge_scores_file)), edge_scores_file=None)


def with_edges(circuit: Circuit, edges: Edges) -> Circuit:
    """Return ``circuit`` with the scores of all edges of the graph too (``Findings.edges``); its choice stays."""
    real = zip(*np.nonzero(~np.isnan(edges.scores)), strict=True)
    scores = {(edges.sources[i], edges.destinations[j]): float(edges.scores[i, j]) for i, j in real}
    return replace(circuit, edge_scores={**scores, **circuit.edge_scores})


def _read_edges(circuit: Path, name: str) -> Edges:
    """Read the scores of all edges that ``Result.save`` wrote beside a circuit."""
    from safetensors import safe_open

    mend = "Copy it too, or take edge_scores_file out of the circuit."
    with reading("the file of edge scores that the circuit names must lie beside it", circuit.parent / name, mend):
        if Path(name).name != name:
            raise ValueError("no plain file name")
        if not circuit.with_name(name).exists():
            raise ValueError("no such file")
        with safe_open(regular(circuit.with_name(name)), framework="numpy") as file:
            scores, names = file.get_tensor("edge_scores"), file.metadata() or {}
        sources, destinations = names["edge_sources"].split(), names["edge_destinations"].split()
        if scores.shape != (len(sources), len(destinations)):
            raise ValueError(f"{scores.shape} scores of {len(sources)} x {len(destinations)} edges")
    return Edges(sources, destinations, scores)
