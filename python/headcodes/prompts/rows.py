"""What becomes of the rows of a prompt file: used, or left out for a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headcodes.errors import HeadcodesError

_LISTED = 10


class RowError(HeadcodesError):
    """One row cannot be used. ``reason`` is the same few words for every row with this fault."""

    def __init__(self, must: str, got: str, mend: str, reason: str = "unusable") -> None:
        super().__init__(must, got, mend)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A row that was left out: where it stands in its file, why in few words, and the whole message."""

    where: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Reading:
    """How prompts were read.

    Attributes:
        source: the file or data set.
        n_rows: rows it has.
        notes: one line for everything that was not taken as it stands: columns, spaces, negatives, chat template.
        left_out: the rows that are not used.
    """

    source: str
    n_rows: int
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def also(self, *notes: str, left_out: Iterable[LeftOut] = ()) -> Reading:
        """Return the same reading with more notes and more rows left out."""
        return replace(self, notes=(*self.notes, *notes), left_out=(*self.left_out, *left_out))

    def as_dict(self) -> dict[str, Any]:
        """Return what result.json keeps: the rows left out are counted by reason, and the first ten named."""
        return {
            "source": self.source,
            "n_rows": self.n_rows,
            "n_used": self.n_rows - len(self.left_out),
            "notes": list(self.notes),
            "left_out": dict(Counter(row.reason for row in self.left_out)),
            "left_out_rows": [row.message for row in self.left_out[:_LISTED]],
        }

    def as_text(self) -> str:
        """Return the statement for a terminal: rows used, rows left out and why, and every note."""
        n_left = len(self.left_out)
        counts = f"{self.n_rows - n_left:,} of {self.n_rows:,} rows used"
        lines = [f"{self.source}: {counts}", *(f"  {note}" for note in self.notes)]
        if n_left:
            lines.append(f"  left out: {_counted(self.left_out)}")
            lines += [f"    {row.message}" for row in self.left_out[:_LISTED]]
            if n_left > _LISTED:
                lines.append(f"    and {n_left - _LISTED:,} more")
        return "\n".join(lines)


def settle(faults: Sequence[tuple[str, RowError]], n_rows: int, *, skip_bad: bool) -> tuple[LeftOut, ...]:
    """Return the rows to leave out, or refuse them.

    Args:
        faults: where each broken row stands, and what is wrong with it.
        n_rows: rows there are.
        skip_bad: whether broken rows may be left out.

    Raises:
        HeadcodesError: the first fault, with the number of the others, where ``skip_bad`` is off; or every row is
            broken.
    """
    if not faults:
        return ()
    left_out = tuple(LeftOut(where, error.reason, str(error)) for where, error in faults)
    if skip_bad and len(faults) < n_rows:
        return left_out
    first, others = faults[0][1], left_out[1:]
    mend = first.mend
    if others:
        mend += f" {len(others):,} other row{'s are' if len(others) > 1 else ' is'} broken too: {_counted(others)}."
    if not skip_bad and len(faults) < n_rows:
        mend += " --skip-bad (skip_bad=True) leaves broken rows out."
    raise RowError(first.must, first.got, mend, first.reason)


def _counted(rows: Iterable[LeftOut]) -> str:
    return ", ".join(f"{n:,} {reason}" for reason, n in Counter(row.reason for row in rows).most_common())
