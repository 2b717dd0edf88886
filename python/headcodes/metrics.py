"""How well scores find a circuit: the field's metrics.

``scores`` are one number a head (or pair), larger meaning more likely in the circuit; ``labels`` say which
ones are. Both may have any shape, the same one; NumPy, torch on the CPU, or lists. Metrics that need both
classes refuse labels with only one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from numpy.typing import ArrayLike


@dataclass(frozen=True)
class AtCut:
    """Counts at one cut through the ranking, and what follows from them.

    Attributes:
        n_taken: Heads taken as the circuit.
        n_hits: Those of them that are in it. Not whole where a cut goes through equal scores.
        precision: n_hits / n_taken; 0 where nothing is taken.
        recall: n_hits / circuit size.
        f1: Harmonic mean of precision and recall.
        tpr_tnr_harmonic: Harmonic mean of the true positive and the true negative rate: what O'Neill & Bui
            2024 print as "F1".
    """

    n_taken: int
    n_hits: float
    precision: float
    recall: float
    f1: float
    tpr_tnr_harmonic: float

    @classmethod
    def of(cls, n_taken: int, n_hits: float, n_true: int, n_all: int) -> AtCut:
        """Derive everything from four counts."""
        recall = n_hits / n_true
        true_negative_rate = 1 - (n_taken - n_hits) / (n_all - n_true)
        both = recall + true_negative_rate
        return cls(
            n_taken=n_taken,
            n_hits=n_hits,
            precision=n_hits / n_taken if n_taken else 0.0,
            recall=recall,
            f1=2 * n_hits / (n_taken + n_true),
            tpr_tnr_harmonic=2 * recall * true_negative_rate / both if both else 0.0,
        )


@dataclass(frozen=True)
class Interval:
    """A value with a percentile interval, or with the spread over seeds.

    Attributes:
        value: The statistic itself, not the middle of the interval.
        low, high: Ends of the interval.
        level: Share of resamples inside, .95 for a 95% interval.
        n_resamples: How many resamples counted (those with one class only are left out).
    """

    value: float
    low: float
    high: float
    level: float
    n_resamples: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve by trapezoids, ties counted half (scikit-learn's ``roc_auc_score``).

    Raises:
        HeadcodesError: shapes differ, a score is not finite, or only one class is there.
    """
    from sklearn.metrics import roc_auc_score

    flat, truth = _checked(scores, labels)
    return float(roc_auc_score(truth, flat))


