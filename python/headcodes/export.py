"""Circuits in the forms that other tools read: EAP-IG and MIB, auto-circuit, NetworkX.

MIB's graph has an edge for everything that writes before something reads: ``input``, heads and MLPs write;
the query, key and value of each head, MLPs and ``logits`` read. A circuit of headcodes mostly knows heads,
and pairs of heads. What it does not say is filled in by one rule, so that the pruned graph does not come out
empty:

- Nodes without a score (input, MLPs, logits) get none, which MIB reads as "always kept".
- A head-to-head edge gets its pair's score, scaled so that the best pair is worth as much as the best head;
  where the circuit has no pair scores, the smaller score of its two heads. Query, key and value share it.
- Any other edge gets the score of the head at its end; one without a head gets the best head's: it is always
kept.

A circuit that itself has scores of edges to slots, MLPs, input or logits (from EAP, or read from such a
file) is written with them as they are, with 0 for edges without a score. Which edges and nodes are chosen is
filled in only where the circuit has chosen nothing but heads, and pairs of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit import Circuit, head_name, parse_head, split_slot
from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.methods.inputs import Edges

# MIB's nine sizes of a submission of circuits: at most this share of the edges.
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def source_names(circuit: Circuit) -> list[str]:
    """Return every node that writes, in the order in which it does: input, then each layer's heads and
    MLP."""
    names = ["input"]
    for layer in range(circuit.n_layers):
        names += [head_name(layer, head) for head in range(circuit.n_heads)]
        names.append(f"m{layer}")
    return names


def all_edges(circuit: Circuit) -> Iterator[tuple[str, str]]:
    """Yield every edge of MIB's graph of this model, in MIB's order of readers."""
    before = ["input"]
    for layer in range(circuit.n_layers):
        heads = [head_name(layer, head) for head in range(circuit.n_heads)]
        for source in before:
            for head in heads:
                for slot in "qkv":
                    yield source, f"{head}<{slot}>"
        for source in before if circuit.parallel_attn_mlp else [*before, *heads]:
            yield source, f"m{layer}"
        before += [*heads, f"m{layer}"]
    for source in before:
        yield source, "logits"


def to_mib(circuit: Circuit) -> dict[str, Any]:
    """Return the circuit as an EAP-IG / MIB graph (``Graph.from_json`` there reads the file).

    Raises:
        HeadcodesError: ``d_model`` is unknown, which the form demands.
    """
    if circuit.d_model is None:
        raise HeadcodesError(
            "MIB's graphs carry the width of the residual stream",
            "a circuit without d_model",
            "Set d_model in circuit.json.",
        )
    score, member = _filled(circuit)
    nodes: dict[str, Any] = {}
    for name in [*source_names(circuit), "logits"]:
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
            f"{source}->{target}": {"score": score(source, target), "in_graph": member(source, target)}
            for source, target in all_edges(circuit)
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
    try:
        cfg = data["cfg"]
        nodes: dict[str, Any] = data["nodes"]
        edges = {tuple(name.split("->")): row for name, row in data["edges"].items()}
        return Circuit(
            n_layers=_whole(cfg["n_layers"]),
            n_heads=_whole(cfg["n_heads"]),
            d_model=_whole(cfg["d_model"]),
            parallel_attn_mlp=bool(cfg["parallel_attn_mlp"]),
            nodes=tuple(name for name, row in nodes.items() if row["in_graph"]),
            edges=tuple(edge for edge, row in edges.items() if row["in_graph"]),
            # MIB writes NaN for a node that has no score.
            node_scores={
                name: float(row["score"])
                for name, row in nodes.items()
                if row.get("score") is not None and not np.isnan(row["score"])
            },
            edge_scores={edge: float(row["score"]) for edge, row in edges.items()},
            model=model,
            task=task,
            method=method,
        )
    except HeadcodesError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HeadcodesError(
            "a MIB graph is an object with cfg, nodes and edges",
            f"{type(error).__name__}: {error}",
            "Give the file that Graph.to_json of EAP-IG wrote.",
        ) from error


def write_mib(circuit: Circuit, path: Path | str) -> None:
    """Write the circuit as an EAP-IG / MIB graph."""
    _write_json(path, to_mib(circuit))


def read_mib(path: Path | str, **names: str) -> Circuit:
    """Read an EAP-IG / MIB graph; ``names`` as ``from_mib``.

    Raises:
        HeadcodesError: no such file, no JSON, or not such a graph.
    """
    return from_mib(_read_json(path), **names)


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


def to_prune_scores(circuit: Circuit) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Return auto-circuit's prune scores: a score for every edge, by the module that reads.

    Keys and shapes, in float32: ``blocks.{l}.hook_q_input`` (and ``_k_``, ``_v_``) [n_heads, n_before],
    ``blocks.{l}.hook_mlp_in`` [n_before], ``blocks.{last}.hook_resid_post`` [n_before], with n_before the
    writers before that module in the order input, heads and MLP of layer 0, of layer 1 ... Edges are scored
    as in ``to_mib``.
    """
    score, _ = _filled(circuit)
    found: dict[str, Float[np.ndarray, "*shape"]] = {}
    for name, readers, before in _modules(circuit):
        values = np.array([[score(source, reader) for source in before] for reader in readers], dtype=np.float32)
        found[name] = values if readers[0].endswith(">") and circuit.n_heads > 1 else values[0]
    return found


