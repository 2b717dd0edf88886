"""Path patching: what one head does through what another reads.

As Wang et al. 2022 (arXiv 2211.00593): in a first run the sender is replaced by its activation on the corrupted
prompt, all other heads hold their clean activations, and MLPs are computed again; the receiver's query, key or value of
that run is put into an otherwise clean one. The effect is LD(clean) - LD(that run), with LD the logit difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from headcodes import metrics
from headcodes.errors import HeadcodesError
from headcodes.graph import parse_head, split_slot
from headcodes.interventions.base_runs import Prepared
from headcodes.interventions.edits import EditPlan
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.interventions.patch import answered, logit_diffs
from headcodes.interventions.verify import confirmed
from headcodes.interventions.walk import run_edited
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy.typing import ArrayLike

    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs

# Paths are run side by side, those of one sender in one batch where they fit: they share the sender's row.
_PATHS_AT_ONCE = 64


@dataclass(frozen=True)
class PathEffects:
    """Exact effects of some paths, with bootstrap intervals over the pairs.

    Attributes:
        edges: (sender, receiver), the receiver with its slot where one was named: ``("a0.h1", "a5.h5<q>")``.
        effects: [n_pairs, n_edge] in logits, float64; positive where the path helps to answer.
        mean, low, high: [n_edge]; the 95% interval is of the mean.
        clean_ld: logit differences of the clean prompts [n_pairs].
        engine: Which engine patched, and why; None where every effect was in the cache.
    """

    edges: list[tuple[str, str]]
    effects: Float[np.ndarray, "n_pairs n_edge"]
    mean: Float[np.ndarray, " n_edge"]
    low: Float[np.ndarray, " n_edge"]
    high: Float[np.ndarray, " n_edge"]
    clean_ld: Float[np.ndarray, " n_pairs"]
    engine: EngineUsed | None = None

    def confirmed(self, share: float = 0.01) -> list[tuple[str, str]]:
        """Return the edges that ``verify.confirmed`` lets pass from ``share`` of the clean logit difference on."""
        passed = confirmed(self.effects, self.low, self.high, share * float(self.clean_ld.mean()))
        return [edge for edge, is_confirmed in zip(self.edges, passed, strict=True) if is_confirmed]

    def as_rows(self) -> list[dict[str, Any]]:
        """Return one dict an edge: from, to, effect, low, high."""
        rows = zip(self.edges, self.mean, self.low, self.high, strict=True)
        return [
            {"from": source, "to": destination, "effect": float(mean), "low": float(low), "high": float(high)}
            for (source, destination), mean, low, high in rows
        ]


def path_effects(
    model: Model,
    tokens: TokenPairs,
    edges: Sequence[tuple[str, str]],
    *,
    pairs: int | None = None,
    known: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
    compute: Compute = AUTO,
    prepared: Prepared | None = None,
) -> PathEffects:
    """Patch paths exactly, and say how sure the pairs make us of each effect.

    A path ends in one head. Where several heads share keys and values (grouped queries), the changed key or value
    reaches the receiver alone and the other heads of its group keep the clean one.

    Args:
        model: In any dtype; effects carry its rounding.
        tokens: Pairs whose two prompts have equally many tokens; only answered ones count.
        edges: As a circuit's: ``("a0.h1", "a5.h5<q>")``. Without a slot, query, key and value change
            together. The receiver ``"logits"`` gives the sender's direct effect on the answer.
        pairs: How many answered pairs to use; all where None.
        known: Logit differences [n_pairs] of all clean and all corrupted prompts, where they are at hand.
        seed: Of the bootstrap.
        compute: With which engine, in how much memory.
        prepared: See ``headcodes.interventions.walk.run_edited``.

    Raises:
        HeadcodesError: no edges, an edge that does not go from a head to a later head or the logits, a family whose
            query, key and value projections are unknown, or as ``causal_truth``.
    """
    wanted = [_parsed(model, *edge) for edge in edges]
    if not wanted:
        raise HeadcodesError("there must be paths to patch", "none", "Name at least one edge.")
    chosen, clean_ld, *_ = answered(model, tokens, pairs, known)
    effects = np.empty((len(chosen), len(wanted)))
    prepared = Prepared() if prepared is None else prepared
    by_sender = sorted(range(len(wanted)), key=lambda place: wanted[place].sender)
    # Receivers depend on their senders' rows, so a batch holds whole paths: a few at a time.
    with progress("patching paths", total=len(chosen) * len(wanted)) as advance:
        for first in range(0, len(wanted), _PATHS_AT_ONCE):
            places = by_sender[first : first + _PATHS_AT_ONCE]
            plan = _Paths([wanted[place] for place in places], model.n_heads // model.n_kv_heads)

            def done(
                indices: list[int], logits: list[list[Tensor]], plan: _Paths = plan, places: list[int] = places
            ) -> None:
                for index, found in zip(indices, logit_diffs(chosen, indices, logits), strict=True):
                    effects[index, places] = found[0] - found[plan.outcomes]
                advance(len(indices) * len(places))

            used = run_edited(model, chosen, plan, done=done, compute=compute, splits=False, prepared=prepared)
    low, high = metrics.mean_intervals(effects, seed=seed)
    return PathEffects(list(edges), effects, effects.mean(axis=0), low, high, clean_ld, used)


@dataclass(frozen=True)
class _Path:
    sender: tuple[int, int]
    receiver: tuple[int, int] | None  # None: the logits
    slots: str


def _parsed(model: Model, source: str, destination: str) -> _Path:
    name, slot = split_slot(destination)
    sender, receiver = parse_head(source), parse_head(name)
    fits = sender is not None and sender[0] < model.n_layers and sender[1] < model.n_heads
    if receiver is not None and sender is not None:
        fits &= sender[0] < receiver[0] < model.n_layers and receiver[1] < model.n_heads
    if sender is None or not fits or (receiver is None and destination != "logits"):
        raise HeadcodesError(
            "a path must go from a head to a later head of the model, or to logits",
            f"{source}->{destination}",
            "Name it like ('a0.h1', 'a5.h5<q>').",
        )
    return _Path(sender, receiver, "" if receiver is None else slot or "qkv")


class _Paths(EditPlan):
    """A row for every sender: its head corrupted, all others held at clean; and one for every receiver: a clean run
    whose receiver alone is computed from the queries, keys or values of its sender's row."""

    def __init__(self, paths: Sequence[_Path], group_size: int) -> None:
        self.group_size = group_size
        senders = list(dict.fromkeys(path.sender for path in paths))
        rows: list[tuple[int, tuple[int, int] | int]] = [(sender[0], sender) for sender in senders]
        rows += [(path.receiver[0], place) for place, path in enumerate(paths) if path.receiver is not None]
        rows.sort(key=lambda row: row[0])
        self.starts = [layer for layer, _ in rows]
        number = {what: row for row, (_, what) in enumerate(rows, start=2)}
        self.senders = {sender: number[sender] for sender in senders}
        # By layer: the receiver's row, its sender's, the head, the slots.
        self.receivers: dict[int, list[tuple[int, int, int, str]]] = {}
        self.outcomes = []
        for place, path in enumerate(paths):
            sender_row = number[path.sender]
            self.outcomes.append(sender_row if path.receiver is None else number[place])
            if path.receiver is not None:
                layer, head = path.receiver
                self.receivers.setdefault(layer, []).append((number[place], sender_row, head, path.slots))

    def edit_heads(self, layer: int, z: Tensor) -> None:
        for sender, row in self.senders.items():
            if layer >= sender[0]:
                z[row] = z[0]
                if layer == sender[0]:
                    z[row, :, :, sender[1]] = z[1, :, :, sender[1]]
        for row, _, head, _ in self.receivers.get(layer, ()):
            received = z[row, :, :, head].clone()
            z[row] = z[0]  # the other heads of its group read the clean key and value
            z[row, :, :, head] = received

    def slots(self, layer: int) -> str:
        return "".join(sorted({slot for *_, slots in self.receivers.get(layer, ()) for slot in slots}))

    def edit_slot(self, layer: int, slot: str, values: Tensor) -> None:
        for row, sender_row, head, slots in self.receivers.get(layer, ()):
            if slot in slots:
                shared = head if slot == "q" else head // self.group_size
                values[row, :, :, shared] = values[sender_row, :, :, shared]
