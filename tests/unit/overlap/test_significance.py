"""Permutation tests: every permutation recounted from its labels, calibration, power."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headcodes.errors import HeadcodesError
from headcodes.overlap.counts import pair_unique_counts, unique_counts
from headcodes.overlap.significance import node_significance, pair_significance, permuted_labels


def codes(seed, n_pos=30, n_neg=30, n_component=7, n_codes=12, dead=0.2):
    rng = np.random.default_rng(seed)
    both = rng.integers(0, n_codes, (n_pos + n_neg, n_component)) * rng.integers(0, 2, n_component)
    both[rng.random(both.shape) < dead] = -1
    both[:n_pos, 0] += n_codes * rng.integers(0, 2, n_pos)  # one head whose codes do differ
    return both[:n_pos].astype(np.int32), both[n_pos:].astype(np.int32)


def recount(count, pos, neg, labels):
    """Counts under every permutation: [n_permutations, ...]."""
    both = np.concatenate([pos, neg])
    return np.array([count(both[label], both[~label]) for label in labels])


def distances(given, permuted):
    everything = np.concatenate([given[None], permuted]).astype(np.float64)
    return (everything - everything.mean(0)) / np.maximum(everything.std(0), 1)


@pytest.mark.parametrize("isa", ["simd128", "avx2", "avx512"])
@pytest.mark.parametrize(
    ("paired", "n_pos", "n_neg"), [(True, 30, 30), (False, 30, 30), (False, 40, 11), (False, 5, 33)]
)
def test_every_permutation_is_counted_exactly(monkeypatch, isa, paired, n_pos, n_neg):
    from headcodes import _core

    if isa not in _core.isas():
        pytest.skip(f"this machine does not run {isa}")
    monkeypatch.setenv("HEADCODES_ISA", isa)
    pos, neg = codes(n_pos, n_pos, n_neg)
    m = 600  # one block of permutations and a part of the next
    labels = permuted_labels(n_pos, n_neg, paired=paired, n_permutations=m, seed=5)
    for test, count in ((node_significance, unique_counts), (pair_significance, pair_unique_counts)):
        got = test(pos, neg, paired=paired, n_permutations=m, seed=5, dead=-1)
        given = count(pos, neg, dead=-1)
        permuted = recount(lambda p, n, count=count: count(p, n, dead=-1), pos, neg, labels)
        np.testing.assert_array_equal(got.counts, given)
        np.testing.assert_array_equal(got.p, (1 + (permuted >= given).sum(0)) / (1 + m))
        away = distances(given, permuted)
        np.testing.assert_allclose(got.distance, away[0], atol=1e-5)
        furthest = away[1:].reshape(m, -1)
        if count is pair_unique_counts:
            furthest = furthest[
                :, np.triu_indices(pos.shape[1], 1)[0] * pos.shape[1] + np.triu_indices(pos.shape[1], 1)[1]
            ]
        family = (1 + (furthest.max(1) >= np.expand_dims(away[0], -1) - 1e-6).sum(-1)) / (1 + m)
        if count is pair_unique_counts:
            np.fill_diagonal(family, 1)
        np.testing.assert_allclose(got.p_family, family, atol=1e-12)


def test_labels():
    paired = permuted_labels(40, 40, paired=True, n_permutations=2000, seed=1)
    assert (paired[:, :40] ^ paired[:, 40:]).all()
    free = permuted_labels(13, 40, paired=False, n_permutations=2000, seed=1)
    assert (free.sum(1) == 13).all()
    assert (permuted_labels(40, 13, paired=False, n_permutations=50).sum(1) == 40).all()
    for labels, chance in ((paired, 0.5), (free, 13 / 53)):
        sd = np.sqrt(chance * (1 - chance) / 2000)
        assert np.abs(labels.mean(0) - chance).max() < 5 * sd
        # Neighbouring permutations, and neighbouring prompts, know nothing of each other.
        centred = labels[:, : 40 if labels is paired else 53] - chance
        assert abs((centred[1:] * centred[:-1]).mean()) < 5 * chance * (1 - chance) / np.sqrt(centred.size)
    assert len(np.unique(free, axis=0)) == 2000
    assert (
        permuted_labels(9, 9, paired=True, n_permutations=700, seed=1)[:600]
        == permuted_labels(9, 9, paired=True, n_permutations=600, seed=1)
    ).all()
    assert (
        permuted_labels(9, 9, paired=False, n_permutations=99, seed=2**63)
        != permuted_labels(9, 9, paired=False, n_permutations=99, seed=2**62)
    ).any()


@pytest.mark.parametrize(
    ("paired", "n_pos", "n_neg", "n_way"), [(True, 5, 5, 32), (False, 3, 4, 35), (False, 4, 2, 15)]
)
def test_every_relabelling_is_as_likely(paired, n_pos, n_neg, n_way):
    labels = permuted_labels(n_pos, n_neg, paired=paired, n_permutations=20_000, seed=3)
    times = np.unique(labels, axis=0, return_counts=True)[1]
    assert len(times) == n_way
    even = 20_000 / n_way
    # Chi-squared has mean n_way - 1 and variance twice that.
    assert ((times - even) ** 2 / even).sum() < n_way - 1 + 5 * np.sqrt(2 * n_way)


def test_threads_do_not_matter():
    pos, neg = codes(3)
    for test in (node_significance, pair_significance):
        results = [test(pos, neg, paired=True, n_permutations=999, dead=-1, threads=t) for t in (1, 2, 5)]
        for other in results[1:]:
            for name in ("counts", "p", "p_family", "q", "distance"):
                np.testing.assert_array_equal(getattr(other, name), getattr(results[0], name))


@pytest.mark.parametrize("paired", [True, False])
def test_calibrated_without_a_difference(paired):
    # 60 seeds of 30 heads: shares of p <= level stay at or below it, within 4 standard errors (heads are independent).
    p, families = [], []
    for seed in range(60):
        both = np.random.default_rng(seed).integers(0, 40, (80, 30))
        got = node_significance(both[:40], both[40:], paired=paired, n_permutations=199, seed=seed)
        p.append(got.p)
        families.append(got.p_family.min())
    for level in (0.05, 0.2, 0.5):
        for values in (np.concatenate(p), np.array(families)):
            share = (values <= level).mean()
            assert share <= level + 4 * np.sqrt(level * (1 - level) / len(values))
    # Not by never selecting: counts are discrete, so somewhat below the level is right, far below is not.
    assert (np.concatenate(p) <= 0.2).mean() > 0.1


def planted(seed, n=100, n_component=40, n_true=8, strength=0.3):
    """Heads 0 .. n_true-1 answer a share of positives with codes of their own."""
    rng = np.random.default_rng(seed)
    pos, neg = rng.integers(0, 30, (2, n, n_component))
    own = rng.random((n, n_true)) < strength
    pos[:, :n_true] = np.where(own, 30 + rng.integers(0, 15, own.shape), pos[:, :n_true])
    return pos, neg


@pytest.mark.parametrize("paired", [True, False])
def test_planted_differences_are_found(paired):
    found = false = family = 0
    for seed in range(5):
        got = node_significance(*planted(seed), paired=paired, n_permutations=2000, seed=seed)
        found += (got.q[:8] <= 0.05).sum()
        false += (got.q[8:] <= 0.05).sum()
        family += (got.p_family[:8] <= 0.05).sum()
    assert found >= 36  # of 40
    assert family >= 32
    assert false <= 8


def test_planted_pairs_are_found():
    # Heads 0 and 1 choose any code on either side, but an even step apart in positives and an odd one in negatives.
    rng = np.random.default_rng(0)
    pos, neg = rng.integers(0, 12, (2, 120, 12))
    steps = 2 * rng.integers(0, 6, (2, 120))
    pos[:, 1] = (pos[:, 0] + steps[0]) % 12
    neg[:, 1] = (neg[:, 0] + steps[1] + 1) % 12
    got = pair_significance(pos, neg, paired=True, n_permutations=500)
    assert got.p_family[0, 1] <= 0.01
    assert got.p[0, 1] <= 0.01
    # 65 other pairs without a difference: by chance one may pass, at a level of 5% for all of them together.
    assert (got.p_family[np.triu_indices(12, 1)] <= 0.05).sum() <= 2
    assert (node_significance(pos, neg, paired=True, n_permutations=500).q > 0.05).all()


def test_pairs_of_selected_heads():
    pos, neg = planted(1, n_component=12, n_true=4, strength=0.5)
    layers = np.arange(12) // 3
    got = pair_significance(pos, neg, paired=True, n_permutations=300, layers=layers)
    assert set(range(4)) <= set(got.selected.tolist())
    q = node_significance(pos, neg, paired=True).q
    for fdr in (1e-9, 0.05, float(np.sort(q)[6])):
        found = pair_significance(pos, neg, paired=True, n_permutations=20, layers=layers, fdr=fdr).selected
        assert found.tolist() == np.flatnonzero(q <= fdr).tolist()
    wanted = layers[:, None] < layers[None, :]
    chosen = np.isin(np.arange(12), got.selected)
    np.testing.assert_array_equal(~np.isnan(got.q), wanted & chosen[:, None] & chosen[None, :])
    assert (got.p[~wanted] == 1).all()
    assert (got.p_family[~wanted] == 1).all()
    np.testing.assert_array_equal(got.counts, pair_unique_counts(pos, neg, layers=layers))
    both = pair_significance(pos, neg, paired=True, n_permutations=300, selected=[1, 0, 3])
    np.testing.assert_array_equal(both.q, both.q.T)
    assert np.isfinite(both.q).sum() == 6
    p = both.p[[0, 0, 1], [1, 3, 3]]
    np.testing.assert_allclose(
        both.q[[0, 0, 1], [1, 3, 3]], [min(1, *(3 * s / (p <= s).sum() for s in p if s >= r)) for r in p]
    )
    mask = pair_significance(pos, neg, paired=True, n_permutations=300, selected=np.arange(12) == 5)
    assert mask.selected.tolist() == [5]
    assert np.isnan(mask.q).all()


def test_q_values_select_as_benjamini_and_hochberg_define() -> None:
    pos, neg = codes(2)
    found = node_significance(pos, neg, paired=True, n_permutations=300, dead=-1)
    p, n = found.p, found.p.size
    assert 0 < (found.q <= 0.2).sum() < n
    for fdr in (0.01, 0.05, 0.2, 1.0):
        passes = [k for k in range(1, n + 1) if np.sort(p)[k - 1] <= fdr * k / n]
        limit = np.sort(p)[passes[-1] - 1] if passes else -1
        np.testing.assert_array_equal(found.q <= fdr + 1e-12, p <= limit)


def test_kinds_and_edges():
    pos, neg = (torch.from_numpy(side) for side in codes(2))
    got = node_significance(pos, neg, paired=True, n_permutations=99, dead=-1)
    assert all(torch.is_tensor(value) for value in (got.counts, got.p, got.p_family, got.q, got.distance))
    assert torch.is_tensor(pair_significance(pos, neg, paired=True, n_permutations=9, dead=-1).p)
    for shape in ((0, 0, 3), (0, 4, 3), (4, 0, 3), (3, 3, 0)):
        empty = np.zeros(shape[::2], np.int32), np.zeros(shape[1:], np.int32)
        assert (node_significance(*empty, paired=False, n_permutations=9).p == 1).all()
        assert (pair_significance(*empty, paired=False, n_permutations=9).p == 1).all()


@pytest.mark.parametrize(
    ("n_neg", "options", "words"),
    [
        (4, {"paired": True}, "equally many"),
        (3, {"paired": True, "n_permutations": 0}, "n_permutations"),
        (3, {"paired": True, "n_permutations": 2.5}, "n_permutations"),
        (3, {"paired": False, "seed": -1}, "seed"),
        (3, {"paired": False, "seed": 2**64}, "seed"),
        (200_000, {"paired": False, "n_permutations": 100_000}, "prompts times permutations"),
        (3, {"paired": False, "threads": 0}, "threads"),
        (3, {"paired": False, "dead": "x"}, "dead"),
    ],
)
def test_refused(n_neg, options, words):
    for test in (node_significance, pair_significance):
        with pytest.raises(HeadcodesError, match=words):
            test(np.zeros((3, 2), int), np.zeros((n_neg, 2), int), **options)


@pytest.mark.parametrize("selected", [[7], [-1], [0.5], [[0]]])
def test_selected_refused(selected):
    with pytest.raises(HeadcodesError, match="selected"):
        pair_significance(*codes(0), paired=True, dead=-1, selected=selected)
