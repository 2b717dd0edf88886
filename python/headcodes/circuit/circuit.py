"""A circuit: which parts of a model, joined by which edges, and how strongly a method spoke for each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.errors import HeadcodesError
from headcodes.files import atomic_write, checked, read_json, reading
from headcodes.graph import Part, head_mask, head_name, parse_head, parse_part, split_slot, stage
from headcodes.settings import check_names

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike


SCHEMA = 1
_MOST = 10_000  # layers, and heads a layer: beyond any model, and short of what would fill the memory


@dataclass(frozen=True)
class Circuit:
    """Chosen nodes and edges of a model of ``n_layers`` x ``n_heads`` heads, and the scores behind them.

    Attributes:
        nodes: Names of the chosen nodes (``a{l}.h{h}``, ``m{l}``, ``input``, ``logits``), strongest first.
        edges: Chosen edges (source, destination). A destination may name the slot it enters: ``a5.h1<q>``.
        node_scores: Score of every scored node, chosen or not. Of larger size means more important; below 0 where a
            part holds the answer back, for methods that tell.
        edge_scores: Score of every scored edge, chosen or not.
        d_model: Width of the residual stream, where known (other tools' files carry it).
        parallel_attn_mlp: Attention and MLP of a layer read the same residual stream (GPT-NeoX), so neither
            feeds the other.
        model, task, method: Where the circuit comes from; empty where unknown.
        meta: Anything else worth keeping, as JSON values.
        effects: By node, or ``source->destination`` of an edge, what exact patching found: ``effect`` (logits, signed),
            ``low``, ``high`` (95% interval over prompts), ``confirmed``, and more. What is scored and missing here was
            not patched.
        edge_scores_file: Name of a file beside the circuit's own that scores every edge of the graph: too many for
            ``edge_scores``. ``headcodes.circuit.formats.load_circuit`` reads it.

    Raises:
        HeadcodesError: a name that the model does not have, an edge against the direction of the data, a
            score that is not finite, a node or edge named twice.
    """

    n_layers: int
    n_heads: int
    nodes: tuple[str, ...]
    edges: tuple[tuple[str, str], ...] = ()
    node_scores: Mapping[str, float] = field(default_factory=dict)
    edge_scores: Mapping[tuple[str, str], float] = field(default_factory=dict)
    d_model: int | None = None
    parallel_attn_mlp: bool = False
    model: str = ""
    task: str = ""
    method: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)
    effects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    edge_scores_file: str | None = None

    def __post_init__(self) -> None:
        if not (0 < self.n_layers <= _MOST and 0 < self.n_heads <= _MOST):
            raise HeadcodesError(
                f"a circuit must be of a model of 1 to {_MOST:,} layers of 1 to {_MOST:,} heads",
                f"{self.n_layers} layers of {self.n_heads} heads"[:120],
                "Check n_layers and n_heads.",
            )
        check_names(model=self.model, task=self.task, method=self.method)
        stages: dict[str, int] = {}
        for name in {*self.nodes, *self.node_scores}:
            stages[name] = self._stage(name)
        for source, destination in {*self.edges, *self.edge_scores}:
            node, slot = split_slot(destination)
            for name in (source, node):
                if name not in stages:
                    stages[name] = self._stage(name)
            if stages[source] >= stages[node] or (slot and parse_head(node) is None):
                raise HeadcodesError(
                    "an edge must go from a node to one that reads later, and only heads have slots q, k and v",
                    f"{source}->{destination}",
                    "Turn the edge round or leave it out.",
                )
        for kind, names in (("node", self.nodes), ("edge", self.edges)):
            if len(set(names)) != len(names):
                twice = next(name for name in names if names.count(name) > 1)
                raise HeadcodesError(f"every {kind} must be named once", f"{twice!r} twice", "Leave one out.")
        for what, score in (*self.node_scores.items(), *self.edge_scores.items()):
            if not math.isfinite(score):
                raise HeadcodesError("every score must be finite", f"{score} for {what}", "Leave unscored parts out.")

    def _stage(self, name: str) -> int:
        return stage(name, n_layers=self.n_layers, n_heads=self.n_heads, parallel_attn_mlp=self.parallel_attn_mlp)

    @classmethod
    def from_scores(
        cls,
        head_scores: ArrayLike,
        *,
        top: int,
        pair_scores: ArrayLike | None = None,
        top_edges: int | None = None,
        **fields: Any,
    ) -> Circuit:
        """Choose the ``top`` heads of largest score and the strongest edges among them.

        A head or pair whose score is not above 0 shows nothing and is never taken. Equal scores go to the lower index.

        Args:
            head_scores: [n_layers, n_heads].
            top: How many heads at most.
            pair_scores: [n_component, n_component], layer-major; only [i, j] with layer_i < layer_j is read.
            top_edges: How many edges at most; twice the number of heads unless told.
            **fields: Further fields of the circuit (``d_model``, ``model``, ``meta`` ...).

        Raises:
            HeadcodesError: ``head_scores`` is no matrix of finite numbers, ``top`` is below 1, or shapes differ.
        """
        scores = np.asarray(head_scores, dtype=np.float64)
        if scores.ndim != 2 or scores.size == 0:
            raise HeadcodesError(
                "head_scores must be a matrix [n_layers, n_heads]",
                f"shape {scores.shape}",
                "Reshape it, layer-major.",
            )
        if top < 1:
            raise HeadcodesError("top must be 1 or more", str(top), "Ask for at least one head.")
        n_layers, n_heads = scores.shape
        flat = scores.ravel()
        order = np.argsort(-flat, kind="stable")
        chosen = [int(i) for i in order[:top] if flat[i] > 0]
        names = [head_name(i // n_heads, i % n_heads) for i in range(flat.size)]
        edges: list[tuple[str, str]] = []
        edge_scores: dict[tuple[str, str], float] = {}
        if pair_scores is not None:
            pairs = np.asarray(pair_scores, dtype=np.float64)
            if pairs.shape != (flat.size, flat.size):
                raise HeadcodesError(
                    f"pair_scores must be a matrix [{flat.size}, {flat.size}], as many rows as heads",
                    f"shape {pairs.shape}",
                    "Give the scores of all pairs.",
                )
            candidates = [
                (i, j)
                for i in sorted(chosen)
                for j in sorted(chosen)
                if i // n_heads < j // n_heads and pairs[i, j] > 0
            ]
            candidates.sort(key=lambda pair: -pairs[pair])
            for i, j in candidates[: 2 * len(chosen) if top_edges is None else top_edges]:
                edges.append((names[i], names[j]))
                edge_scores[names[i], names[j]] = float(pairs[i, j])
        return cls(
            n_layers=n_layers,
            n_heads=n_heads,
            nodes=tuple(names[i] for i in chosen),
            edges=tuple(edges),
            node_scores={name: float(score) for name, score in zip(names, flat, strict=True)},
            edge_scores=edge_scores,
            **fields,
        )

    @classmethod
    def from_heads(
        cls,
        heads: Iterable[tuple[int, int]],
        *,
        n_layers: int,
        n_heads: int,
        pairs: Iterable[tuple[tuple[int, int], tuple[int, int]]] = (),
        **fields: Any,
    ) -> Circuit:
        """Make a circuit without scores from (layer, head) tuples, and edges from pairs of them."""
        return cls(
            n_layers=n_layers,
            n_heads=n_heads,
            nodes=tuple(head_name(*head) for head in heads),
            edges=tuple((head_name(*source), head_name(*destination)) for source, destination in pairs),
            **fields,
        )

    @property
    def heads(self) -> list[tuple[int, int]]:
        """The chosen heads as (layer, head), in the order of ``nodes``."""
        return [head for head in map(parse_head, self.nodes) if head is not None]

    @property
    def parts(self) -> list[Part]:
        """The chosen heads as (layer, head) and MLPs as (layer, None), in the order of ``nodes``."""
        return [part for part in map(parse_part, self.nodes) if part is not None]

    @property
    def pairs(self) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """The chosen edges that join two heads, slots left out, each pair once, in the order of ``edges``."""
        found: dict[tuple[tuple[int, int], tuple[int, int]], None] = {}
        for source, destination in self.edges:
            first, second = parse_head(source), parse_head(split_slot(destination)[0])
            if first is not None and second is not None:
                found[first, second] = None
        return list(found)

    @property
    def head_mask(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Membership [n_layers, n_heads]: True where the head is in the circuit."""
        return head_mask(self.heads, self.n_layers, self.n_heads)

    @property
    def head_scores(self) -> Float[np.ndarray, "n_layers n_heads"]:
        """Scores of all heads, float64; NaN where a head has none."""
        scores = np.full((self.n_layers, self.n_heads), np.nan)
        for name, score in self.node_scores.items():
            head = parse_head(name)
            if head is not None:
                scores[head] = score
        return scores

    def as_lists(self) -> dict[str, list[Any]]:
        """Return ``{"nodes": [name, ...], "edges": [[source, destination, score or None], ...]}``."""
        return {
            "nodes": list(self.nodes),
            "edges": [[*edge, self.edge_scores.get(edge)] for edge in self.edges],
        }

    def as_dict(self) -> dict[str, Any]:
        """Return the content of ``circuit.json`` (docs/circuit-json.md has the schema)."""
        chosen = set(self.edges)
        return {
            "schema": SCHEMA,
            "kind": "circuit",
            "model": self.model,
            "task": self.task,
            "method": self.method,
            "n_layers": self.n_layers,
            "n_heads": self.n_heads,
            "d_model": self.d_model,
            "parallel_attn_mlp": self.parallel_attn_mlp,
            **self.as_lists(),
            "node_scores": dict(self.node_scores),
            "other_edges": [[*edge, score] for edge, score in self.edge_scores.items() if edge not in chosen],
            "meta": dict(self.meta),
            **({"effects": {name: dict(row) for name, row in self.effects.items()}} if self.effects else {}),
            **({} if self.edge_scores_file is None else {"edge_scores_file": self.edge_scores_file}),
        }

    @classmethod
    def from_dict(cls, data: Any) -> Circuit:
        """Build a circuit from the content of ``circuit.json``.

        Raises:
            HeadcodesError: another schema, a missing field, a field of the wrong kind, or what ``Circuit``
                refuses.
        """
        from headcodes.circuit.schema import CircuitFile

        mend = "docs/circuit-json.md has the form; headcodes export reads other tools' files."
        found = checked(CircuitFile, data, "a circuit file", mend)
        rows = [*found.edges, *found.other_edges]
        as_they_are = {"d_model", "parallel_attn_mlp", "model", "task", "method", "meta", "edge_scores_file"}
        return cls(
            n_layers=found.n_layers,
            n_heads=found.n_heads,
            nodes=tuple(found.nodes),
            edges=tuple((source, destination) for source, destination, _ in found.edges),
            node_scores=found.node_scores,
            edge_scores={(source, destination): score for source, destination, score in rows if score is not None},
            effects=data.get("effects", {}),
            **{name: getattr(found, name) for name in as_they_are},
        )

    def to_json(self, path: Path | str) -> None:
        """Write ``circuit.json``, whole or not at all."""
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path: Path | str) -> Circuit:
        """Read a ``circuit.json``.

        Raises:
            HeadcodesError: no such file, no JSON, or not a circuit.
        """
        mend = "Give the path of a circuit.json."
        data = read_json(path, "a circuit file", mend)
        with reading("a circuit file must hold a circuit", path, mend):
            return cls.from_dict(data)

    @classmethod
    def from_hub(cls, repo: str, *, revision: str | None = None, token: str | None = None) -> Circuit:
        """Fetch a circuit that ``Result.push_to_hub`` or ``headcodes push`` sent to the Hugging Face Hub.

        Args:
            repo, revision: owner and name of the dataset repository; its branch, tag or commit, the newest by default.
            token: for a private repository; else the one of ``HF_TOKEN`` or ``hf auth login``.

        Raises:
            HeadcodesError: no such repository, no circuit in it, no connection, a damaged file.
        """
        from huggingface_hub import hf_hub_download

        with reading("a dataset repository of the Hub must hold circuit.json", repo, "Check owner/name and HF_TOKEN."):
            path = hf_hub_download(repo, "circuit.json", repo_type="dataset", revision=revision, token=token)
        return cls.from_json(path)
