"""Scores of heads, made from scores of pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from numpy.typing import NDArray


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
    # Ascending and stable on the reversed list, then reversed: descending with ties ascending, whatever the dtype.
    flat = U.ravel()
    order = flat.size - 1 - np.argsort(flat[::-1], kind="stable")[::-1]
    # n_component ** 2 // 2 is always even: whole pairs.
    strongest = order[: n_component**2 // 4]
    names = np.divmod(strongest, max(n_component, 1))
    return np.bincount(np.concatenate(names), minlength=n_component)
