"""Exact patching of the heads and MLPs that a method proposed, in its order, until no more are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headcodes import metrics
from headcodes.errors import HeadcodesError
from headcodes.graph import Part, check_heads, part_name
from headcodes.interventions.patch import answered, patch_effects
from headcodes.interventions.walk import DEFAULT_SWEEP_BYTES, Engine, EngineUsed

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


# A head counts from this share of the clean logit difference on.
SHARE = 0.05
# Patching in rank order stops once so many in a row stay below it; so many are patched in any case.
QUIET = 10
AT_LEAST = 10
_AT_FIRST, _AT_ONCE = 16, 10

T = TypeVar("T")


@dataclass(frozen=True)
class Verification:
    """Exact effects of a few heads, with bootstrap intervals over the pairs.

    Attributes:
        heads: (layer, head), in the order given; (layer, None) is the layer's MLP.
        effects: [n_pairs, n_head] in logits.
        mean, low, high: [n_head]; the interval is of the mean.
        clean_ld, corrupt_ld: [n_pairs].
        n_answered, n_given: As in ``CausalTruth``.
        stopped: why no more heads were patched: "asked" (these were asked for), "quiet" (ten in a row below 5% of the
            clean logit difference), "budget", or "all" (no head with a score is left).
        estimate: [n_head] the effects to be expected on other prompts (``shrunk``); None where nothing was proposed.
        engine: Which engine patched, and why.
    """

    heads: list[Part]
    effects: Float[np.ndarray, "n_pairs n_head"]
    mean: Float[np.ndarray, " n_head"]
    low: Float[np.ndarray, " n_head"]
    high: Float[np.ndarray, " n_head"]
    clean_ld: Float[np.ndarray, " n_pairs"]
    corrupt_ld: Float[np.ndarray, " n_pairs"]
    n_answered: int
    n_given: int
    stopped: str = "asked"
    estimate: Float[np.ndarray, " n_head"] | None = None
    engine: EngineUsed | None = None

    def confirmed(self, share: float = SHARE) -> list[Part]:
        """Return the heads (and MLPs) whose interval excludes 0 and whose |mean| is at least ``share`` of the clean
        LD."""
        rows = zip(self.heads, self._confirmed(share), strict=True)
        return [head for head, confirmed in rows if confirmed]

    @property
    def confirmed_heads(self) -> list[tuple[int, int]]:
        """``confirmed`` without MLPs."""
        return [(layer, head) for layer, head in self.confirmed() if head is not None]

    def _confirmed(self, share: float) -> list[bool]:
        return confirmed(self.mean, self.low, self.high, share * float(self.clean_ld.mean()))

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one dict a head: name, effect, low, high, estimate where there is one, and whether it is confirmed."""
        estimates = [None] * len(self.heads) if self.estimate is None else self.estimate.tolist()
        rows = zip(self.heads, self.mean, self.low, self.high, estimates, self._confirmed(SHARE), strict=True)
        return [
            {"head": part_name(*head), "effect": float(mean), "low": float(low), "high": float(high)}
            | ({} if estimate is None else {"estimate": estimate})
            | {"confirmed": is_confirmed}
            for head, mean, low, high, estimate, is_confirmed in rows
        ]


def confirmed(mean: ArrayLike, low: ArrayLike, high: ArrayLike, least: float) -> list[bool]:
    """Say of every effect whether its interval excludes 0 and its size is at least ``least``.

    With intervals of 95%, at most about 5% of parts without any effect pass the first condition, and of these only the
    ones whose mean happens to be as large as the second asks for.
    """
    rows = zip(np.asarray(mean).tolist(), np.asarray(low).tolist(), np.asarray(high).tolist(), strict=True)
    return [(lo > 0 or hi < 0) and abs(m) >= least for m, lo, hi in rows]


def in_order(
    parts: Sequence[T],
    effects_of: Callable[[Sequence[T]], Float[np.ndarray, "n_pairs n_part"]],
    least: float,
    affordable: Callable[[Sequence[T]], bool],
    at_least: int = AT_LEAST,
) -> tuple[Float[np.ndarray, "n_pairs n_part"], str]:
    """Patch parts in their order, some at a time, until ``QUIET`` in a row stay below ``least`` in mean size.

    Args:
        effects_of: effects [n_pairs, n] of some parts.
        affordable: whether all these parts may be patched; asked beyond the first ones.
        at_least: how many are patched in any case.

    Returns:
        Effects of the parts that were reached, the first ones, and why it stopped: "quiet", "budget" or "all".
    """
    found: list[Float[np.ndarray, "n_pairs n"]] = []
    reached, quiet = 0, 0
    while reached < len(parts):
        upto = min(reached + (_AT_ONCE if reached else max(_AT_FIRST, at_least)), len(parts))
        while upto > max(reached, at_least) and not affordable(parts[:upto]):
            upto -= 1
        if upto == reached:
            return np.concatenate(found, axis=1), "budget"
        found.append(effects_of(parts[reached:upto]))
        reached = upto
        for size in np.abs(found[-1].mean(axis=0)):
            quiet = 0 if size >= least else quiet + 1
            if quiet >= QUIET and reached >= at_least:
                return np.concatenate(found, axis=1), "quiet"
    return np.concatenate(found, axis=1), "all"


