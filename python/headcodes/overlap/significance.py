"""Whether a head's codes differ between the sides by more than relabelling the prompts would make them.

A permutation test of the overlap counts themselves: the prompts' labels are shuffled many times, every count is taken
again, exactly, and ``p = (1 + b) / (1 + m)`` where ``b`` of ``m`` permutations count at least as much as the labels as
given (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585).

What a small p says: *this head's codes differ between the sides*. It does not say that the head is in the circuit.
On SmolLM2-135M and the indirect-object task 40 of 270 heads passed at q < .05, and 9 of them were among the 20 of
largest causal effect.

Leave out the prompts that trained the autoencoder: its codes fit them better than others.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import false_discovery_control

from headcodes import _core
from headcodes.errors import HeadcodesError
from headcodes.overlap.counts import Sides, instruction_set, layer_array, thread_count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt


MAX_PERMUTATIONS = 1 << 24


@dataclass(frozen=True)
class Significance:
    """Permutation tests of many counts: arrays of one shape, of the caller's kind (NumPy or torch).

    ``counts`` (int32) as given; ``p`` of each alone; ``p_family``, the chance that *any* count strays so far, which
    holds the family-wise error; ``q``, Benjamini-Hochberg's false-discovery rate; ``distance`` (float32), how far the
    count lies above its mean under relabelling, in standard deviations of at least one count.
    """

    counts: Any
    p: Any
    p_family: Any
    q: Any
    distance: Any
    n_permutations: int
    paired: bool
    seed: int


@dataclass(frozen=True)
class PairSignificance(Significance):
    """Tests of pair counts, [n_component, n_component].

    ``q`` is taken among pairs of ``selected`` heads only and is NaN elsewhere: among all pairs even the smallest p
    that the permutations can give would not pass. Pairs that are not counted (the diagonal; with layers, all but
    ``layers[i] < layers[j]``) have p = p_family = 1.
    """

    selected: npt.NDArray[np.intp]


def node_significance(
    pos: Any,
    neg: Any,
    *,
    paired: bool,
    n_permutations: int = 10_000,
    seed: int = 0,
    dead: int | None = None,
    threads: int | None = None,
) -> Significance:
    """Test the node counts of :func:`headcodes.unique_counts`.

    Args:
        pos, neg: integer codes [n_positive, n_component] and [n_negative, n_component], NumPy or torch, without the
            prompts that trained the autoencoder.
        paired: swap sides within pairs ``pos[k], neg[k]`` (prompts made in pairs), or choose positives freely.
        n_permutations: the smallest p is one part in one more than this.
        seed: permutation k depends on the seed, k and the numbers of prompts alone: not on threads, not on the codes.
        dead, threads: as in :func:`headcodes.unique_counts`.

    Returns:
        :class:`Significance` of shape [n_component]; ``q`` over all components.

    Raises:
        HeadcodesError: codes that cannot be counted; paired sides of different length; too many labels.
    """
    sides = Sides(pos, neg, dead)
    tested, p = _tested(_core.node_permutations, sides, paired, n_permutations, seed, threads)
    return Significance(**tested, q=sides.like_input(false_discovery_control(p)))


def pair_significance(
    pos: Any,
    neg: Any,
    *,
    paired: bool,
    n_permutations: int = 1_000,
    seed: int = 0,
    dead: int | None = None,
    layers: Sequence[int] | npt.NDArray[Any] | None = None,
    selected: Sequence[int] | npt.NDArray[Any] | None = None,
    fdr: float = 0.05,
    threads: int | None = None,
) -> PairSignificance:
    """Test the pair counts of :func:`headcodes.pair_unique_counts`.

    ``p_family`` comes from the largest distance over all pairs of each permutation and needs no selection. ``q`` is
    Benjamini-Hochberg's among pairs of selected heads; the selection looked at the same labels, so read it as a
    ranking with a scale, and ``p_family`` as the guarantee.

    Args:
        pos, neg, paired, seed, dead, threads: as in :func:`node_significance`.
        n_permutations: of the pair counts.
        layers: as in :func:`headcodes.pair_unique_counts`.
        selected: indices of the heads whose pairs get a ``q``. By default those that :func:`node_significance` gives
            ``q <= fdr`` on the same prompts and seed.
        fdr: level of that default selection.

    Raises:
        HeadcodesError: as :func:`node_significance`; selected heads that do not exist.
    """
    sides = Sides(pos, neg, dead)
    _check(sides, paired, n_permutations, seed)
    n = sides.pos.shape[1]
    layer_of = None if layers is None else layer_array(layers, n)
    if selected is None:
        nodes = node_significance(sides.pos, sides.neg, paired=paired, seed=seed, dead=dead, threads=threads)
        chosen = np.flatnonzero(nodes.q <= fdr)
    else:
        chosen = _indices(selected, n)
    tested, p = _tested(_core.pair_permutations, sides, paired, n_permutations, seed, threads, layers=layer_of)
    among = np.zeros((n, n), dtype=bool)
    among[np.ix_(chosen, chosen)] = True
    upper = np.triu(among, 1) if layer_of is None else among & (layer_of[:, None] < layer_of[None, :])
    q = np.full((n, n), np.nan)
    q[upper] = false_discovery_control(p[upper])
    if layer_of is None:
        q.T[upper] = q[upper]
    return PairSignificance(**tested, q=sides.like_input(q), selected=chosen)


def _tested(
    permutations: Callable[..., tuple[npt.NDArray[Any], ...]],
    sides: Sides,
    paired: bool,
    n_permutations: int,
    seed: int,
    threads: int | None,
    **layers: Any,
) -> tuple[dict[str, Any], npt.NDArray[np.float64]]:
    """Return every field of a ``Significance`` but ``q``, and ``p`` in NumPy."""
    _check(sides, paired, n_permutations, seed)
    with sides:
        counts, at_least, distance, anywhere = permutations(
            sides.pos,
            sides.neg,
            dead=sides.dead,
            **layers,
            n_permutations=n_permutations,
            seed=seed,
            paired=paired,
            threads=thread_count(threads),
            isa=instruction_set(),
        )
    p = _p_values(at_least, n_permutations)
    fields = {"counts": counts, "p": p, "p_family": _p_values(anywhere, n_permutations), "distance": distance}
    tested = {name: sides.like_input(values) for name, values in fields.items()}
    return tested | {"n_permutations": n_permutations, "paired": paired, "seed": seed}, p


def permuted_labels(
    n_positive: int, n_negative: int, *, paired: bool, n_permutations: int, seed: int = 0
) -> npt.NDArray[np.bool_]:
    """Return the labels the tests use: bool [n_permutations, n_positive + n_negative], True where called positive.

    Prompts are numbered positives first, as given.
    """
    labels = _core.permuted_labels(n_positive, n_negative, n_permutations=n_permutations, seed=seed, paired=paired)
    return labels.view(np.bool_)


def _p_values(at_least: npt.NDArray[np.int32], n_permutations: int) -> npt.NDArray[np.float64]:
    return (1 + at_least) / (1 + n_permutations)


def _check(sides: Sides, paired: bool, n_permutations: int, seed: int) -> None:
    if paired and len(sides.pos) != len(sides.neg):
        raise HeadcodesError(
            "paired sides must have equally many prompts",
            f"{len(sides.pos)} and {len(sides.neg)}",
            "Pass paired=False to choose the positives freely.",
        )
    for name, value, least, most in (
        ("n_permutations", n_permutations, 1, MAX_PERMUTATIONS),
        ("seed", seed, 0, 2**64 - 1),
    ):
        try:
            number = operator.index(value)
        except TypeError:
            number = -1
        if not least <= number <= most:
            raise HeadcodesError(f"{name} must be a whole number from {least} to {most:,}", repr(value), "Change it.")
    n_label = (len(sides.pos) + len(sides.neg)) * (n_permutations + 511)
    if n_label > _core.max_label_bits:
        raise HeadcodesError(
            f"prompts times permutations must be at most {_core.max_label_bits:,}",
            f"{len(sides.pos) + len(sides.neg):,} prompts and {n_permutations:,} permutations",
            "Ask for fewer permutations, or test a selection of the prompts.",
        )


def _indices(selected: Sequence[int] | npt.NDArray[Any], n_component: int) -> npt.NDArray[np.intp]:
    array = np.asarray(selected)
    if array.dtype == np.bool_ and array.shape == (n_component,):
        return np.flatnonzero(array)
    good = array.ndim == 1 and (array.size == 0 or array.dtype.kind in "iu")
    if not good or (array.size and not (array.min() >= 0 and array.max() < n_component)):
        raise HeadcodesError(
            f"selected must name heads by number, 0 to {n_component - 1}, or by one truth value each",
            f"shape {array.shape}, dtype {array.dtype}",
            "For instance np.flatnonzero(nodes.q <= 0.05).",
        )
    return np.unique(array.astype(np.intp))
