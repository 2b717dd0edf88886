"""Settings, lists of seeds, and how far the scores of several agree, against loops."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from headcodes.circuit.agreement import SeedScores
from headcodes.circuit.circuit import Circuit
from headcodes.errors import HeadcodesError
from headcodes.settings import Settings, check_seeds, parse_seeds

N_SEEDS, N_LAYERS, N_HEADS = 4, 3, 4
N = N_LAYERS * N_HEADS


@pytest.fixture(scope="module")
def scores() -> SeedScores:
    """Small whole numbers: many ties, some scores of 0 and below."""
    rng = np.random.default_rng(0)
    pairs = rng.integers(-1, 5, (N_SEEDS, N, N)).astype(float)
    pairs = np.triu(pairs, 1) + np.triu(pairs, 1).transpose(0, 2, 1)
    heads = rng.integers(-2, 4, (N_SEEDS, N_LAYERS, N_HEADS)).astype(float)
    return SeedScores((5, 0, 7, 2), heads, pairs, rng.integers(0, 6, (N_SEEDS, N)).astype(float))


def best(values: np.ndarray, top: int) -> list[int]:
    """The ``top`` largest above 0, the lower index first among equals."""
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))
    return [i for i in order[:top] if values[i] > 0]


@pytest.mark.parametrize("top", [1, 3, 5, 50])
def test_consensus_by_loops(scores: SeedScores, top: int) -> None:
    assert scores.pair_scores is not None
    assert scores.mention_scores is not None
    heads, mentions, pairs = np.zeros(N), np.zeros(N), np.zeros((N, N))
    for seed in range(N_SEEDS):
        chosen = best(scores.head_scores[seed].ravel(), top)
        for i in chosen:
            heads[i] += 1
        for i in best(scores.mention_scores[seed], top):
            mentions[i] += 1
        forward = [
            (-scores.pair_scores[seed, i, j], i, j) for i in chosen for j in chosen if i // N_HEADS < j // N_HEADS
        ]
        for score, i, j in sorted(forward)[: 2 * len(chosen)]:
            pairs[i, j] += score < 0
            pairs[j, i] += score < 0
    np.testing.assert_array_equal(scores.head_consensus(top).ravel(), heads / N_SEEDS)
    np.testing.assert_array_equal(scores.mention_consensus(top), mentions / N_SEEDS)
    np.testing.assert_array_equal(scores.pair_consensus(top), pairs / N_SEEDS)


def test_spread_by_loops(scores: SeedScores) -> None:
    for found, values in (
        (scores.head_spread, scores.head_scores),
        (scores.pair_spread, scores.pair_scores),
        (scores.mention_spread, scores.mention_scores),
    ):
        assert found is not None
        assert values is not None
        columns = values.reshape(N_SEEDS, -1).T.tolist()
        np.testing.assert_allclose(found.ravel(), [statistics.stdev(column) for column in columns], atol=1e-15)


def test_one_seed_has_no_spread_and_node_level_no_pairs(scores: SeedScores) -> None:
    alone = SeedScores((5,), scores.head_scores[:1])
    assert not alone.head_spread.any()
    assert set(alone.head_consensus(4).ravel()) == {0.0, 1.0}
    nothing = (alone.pair_spread, alone.pair_consensus(4), alone.mention_spread, alone.mention_consensus(4))
    assert nothing == (None,) * 4
    assert set(alone.agreement(4)) == {"head_spread", "head_consensus"}


def test_circuits_are_those_of_the_seeds(scores: SeedScores) -> None:
    assert scores.pair_scores is not None
    for seed, circuit in enumerate(scores.circuits(5)):
        alone = Circuit.from_scores(scores.head_scores[seed], top=5, pair_scores=scores.pair_scores[seed])
        assert circuit == alone


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-3", [0, 1, 2, 3]), ("3,1-2,1", [3, 1, 2]), ([4, 4, 2], [4, 2])],
)
def test_seeds(text: str | list[int], seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text", ["", "a", "1-", "3-1", "0,3-1", "-1", "1,,2", "0-99999999999", "0,1-" + "9" * 19, "9" * 5000]
)
def test_no_seeds(text: str) -> None:
    with pytest.raises(HeadcodesError, match="seeds must be numbers"):
        parse_seeds(text)


def test_seeds_of_any_sequence() -> None:
    for seeds in (range(3), [0, 1, 2], np.arange(3)):
        checked = check_seeds(seeds)  # type: ignore[arg-type]
        assert checked == (0, 1, 2)
        assert {type(seed) for seed in checked} == {int}


@pytest.mark.parametrize("seeds", [[], range(0), [-1, 0], [1, 2, 1], [0.5], ["1"], "0-9", 3, None, [2**63]])
def test_seeds_that_are_none(seeds: Any) -> None:
    with pytest.raises(HeadcodesError, match="seeds must be whole numbers"):
        check_seeds(seeds)


@pytest.mark.parametrize(
    ("wrong", "must"),
    [
        ({"n_train": 0}, "n_train must be at least 1"),
        ({"threads": 0}, "threads must be at least 1"),
        ({"positions": "first"}, "positions must be one of 'mean', 'last' or a list"),
        ({"bos": "maybe"}, "bos must be one of 'auto', 'yes', 'no'"),
        ({"level": "heads"}, "level must be one of 'node', 'edge'"),
        ({"dtype": "int8"}, "dtype must be one of 'auto', 'float32'"),
    ],
)
def test_settings_outside_their_bounds_are_refused(wrong: dict[str, Any], must: str) -> None:
    with pytest.raises(HeadcodesError, match=must):
        Settings(**wrong)
    assert Settings(positions=[[0], [1]]).positions == [[0], [1]]