def shrunk(
    effects: Float[np.ndarray, "n_pairs n_head"], proposed: Float[np.ndarray, " n_head"], signed: bool
) -> Float[np.ndarray, " n_head"]:
    """Return the effects to be expected on other prompts: exact means, shrunk towards what the proposal predicts.

    Empirical Bayes over the patched heads: with e the exact means, s^2 their sampling variances and b p the proposal
    scaled by least squares through 0, tau^2 = max(0, mean((e - b p)^2 - s^2)) is how far the proposal is off, and the
    estimate is w e + (1 - w) b p, w = tau^2 / (tau^2 + s^2). Its bias is (1 - w)(b p - true effect).

    Args:
        signed: whether ``proposed`` has signs; else those of the exact means are taken.
    """
    exact: Float[np.ndarray, " n_head"] = effects.mean(axis=0)
    if len(effects) < 2 or effects.shape[1] < 3:
        return exact
    foretold = proposed if signed else np.sign(exact) * proposed
    square = float(foretold @ foretold)
    scaled = foretold * (float(exact @ foretold) / square if square > 0 else 0.0)
    variance = effects.var(axis=0, ddof=1) / len(effects)
    off = max(0.0, float(((exact - scaled) ** 2 - variance).mean()))
    weight = np.divide(off, off + variance, out=np.ones_like(variance), where=off + variance > 0)
    estimate: Float[np.ndarray, " n_head"] = weight * exact + (1 - weight) * scaled
    return estimate


def verify_in_order(
    model: Model,
    tokens: TokenPairs,
    heads: Sequence[Part],
    proposed: Float[np.ndarray, " n_head"],
    *,
    signed: bool,
    pairs: int,
    budget: float,
    at_least: int = AT_LEAST,
    known: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> Verification:
    """Patch ``heads`` in their order until ten in a row lie below 5% of the clean logit difference.

    A head is confirmed where its mean effect is at least that large and its 95% interval over prompts excludes 0.

    Args:
        proposed: the proposal's own score of each head, for the estimate. signed: whether it has a sign.
        pairs: How many answered pairs to patch.
        budget: In token-layers, one token through one layer: what may be spent in all once ``at_least`` heads are
            patched. Counted, not timed, so that the same run patches the same heads again.
        known, seed: See ``verify``.

    Raises:
        HeadcodesError: no heads, or as ``causal_truth``.
    """
    if not heads:
        raise HeadcodesError("there must be heads to verify", "none with a score", "Choose another method, or prompts.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs, known)
    n_tokens = sum(len(chosen.clean[i]) - chosen.changed_positions(i)[0] for i in range(len(chosen)))

    def affordable(some: Sequence[Part]) -> bool:
        return n_tokens * sum(model.n_layers - layer for layer, _ in some) <= budget

    engines: list[EngineUsed | None] = []

    def effects_of(some: Sequence[Part]) -> Float[np.ndarray, "n_pairs n"]:
        found, used = patch_effects(model, chosen, list(some), "heads", False, False, "auto", DEFAULT_SWEEP_BYTES)
        engines.append(used)
        return found

    effects, stopped = in_order(heads, effects_of, SHARE * float(clean_ld.mean()), affordable, at_least)
    n_reached = effects.shape[1]
    low, high = metrics.mean_intervals(effects, seed=seed)
    return Verification(
        heads=list(heads[:n_reached]),
        effects=effects,
        mean=effects.mean(axis=0),
        low=low,
        high=high,
        clean_ld=clean_ld,
        corrupt_ld=corrupt_ld,
        n_answered=n_answered,
        n_given=n_given,
        engine=engines[-1],
        stopped=stopped,
        estimate=shrunk(effects, np.asarray(proposed)[:n_reached], signed),
    )


def verify(
    model: Model,
    tokens: TokenPairs,
    heads: Sequence[Part],
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
        heads: (layer, head), or (layer, None) for the layer's MLP, in any order.
        pairs: How many answered pairs to use; all where None.
        known: Logit differences [n_pairs] of all clean and all corrupted prompts, where they are at hand:
            saves two forward passes a pair.
        level: Of the bootstrap interval of each mean effect.
        n_resamples: Of the bootstrap.
        seed: Of the bootstrap.
        engine: See ``headcodes.interventions.walk.run_edited``.
        memory_bytes: See ``headcodes.interventions.walk.run_edited``.

    Raises:
        HeadcodesError: no heads, a head that the model does not have, or as ``causal_truth``.
    """
    wanted: list[Part] = [(int(layer), None if head is None else int(head)) for layer, head in heads]
    check_heads(((layer, head or 0) for layer, head in wanted), model.n_layers, model.n_heads)
    if not wanted:
        raise HeadcodesError("there must be heads to verify", "none", "Propose at least one.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs, known)
    parts = sorted(set(wanted), key=lambda part: (part[0], -1 if part[1] is None else part[1]))
    found, used = patch_effects(model, chosen, list(parts), "heads", False, False, engine, memory_bytes)
    effects = found[:, [parts.index(head) for head in wanted]]
    low, high = metrics.mean_intervals(effects, n_resamples=n_resamples, level=level, seed=seed)
    mean = effects.mean(axis=0)
    return Verification(wanted, effects, mean, low, high, clean_ld, corrupt_ld, n_answered, n_given, engine=used)
