"""Several seeds of one method: which they are, and how far their scores agree."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from itertools import chain

from headcodes.errors import HeadcodesError

_SEEDS = re.compile(r"[0-9]{1,19}(-[0-9]{1,19})?(,[0-9]{1,19}(-[0-9]{1,19})?)*")
_MOST_SEEDS = 100_000  # a range with a digit too many should not fill the memory


def parse_seeds(seeds: str | list[int]) -> list[int]:
    """Return the seeds that ``"0-3,7"`` names, in order, each once.

    Raises:
        HeadcodesError: no such list, a range from high to low, or more than 100,000 seeds.
    """
    if not isinstance(seeds, str):
        return list(dict.fromkeys(seeds))
    ranges: list[range] = []
    if _SEEDS.fullmatch(seeds):
        for part in seeds.split(","):
            first, _, last = part.partition("-")
            ranges.append(range(int(first), int(last or first) + 1))
    if not ranges or not all(ranges) or sum(its.stop - its.start for its in ranges) > _MOST_SEEDS:
        raise HeadcodesError(
            f"seeds are numbers and ranges from low to high, at most {_MOST_SEEDS:,} seeds",
            repr(seeds[:80]),
            'Write "0-9" or "0,3,5-7".',
        )
    return list(dict.fromkeys(chain.from_iterable(ranges)))


def check_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    """Return the seeds as plain numbers.

    Raises:
        HeadcodesError: there is none, one is no number from 0 to 2^63 - 1, or one stands there twice.
    """
    try:
        found = tuple(operator.index(seed) for seed in seeds)
    except TypeError:
        found = ()
    if not found or min(found) < 0 or max(found) >= 2**63 or len(set(found)) < len(found):
        raise HeadcodesError(
            "seeds are whole numbers from 0 up, at least one, and none of them twice",
            repr(seeds),
            "Write seeds=range(10).",
        )
    return found
