"""How much the codes of two sides differ: codes, and pairs of codes, that occur on the positive side alone.

The counting is C++ (``csrc/``); this module converts, checks and explains. Method: O'Neill & Bui 2024,
arXiv 2405.12522.
"""

from __future__ import annotations

import operator
import os
import sys
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import numpy.typing as npt

from headcodes import _core
from headcodes.errors import HeadcodesError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch


Array = TypeVar("Array", npt.NDArray[Any], "torch.Tensor")

MAX_CODE = _core.max_code
MAX_COMPONENTS = _core.max_component
MAX_PROMPTS = _core.max_prompt
_MAX_THREADS = 1024


@overload
def unique_counts(
    pos: Array, neg: Array, *, dead: int | None = None, explained: Literal[False] = False, threads: int | None = None
) -> Array: ...
@overload
def unique_counts(
    pos: Array, neg: Array, *, dead: int | None = None, explained: Literal[True], threads: int | None = None
) -> tuple[Array, Array]: ...
def unique_counts(
    pos: Any, neg: Any, *, dead: int | None = None, explained: bool = False, threads: int | None = None
) -> Any:
    """Count, for every component, the distinct codes that occur in a positive prompt and in no negative one.

    Args:
        pos: integer codes [n_positive, n_component], NumPy or torch, 0 .. 65,535; any strides, any integer type.
        neg: the same for the negative prompts [n_negative, n_component]. Either side may have no prompts.
        dead: the code of a component without an active latent (usually -1). It never counts, on either side.
        explained: also count, for every component, the positive prompts that hold such a code.
        threads: how many to use; all the CPUs this process may use by default. The result never depends on it.

    Returns:
        int32 [n_component], of the kind and on the device of ``pos``; with ``explained``, two of them.

    Raises:
        HeadcodesError: shapes, types or codes that cannot be counted.

    >>> import numpy as np
    >>> pos = np.array([[1, 4, 2, 7], [1, 5, 2, 7], [3, 5, 6, 0]])
    >>> neg = np.array([[1, 4, 2, 0], [2, 5, 2, 7], [3, 4, 2, 0]])
    >>> unique_counts(pos, neg).tolist()
    [0, 0, 1, 0]
    """
    sides = Sides(pos, neg, dead)
    with sides:
        unique, covered = _core.unique_counts(
            sides.pos,
            sides.neg,
            dead=sides.dead,
            explained=explained,
            threads=thread_count(threads),
            isa=instruction_set(),
        )
    return (sides.like_input(unique), sides.like_input(covered)) if covered is not None else sides.like_input(unique)


@overload
def pair_unique_counts(
    pos: Array,
    neg: Array,
    *,
    dead: int | None = None,
    layers: Sequence[int] | npt.NDArray[Any] | None = None,
    explained: Literal[False] = False,
    threads: int | None = None,
) -> Array: ...
@overload
def pair_unique_counts(
    pos: Array,
    neg: Array,
    *,
    dead: int | None = None,
    layers: Sequence[int] | npt.NDArray[Any] | None = None,
    explained: Literal[True],
    threads: int | None = None,
) -> tuple[Array, Array]: ...
def pair_unique_counts(
    pos: Any,
    neg: Any,
    *,
    dead: int | None = None,
    layers: Sequence[int] | npt.NDArray[Any] | None = None,
    explained: bool = False,
    threads: int | None = None,
) -> Any:
    """Count, for every two components, the distinct pairs of codes that occur together on the positive side alone.

    Entry ``[i, j]`` is the number of distinct ``(code_i, code_j)`` that some positive prompt holds and no negative
    prompt holds. The result is symmetric and its diagonal is zero.

    Args:
        pos, neg, dead, threads: as in :func:`unique_counts`. A pair with a dead code on either end never counts.
        layers: the layer of every component. Then only entries with ``layers[i] < layers[j]`` are counted; all
            others are zero, and the result is no longer symmetric.
        explained: also count, for every pair, the positive prompts that hold such a pair of codes.

    Returns:
        int32 [n_component, n_component], of the kind and on the device of ``pos``; with ``explained``, two of them.

    Raises:
        HeadcodesError: shapes, types or codes that cannot be counted; more than 20,000 components.

    >>> import numpy as np
    >>> pos = np.array([[1, 4, 2, 7], [1, 5, 2, 7], [3, 5, 6, 0]])
    >>> neg = np.array([[1, 4, 2, 0], [2, 5, 2, 7], [3, 4, 2, 0]])
    >>> pair_unique_counts(pos, neg)
    array([[0, 2, 1, 1],
           [2, 0, 1, 2],
           [1, 1, 0, 1],
           [1, 2, 1, 0]], dtype=int32)
    >>> pair_unique_counts(pos, neg, layers=[0, 0, 1, 1])
    array([[0, 0, 1, 1],
           [0, 0, 1, 2],
           [0, 0, 0, 0],
           [0, 0, 0, 0]], dtype=int32)
    """
    sides = Sides(pos, neg, dead)
    layer_of = None if layers is None else layer_array(layers, sides.pos.shape[1])
    with sides:
        unique, covered = _core.pair_unique_counts(
            sides.pos,
            sides.neg,
            dead=sides.dead,
            layers=layer_of,
            explained=explained,
            threads=thread_count(threads),
            isa=instruction_set(),
        )
    return (sides.like_input(unique), sides.like_input(covered)) if covered is not None else sides.like_input(unique)


def thread_count(threads: int | None) -> int:
    """Return how many threads to run: the given number, or one for every CPU this process may use."""
    if threads is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    try:
        number = operator.index(threads)
    except TypeError:
        number = 0
    if isinstance(threads, bool) or not 1 <= number <= _MAX_THREADS:
        raise HeadcodesError(
            f"threads must be a whole number from 1 to {_MAX_THREADS}",
            repr(threads),
            "Leave it out to use every CPU this process may use.",
        )
    return number