def from_prune_scores(scores: Mapping[str, Any], circuit: Circuit) -> Circuit:
    """Return ``circuit`` with the edge scores of auto-circuit's prune scores; its edges are those that are
    not 0.

    Raises:
        HeadcodesError: a module is missing or has another shape.
    """
    edge_scores: dict[tuple[str, str], float] = {}
    for name, readers, before in _modules(circuit):
        values = np.asarray(scores.get(name, ()), dtype=np.float64)
        if values.size != len(readers) * len(before):
            raise HeadcodesError(
                f"prune scores have {len(readers)} x {len(before)} numbers at {name}",
                f"shape {values.shape}",
                "Give the scores of this very model.",
            )
        for reader, row in zip(readers, values.reshape(len(readers), len(before)), strict=True):
            for source, value in zip(before, row, strict=True):
                edge_scores[source, reader] = float(value)
    return Circuit(
        n_layers=circuit.n_layers,
        n_heads=circuit.n_heads,
        nodes=circuit.nodes,
        edges=tuple(edge for edge, value in edge_scores.items() if value != 0),
        node_scores=circuit.node_scores,
        edge_scores=edge_scores,
        d_model=circuit.d_model,
        parallel_attn_mlp=circuit.parallel_attn_mlp,
        model=circuit.model,
        task=circuit.task,
        method=circuit.method,
        meta=circuit.meta,
    )


def write_prune_scores(circuit: Circuit, path: Path | str) -> None:
    """Write auto-circuit's prune scores as safetensors: ``load_file(path)`` gives the dict that auto-circuit
    takes."""
    from safetensors.numpy import save_file

    with atomic_write(path) as temporary:
        save_file(to_prune_scores(circuit), temporary)


