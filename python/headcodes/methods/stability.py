"""How far scores, and the heads that they choose, hold over the pairs of prompts: the bootstrap over pairs.

Methods whose scores are made from a number (or several) a pair and head keep these numbers: the scores of any draw of
the pairs then follow without another run of the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.methods.findings import Findings

_MUST = "the scores that pairs are drawn anew for must be made from a number a pair"

N_RESAMPLES = 500
LEVEL = 0.95


@dataclass(frozen=True)
class ByPair:
    """What a method knows of each pair of prompts, and how scores follow from it.

    Attributes:
        values: float64 [n_pairs, ...], heads layer-major in what follows.
        score: from such values, of whichever pairs, to a score a head, layer-major in any shape.
    """

    values: Float[Tensor, "n_pairs ..."]
    score: Callable[[Tensor], Tensor]


def abs_mean(values: Float[Tensor, "n_pairs ..."]) -> Float[Tensor, ...]:
    """Return |mean over pairs|."""
    return values.mean(0).abs()


def mean(values: Float[Tensor, "n_pairs ..."]) -> Float[Tensor, ...]:
    """Return the mean over pairs."""
    return values.mean(0)


@dataclass(frozen=True)
class Resampled:
    """Scores of draws of the pairs, with replacement and as many as there are pairs (Efron 1979).

    Attributes:
        scores: float32.
        found: the scores of the pairs as they are.
        n_pairs: of a draw.
        stable: the selection frequency from which on a head is in the circuit.
    """

    scores: Float[np.ndarray, "n_resamples n_layers n_heads"]
    found: Float[np.ndarray, "n_layers n_heads"]
    n_pairs: int
    stable: float

    @property
    def interval(self) -> tuple[Float[np.ndarray, "n_layers n_heads"], Float[np.ndarray, "n_layers n_heads"]]:
        """Both ends of every score's percentile interval, of level ``LEVEL``, widened where it lacks the score itself:
        a magnitude near 0 is larger in almost every draw."""
        low, high = np.quantile(self.scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        return np.minimum(low, self.found), np.maximum(high, self.found)

    def frequency(self, top: int) -> Float[np.ndarray, "n_layers n_heads"]:
        """Return the share of draws in which each head is among the ``top`` of largest score, that score above 0."""
        flat = self.scores.reshape(len(self.scores), -1)
        order = np.argsort(-flat, axis=1, kind="stable")[:, :top]
        chosen = np.zeros(flat.shape, dtype=bool)
        np.put_along_axis(chosen, order, True, axis=1)
        share: Float[np.ndarray, "n_layers n_heads"] = (chosen & (flat > 0)).mean(0).reshape(self.scores.shape[1:])
        return share

    def kept(self, scores: Float[np.ndarray, "n_layers n_heads"], top: int) -> Float[np.ndarray, "n_layers n_heads"]:
        """Return the scores of heads that are selected often enough, 0 for others."""
        return np.where(self.frequency(top) >= self.stable, scores, 0.0)

    def as_json(self, top: int = 20) -> dict[str, Any]:
        """Return the fields of result.json (docs/result-json.md)."""
        low, high = self.interval
        return {
            "stable": self.stable,
            "n_resamples": len(self.scores),
            "score_low": low.ravel().tolist(),
            "score_high": high.ravel().tolist(),
            "selection_frequency": self.frequency(top).ravel().tolist(),
        }


def check_stable(stable: float, method: str, **others: Any) -> None:
    """Refuse what cannot be drawn anew.

    Args:
        others: what else would choose the circuit, by name.

    Raises:
        HeadcodesError: a share that is none, a method whose scores are made otherwise, something else that chooses.
    """
    from headcodes.methods import METHODS, get

    if not 0 < stable <= 1:
        raise HeadcodesError("stable must lie in (0, 1]", str(stable), "0.9 is usual.")
    if not get(method).by_pair:
        able = ", ".join(name for name, other in METHODS.items() if other.by_pair)
        raise HeadcodesError(_MUST, f"stable={stable} with {method!r}", f"Use one of: {able}.")
    given = [name for name, value in others.items() if value not in (None, "auto", "heads")]
    if given:
        raise HeadcodesError(
            "the share of draws must be all that chooses the circuit", f"stable with {given[0]}", "Leave one out."
        )


def resample(findings: Findings, stable: float, seed: int) -> None:
    """Draw the pairs of ``findings`` ``N_RESAMPLES`` times and score every draw, as ``findings.resampled``.

    Raises:
        HeadcodesError: ``default`` stood for a method whose scores are made otherwise.
    """
    by_pair = findings.by_pair
    if by_pair is None:
        got = f"stable={stable} with contrast, which default stood for: {findings.fallback}"
        raise HeadcodesError(_MUST, got, "Use another method.")
    with findings.timed("resample"):
        rows = torch.from_numpy(draws(len(by_pair.values), seed))
        shape = findings.head_scores.shape
        scores = [by_pair.score(by_pair.values[each]).reshape(shape).float() for each in rows]
        drawn = torch.stack(scores).numpy()
        findings.resampled = Resampled(drawn, findings.head_scores, len(by_pair.values), stable)


def draws(n_pairs: int, seed: int) -> Int[np.ndarray, "n_resamples n_pairs"]:
    """Return which pairs each draw holds."""
    return np.random.default_rng(seed).integers(0, n_pairs, size=(N_RESAMPLES, n_pairs))
