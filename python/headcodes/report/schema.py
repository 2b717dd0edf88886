"""What files of runs hold (docs/result-json.md), as far as a report reads them. Imported once one is read."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, FiniteFloat, create_model

from headcodes.settings import SETTINGS


class _Schema(BaseModel, strict=True):
    pass


class _Verified(_Schema):
    head: str
    effect: float


class _Places(_Schema):
    kind: str
    labels: list[str]
    examples: list[str]
    scores: dict[str, list[FiniteFloat]]


class _Run(_Schema):
    n_layers: int
    n_heads: int
    head_scores: list[float]
    circuit: dict[str, Any]
    task_check: dict[str, FiniteFloat]
    timings_s: dict[str, FiniteFloat]
    versions: dict[str, Any]
    bos_added: bool | None = None
    layers_without_heads: list[int] | None = None
    dead_share: float | None = None
    verification: list[_Verified] | None = None
    scores_by_position: _Places | None = None


_REQUIRED = ("model", "task", "negative", "method", "level", "seed")
_SETTINGS: dict[str, Any] = {
    name: (kind, ...) if name in _REQUIRED else (kind | None, None) for name, kind in SETTINGS.items()
}
RunFile = create_model("RunFile", __base__=_Run, __doc__="The object of a result.json.", **_SETTINGS)


class _Truth(_Schema):
    name: str
    task: str | None = None
    n_heads_in_circuit: int
    head_effects: list[FiniteFloat] = []


class _Curve(_Schema):
    sizes: list[FiniteFloat]
    faithfulness: list[FiniteFloat]
    completeness: list[FiniteFloat]
    random_mean: list[FiniteFloat]
    random_low: list[FiniteFloat]
    random_high: list[FiniteFloat]


class _Areas(_Schema):
    cpr: float
    cmd: float


class _Circuit(_Schema):
    method: str
    n_heads_in_circuit: int


class EvaluationFile(_Schema):
    """The object of an evaluation.json."""

    circuit: _Circuit
    truth: _Truth | None
    curve: _Curve | None
    areas: _Areas | None
