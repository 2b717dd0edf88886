"""Calibration and power of the permutation tests over 1,000 simulated seeds.

    pytest bench/test_overlap_significance.py --benchmark-enable -s

Calibration: both sides drawn alike; the share of heads with p <= level, and of runs in which any head passes the
family-wise test or Benjamini-Hochberg at that level, must not exceed the level by more than three standard errors.
Power: a share `strength` of positive prompts shows one of `n_own` codes of its own in 8 of 40 heads; the share found.
"""

from __future__ import annotations

import numpy as np
import pytest

from headcodes.overlap.significance import node_significance, pair_significance

N_SEED = 1_000
LEVELS = (0.01, 0.05, 0.2)


def holds(share: float, level: float, n: int) -> bool:
    return share <= level + 3 * np.sqrt(level * (1 - level) / n)


def draw(rng: np.random.Generator, kind: str, n: int, n_component: int) -> np.ndarray:
    if kind == "uniform":
        return rng.integers(0, 40, (n, n_component))
    weights = np.arange(1, 201) ** -2.1
    return rng.choice(200, size=(n, n_component), p=weights / weights.sum())


def rates_hold(benchmark, what, alone, family, discovery, n_alone=None):
    """Each kind of p-value is below each level at most that often, give or take what so many draws allow."""
    for level in LEVELS:
        shares = {"p": (alone <= level).mean(), "family": (family <= level).mean(), "fdr": (discovery <= level).mean()}
        benchmark.extra_info[f"level {level}"] = shares
        print(f"\n{what}, level {level}: {shares}")
        for rate, share in shares.items():
            assert holds(share, level, (n_alone or len(alone)) if rate == "p" else N_SEED), rate


@pytest.mark.parametrize("kind", ["uniform", "skewed"])
@pytest.mark.parametrize("paired", [True, False], ids=["paired", "free"])
def test_node_calibration(benchmark, kind, paired):
    def simulate():
        alone, family, discovery = [], [], []
        for seed in range(N_SEED):
            both = draw(np.random.default_rng(seed), kind, 200, 40)
            got = node_significance(both[:100], both[100:], paired=paired, n_permutations=499, seed=seed)
            alone.append(got.p)
            family.append(got.p_family.min())
            discovery.append(got.q.min())
        return np.concatenate(alone), np.array(family), np.array(discovery)

    rates_hold(benchmark, f"nodes {kind}, paired={paired}", *benchmark.pedantic(simulate, rounds=1))


def test_pair_calibration(benchmark):
    def simulate():
        alone, family, discovery = [], [], []
        upper = np.triu_indices(12, 1)
        for seed in range(N_SEED):
            both = draw(np.random.default_rng(seed), "uniform", 120, 12)
            got = pair_significance(
                both[:60], both[60:], paired=True, n_permutations=499, seed=seed, selected=range(12)
            )
            alone.append(got.p[upper])
            family.append(got.p_family[upper].min())
            discovery.append(got.q[upper].min())
        return np.concatenate(alone), np.array(family), np.array(discovery)

    # Pairs that share a head are not independent: the runs are.
    rates_hold(benchmark, "pairs", *benchmark.pedantic(simulate, rounds=1), n_alone=N_SEED)


@pytest.mark.parametrize(("strength", "n_own", "least"), [(0.1, 10, 0.02), (0.2, 15, 0.5), (0.3, 15, 0.9)])
def test_node_power(benchmark, strength, n_own, least):
    def simulate():
        found, family, false = [], [], []
        for seed in range(N_SEED // 5):
            rng = np.random.default_rng(seed)
            pos, neg = rng.integers(0, 30, (2, 100, 40))
            own = rng.random((100, 8)) < strength
            pos[:, :8] = np.where(own, 30 + rng.integers(0, n_own, own.shape), pos[:, :8])
            got = node_significance(pos, neg, paired=True, n_permutations=1_000, seed=seed)
            chosen = got.q <= 0.05
            found.append(chosen[:8].mean())
            family.append((got.p_family[:8] <= 0.05).mean())
            false.append(chosen[8:].sum() / max(chosen.sum(), 1))
        return np.mean(found), np.mean(family), np.mean(false)

    found, family, false = benchmark.pedantic(simulate, rounds=1)
    benchmark.extra_info.update(found=found, found_family=family, false_share=false)
    print(f"\nstrength {strength}, {n_own} own codes: {benchmark.extra_info}")
    assert found >= least
    assert false <= 0.06
