"""Exact effects of parts at single places of the prompts: where a head, or an MLP, matters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from headcodes.interventions.edits import EditPlan
from headcodes.interventions.metric import whole_vocabulary
from headcodes.interventions.patch import logit_diffs
from headcodes.interventions.walk import run_edited
from headcodes.progress import progress
from headcodes.settings import Metric

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from headcodes.graph import Part
    from headcodes.models.model import Model
    from headcodes.prompts.alignment import Alignment
    from headcodes.prompts.tokens import TokenPairs


class _PatchesAt(EditPlan):
    """Row r takes one part from the corrupted run, at some positions alone.

    They are counted from the end, below 0: a walk has no positions before the first changed token, a whole pass has.
    """

    def __init__(self, rows: Sequence[tuple[Part, list[int]]]) -> None:
        self.rows = list(rows)
        self.starts = [layer for (layer, _), _ in self.rows]
        self.edits_mlps = any(head is None for (_, head), _ in self.rows)

    def edit_heads(self, layer: int, z: Float[Tensor, "row pair pos head d_head"]) -> None:
        for row, ((where, head), places) in enumerate(self.rows, start=2):
            if where == layer and head is not None:
                for place in places:  # a list as an index would be copied to the device
                    z[row, :, place, head] = z[1, :, place, head]

    def edit_mlp(self, layer: int, output: Float[Tensor, "row pair pos d_model"]) -> None:
        for row, ((where, head), places) in enumerate(self.rows, start=2):
            if where == layer and head is None:
                for place in places:
                    output[row, :, place] = output[1, :, place]

    def part(self, rows: slice) -> EditPlan:
        return _PatchesAt(self.rows[rows])


def effects_by_place(
    model: Model, tokens: TokenPairs, parts: Sequence[Part], alignment: Alignment, metric: Metric = "logit-diff"
) -> Float[np.ndarray, "n_pairs n_part n_place"]:
    """Return L(clean) - L(part patched at one place alone), L being a metric (``interventions.metric``).

    A place that lies before a pair's first changed token, or that the pair lacks, has no effect on it. Effects of
    places need not add up to that of the whole prompt: later layers answer to all of them together.

    Args:
        alignment: of ``tokens``.

    Raises:
        HeadcodesError: prompts of unequal length.
    """
    effects = np.zeros((len(tokens), len(parts), len(alignment.labels)))
    # Pairs whose places lie at the same tokens share their rows.
    alike: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for pair in range(len(tokens)):
        alike.setdefault((tokens.changed_positions(pair)[0], alignment.of_tokens[pair]), []).append(pair)
    ordered = sorted(range(len(parts)), key=lambda i: parts[i][0])
    with progress("patching places", total=len(tokens)) as advance:
        for (start, of_tokens), pairs in alike.items():
            positions: dict[int, list[int]] = {}
            for position, place in enumerate(of_tokens[start:], start=start - len(of_tokens)):
                if place >= 0:
                    positions.setdefault(place, []).append(position)
            rows = [(i, place) for i in ordered for place in positions]
            some = tokens.subset(pairs)

            def done(
                indices: list[int],
                logits: list[list[Tensor]],
                some: TokenPairs = some,
                pairs: list[int] = pairs,
                rows: list[tuple[int, int]] = rows,
            ) -> None:
                for index, found in zip(indices, logit_diffs(some, indices, logits, metric), strict=True):
                    for (part, place), value in zip(rows, found[2:], strict=True):
                        effects[pairs[index], part, place] = found[0] - value
                advance(len(indices))

            plan = _PatchesAt([(parts[i], positions[place]) for i, place in rows])
            run_edited(model, some, plan, done=done, whole_vocabulary=whole_vocabulary(metric))
    return effects
