from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headcodes import metrics
from headcodes.errors import HeadcodesError


def by_pairs(scores: np.ndarray, labels: np.ndarray, tie: float) -> float:
    """AUC by its meaning: how often an in-circuit head outscores one outside it."""
    inside, outside = scores[labels], scores[~labels]
    wins = [1.0 if a > b else tie if a == b else 0.0 for a, b in itertools.product(inside, outside)]
    return sum(wins) / len(wins)


rankings = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=14).filter(
    lambda rows: 0 < sum(label for _, label in rows) < len(rows)
)


@settings(max_examples=60, deadline=None)
@given(rankings)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[int, bool]]) -> None:
    scores, labels = np.array([r[0] for r in rows], dtype=float), np.array([r[1] for r in rows])
    assert metrics.roc_auc(scores, labels) == pytest.approx(by_pairs(scores, labels, 0.5))
    # The left step gives a tie nothing: its true positives count from its last false positive on.
    assert metrics.roc_auc_pessimistic(scores, labels) == pytest.approx(by_pairs(scores, labels, 0.0))


def test_average_precision_by_hand() -> None:
    # Ranks of the hits: 1, 3, 4 -> (1/1 + 2/3 + 3/4) / 3
    scores, labels = [9, 8, 7, 6, 5], [1, 0, 1, 1, 0]
    assert metrics.average_precision(scores, labels) == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)


def test_operating_points_of_separate_circuits() -> None:
    # (.5, .2) is dominated by (.2, .6). Stairs: 0 to .2 at 0, .2 to .6 at .6, .6 to 1 at .8.
    x, y = [0.2, 0.5, 0.6], [0.6, 0.2, 0.8]
    assert metrics.pessimistic_area(x, y) == pytest.approx(0.4 * 0.6 + 0.4 * 0.8)
    assert metrics.pessimistic_area([0.0], [1.0]) == 1.0
    assert metrics.pessimistic_area([], []) == 0.0
    with pytest.raises(HeadcodesError):
        metrics.pessimistic_area([0.5], [1.5])
    with pytest.raises(HeadcodesError):
        metrics.pessimistic_area([0.5, 0.6], [0.5])


def test_cuts_by_hand() -> None:
    scores = [[5, 4, 4, 4], [1, 0, 0, 0]]
    labels = [[1, 1, 0, 0], [1, 0, 0, 0]]
    cut = metrics.at_k(scores, labels, 1)
    assert (cut.n_hits, cut.precision, cut.recall) == (1, 1, pytest.approx(1 / 3))
    # Two of three equal scores are taken, one of which is in the circuit: 2/3 of a hit on average.
    cut = metrics.at_k(scores, labels, 3)
    assert cut.n_hits == pytest.approx(1 + 2 / 3)
    assert cut.f1 == pytest.approx(2 * cut.precision * cut.recall / (cut.precision + cut.recall))
    cut = metrics.at_k(scores, labels, 4)
    assert (cut.n_taken, cut.n_hits, cut.precision, cut.recall) == (4, 2, 0.5, pytest.approx(2 / 3))
    # TPR 2/3, TNR 3/5: the published "F1" is another number than the true one.
    assert cut.tpr_tnr_harmonic == pytest.approx(2 * (2 / 3) * 0.6 / (2 / 3 + 0.6))
    assert cut.f1 == pytest.approx(2 * 2 / (4 + 3))
    for k in (0, 9):
        with pytest.raises(HeadcodesError):
            metrics.at_k(scores, labels, k)


def test_expected_hits_are_the_mean_over_all_orders_of_a_tie() -> None:
    scores, labels = np.array([2.0, 1, 1, 1, 0]), np.array([0, 1, 1, 0, 1], dtype=bool)
    for k in range(1, 6):
        hits = [
            labels[sorted(range(5), key=lambda i, o=order: (-scores[i], o[i]))[:k]].sum()
            for order in itertools.permutations(range(5))
        ]
        assert metrics.at_k(scores, labels, k).n_hits == pytest.approx(np.mean(hits))