def read_prune_scores(path: Path | str, circuit: Circuit) -> Circuit:
    """Read what ``write_prune_scores`` wrote, or any prune scores saved as safetensors; see
    ``from_prune_scores``.

    Raises:
        HeadcodesError: no such file, not safetensors, or scores of another model.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        scores = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HeadcodesError(
            "prune scores are a safetensors file", f"{path}: {error}", "Save the dict with safetensors."
        ) from error
    return from_prune_scores(scores, circuit)


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
        raise HeadcodesError(
            "a NetworkX graph needs the package networkx", "an installation without it", "pip install networkx"
        ) from error
    graph = networkx.DiGraph(model=circuit.model, task=circuit.task, method=circuit.method)

    def add(name: str) -> None:
        head = parse_head(name)
        layer = head[0] if head else int(name[1:]) if name[0] == "m" else None
        graph.add_node(name, score=circuit.node_scores.get(name), layer=layer, head=head[1] if head else None)

    for name in circuit.nodes:
        add(name)
    for source, target in circuit.edges:
        name, slot = split_slot(target)
        for end in (source, name):
            if end not in graph:
                add(end)
        score = circuit.edge_scores.get((source, target))
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
        raise HeadcodesError(f"a form is one of {', '.join(FORMATS)}", repr(form), "Choose one of them.")
    FORMATS[form](circuit, path)


def load_circuit(path: Path | str) -> Circuit:
    """Read a circuit from our circuit.json or a MIB graph, whichever the file is.

    Where a circuit.json names a file of edge scores (``edge_scores_file``, docs/circuit-json.md), they are read too.

    Raises:
        HeadcodesError: neither, or the file of edge scores is not there, or not one.
    """
    data = _read_json(path)
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
    from safetensors import SafetensorError, safe_open

    from headcodes.methods.inputs import Edges

    try:
        if Path(name).name != name:
            raise ValueError("no plain file name")
        with safe_open(circuit.with_name(name), framework="numpy") as file:
            scores, names = file.get_tensor("edge_scores"), file.metadata() or {}
        sources, destinations = names["edge_sources"].split(), names["edge_destinations"].split()
        if scores.shape != (len(sources), len(destinations)):
            raise ValueError(f"{scores.shape} scores of {len(sources)} x {len(destinations)} edges")
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise HeadcodesError(
            "the file of edge scores that the circuit names lies beside it",
            f"{name!r} beside {circuit}: {error}",
            "Copy it too, or take edge_scores_file out of the circuit.",
        ) from error
    return Edges(sources, destinations, scores)


def _modules(circuit: Circuit) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each reading module of auto-circuit's graph: its name, the readers in it, the writers before
    it."""
    before = ["input"]
    for layer in range(circuit.n_layers):
        heads = [head_name(layer, head) for head in range(circuit.n_heads)]
        for slot in "qkv":
            yield f"blocks.{layer}.hook_{slot}_input", [f"{head}<{slot}>" for head in heads], list(before)
        yield f"blocks.{layer}.hook_mlp_in", [f"m{layer}"], before + ([] if circuit.parallel_attn_mlp else heads)
        before += [*heads, f"m{layer}"]
    yield f"blocks.{circuit.n_layers - 1}.hook_resid_post", ["logits"], before


def beyond_pairs(edges: Iterable[tuple[str, str]]) -> bool:
    """Whether any of the edges is not one between two heads as a whole: it has a slot, an MLP, input or logits."""
    return any(parse_head(source) is None or parse_head(target) is None for source, target in edges)


def _chooses_all(circuit: Circuit) -> bool:
    """Whether the choice of edges beyond pairs of heads is the circuit's own."""
    only_heads = bool(circuit.nodes) and all(parse_head(node) for node in circuit.nodes)
    return beyond_pairs(circuit.edges) or (beyond_pairs(circuit.edge_scores) and not only_heads)


def _node_member(circuit: Circuit, name: str) -> bool:
    if name in circuit.nodes:
        return True
    own = _chooses_all(circuit) or any(parse_head(node) is None for node in circuit.nodes)
    return not own and parse_head(name) is None


def _filled(circuit: Circuit) -> tuple[Callable[[str, str], float], Callable[[str, str], bool]]:
    """Return the score and the membership of every edge, filled in by the rule of this module."""
    chosen = set(circuit.edges)
    scores = {name: score for name, score in circuit.node_scores.items() if parse_head(name)}
    scores = scores or dict.fromkeys(circuit.nodes, 1.0)
    best = max((abs(score) for score in scores.values()), default=0.0) or 1.0
    strongest_pair = max((abs(score) for score in circuit.edge_scores.values()), default=0.0) or 1.0

    def own(source: str, target: str) -> float:
        return circuit.edge_scores.get((source, target), 0.0)

    def made(source: str, target: str) -> float:
        name = split_slot(target)[0]
        ends = [scores.get(end, 0.0) for end in (source, name) if parse_head(end)]
        if len(ends) == 2 and circuit.edge_scores:
            return circuit.edge_scores.get((source, name), 0.0) * best / strongest_pair
        return min(ends, key=abs) if ends else best

    chooses_all, members = _chooses_all(circuit), {n for n in source_names(circuit) if _node_member(circuit, n)}

    def member(source: str, target: str) -> bool:
        if chooses_all:
            return (source, target) in chosen
        name = split_slot(target)[0]
        if parse_head(source) and parse_head(name) and chosen:
            return (source, name) in chosen
        return source in members and (name == "logits" or name in members)

    return (own if beyond_pairs((*circuit.edge_scores, *circuit.edges)) else made), member


def _whole(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{value!r} should be a whole number")
    return value


def _read_json(path: Path | str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise HeadcodesError(
            "a circuit file can be read and holds JSON", f"{path}: {error}", "Give the path of a circuit."
        ) from error


def _write_json(path: Path | str, data: Any) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(data, allow_nan=False) + "\n", encoding="utf-8")
