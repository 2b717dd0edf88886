"""Exact patching of the heads and MLPs that a method proposed, in its order, until no more are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from headcodes import metrics
from headcodes.errors import HeadcodesError
from headcodes.graph import Part, check_heads, part_name
from headcodes.interventions.base_runs import Prepared
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.interventions.patch import answered, patch_effects

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


# A head counts from this share of the clean logit difference on.
SHARE = 0.05
# Patching in rank order stops once so many in a row are not confirmed; so many are patched in any case.
QUIET = 10
AT_LEAST = 10
# So many are patched side by side: fewer cost as much, as weights are fetched for each lot; more may be needless.
_FIRST, _AT_ONCE = 24, 12

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
        stopped: why no more heads were patched: "asked" (these were asked for), "quiet" (ten in a row not confirmed),
            "budget", or "all" (no head with a score is left).
        estimate: [n_head] the effects to be expected on other prompts (``shrunk``); None where nothing was proposed.
        estimate_error: [n_head] half of the 95% interval of each estimate; infinite where one pair was patched.
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
    estimate_error: Float[np.ndarray, " n_head"] | None = None
    engine: EngineUsed | None = None

    @property
    def expected(self) -> Float[np.ndarray, " n_head"]:
        """Effect to be expected of every patched head on other prompts: the estimate, else the exact mean."""
        return self.mean if self.estimate is None else self.estimate

    def confirmed(self, share: float = SHARE) -> list[Part]:
        """Return the heads (and MLPs) that ``confirmed`` lets pass from ``share`` of the clean logit difference on."""
        rows = zip(self.heads, self._confirmed(share), strict=True)
        return [head for head, confirmed in rows if confirmed]

    @property
    def confirmed_heads(self) -> list[tuple[int, int]]:
        """``confirmed`` without MLPs."""
        return [(layer, head) for layer, head in self.confirmed() if head is not None]

    def _confirmed(self, share: float) -> list[bool]:
        return confirmed(self.effects, self.low, self.high, share * float(self.clean_ld.mean()))

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one dict a head: name, effect, low, high, the estimate and its interval where there is one, and
        whether the head is confirmed."""
        estimates: list[dict[str, float]] = [{} for _ in self.heads]
        if self.estimate is not None and self.estimate_error is not None:
            estimates = [
                {"estimate": estimate}
                | ({"estimate_low": estimate - error, "estimate_high": estimate + error} if np.isfinite(error) else {})
                for estimate, error in zip(self.estimate.tolist(), self.estimate_error.tolist(), strict=True)
            ]
        rows = zip(self.heads, self.mean, self.low, self.high, estimates, self._confirmed(SHARE), strict=True)
        return [
            {"head": part_name(*head), "effect": float(mean), "low": float(low), "high": float(high)}
            | estimate
            | {"confirmed": is_confirmed}
            for head, mean, low, high, estimate, is_confirmed in rows
        ]


def confirmed(
    effects: Float[np.ndarray, "n_pairs n"], low: Float[np.ndarray, " n"], high: Float[np.ndarray, " n"], least: float
) -> list[bool]:
    """Say of every part whether it surely has an effect, which may on average be as large as ``least``.

    Two conditions: the interval of its mean effect excludes 0, or single answers change by at least ``least`` on
    average (mean magnitude: the part helps on some prompts and hinders on others); and the interval reaches as far as
    ``least``. With intervals of 95%, at most about 5% of parts without any effect pass the first by chance, and at most
    about 2.5% of parts whose mean effect is ``least`` or more fail the second. Of fewer than six pairs, the
    mean magnitude must be that large surely (Student's t): a few large answers are no average.
    """
    magnitude: Float[np.ndarray, " n"] = np.abs(effects).mean(axis=0)
    if len(effects) < metrics.FEWEST_RESAMPLED:
        magnitude = metrics.mean_intervals(np.abs(effects))[0]
    sure = (low > 0) | (high < 0) | (magnitude >= least)
    may_be: list[bool] = (sure & (np.maximum(-low, high) >= least)).tolist()
    return may_be