def test_pair_auc_reads_forward_pairs_only() -> None:
    generator = np.random.default_rng(0)
    scores, labels = generator.integers(0, 5, (6, 6)).astype(float), generator.random((6, 6)) < 0.5
    forward = [(i, j) for i in range(6) for j in range(6) if i // 2 < j // 2]
    assert len(forward) == 12
    expected = by_pairs(np.array([scores[p] for p in forward]), np.array([labels[p] for p in forward]), 0.5)
    assert metrics.pair_auc(scores, labels, n_heads=2) == pytest.approx(expected)
    with pytest.raises(HeadcodesError):
        metrics.pair_auc(scores, labels, n_heads=4)
    with pytest.raises(HeadcodesError):
        metrics.pair_auc(scores[:4, :4], labels, n_heads=2)


def test_mention_auc_is_about_heads() -> None:
    assert metrics.mention_auc([2, 4, 0, 2], [[False, True], [False, False]]) == 1.0


def test_spearman() -> None:
    # The effects' signs do not count; ties share their ranks.
    assert metrics.spearman([1, 2, 3], [0.1, -0.2, 0.3]) == pytest.approx(1)
    assert metrics.spearman([[3, 2], [1, 0]], [[0.1, 0.2], [-0.3, 0.4]]) == pytest.approx(-1)
    # ranks 1.5 1.5 3 4 against 1 2 3 4
    x, y = np.array([1.5, 1.5, 3, 4]), np.array([1, 2, 3, 4.0])
    assert metrics.spearman([5, 5, 6, 7], [1, -2, 3, 4]) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert math.isnan(metrics.spearman([1, 1, 1], [1, 2, 3]))
    with pytest.raises(HeadcodesError):
        metrics.spearman([1, 2], [1, 2, 3])


def test_largest() -> None:
    labels = metrics.largest([[0.1, -3.0], [2.0, 2.0]], 2)
    assert labels.tolist() == [[False, True], [True, False]]
    for k in (0, 4):
        with pytest.raises(HeadcodesError):
            metrics.largest([[0.1, -3.0], [2.0, 2.0]], k)


def test_bootstrap_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(size=400)
    found = metrics.bootstrap(lambda rows: float(values[rows].mean()), 400, n_resamples=2000)
    assert found.value == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)
    assert found == metrics.bootstrap(lambda rows: float(values[rows].mean()), 400, n_resamples=2000)
    low, high = metrics.mean_intervals(np.stack([values, 2 * values], axis=1), n_resamples=2000)
    assert high[0] - low[0] == pytest.approx(2 * half, rel=0.1)
    assert high[1] - low[1] == pytest.approx(2 * (high[0] - low[0]))
    narrow = metrics.bootstrap(lambda rows: float(values[rows].mean()), 400, n_resamples=2000, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * values.std() / 20, rel=0.12)


def test_intervals_of_few_prompts_are_as_wide_as_students() -> None:
    from scipy.stats import t

    values = np.random.default_rng(2).normal(size=(10, 40))
    low, high = metrics.mean_intervals(values, n_resamples=4000)
    width = 2 * t.ppf(0.975, 9) * values.std(axis=0, ddof=1) / np.sqrt(10)
    assert np.median((high - low) / width) == pytest.approx(1, abs=0.05)
    # Of five or fewer the resamples do not reach far enough: they are Student's own.
    low, high = metrics.mean_intervals(values[:4])
    width = 2 * t.ppf(0.975, 3) * values[:4].std(axis=0, ddof=1) / 2
    np.testing.assert_allclose(high - low, width)
    np.testing.assert_allclose((low + high) / 2, values[:4].mean(axis=0))
    np.testing.assert_array_equal(metrics.mean_intervals(values[:1]), [values[0], values[0]])


def test_bootstrap_leaves_out_what_does_not_exist() -> None:
    found = metrics.bootstrap(lambda rows: math.nan if rows[0] == 0 else 1.0, 4, n_resamples=100)
    assert 0 < found.n_resamples < 100
    assert (found.low, found.high) == (1.0, 1.0)


def test_intervals_against_effects_draw_whole_prompts() -> None:
    # One prompt says head 0, the other says head 1, and together they say head 0.
    effects = np.array([[3.0, 0.0, 0.0], [0.0, -2.0, 0.0]])
    found = metrics.against_effects(metrics.roc_auc, [1.0, 0.0, 0.5], effects, top=1, n_resamples=200)
    assert found.value == 1.0
    assert (found.low, found.high) == (0.0, 1.0)
    sure = metrics.against_effects(metrics.roc_auc, [1.0, 0.0, 0.5], effects[[0, 0]], top=1, n_resamples=50)
    assert (sure.low, sure.high) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("scores", "labels"),
    [([1.0, 2.0], [1, 1]), ([1.0, 2.0], [0, 0]), ([1.0], [1, 0]), ([1.0, math.nan], [1, 0]), ([[1.0, 2.0]], [1, 0])],
)
def test_what_cannot_be_judged_is_refused(scores: object, labels: object) -> None:
    for metric in (metrics.roc_auc, metrics.roc_auc_pessimistic, metrics.average_precision):
        with pytest.raises(HeadcodesError):
            metric(scores, labels)  # type: ignore[arg-type]


def test_torch_is_welcome() -> None:
    scores, labels = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([True, False, True])
    assert metrics.roc_auc(scores, labels) == 1.0  # type: ignore[arg-type]
