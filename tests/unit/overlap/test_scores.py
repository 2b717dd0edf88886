from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from headcodes.errors import HeadcodesError
from headcodes.overlap.mentions import mention_scores


def by_hand(U: np.ndarray) -> list[int]:
    n = len(U)
    listed = sorted(((i, j) for i in range(n) for j in range(n)), key=lambda pair: (-float(U[pair]), pair))
    names = [head for pair in listed for head in pair][: n * n // 2]
    return [names.count(head) for head in range(n)]


def test_worked_example():
    U = np.array([[0, 2, 1, 1], [2, 0, 1, 2], [1, 1, 0, 1], [1, 2, 1, 0]])
    assert mention_scores(U).tolist() == [2, 4, 0, 2]


@given(
    st.integers(0, 7).flatmap(
        lambda n: hnp.arrays(np.int32, (n, n), elements=st.sampled_from([0, 1, 2, 3, 2**31 - 1, -(2**31)]))
    )
)
def test_matches_the_plain_listing(U):
    assert mention_scores(U).tolist() == by_hand(U)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, np.float64])
def test_any_real_dtype(dtype):
    U = np.random.default_rng(0).integers(0, 200, (9, 9)).astype(dtype)
    assert mention_scores(U).tolist() == by_hand(U)


def test_number_of_mentions():
    for n in range(8):
        assert mention_scores(np.ones((n, n), dtype=np.int32)).sum() == n * n // 2


def test_torch_in_torch_out():
    U = torch.tensor([[0, 2, 1, 1], [2, 0, 1, 2], [1, 1, 0, 1], [1, 2, 1, 0]], dtype=torch.int32)
    got = mention_scores(U)
    assert isinstance(got, torch.Tensor)
    assert got.tolist() == [2, 4, 0, 2]


@pytest.mark.parametrize("U", [np.zeros((2, 3)), np.zeros(4), np.array([[0.0, np.nan], [0, 0]])])
def test_refuses_what_is_no_pair_matrix(U):
    with pytest.raises(HeadcodesError, match="pair scores"):
        mention_scores(U)