def roc_auc_pessimistic(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve by ACDC's left step: a cut earns recall only from its own false positives on.

    Without ties it equals the trapezoid; where scores tie it is lower, because no luck within the tie is
    assumed.
    Source: Conmy et al. 2023, arXiv 2304.14997.

    Raises:
        HeadcodesError: as ``roc_auc``.
    """
    from sklearn.metrics import roc_curve

    flat, truth = _checked(scores, labels)
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, flat, drop_intermediate=False)
    return pessimistic_area(false_positive_rate, true_positive_rate)


def pessimistic_area(false_positive_rate: ArrayLike, true_positive_rate: ArrayLike) -> float:
    """Area under the stairs through the non-dominated ones of any operating points, (0, 0) and (1, 1) added.

    A point is dominated when another has no more false positives and no fewer true ones. Between two kept
    points the stair keeps the height of the left one. For methods that give one circuit a setting, as ACDC
    does a threshold.
    """
    x = np.concatenate([[0.0], np.asarray(false_positive_rate, dtype=np.float64).ravel(), [1.0]])
    y = np.concatenate([[0.0], np.asarray(true_positive_rate, dtype=np.float64).ravel(), [1.0]])
    if len(x) != len(y) or not (np.all((x >= 0) & (x <= 1)) and np.all((y >= 0) & (y <= 1))):
        raise HeadcodesError(
            "operating points must be equally many rates between 0 and 1",
            f"{len(x) - 2} and {len(y) - 2} values",
            "Give false and true positive rates.",
        )
    order = np.lexsort((-y, x))  # at equal x the highest comes first, and the others add nothing after it
    x, y = x[order], y[order]
    rises = np.concatenate([[True], y[1:] > np.maximum.accumulate(y)[:-1]])
    return float(np.sum(np.diff(x[rises], append=1.0) * y[rises]))


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision (scikit-learn's: precision weighted by the rise in recall, no interpolation).

    Raises:
        HeadcodesError: as ``roc_auc``.
    """
    from sklearn.metrics import average_precision_score

    flat, truth = _checked(scores, labels)
    return float(average_precision_score(truth, flat))


def at_k(scores: ArrayLike, labels: ArrayLike, k: int) -> AtCut:
    """Take the ``k`` largest scores. Where the cut goes through equal scores, hits are the expected number.

    Codes give small whole numbers with many ties; the expectation over all orders of a tie does not depend
    on how the heads happen to be numbered.

    Raises:
        HeadcodesError: as ``roc_auc``, or ``k`` is not between 1 and the number of scores.
    """
    flat, truth = _checked(scores, labels)
    if not 1 <= k <= len(flat):
        raise HeadcodesError(f"k must be between 1 and {len(flat)}", str(k), "Take fewer heads.")
    cut = np.partition(flat, len(flat) - k)[len(flat) - k]
    above, tied = flat > cut, flat == cut
    places = k - int(above.sum())
    hits = int(truth[above].sum()) + places * float(truth[tied].mean())
    return AtCut.of(k, hits, int(truth.sum()), len(flat))


def pair_auc(pair_scores: ArrayLike, pair_labels: ArrayLike, n_heads: int) -> float:
    """ROC AUC over the pairs (i, j) of heads with layer_i < layer_j, components layer-major.

    Not the published "edge AUC": that one is ``mention_auc`` and is about heads.

    Raises:
        HeadcodesError: as ``roc_auc``, or the matrices do not have a whole number of layers.
    """
    scores, labels = np.asarray(pair_scores, dtype=np.float64), np.asarray(pair_labels, dtype=bool)
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or scores.shape[0] % n_heads:
        raise HeadcodesError(
            f"pair scores must be a square matrix over whole layers of {n_heads} heads",
            f"shape {scores.shape}",
            "Give one row and one column a head.",
        )
    if labels.shape != scores.shape:
        raise HeadcodesError(
            "pair labels must have the shape of the scores", f"{labels.shape} for {scores.shape}", "Use one model."
        )
    layer = np.arange(len(scores)) // n_heads
    forward = layer[:, None] < layer[None, :]
    return roc_auc(scores[forward], labels[forward])


def mention_auc(mention_scores: ArrayLike, labels: ArrayLike) -> float:
    """ROC AUC over heads of mention scores: what the authors of the codes method call edge level.

    Raises:
        HeadcodesError: as ``roc_auc``.
    """
    return roc_auc(np.asarray(mention_scores).ravel(), np.asarray(labels).ravel())


def spearman(scores: ArrayLike, effects: ArrayLike) -> float:
    """Rank correlation of scores with |effects|, ties averaged. NaN where either is constant.

    Raises:
        HeadcodesError: the shapes differ.
    """
    x = np.asarray(scores, dtype=np.float64).ravel()
    y = np.abs(np.asarray(effects, dtype=np.float64)).ravel()
    if x.shape != y.shape:
        raise HeadcodesError("scores and effects must be equally many", f"{x.size} and {y.size}", "Use one model.")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def largest(effects: ArrayLike, k: int) -> Bool[np.ndarray, "*shape"]:
    """Label the ``k`` largest |effects|, ties to the lower index; the shape of ``effects``.

    Raises:
        HeadcodesError: ``k`` leaves one class empty.
    """
    size = np.abs(np.asarray(effects, dtype=np.float64))
    if not 1 <= k < size.size:
        raise HeadcodesError(f"k must be between 1 and {size.size - 1}", str(k), "Take fewer heads.")
    labels = np.zeros(size.size, dtype=bool)
    labels[np.argsort(-size.ravel(), kind="stable")[:k]] = True
    return labels.reshape(size.shape)


def bootstrap(
    statistic: Callable[[np.ndarray[Any, Any]], float],
    n: int,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a statistic over ``n`` prompts, drawn again with replacement.

    Args:
        statistic: Takes indices [n] of prompts (int64, repeats allowed) and returns a number. NaN means that
            the statistic does not exist for a resample, which is then left out and not counted.
        n: How many prompts there are.
        n_resamples: How many resamples.
        level: Share of resamples inside the interval.
        seed: Of the resampling, so that an interval repeats.
    """
    generator = np.random.default_rng(seed)
    drawn = np.array([statistic(generator.integers(0, n, size=n)) for _ in range(n_resamples)])
    drawn = drawn[~np.isnan(drawn)]
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if drawn.size else (math.nan, math.nan)
    return Interval(float(statistic(np.arange(n))), float(low), float(high), level, int(drawn.size))


# Resamples of so few values all lie on one side of 0, where the values do, and they do by chance in more than 1 of 20
# cases (2^(1-n)): no quantile of them can say 95%.
FEWEST_RESAMPLED = 6


def mean_intervals(
    values: Float[np.ndarray, "n k"], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the ends low [k] and high [k] of the interval of every column's mean, bootstrapped over the first axis.

    Quantiles further out than ``level`` make up for what few prompts lack, as Student's t does for the normal: the
    expanded percentile interval of Hesterberg 2015 (What Teachers Should Know About the Bootstrap, The American
    Statistician 69). Of two to five values it is Student's t interval, which can be wider than the values lie apart; of
    one there is none, and both ends are that value.
    """
    from scipy.special import ndtr, stdtrit

    values = np.asarray(values, dtype=np.float64)
    n = len(values)
    if 1 < n < FEWEST_RESAMPLED:
        mean, half = values.mean(axis=0), stdtrit(n - 1, (1 + level) / 2) * values.std(axis=0, ddof=1) / math.sqrt(n)
        return mean - half, mean + half
    generator = np.random.default_rng(seed)
    # How often each prompt is drawn: a resample's mean is then one product.
    counts = generator.multinomial(n, np.full(n, 1 / n), size=n_resamples)
    means = counts @ values / n
    tail = float(ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, (1 + level) / 2))) if n > 1 else (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return low, high


def against_effects(
    metric: Callable[[ArrayLike, ArrayLike], float],
    scores: ArrayLike,
    effects: Float[np.ndarray, "n_pairs n_component"],
    top: int,
    **options: Any,
) -> Interval:
    """``metric(scores, the top heads of largest |mean effect|)``, with an interval over the truth's prompts.

    Args:
        metric: ``roc_auc``, ``average_precision`` or alike.
        scores: One a component.
        effects: Of each prompt pair and component, signed.
        top: How many heads count as the circuit.
        **options: Of ``bootstrap``.
    """
    flat = np.asarray(scores, dtype=np.float64).ravel()
    return bootstrap(lambda rows: metric(flat, largest(effects[rows].mean(axis=0), top)), len(effects), **options)


def _checked(scores: ArrayLike, labels: ArrayLike) -> tuple[Float[np.ndarray, " k"], Bool[np.ndarray, " k"]]:
    flat = np.asarray(scores, dtype=np.float64)
    truth = np.asarray(labels)
    if flat.shape != truth.shape:
        raise HeadcodesError(
            "scores and labels must have one shape", f"{flat.shape} and {truth.shape}", "Use one model for both."
        )
    if not np.all(np.isfinite(flat)):
        raise HeadcodesError(
            "every score must be finite", f"{int((~np.isfinite(flat)).sum())} that are not", "Score every head."
        )
    truth = truth.astype(bool).ravel()
    if truth.all() or not truth.any():
        raise HeadcodesError(
            "labels must have heads in the circuit and heads outside it",
            f"{int(truth.sum())} of {truth.size} in it",
            "Choose another truth or another number of heads.",
        )
    return flat.ravel(), truth


def normalised(values: Float[np.ndarray, "n_pairs n_run"], empty: int) -> Float[np.ndarray, " n_run"]:
    """Scale means over pairs so that run ``empty`` is 0 and run 0, the whole model, 1."""
    mean = values.mean(axis=0)
    span = mean[0] - mean[empty]
    if abs(span) < 1e-6 * max(1.0, float(np.abs(mean).max())):
        raise HeadcodesError(
            "the ablated parts must matter: without all of them the model answers otherwise than the whole one",
            f"a mean logit difference of {mean[0]:.4g} both times",
            "Choose another ablation, or other prompts.",
        )
    scaled: Float[np.ndarray, " n_run"] = (mean - mean[empty]) / span
    return scaled