def in_order(
    parts: Sequence[T],
    effects_of: Callable[[Sequence[T]], Float[np.ndarray, "n_pairs n_part"]],
    least: float,
    affordable: Callable[[Sequence[T]], bool],
    at_least: int = AT_LEAST,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n_pairs n_part"], str]:
    """Patch parts in their order, some at a time, until ``QUIET`` in a row are not ``confirmed`` from ``least`` on.

    If a share q of the parts that follow would be confirmed, so many in a row are not with probability (1 - q)^10: it
    stops too early by chance in 5% of cases where q is a quarter.

    Args:
        effects_of: effects [n_pairs, n] of some parts.
        affordable: whether all these parts may be patched; asked beyond the first ones.
        at_least: how many are patched in any case.
        seed: of the bootstrap.

    Returns:
        Effects of the parts that were reached, the first ones, and why it stopped: "quiet", "budget" or "all".
    """
    found: list[Float[np.ndarray, "n_pairs n"]] = []
    reached, quiet = 0, 0
    while reached < len(parts):
        upto = min(max(reached + (_AT_ONCE if reached else _FIRST), at_least), len(parts))
        while upto > max(reached, at_least) and not affordable(parts[:upto]):
            upto -= 1
        if upto == reached:
            return np.concatenate(found, axis=1), "budget"
        found.append(effects_of(parts[reached:upto]))
        reached = upto
        for is_confirmed in confirmed(found[-1], *metrics.mean_intervals(found[-1], seed=seed), least):
            quiet = 0 if is_confirmed else quiet + 1
            if quiet >= QUIET and reached >= at_least:
                return np.concatenate(found, axis=1), "quiet"
    return np.concatenate(found, axis=1), "all"


def shrunk(
    effects: Float[np.ndarray, "n_pairs n_head"], proposed: Float[np.ndarray, " n_head"], signed: bool
) -> tuple[Float[np.ndarray, " n_head"], Float[np.ndarray, " n_head"]]:
    """Return the effects to be expected on other prompts, exact means shrunk towards what the proposal predicts, and
    half of each one's 95% interval.

    Empirical Bayes over the k patched heads: with e the exact means, s^2 their sampling variances and b p the proposal
    scaled by least squares through 0, tau^2 = max(0, mean((e - b p)^2 - s^2)) is how far the proposal is off, and the
    estimate is w e + (1 - w) b p, w = tau^2 / (tau^2 + s^2). Its bias is (1 - w)(b p - true effect). Its variance is
    s^2 (1 - (1 - w)(k - 1)/k) + 2/(k - 3) (1 - w)^2 (e - b p)^2, the second term for what is not known of tau (Morris
    1983, Parametric Empirical Bayes Inference, JASA 78); the interval is two-sided by Student's t of n_pairs - 1.

    Args:
        signed: whether ``proposed`` has signs; else those of the exact means are taken.
    """
    from scipy.special import stdtrit

    exact: Float[np.ndarray, " n_head"] = effects.mean(axis=0)
    n_pairs, n_heads = effects.shape
    if n_pairs < 2:
        return exact, np.full_like(exact, np.inf)
    variance = effects.var(axis=0, ddof=1) / n_pairs
    quantile = float(stdtrit(n_pairs - 1, 0.975))
    if n_heads < 4:
        return exact, quantile * np.sqrt(variance)
    foretold = proposed if signed else np.sign(exact) * proposed
    square = float(foretold @ foretold)
    scaled = foretold * (float(exact @ foretold) / square if square > 0 else 0.0)
    off = max(0.0, float(((exact - scaled) ** 2 - variance).mean()))
    weight = np.divide(off, off + variance, out=np.ones_like(variance), where=off + variance > 0)
    estimate = weight * exact + (1 - weight) * scaled
    spread = variance * (1 - (1 - weight) * (n_heads - 1) / n_heads)
    spread += 2 / (n_heads - 3) * (1 - weight) ** 2 * (exact - scaled) ** 2
    return estimate, quantile * np.sqrt(spread)


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
    prepared: Prepared | None = None,
) -> Verification:
    """Patch ``heads`` in their order until ten in a row are not ``confirmed`` from 5% of the clean logit difference on.

    Args:
        proposed: the proposal's own score of each head, for the estimate. signed: whether it has a sign.
        pairs: How many answered pairs to patch.
        budget: In token-layers, one token through one layer: what may be spent in all once ``at_least`` heads are
            patched. Counted, not timed, so that the same run patches the same heads again.
        known, seed, prepared: See ``verify``.

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
    prepared = Prepared() if prepared is None else prepared

    def effects_of(some: Sequence[Part]) -> Float[np.ndarray, "n_pairs n"]:
        found, used = patch_effects(model, chosen, list(some), "heads", False, False, prepared=prepared)
        engines.append(used)
        return found

    effects, stopped = in_order(heads, effects_of, SHARE * float(clean_ld.mean()), affordable, at_least, seed)
    n_reached = effects.shape[1]
    low, high = metrics.mean_intervals(effects, seed=seed)
    estimate, error = shrunk(effects, np.asarray(proposed)[:n_reached], signed)
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
        estimate=estimate,
        estimate_error=error,
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
    compute: Compute = AUTO,
    prepared: Prepared | None = None,
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
        compute: With which engine, in how much memory.
        prepared: See ``headcodes.interventions.walk.run_edited``.

    Raises:
        HeadcodesError: no heads, a head that the model does not have, or as ``causal_truth``.
    """
    wanted: list[Part] = [(int(layer), None if head is None else int(head)) for layer, head in heads]
    check_heads(((layer, head or 0) for layer, head in wanted), model.n_layers, model.n_heads)
    if not wanted:
        raise HeadcodesError("there must be heads to verify", "none", "Propose at least one.")
    chosen, clean_ld, corrupt_ld, n_answered, n_given = answered(model, tokens, pairs, known)
    parts = sorted(set(wanted), key=lambda part: (part[0], -1 if part[1] is None else part[1]))
    found, used = patch_effects(model, chosen, list(parts), "heads", False, False, compute, prepared=prepared)
    effects = found[:, [parts.index(head) for head in wanted]]
    low, high = metrics.mean_intervals(effects, n_resamples=n_resamples, level=level, seed=seed)
    mean = effects.mean(axis=0)
    return Verification(wanted, effects, mean, low, high, clean_ld, corrupt_ld, n_answered, n_given, engine=used)
