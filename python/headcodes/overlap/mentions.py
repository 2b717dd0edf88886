"""Scores of heads, made from scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from numpy.typing import NDArray


# Larger counts than prompts a side do not occur; beyond this a partial sort is the cheaper way.
_MAX_COUNTED = 1 << 20

Scores = TypeVar("Scores", "NDArray[np.generic]", Tensor)


def mention_scores(U: Scores) -> Scores:
    """Count how often each component is named among the strongest pairs (O'Neill & Bui 2024's edge level).

    All ordered pairs ``(i, j)``, diagonal included, are listed by descending ``U[i, j]``, ties by ascending
    ``(i, j)``; written out as ``i, j, i, j, ...``, the first ``n_component ** 2 // 2`` names are counted.

    Args:
        U: pair scores ``[n_component, n_component]``, any real dtype, NumPy or torch.

    Returns:
        int64 ``[n_component]``, of the kind (and on the device) of ``U``.

    Raises:
        HeadcodesError: ``U`` is not a square matrix, or holds NaN.
    """
    if isinstance(U, Tensor):
        return torch.from_numpy(mention_scores(U.detach().cpu().numpy())).to(U.device)
    mend = "Give the matrix that pair_unique_counts returns."
    if U.ndim != 2 or U.shape[0] != U.shape[1]:
        raise HeadcodesError("pair scores must be a square matrix", f"shape {U.shape}", mend)
    if np.isnan(U).any():
        raise HeadcodesError("pair scores must be numbers", "NaN", mend)
    n_component = len(U)
    flat = U.ravel()
    # n_component ** 2 // 2 is always even: whole pairs.
    n_wanted = n_component**2 // 4
    if not n_wanted:
        return np.zeros(n_component, dtype=np.int64)
    # The weakest value that is still among the strongest; of those equal to it, the first ones fill the list.
    weakest: Any = _largest(flat, n_wanted)
    named = weakest < U
    ties = np.flatnonzero(flat == weakest)[: n_wanted - np.count_nonzero(named)]
    named.reshape(-1)[ties] = True
    counts: NDArray[np.int64] = named.sum(0, dtype=np.int64) + named.sum(1, dtype=np.int64)
    return counts


def _largest(flat: NDArray[np.generic], rank: int) -> np.generic:
    """Return the ``rank``-th largest value: counts of pairs are small whole numbers, and are counted."""
    if flat.dtype.kind in "iu" and int(flat.min()) >= 0 and int(flat.max()) <= _MAX_COUNTED:
        from_above = np.bincount(flat)[::-1].cumsum()
        return flat.dtype.type(len(from_above) - 1 - int(np.searchsorted(from_above, rank)))
    found: np.generic = np.partition(flat, flat.size - rank)[flat.size - rank]
    return found
