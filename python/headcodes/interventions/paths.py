"""Path patching: what one head does through what another reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headcodes.errors import HeadcodesError
from headcodes.graph import parse_head, split_slot
from headcodes.interventions.edits import Plan
from headcodes.interventions.patch import Engine, answered, logit_diffs
from headcodes.interventions.walk import DEFAULT_SWEEP_BYTES, run

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs


def path_effects(
    model: Model,
    tokens: TokenPairs,
    edges: Sequence[tuple[str, str]],
    *,
    pairs: int | None = None,
    engine: Engine = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
) -> Float[np.ndarray, "n_pairs n_edge"]:
    """Path patching: how much of a head's effect goes through what one later head reads.

    As Wang et al. 2022 (arXiv 2211.00593): the sender says what it says on the corrupted prompt while all
    other heads say what they say on the clean one, MLPs being computed again; the receiver's query, key or
    value that comes of it is put into an otherwise clean run. The effect is LD(clean) - LD(that run). With
    grouped-query attention a key or value belongs to all heads of its group, and so does its effect.

    Args:
        model: In any dtype; effects carry its rounding.
        tokens: Pairs whose two prompts have equally many tokens; only answered ones count.
        edges: As a circuit's: ``("a0.h1", "a5.h5<q>")``. Without a slot, query, key and value change
            together. The receiver ``"logits"`` gives the sender's direct effect on the answer.
        pairs: How many answered pairs to use; all where None.
        engine: See ``headcodes.interventions.walk.run``.
        memory_bytes: See ``headcodes.interventions.walk.run``.

    Raises:
        HeadcodesError: an edge that does not go from a head to a later head or the logits, a family whose
            query, key and value projections are unknown, or as ``causal_truth``.
    """
    chosen, *_ = answered(model, tokens, pairs)
    effects = np.empty((len(chosen), len(edges)))
    # Receivers depend on their senders' rows, so a batch holds whole paths: a few at a time.
    for first in range(0, len(edges), _PATHS_AT_ONCE):
        plan = _Paths(model, edges[first : first + _PATHS_AT_ONCE])

        def done(indices: list[int], logits: list[list[Tensor]], plan: _Paths = plan, first: int = first) -> None:
            for index, values in zip(indices, logits, strict=True):
                found = logit_diffs(chosen, index, values)
                effects[index, first : first + len(plan.outcomes)] = found[0] - found[plan.outcomes]

        run(model, chosen, plan, done=done, engine=engine, memory_bytes=memory_bytes, splits=False)
    return effects


_PATHS_AT_ONCE = 64


class _Paths(Plan):
    """A sender's row: its head corrupted, all later heads held at clean. A receiver's row: one slot from
    there."""

    def __init__(self, model: Model, edges: Sequence[tuple[str, str]]) -> None:
        self.group_size = model.n_heads // model.n_kv_heads
        rows: list[tuple[int, int, Any]] = []
        for order, (source, target) in enumerate(edges):
            name, slot = split_slot(target)
            sender, receiver = parse_head(source), parse_head(name)
            fits = sender is not None and sender[0] < model.n_layers and sender[1] < model.n_heads
            if receiver is not None and sender is not None:
                fits &= sender[0] < receiver[0] < model.n_layers and receiver[1] < model.n_heads
            if not fits or (receiver is None and target != "logits"):
                raise HeadcodesError(
                    "a path goes from a head to a later head of the model, or to logits",
                    f"{source}->{target}",
                    "Name it like ('a0.h1', 'a5.h5<q>').",
                )
            assert sender is not None
            rows.append((sender[0], order, ("sender", sender)))
            if receiver is not None:
                rows.append((receiver[0], order, ("receiver", receiver, slot or "qkv")))
        rows.sort(key=lambda row: row[0])
        self.starts = [layer for layer, _, _ in rows]
        self.rows = [what for _, _, what in rows]
        self.outcomes = [0] * len(edges)
        self.sender_row = {}
        for row, (_, order, what) in enumerate(rows, start=2):
            if what[0] == "sender":
                self.sender_row[order] = row
            self.outcomes[order] = row  # a receiver's row comes after its sender's
        self.order = [order for _, order, _ in rows]

    def edit_heads(self, layer: int, z: Tensor) -> None:
        for row, what in enumerate(self.rows, start=2):
            if what[0] == "sender" and layer >= what[1][0]:
                z[row] = z[0]
                if layer == what[1][0]:
                    z[row, :, :, what[1][1]] = z[1, :, :, what[1][1]]

    def slots(self, layer: int) -> str:
        wanted = {slot for what in self.rows if what[0] == "receiver" and what[1][0] == layer for slot in what[2]}
        return "".join(sorted(wanted))

    def edit_slot(self, layer: int, slot: str, values: Tensor) -> None:
        for row, (what, order) in enumerate(zip(self.rows, self.order, strict=True), start=2):
            if what[0] == "receiver" and what[1][0] == layer and slot in what[2]:
                head = what[1][1] if slot == "q" else what[1][1] // self.group_size
                values[row, :, :, head] = values[self.sender_row[order], :, :, head]
