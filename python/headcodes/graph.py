"""Names and order of the nodes and edges of a model's graph."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


# One name a node: no leading zeros, no digits of other scripts.
_NUMBER = "(0|[1-9][0-9]{0,8})"
_NODE = re.compile(rf"a{_NUMBER}\.h{_NUMBER}|m{_NUMBER}")
_SLOT = re.compile(r"(.+)<([qkv])>")


def head_name(layer: int, head: int) -> str:
    """Return the field's name of a head: ``a{layer}.h{head}``."""
    return f"a{layer}.h{head}"


def parse_head(name: str) -> tuple[int, int] | None:
    """Return (layer, head) of ``a{layer}.h{head}``, None for any other name."""
    match = _NODE.fullmatch(name)
    return (int(match[1]), int(match[2])) if match and match[1] is not None else None


# A head as (layer, head), or the MLP of a layer as (layer, None).
Part = tuple[int, int | None]


def part_name(layer: int, head: int | None) -> str:
    """Return ``a{layer}.h{head}``, or ``m{layer}`` where there is no head."""
    return f"m{layer}" if head is None else head_name(layer, head)


def parse_part(name: str) -> Part | None:
    """Return (layer, head) of a head's name, (layer, None) of ``m{layer}``, None for any other name."""
    match = _NODE.fullmatch(name)
    if match is None:
        return None
    return (int(match[3]), None) if match[3] is not None else (int(match[1]), int(match[2]))


def split_slot(name: str) -> tuple[str, str | None]:
    """Split an edge's end: ``"a5.h1<q>"`` gives ("a5.h1", "q"), ``"m3"`` gives ("m3", None)."""
    match = _SLOT.fullmatch(name)
    return (match[1], match[2]) if match else (name, None)