def instruction_set() -> str:
    """Return the variant of the C++ loops to run: the fastest here, or the one ``HEADCODES_ISA`` names.

    Raises:
        HeadcodesError: the named variant does not exist or does not run on this machine.
    """
    here = _core.isas()
    named = os.environ.get("HEADCODES_ISA")
    if not named:
        return here[-1]
    if named == "scalar":  # what simd128 was called before
        return here[0]
    if named not in here:
        raise HeadcodesError(
            f"HEADCODES_ISA must name a variant this machine runs ({', '.join(here)})",
            named,
            "Unset it to get the fastest.",
        )
    return named


class Sides:
    """Both sides as int32 arrays the core can read, and the way back to the caller's kind of array.

    As a context manager it turns the core's report of a bad code into a ``HeadcodesError``.
    """

    def __init__(self, pos: Any, neg: Any, dead: int | None) -> None:
        # A tensor can only exist where torch has been imported: no need to import it to find out.
        torch = sys.modules.get("torch")
        tensor: Any = getattr(torch, "Tensor", ())
        self._like = pos if isinstance(pos, tensor) else None
        if isinstance(pos, tensor) != isinstance(neg, tensor):
            raise HeadcodesError(
                "both sides must be of one kind",
                f"{type(pos).__name__} and {type(neg).__name__}",
                "Give two NumPy arrays or two tensors.",
            )
        if self._like is not None:
            pos, neg = (side.detach().cpu().numpy() for side in (pos, neg))
        self.pos = _as_codes(pos, "pos")
        self.neg = _as_codes(neg, "neg")
        if self.pos.shape[1] != self.neg.shape[1]:
            raise HeadcodesError(
                "both sides must have the same components",
                f"{self.pos.shape[1]} in pos and {self.neg.shape[1]} in neg",
                "Encode both sides with the same model and heads.",
            )
        if self.pos.shape[1] > MAX_COMPONENTS:
            raise HeadcodesError(
                f"there must be at most {MAX_COMPONENTS:,} components",
                f"{self.pos.shape[1]:,}",
                "Count a selection of them.",
            )
        n_prompt = len(self.pos) + len(self.neg)
        if n_prompt > MAX_PROMPTS:
            raise HeadcodesError(
                f"there must be at most {MAX_PROMPTS:,} prompts in all", f"{n_prompt:,}", "Count a selection of them."
            )
        self.dead = None if dead is None else _int32("dead", dead)

    def like_input(self, counts: npt.NDArray[Any]) -> Any:
        """Return a result as the caller's kind of array."""
        if self._like is None:
            return counts
        return sys.modules["torch"].from_numpy(counts).to(self._like.device)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _core.BadCode):
            code, positive, prompt, component = error.args
            raise HeadcodesError(
                f"codes must be 0 to {MAX_CODE:,}, or equal to `dead`",
                f"{code} at {'pos' if positive else 'neg'}[{prompt}, {component}] with dead={self.dead}",
                "Codes of the default method mark dead rows with -1: pass dead=-1.",
            ) from None


def _as_codes(side: Any, name: str) -> npt.NDArray[np.int32]:
    try:
        array = np.asarray(side)
    except ValueError as error:
        raise HeadcodesError(f"{name} must be a rectangular array of codes", str(error), "Even its rows.") from None
    if array.ndim != 2:
        raise HeadcodesError(
            f"{name} must have two dimensions, [n_prompt, n_component]",
            f"shape {tuple(array.shape)}",
            "Give one row per prompt and one column per head.",
        )
    if array.dtype.kind not in "iu":
        raise HeadcodesError(
            f"{name} must hold integer codes",
            f"dtype {array.dtype}",
            "Codes come from headcodes.encode; activations must be encoded first.",
        )
    if array.dtype != np.int32 and array.size:
        limits = np.iinfo(np.int32)
        low, high = int(array.min()), int(array.max())
        if low < limits.min or high > limits.max:
            raise HeadcodesError(
                f"codes must be 0 to {MAX_CODE:,}, or equal to `dead`",
                f"{low if low < limits.min else high} in {name}",
                "Renumber the codes.",
            )
    # Copies only what the core cannot read in place: another type, foreign byte order, elements across word bounds.
    array = np.require(array, dtype=np.int32, requirements="A")
    if any(stride % array.itemsize for stride in array.strides):
        array = np.ascontiguousarray(array)
    return array


def _int32(name: str, value: object) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    limits = np.iinfo(np.int32)
    if isinstance(value, bool) or number is None or not limits.min <= number <= limits.max:
        raise HeadcodesError(f"{name} must be a 32-bit integer", repr(value), "Usually it is -1 or left out.")
    return number


def layer_array(layers: Sequence[int] | npt.NDArray[Any], n_component: int) -> npt.NDArray[np.int32]:
    """Return the layer of every component as int32 [n_component], or say what is wrong with it."""
    array = np.asarray(layers)
    if array.shape != (n_component,) or (array.size and array.dtype.kind not in "iu"):
        raise HeadcodesError(
            f"layers must hold one whole number for each of the {n_component} components",
            f"shape {tuple(array.shape)}, dtype {array.dtype}",
            "For heads in layer-major order: np.arange(n_layers).repeat(n_heads).",
        )
    limits = np.iinfo(np.int32)
    if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
        raise HeadcodesError(
            "layers must be 32-bit integers", f"{array.min()} to {array.max()}", "Number the layers from 0 up."
        )
    return array.astype(np.int32)
