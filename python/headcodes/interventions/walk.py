"""Many edited runs of one prompt pair, side by side, in one walk through the layers.

Every edited run is a row beside the clean run (row 0) and the corrupted run (row 1). A row enters at the layer that its
first edit is in, as a copy of the clean row, so nothing before that layer is run twice. What comes before the first
changed token is the same for all rows: its keys and values are computed once. Only the answers' logits are computed, at
the last position.

The layers are called with the very arguments that the model itself gives them, so the walk holds for every family whose
blocks hand a residual stream from one to the next. It is checked on a pair of each batch: the walk's logits of the
clean and the corrupted prompt must be those of the model's own forward pass. Where they are not, or where blocks cannot
be called like that (TransformerBridge, offloaded weights), whole forward passes do the same work, slower, and both a
warning and the result say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.interventions.edits import EditPlan, groups
from headcodes.interventions.engine import AUTO, Compute, EngineUsed
from headcodes.models.hooks import as_found
from headcodes.models.memory import edited_bytes_per_token
from headcodes.models.model import Model
from headcodes.models.prefix_cache import cache_argument, prefix_cache, why_not_walked
from headcodes.models.relied import announce, body_of, soft_capped
from headcodes.models.slots import Cut, slot_projection
from headcodes.models.weights import unembedding

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.prompts.tokens import TokenPairs


_FEWEST_ROWS = 32
# The walk and the model's own pass do the same sums in another order: how far their logits may lie apart, as a share of
# how far a prompt's logits lie apart from each other.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOW_PRECISION = 0.1
# Answers alone are two or three logits that may lie near 0, where rounding in low precision looks like another model.
_N_COMPARED = 64


def run_edited(
    model: Model,
    tokens: TokenPairs,
    plan: EditPlan,
    *,
    done: Callable[[list[int], list[list[Tensor]]], None],
    compute: Compute = AUTO,
    splits: bool = True,
    whole_vocabulary: bool = False,
    prepared: dict[tuple[int, ...], _Batch] | None = None,
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
        prepared: Batches by their indices, from earlier calls with the same model and tokens; this call's are added.

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
    budget = max(1, compute.memory_bytes // edited_bytes_per_token(model))
    n_rows = len(plan.starts)
    with as_found(model.module), torch.inference_mode():
        for group in groups(tokens):
            suffix = group.length - (0 if plan.whole_prompt else group.start)
            n_at_once = max(1, budget // (suffix * min(n_rows + 2, _FEWEST_ROWS)))
            for first in range(0, len(group.indices), n_at_once):
                indices = group.indices[first : first + n_at_once]
                n_split = max(1, budget // (suffix * len(indices)) - 2) if splits else n_rows
                logits: list[list[Tensor]] = [[] for _ in indices]
                start = 0 if plan.whole_prompt else group.start
                batch = (prepared or {}).get(tuple(indices))
                if batch is None:
                    batch = _Batch(model, tokens.subset(indices), start, whole_vocabulary)
                if prepared is not None:
                    prepared[tuple(indices)] = batch
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
    """A few pairs of one length: their prefix, computed once, and what their layers are called with."""

    def __init__(self, model: Model, tokens: TokenPairs, start: int, whole_vocabulary: bool) -> None:
        self.model = model
        self.start = start
        self.ids = torch.tensor([tokens.clean, tokens.corrupt], device=model.device)
        self.n_pairs = self.ids.shape[1]
        self.scored: list[list[int]] | None = None if whole_vocabulary else tokens.scored_ids
        self.vocab = None if self.scored is None else sorted({token for ids in self.scored for token in ids})
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    def walk(self, plan: EditPlan) -> list[Tensor] | None:
        """Return logits [n_row, n_answer] a pair, or None where the walk does not give the model's own answers."""
        model = self.model
        if self.calls is None:
            self._prepare()
        assert self.calls is not None
        n_pos = self.ids.shape[2] - self.start
        hidden = self.embedded
        starts = list(plan.starts)
        n_rows = 2
        state = _Shape(n_rows, self.n_pairs, n_pos)
        with _editing(model, plan, state):
            for layer, (args, kwargs) in enumerate(self.calls):
                n_new = starts.count(layer)
                if n_new:
                    clean = hidden[: self.n_pairs]
                    hidden = torch.cat([hidden, *([clean] * n_new)])
                    n_rows += n_new
                    state.n_rows = n_rows
                self.cache.n_rows = n_rows
                sizes = (2 * self.n_pairs, n_rows * self.n_pairs)
                named = {name: _fitted(value, *sizes) for name, value in kwargs.items()}
                output = model.layers[layer](hidden, *_fitted(args, *sizes), **named)
                hidden = output[0] if isinstance(output, tuple) else output
        last = hidden.view(n_rows, self.n_pairs, n_pos, -1)[:, :, -1]
        if not _agree(_answers(model, last[:2, :1], self.compared)[:, 0].cpu(), self.own, model.dtype):
            return None
        return self._by_pair(_answers(model, last, self.vocab))

    def _prepare(self) -> None:
        """Run the prefix once, then both suffixes, noting how the model calls its layers and what it answers."""
        model = self.model
        body: Any = body_of(model.module)
        self.cache = prefix_cache(model.n_layers)
        named = {cache_argument(model) or "": self.cache}
        if self.start:
            # One prompt's prefix is its counterpart's, too.
            self.cache.recording = True
            body(input_ids=self.ids[0, :, : self.start], use_cache=True, **named)
            self.cache.recording = False
        self.cache.n_rows = 2
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        embedded: list[Tensor] = []

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            named = dict(kwargs)
            stream = args[0] if args else named.pop("hidden_states")
            embedded.append(stream)
            calls.append((tuple(args[1:]), named))

        with ExitStack() as hooks:
            for block in model.layers:
                hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
            suffixes = self.ids[:, :, self.start :].flatten(0, 1)
            body(input_ids=suffixes, use_cache=True, **named)
        self.calls, self.embedded = calls, embedded[0]
        # One pair of the batch stands for all: they have one length and one first changed place.
        own = _own_answers(model, self.ids[:, :1], None)[:, 0].cpu()
        answers = self.scored[0] if self.scored is not None else ()
        some = sorted({*answers, *range(0, model.d_vocab, max(1, model.d_vocab // _N_COMPARED))})
        self.compared = [token for token in some if own[:, token].isfinite().all()]  # not those that a model masks
        self.own = own[:, self.compared]

    def forward(self, plan: EditPlan) -> list[Tensor]:
        """Do the same by whole forward passes: every row from the first token and the first layer on."""
        model = self.model
        n_rows = 2 + len(plan.starts)
        ids = torch.cat([self.ids, self.ids[:1].expand(n_rows - 2, -1, -1)])
        with _editing(model, plan, _Shape(n_rows, self.n_pairs, ids.shape[2])):
            return self._by_pair(_own_answers(model, ids, self.vocab))

    def _by_pair(self, logits: Float[Tensor, "row pair token"]) -> list[Float[Tensor, "row n_answer"]]:
        """Fetch a few logits of all pairs from their device at once; those of all tokens stay there."""
        if self.vocab is None or self.scored is None:
            return list(logits.unbind(1))
        logits = logits.cpu()
        column = {token: place for place, token in enumerate(self.vocab)}
        return [logits[:, pair, [column[token] for token in ids]] for pair, ids in enumerate(self.scored)]


@dataclass
class _Shape:
    n_rows: int
    n_pairs: int
    n_pos: int


@contextmanager
def _editing(model: Model, plan: EditPlan, shape: _Shape) -> Iterator[None]:
    """Let ``plan`` edit heads, MLPs and slots in the layers it names, while open."""

    def unfold(x: Tensor, *tail: int) -> Tensor:
        return x.reshape(shape.n_rows, shape.n_pairs, shape.n_pos, *tail)

    def heads(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def edit(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = unfold(args[0], model.n_heads, model.d_heads[layer])
            plan.edit_heads(layer, z)
            return (z.reshape(args[0].shape), *args[1:])

        return edit

    def mlp(layer: int) -> Callable[[nn.Module, Any, Any], Any]:
        def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
            first = output[0] if isinstance(output, tuple) else output
            values = unfold(first, first.shape[-1])
            plan.edit_mlp(layer, values)
            values = values.reshape(first.shape)
            return (values, *output[1:]) if isinstance(output, tuple) else values

        return edit

    def slot(layer: int, name: str, cut: Cut) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def edit(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            cut.edit(unfold(output, output.shape[-1]), lambda heads: plan.edit_slot(layer, name, heads))
            return output

        return edit

    with ExitStack() as hooks:
        for layer, projection in enumerate(model.projections):
            hooks.callback(projection.register_forward_pre_hook(heads(layer)).remove)
            if plan.edits_mlps:
                module = model.mlp(layer)
                if module is None:
                    raise HeadcodesError(
                        "a model whose MLPs are patched must be of a family whose MLP is known",
                        f"{model!r}",
                        "Patch heads only.",
                    )
                hooks.callback(module.register_forward_hook(mlp(layer)).remove)
            for name in plan.slots(layer):
                module, cut = slot_projection(model, layer, name)
                hooks.callback(module.register_forward_hook(slot(layer, name, cut)).remove)
        yield


def _answers(
    model: Model, hidden: Float[Tensor, "row pair d_model"], ids: Sequence[int] | None
) -> Float[Tensor, "row pair token"]:
    """Return fp32 logits of a few tokens, or of all, from the last block's output, as ``Model.trace`` does."""
    assert model.final_norm is not None
    weight, bias = unembedding(model.unembed, None if ids is None else torch.tensor(list(ids)))
    logits = torch.nn.functional.linear(model.final_norm(hidden).float(), weight, bias)
    return soft_capped(model, logits * model.facts.logit_scale)


def _own_answers(
    model: Model, ids: Int[Tensor, "row pair pos"], vocab: Sequence[int] | None
) -> Float[Tensor, "row pair token"]:
    """Return fp32 logits of some tokens, or of all, after the last one by the model's own forward pass."""
    last = torch.full((ids.shape[0] * ids.shape[1],), ids.shape[2] - 1)
    found = model.trace(ids.flatten(0, 1), logits_at=last, vocab=None if vocab is None else torch.tensor(vocab))
    assert found is not None
    return found.view(ids.shape[0], ids.shape[1], -1)


def _agree(walked: Float[Tensor, "row token"], own: Float[Tensor, "row token"], dtype: torch.dtype) -> bool:
    spread = (own - own.mean(-1, keepdim=True)).norm(dim=-1)
    return bool(((walked - own).norm(dim=-1) <= _TOLERANCE.get(dtype, _LOW_PRECISION) * spread).all())


def _fitted(value: Any, n_from: int, n_to: int) -> Any:
    """Stretch an argument made for ``n_from`` rows (or one for all) to ``n_to``: all rows have the same positions."""
    if isinstance(value, tuple):
        return tuple(_fitted(part, n_from, n_to) for part in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == n_from:
        return value[:1].expand(n_to, *value.shape[1:])
    return value
