"""What circuit files hold: circuit.json (docs/circuit-json.md), graphs of EAP-IG and MIB. Imported once one is read."""

from __future__ import annotations

import json
from math import nan
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field
from typing_extensions import TypedDict  # pydantic takes no other below Python 3.12

from headcodes.settings import plain


def _writable(values: dict[str, Any]) -> dict[str, Any]:
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError("hold what can be written as JSON again") from error
    return values


class _Schema(BaseModel, strict=True, allow_inf_nan=False):
    pass


class _Effect(_Schema):
    effect: float
    low: float
    high: float


# Tuples are lists in JSON, which strict kinds do not take for one.
_Edge = Annotated[tuple[str, str, float | None], Field(strict=False)]


_Name = Annotated[str, AfterValidator(plain)]


class CircuitFile(_Schema):
    """The object of a circuit.json."""

    schema_: Literal[1] = Field(alias="schema")
    kind: Literal["circuit"]
    n_layers: int
    n_heads: int
    nodes: list[str]
    edges: list[_Edge]
    other_edges: list[_Edge] = []
    node_scores: dict[str, float] = {}
    d_model: int | None = None
    parallel_attn_mlp: bool = False
    model: _Name = ""
    task: _Name = ""
    method: _Name = ""
    meta: Annotated[dict[str, Any], AfterValidator(_writable)] = {}
    effects: Annotated[dict[str, _Effect], BeforeValidator(_writable)] = {}
    edge_scores_file: str | None = None


# Other tools write 0 and 1 too.
_Flag = Annotated[bool, Field(strict=False)]


class _Shape(_Schema):
    n_layers: int
    n_heads: int
    d_model: int
    parallel_attn_mlp: _Flag


class _Node(_Schema):
    in_graph: _Flag
    # MIB writes NaN for a node that has none.
    score: Annotated[float, AllowInfNan(True), BeforeValidator(lambda score: nan if score is None else score)] = nan


# No class for each of a hundred thousand edges, which takes three times as long.
class _GraphEdge(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, allow_inf_nan=False)  # type: ignore[misc]
    in_graph: _Flag
    score: float


class MibGraph(_Schema):
    """The object of a graph that ``Graph.to_json`` of EAP-IG wrote."""

    cfg: _Shape
    nodes: dict[str, _Node]
    edges: dict[Annotated[str, Field(pattern="^[^-]*->[^-]*$")], _GraphEdge]
