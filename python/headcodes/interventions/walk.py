"""Many edited runs of one prompt pair, side by side, in one walk through the layers.

Every edited run is a row that enters at the layer that its first edit is in, as a copy of the clean run, so nothing
before that layer is run twice. The clean and the corrupted run themselves are made once (``base_runs``); edits see them
as rows 0 and 1. What comes before the first changed token is the same for all rows: its keys and values are computed
once. Only the answers' logits are computed, at the last position.

The layers are called with the very arguments that the model itself gives them, so the walk holds for every family whose
blocks hand a residual stream from one to the next. It is checked: the logits of the base runs must be those of the
model's own forward pass on a pair of each batch, and a corrupted run that enters where the first edited one does, and
is walked along with them, must come out as in the base. Where they are not, or where blocks cannot be called like that
(TransformerBridge, offloaded weights), whole forward passes do the same work, slower, and both a warning and the result
say why.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from headcodes.errors import HeadcodesError
from headcodes.interventions.base_runs import (
    BaseRuns,
    Prepared,
    agree,
    answers_of,
    own_answers,
)
from headcodes.interventions.edits import EditPlan, Rows, editing, groups
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.models.hooks import as_found, first_of
from headcodes.models.memory import base_bytes_per_token, edited_bytes_per_token
from headcodes.models.model import Model
from headcodes.models.prefix_cache import why_not_walked
from headcodes.models.relied import announce

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.prompts.tokens import TokenPairs


_FEWEST_ROWS = 32


def run_edited(
    model: Model,
    tokens: TokenPairs,
    plan: EditPlan,
    *,
    done: Callable[[list[int], list[list[Tensor]]], None],
    compute: Compute = AUTO,
    splits: bool = True,
    whole_vocabulary: bool = False,
    prepared: Prepared | None = None,
) -> EngineUsed:
    """Run ``plan`` on every pair and hand over the answers' logits, a few pairs at a time.

    Args:
        model: Left as it was found.
        tokens: Pairs of equal lengths.
        plan: The edits.
        done: Called with indices of pairs and, for each of them, one tensor a set of logits: fp32 [n_row,
            n_answer] over ``tokens.scored_ids`` (right answers, then wrong ones), rows in the plan's order.
        compute: With which engine, in how much memory.
        splits: Whether edited rows may be run in several batches.
        whole_vocabulary: Hand over the logits of all tokens instead.
        prepared: Base runs from earlier calls with the same model; this call's are added.

    Returns:
        Which engine ran, and why.

    Raises:
        HeadcodesError: pairs of unequal length, or the engine "walk" where it does not hold.

    Warns:
        HeadcodesWarning: "auto" had to take whole forward passes, and why.
    """
    engine = compute.engine
    slower = f"whole forward passes of {model.name} are run, which takes longer than a walk through its layers"
    why = why_not_walked(model) if engine != "forward" else None
    walks = engine != "forward" and why is None
    if engine == "walk" and why is not None:
        raise HeadcodesError(
            "a model walked layer by layer must be one of transformers with its weights on its device",
            f"{model!r}: {why}",
            "Leave engine at auto.",
        )
    if why is not None:
        announce(model, slower, why)
    per_token, base_per_token = edited_bytes_per_token(model), base_bytes_per_token(model)
    budget = max(1, compute.memory_bytes // per_token)
    n_rows = len(plan.starts)
    with as_found(model.module), torch.inference_mode():
        for group in groups(tokens):
            suffix = group.length - (0 if plan.whole_prompt else group.start)
            per_pair = suffix * (min(n_rows + 1, _FEWEST_ROWS) * per_token + base_per_token)
            n_at_once = max(1, compute.memory_bytes // per_pair)
            for first in range(0, len(group.indices), n_at_once):
                indices = group.indices[first : first + n_at_once]
                n_split = max(1, budget // (suffix * len(indices)) - 1) if splits else n_rows
                logits: list[list[Tensor]] = [[] for _ in indices]
                start = 0 if plan.whole_prompt else group.start
                batch = _Batch(model, tokens.subset(indices), start, whole_vocabulary, prepared)
                for row in range(0, max(n_rows, 1), n_split):
                    part = plan.part(slice(row, row + n_split)) if splits and n_rows > n_split else plan
                    rows = None
                    if walks:
                        try:
                            rows = batch.walk(part)
                        except RuntimeError:
                            # BLOOM and MPT give every layer a bias made for the number of rows they were called with.
                            rows = None
                        if rows is None:
                            if engine == "walk":
                                raise HeadcodesError(
                                    "the walk's answers must be those of the model's own forward pass",
                                    f"others for {model!r}",
                                    "Use Compute('forward').",
                                )
                            why = "it does not give the model's own answers"
                            announce(model, slower, why)
                            walks = False
                    if rows is None:
                        rows = batch.forward(part)
                    for pair, values in enumerate(rows):
                        # Rows 0 and 1 come back with every part; once is enough.
                        logits[pair].append(values if row == 0 else values[2:])
                done(indices, logits)
    return EngineUsed("walk" if walks else "forward", why)


class _Batch:
    """A few pairs of one length: their base runs, made once, and edited runs that start from them."""

    def __init__(
        self, model: Model, tokens: TokenPairs, start: int, whole_vocabulary: bool, prepared: Prepared | None
    ) -> None:
        self.model, self.start, self.prepared = model, start, prepared
        self.ids = torch.tensor([tokens.clean, tokens.corrupt], device=model.device)
        self.n_pairs = self.ids.shape[1]
        self.scored: list[list[int]] | None = None if whole_vocabulary else tokens.scored_ids
        self.vocab = None if self.scored is None else sorted({token for ids in self.scored for token in ids})
        self.base: BaseRuns | None = None
        self.columns = list(range(self.n_pairs))  # of the base runs
        self.index: Tensor | None = None  # the same on the device; None: all

    def walk(self, plan: EditPlan) -> list[Tensor] | None:
        """Return logits [n_row, n_answer] a pair, or None where the walk does not give the model's own answers."""
        model = self.model
        if self.base is None:
            self._prepare()
        base = self.base
        assert base is not None
        if not base.agrees:
            return None
        last = self._ours(base.last)
        if plan.starts:
            edited = self._walk(plan, base)
            if edited is None:
                return None
            last = torch.cat([last, edited])
        # All rows in one product: products of other shapes round otherwise, and an edit that changes nothing shall
        # have no effect at all.
        return self._by_pair(answers_of(model, last, self.vocab))

    def _walk(self, plan: EditPlan, base: BaseRuns) -> Float[Tensor, "row pair d_model"] | None:
        """Return what the last block puts out of edited rows; None where a corrupted run that goes along is another."""
        model = self.model
        starts, first = list(plan.starts), plan.starts[0]
        # A layer may be called with more than its arguments say. Where it is, a row with other tokens than the clean
        # run's shows it, first of those that go along.
        control = any(first < base.checked[column] for column in self.columns)
        hidden = self._ours(base.entered[first])[1] if control else None
        n_rows = int(control)
        for layer in range(first, model.n_layers):  # before hooks of the plan are there
            for what in plan.slots(layer):
                base.slot(layer, what)
            if plan.edits_mlps and model.mlp(layer) is not None:
                base.mlp(layer)
        shape = Rows(n_rows, self.n_pairs, base.n_pos)
        with editing(model, plan, shape, self._noted, int(control)):
            for layer in range(first, model.n_layers):
                n_new = starts.count(layer)
                if n_new:
                    clean = self._ours(base.entered[layer])[0]
                    hidden = torch.cat([*([] if hidden is None else [hidden]), *([clean] * n_new)])
                    n_rows += n_new
                    shape.n_rows = n_rows
                args, kwargs = base.calls[layer]
                base.cache.n_rows, base.cache.pairs = n_rows, self.index
                sizes = (base.n_called, n_rows * self.n_pairs)
                named = {name: _fitted(value, *sizes) for name, value in kwargs.items()}
                hidden = first_of(model.layers[layer](hidden, *_fitted(args, *sizes), **named))
        assert hidden is not None
        last = hidden.view(n_rows, self.n_pairs, base.n_pos, -1)[:, :, -1]
        if control:
            again, known = (answers_of(model, x, base.compared).cpu() for x in (last[0], self._ours(base.last)[1]))
            if not agree(again, known, model.dtype):
                return None
            for column in self.columns:
                base.checked[column] = min(base.checked[column], first)
        return last[int(control) :]

    def _prepare(self) -> None:
        """Take the base runs from those that are kept, or make them."""
        found = None if self.prepared is None else self.prepared.find(self.ids, self.start)
        if found is not None:
            self.base, self.columns = found
            self.index = torch.tensor(self.columns, device=self.ids.device)
            return
        self.base = BaseRuns(self.model, self.ids, self.start, () if self.scored is None else self.scored[0])
        if self.prepared is not None:
            self.prepared.keep(self.base)

    def _ours(self, x: Float[Tensor, "2 some_pair *rest"]) -> Float[Tensor, "2 pair *rest"]:
        return x if self.index is None else x[:, self.index]

    def _noted(self, what: str, layer: int) -> Float[Tensor, "2 pair pos n"]:
        assert self.base is not None
        known = {"z": self.base.heads, "mlp": self.base.mlp}
        return self._ours(known[what](layer) if what in known else self.base.slot(layer, what))

    def forward(self, plan: EditPlan) -> list[Tensor]:
        """Do the same by whole forward passes: every row from the first token and the first layer on."""
        model = self.model
        n_rows = 2 + len(plan.starts)
        ids = torch.cat([self.ids, self.ids[:1].expand(n_rows - 2, -1, -1)])
        with editing(model, plan, Rows(n_rows, self.n_pairs, ids.shape[2])):
            return self._by_pair(own_answers(model, ids, self.vocab))

    def _by_pair(self, logits: Float[Tensor, "row pair token"]) -> list[Float[Tensor, "row n_answer"]]:
        """Fetch a few logits of all pairs from their device at once; those of all tokens stay there."""
        if self.vocab is None or self.scored is None:
            return list(logits.unbind(1))
        logits = logits.cpu()
        column = {token: place for place, token in enumerate(self.vocab)}
        return [logits[:, pair, [column[token] for token in ids]] for pair, ids in enumerate(self.scored)]


def _fitted(value: Any, n_from: int, n_to: int) -> Any:
    """Stretch an argument made for ``n_from`` rows (or one for all) to ``n_to``: all rows have the same positions."""
    if isinstance(value, tuple):
        return tuple(_fitted(part, n_from, n_to) for part in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == n_from:
        return value[:1].expand(n_to, *value.shape[1:])
    return value