def numbered(layers: Iterable[int]) -> str | None:
    """Return "layer 3" or "layers 0-2, 4" for layers in rising order; None for none."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    if not runs:
        return None
    names = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"layer{'' if len(runs) == 1 and runs[0][0] == runs[0][1] else 's'} {names}"


def stage(name: str, *, n_layers: int, n_heads: int, parallel_attn_mlp: bool = False) -> int:
    """Return when a node writes, counted from the input: an edge must go from a smaller to a larger stage.

    ``input`` is 0, the heads of layer l are at 2l + 1, its MLP at 2l + 2 (2l + 1 where attention and MLP
    read the same residual stream), ``logits`` at 2 n_layers + 1.

    Raises:
        HeadcodesError: no such node in a model of this shape.
    """
    if name == "input":
        return 0
    if name == "logits":
        return 2 * n_layers + 1
    match = _NODE.fullmatch(name)
    if match:
        layer = int(match[1] if match[1] is not None else match[3])
        head = int(match[2] or 0)
        if layer < n_layers and head < n_heads:
            return 2 * layer + 1 + (match[3] is not None and not parallel_attn_mlp)
    raise HeadcodesError(
        f"a node must be input, a<layer>.h<head>, m<layer> or logits, in {n_layers} layers of {n_heads} heads",
        repr(name),
        "Check the name, and that the circuit belongs to this model.",
    )


Head = tuple[int, int]
Pair = tuple[Head, Head]


def check_heads(heads: Iterable[Head], n_layers: int, n_heads: int) -> None:
    """Refuse heads that a model of this shape does not have.

    Raises:
        HeadcodesError: there is one; the message names it.
    """
    for layer, head in heads:
        if not (0 <= layer < n_layers and 0 <= head < n_heads):
            raise HeadcodesError(
                f"heads must lie in {n_layers} layers of {n_heads}", f"{(layer, head)}", "Use this model's heads."
            )


def head_mask(heads: Iterable[Head], n_layers: int, n_heads: int) -> Bool[np.ndarray, "n_layers n_heads"]:
    """Return True where a head is one of ``heads``.

    Raises:
        HeadcodesError: see ``check_heads``.
    """
    chosen = list(heads)
    check_heads(chosen, n_layers, n_heads)
    mask = np.zeros((n_layers, n_heads), dtype=bool)
    for head in chosen:
        mask[head] = True
    return mask


@dataclass(frozen=True)
class Graph:
    """Every node that writes to the residual stream, everything that reads it, and the edges between them.

    Sources and destinations are numbered in the order in which they run; tables of edges have a row a source and a
    column a destination.
    """

    n_layers: int
    n_heads: int
    has_mlps: bool = True
    parallel_attn_mlp: bool = False

    @cached_property
    def sources(self) -> list[str]:
        """Names of the nodes that write: ``input``, then each layer's heads and its MLP."""
        names = ["input"]
        for layer in range(self.n_layers):
            names += [head_name(layer, head) for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.has_mlps
        return names

    @cached_property
    def destinations(self) -> list[str]:
        """Names of what reads: each layer's queries, keys and values head by head, its MLP; last the ``logits``."""
        names = []
        for layer in range(self.n_layers):
            names += [f"{head_name(layer, head)}<{slot}>" for slot in "qkv" for head in range(self.n_heads)]
            names += [f"m{layer}"] * self.has_mlps
        return [*names, "logits"]

    @property
    def n_source(self) -> int:
        """How many nodes write."""
        return 1 + self.n_layers * (self.n_heads + self.has_mlps)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of a table of edges."""
        return self.n_source, 1 + self.n_layers * (3 * self.n_heads + self.has_mlps)

    @property
    def n_edges(self) -> int:
        """How many edges there are."""
        into_heads: int = sum(self.read_by_heads(layer).stop for layer in range(self.n_layers))
        into_mlps: int = sum(self.read_by_mlp(layer).stop for layer in range(self.n_layers))
        return 3 * self.n_heads * into_heads + self.has_mlps * into_mlps + self.n_source

    def rows(self, kind: str, layer: int) -> slice:
        """Rows of one part of a layer: "input", "z" (its heads) or "mlp"."""
        if kind == "input":
            return slice(0, 1)
        start = 1 + layer * (self.n_heads + self.has_mlps)
        stop = start + self.n_heads
        return slice(start, stop) if kind == "z" else slice(stop, stop + 1)

    def read_by_heads(self, layer: int) -> slice:
        """Rows that a layer's heads can read."""
        return slice(0, self.rows("z", layer).start)

    def read_by_mlp(self, layer: int) -> slice:
        """Rows that a layer's MLP can read: its own heads too, unless both read the same stream."""
        heads = self.rows("z", layer)
        return slice(0, heads.start if self.parallel_attn_mlp else heads.stop)

    def columns(self, kind: str, layer: int) -> slice:
        """Columns of one part of a layer: "q", "k" or "v" (its heads), "qkv", "mlp", or "logits"."""
        start = layer * (3 * self.n_heads + self.has_mlps)
        if kind in ("mlp", "logits"):
            start += 3 * self.n_heads if kind == "mlp" else 0
            return slice(start, start + 1)
        start += "qkv".index(kind[0]) * self.n_heads
        return slice(start, start + len(kind) * self.n_heads)

    def edges(self) -> Iterator[tuple[int, int]]:
        """Yield every edge as (row, column), layer by layer as MIB's graphs list them."""
        for layer in range(self.n_layers):
            for row in range(self.read_by_heads(layer).stop):
                for head in range(self.n_heads):
                    for slot in "qkv":
                        yield row, self.columns(slot, layer).start + head
            if self.has_mlps:
                for row in range(self.read_by_mlp(layer).stop):
                    yield row, self.columns("mlp", layer).start
        for row in range(self.n_source):
            yield row, self.columns("logits", self.n_layers).start

    def named_edges(self) -> Iterator[tuple[str, str]]:
        """Yield every edge by its ends' names, in the order of ``edges``."""
        return ((self.sources[row], self.destinations[column]) for row, column in self.edges())

    def edges_from_logits(self) -> list[tuple[int, int]]:
        """Return every edge as (row, column), from the logits back.

        Destinations that read late come first, and of their sources those that write late, as Conmy et al. 2023,
        algorithm 1, has it. Within a layer the order is ours: the last head's value, key and query, then the head
        before it. Their program takes all values of a layer, then all keys, then all queries, and senders ascending.
        """

        def when(edge: tuple[int, int]) -> tuple[int, ...]:
            row, column = edge
            layer, place = divmod(column, 3 * self.n_heads + self.has_mlps)
            slot, head = divmod(place, self.n_heads)
            return layer, slot == 3, head, slot, row

        return sorted(self.edges(), key=when, reverse=True)


@dataclass(frozen=True)
class GroundTruth:
    """One published account of the heads behind a behaviour.

    Attributes:
        name: Short name of the account, as ``--truth`` takes it: ``wang2022``.
        task: Task id.
        model: Hub id of the model the account is about.
        roles: Role to heads (layer, head). Where the account names no roles there is one, "circuit".
        pairs: Edges between heads; empty where the account gives none.
        mlps: Layers whose MLP belongs to the circuit; empty where the account has none or does not name
            them.
        source: Citation.
        note: What to know before using it.
    """

    name: str
    task: str
    model: str
    n_layers: int
    n_heads: int
    roles: Mapping[str, tuple[Head, ...]]
    source: str
    pairs: tuple[Pair, ...] = ()
    mlps: tuple[int, ...] = ()
    note: str = field(default="", compare=False)

    @property
    def heads(self) -> list[Head]:
        """All heads of the circuit, by layer and head, each once."""
        return sorted({head for heads in self.roles.values() for head in heads})

    @property
    def labels(self) -> Bool[np.ndarray, "n_layers n_heads"]:
        """True where a head is in the circuit."""
        return head_mask(self.heads, self.n_layers, self.n_heads)

    @property
    def pair_labels(self) -> Bool[np.ndarray, "n_component n_component"]:
        """True at [i, j], components layer-major, where head i feeds head j in the circuit."""
        labels = np.zeros((self.n_layers * self.n_heads,) * 2, dtype=bool)
        for (layer, head), (later_layer, later_head) in self.pairs:
            labels[layer * self.n_heads + head, later_layer * self.n_heads + later_head] = True
        return labels

    def as_dict(self) -> dict[str, Any]:
        """Return name, task, model, source and note with the numbers of heads, pairs and MLPs."""
        counts = {"n_heads_in_circuit": len(self.heads), "n_pairs": len(self.pairs), "n_mlps": len(self.mlps)}
        named = {key: getattr(self, key) for key in ("name", "task", "model", "source", "note")}
        return {**named, **counts}


@dataclass(frozen=True)
class Edges:
    """Scores of the edges of the whole graph: embedding, heads, MLPs and logits, queries, keys and values apart.

    Attributes:
        sources: names of the nodes that write: ``input``, ``a{l}.h{h}``, ``m{l}``, in the order in which they do.
        destinations: names of what reads: ``a{l}.h{h}<q>`` (and ``<k>``, ``<v>``), ``m{l}``, ``logits``.
        scores: float64, signed: what the metric loses when the edge carries the corrupted prompt's value. NaN where
            the source writes too late for the destination to read it.
    """

    sources: list[str]
    destinations: list[str]
    scores: Float[np.ndarray, "n_source n_destination"]

    @classmethod
    def of(cls, graph: Graph, scores: Float[np.ndarray, "n_source n_destination"]) -> Edges:
        """Return scores with the names of a graph's rows and columns."""
        return cls(graph.sources, graph.destinations, scores)
