"""What to change in which row, and which pairs can share a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.prompts.tokens import TokenPairs


class EditPlan:
    """What to change in which row. Rows 0 and 1 are the clean and the corrupted run; row r edits run r - 2.

    ``starts`` gives the layer at which each edited row enters, in rising order. The edit functions change
    their tensor in place; they are called once a layer with all rows that are there by then, so an edit may
    copy from row to row. ``whole_prompt`` says that an edit changes something before the first changed token
    too.
    """

    starts: Sequence[int] = ()
    whole_prompt = False
    edits_mlps = False

    def edit_heads(self, layer: int, z: Float[Tensor, "row pair pos head d_head"]) -> None:
        """Change heads' results, before the output projection."""

    def edit_mlp(self, layer: int, output: Float[Tensor, "row pair pos d_model"]) -> None:
        """Change the MLP's output; called only where ``edits_mlps`` says so."""

    def slots(self, layer: int) -> str:
        """Return which of "q", "k" and "v" are to be edited in this layer."""
        return ""

    def edit_slot(self, layer: int, slot: str, values: Float[Tensor, "row pair pos head d_head"]) -> None:
        """Change queries, keys or values (before rotary embedding); key and value heads may be fewer than
        heads."""

    def part(self, rows: slice) -> EditPlan:
        """Return the plan of some of the edited rows; only asked for where rows do not depend on one
        another."""
        raise NotImplementedError


@dataclass(frozen=True)
class Group:
    """Pairs of one length with the first changed token at one place."""

    indices: list[int]
    length: int
    start: int


def groups(tokens: TokenPairs) -> list[Group]:
    """Sort pairs by length and first changed position, so that no batch needs padding.

    Raises:
        HeadcodesError: a pair has prompts of unequal length; what one run has at a position, the other lacks.
    """
    found: dict[tuple[int, int], list[int]] = {}
    for index in range(len(tokens)):
        start = tokens.changed_positions(index)[0]
        found.setdefault((len(tokens.clean[index]), start), []).append(index)
    return [Group(indices, length, start) for (length, start), indices in sorted(found.items())]
