"""Exact patching of the heads that a method proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes import metrics
from headcodes.errors import HeadcodesError
from headcodes.graph import head_name
from headcodes.interventions.patch import Engine, answered, patch_effects
from headcodes.interventions.walk import DEFAULT_SWEEP_BYTES

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


@dataclass(frozen=True)
class Verification:
    """Exact effects of a few heads, with bootstrap intervals over the pairs.

    Attributes:
        heads: (layer, head), in the order given.
        effects: [n_pairs, n_head] in logits.
        mean, low, high: [n_head]; the interval is of the mean.
        clean_ld, corrupt_ld: [n_pairs].
        n_answered, n_given: As in ``CausalTruth``.
    """

    heads: list[tuple[int, int]]
    effects: Float[np.ndarray, "n_pairs n_head"]
    mean: Float[np.ndarray, " n_head"]
    low: Float[np.ndarray, " n_head"]
    high: Float[np.ndarray, " n_head"]
    clean_ld: Float[np.ndarray, " n_pairs"]
    corrupt_ld: Float[np.ndarray, " n_pairs"]
    n_answered: int
    n_given: int

    def confirmed(self, share: float = 0.05) -> list[tuple[int, int]]:
        """Return the heads whose interval excludes 0 and whose |mean| is at least ``share`` of the clean
        LD."""
        least = share * float(self.clean_ld.mean())
        rows = zip(self.heads, self.mean, self.low, self.high, strict=True)
        return [head for head, mean, low, high in rows if (low > 0 or high < 0) and abs(mean) >= least]

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one dict a head: name, effect, low, high."""
        rows = zip(self.heads, self.mean, self.low, self.high, strict=True)
        return [
            {"head": head_name(*head), "effect": float(mean), "low": float(low), "high": float(high)}
            for head, mean, low, high in rows
        ]


def verify(
    model: Model,
    tokens: TokenPairs,
    heads: Sequence[tuple[int, int]],
    *,
    pairs: int | None = None,
    known: tuple[ArrayLike, ArrayLike] | None = None,
    level: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
) -> Verification:
    """Patch only ``heads``, exactly, and say how sure the pairs make us of each effect.

    Args:
        model: In any dtype; effects carry its rounding.
        tokens: Pairs whose two prompts have equally many tokens; only answered ones count.
        heads: (layer, head), in any order.
        pairs: How many answered pairs to use; all where None.
        known: Logit differences [n_pairs] of all clean and all corrupted prompts, where they are at hand:
            saves two forward passes a pair.
        level: Of the bootstrap interval of each mean effect.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        engine: See ``headcodes.interventions.walk.run``.
        memory_bytes: See ``headcodes.interventions.walk.run``.

    Raises:
        HeadcodesError: no heads, a head that the model does not have, or as ``causal_truth``.
    """
    wanted = [(int(layer), int(head)) for layer, head in heads]
    for layer, head in wanted:
        if not (0 <= layer < model.n_layers and 0 <= head < model.n_heads):
            raise HeadcodesError(
                f"heads lie in {model.n_layers} layers of {model.n_heads}", f"{(layer, head)}", "Check the head."
            )
    if not wanted:
        raise HeadcodesError("there are heads to verify", "none", "Propose at least one.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs, known)
    parts = sorted(set(wanted))
    found = patch_effects(model, chosen, list(parts), "heads", False, False, engine, memory_bytes)
    effects = found[:, [parts.index(head) for head in wanted]]
    low, high = metrics.mean_intervals(effects, n_resamples=n_resamples, level=level, seed=seed)
    return Verification(wanted, effects, effects.mean(axis=0), low, high, clean_ld, corrupt_ld, n_answered, n_given)
