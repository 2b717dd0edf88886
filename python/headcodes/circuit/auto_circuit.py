"""Prune scores of auto-circuit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.circuit.circuit import Circuit
from headcodes.circuit.mib import check_n_edges, filled_graph, mib_graph
from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, reading, regular

if TYPE_CHECKING:
    from jaxtyping import Float


def to_prune_scores(circuit: Circuit) -> dict[str, Float[np.ndarray, "*shape"]]:
    """Return auto-circuit's prune scores: a score for every edge, by the module that reads.

    Keys and shapes, in float32: ``blocks.{l}.hook_q_input`` (and ``_k_``, ``_v_``) [n_heads, n_before],
    ``blocks.{l}.hook_mlp_in`` [n_before], ``blocks.{last}.hook_resid_post`` [n_before], with n_before the
    sources before that module in the order input, heads and MLP of layer 0, of layer 1 ... Edges are scored
    as in ``to_mib``.
    """
    check_n_edges(circuit)
    score, _ = filled_graph(circuit)
    found: dict[str, Float[np.ndarray, "*shape"]] = {}
    for name, destinations, sources in _modules(circuit):
        values = np.array(
            [[score(source, destination) for source in sources] for destination in destinations], dtype=np.float32
        )
        found[name] = values if destinations[0].endswith(">") else values[0]
    return found


def from_prune_scores(scores: Mapping[str, Any], circuit: Circuit) -> Circuit:
    """Return ``circuit`` with the edge scores of auto-circuit's prune scores; its edges are those that are
    not 0.

    Raises:
        HeadcodesError: a module is missing or has another shape.
    """
    edge_scores: dict[tuple[str, str], float] = {}
    for name, destinations, sources in _modules(circuit):
        values = np.asarray(scores.get(name, ()), dtype=np.float64)
        if values.size != len(destinations) * len(sources):
            raise HeadcodesError(
                f"prune scores must have {len(destinations)} x {len(sources)} numbers at {name}",
                f"shape {values.shape}",
                "Give the scores of this very model.",
            )
        for destination, row in zip(destinations, values.reshape(len(destinations), len(sources)), strict=True):
            for source, value in zip(sources, row, strict=True):
                edge_scores[source, destination] = float(value)
    edges = tuple(edge for edge, value in edge_scores.items() if value != 0)
    return replace(circuit, edges=edges, edge_scores=edge_scores)


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
    from safetensors.numpy import load_file

    with reading("prune scores must be a safetensors file of this model", path, "Save the dict with safetensors."):
        return from_prune_scores(load_file(regular(path)), circuit)


def _modules(circuit: Circuit) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield each reading module of auto-circuit's graph: its name, the destinations in it, the sources before
    it."""
    graph = mib_graph(circuit)
    sources, destinations = graph.sources, graph.destinations
    for layer in range(circuit.n_layers):
        for slot in "qkv":
            heads = destinations[graph.columns(slot, layer)]
            yield f"blocks.{layer}.hook_{slot}_input", heads, sources[graph.read_by_heads(layer)]
        yield f"blocks.{layer}.hook_mlp_in", [f"m{layer}"], sources[graph.read_by_mlp(layer)]
    yield f"blocks.{circuit.n_layers - 1}.hook_resid_post", ["logits"], sources
