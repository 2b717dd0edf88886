"""Many edited runs of one prompt pair, side by side, in one walk through the layers.

Every edited run is a row beside the clean run (row 0) and the corrupted run (row 1). A row enters at the
layer that its first edit is in, as a copy of the clean row, so nothing before that layer is run twice. What
comes before the first changed token is the same for all rows: its keys and values are computed once. Only
the answers' logits are computed, at the last position.

The layers are called with the very arguments that the model itself gives them, so the walk holds for every
family whose blocks hand a residual stream from one to the next. It is checked on a pair of each batch: the
walk's clean and corrupted answers must be those of the model's own forward pass. Where they are not, or where
blocks cannot be called like that (TransformerBridge, offloaded weights), whole forward passes do the same
work, slower.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.model import is_bridge
from headcodes.models import Model, as_found

if TYPE_CHECKING:
    from jaxtyping import Float, Int

    from headcodes.prompts import TokenPairs

DEFAULT_SWEEP_BYTES = 1 << 27
_FEWEST_ROWS = 32
# The walk and the model's own pass do the same sums in another order.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}


class Plan:
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

    def part(self, rows: slice) -> Plan:
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


def run(
    model: Model,
    tokens: TokenPairs,
    plan: Plan,
    *,
    done: Callable[[list[int], list[list[Tensor]]], None],
    engine: str = "auto",
    memory_bytes: int = DEFAULT_SWEEP_BYTES,
    splits: bool = True,
    whole_vocabulary: bool = False,
) -> None:
    """Run ``plan`` on every pair and hand over the answers' logits, a few pairs at a time.

    Args:
        model: Left as it was found.
        tokens: Pairs of equal lengths.
        plan: The edits.
        done: Called with indices of pairs and, for each of them, one tensor a set of logits: fp32 [n_row,
            n_answer] over ``tokens.scored_ids`` (right answers, then wrong ones), rows in the plan's order.
        engine: "walk" through the layers, "forward" passes of the whole model, or "auto": walk where it
            holds.
        memory_bytes: Bound on the working memory of one batch, beside the weights.
        splits: Whether edited rows may be run in several batches.
        whole_vocabulary: Hand over the logits of all tokens instead.

    Raises:
        HeadcodesError: pairs of unequal length, or ``engine="walk"`` where it does not hold.

    Warns:
        HeadcodesWarning: "auto" had to take whole forward passes for a model whose blocks seemed callable.
    """
    if engine not in ("auto", "walk", "forward"):
        raise HeadcodesError("engine is auto, walk or forward", repr(engine), "Leave it at auto.")
    walks = engine != "forward" and _can_walk(model)
    if engine == "walk" and not walks:
        raise HeadcodesError(
            "walking through the layers needs a transformers model with its weights on its device",
            f"{model!r}",
            "Leave engine at auto.",
        )
    budget = max(1, memory_bytes // _bytes_per_token(model))
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
                batch = _Batch(model, tokens.subset(indices), start, whole_vocabulary)
                for row in range(0, max(n_rows, 1), n_split):
                    part = plan.part(slice(row, row + n_split)) if splits and n_rows > n_split else plan
                    rows = None
                    if walks:
                        rows = batch.walk(part)
                        if rows is None:
                            if engine == "walk":
                                raise HeadcodesError(
                                    "the walk's answers are those of the model's own forward pass",
                                    f"others for {model!r}",
                                    "Use engine='forward'.",
                                )
                            warnings.warn(
                                f"walking through the layers of {model.name} does not give its own answers; whole"
                                " forward passes are used instead, which takes longer",
                                HeadcodesWarning,
                                stacklevel=2,
                            )
                            walks = False
                    if rows is None:
                        rows = batch.forward(part)
                    for pair, values in enumerate(rows):
                        # Rows 0 and 1 come back with every part; once is enough.
                        logits[pair].append(values if row == 0 else values[2:])
                done(indices, logits)


class _Batch:
    """A few pairs of one length: their prefix, computed once, and what their layers are called with."""

    def __init__(self, model: Model, tokens: TokenPairs, start: int, whole_vocabulary: bool) -> None:
        self.model = model
        self.start = start
        self.ids = torch.tensor([tokens.clean, tokens.corrupt], device=model.device)
        self.n_pairs = self.ids.shape[1]
        self.scored: list[list[int]] | None = None if whole_vocabulary else tokens.scored_ids
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] | None = None

    def walk(self, plan: Plan) -> list[Tensor] | None:
        """Return logits [n_row, n_answer] a pair, or None where the walk does not give the model's own
        answers."""
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
        rows = [
            _answers(model, last[:, pair], None if self.scored is None else self.scored[pair])
            for pair in range(self.n_pairs)
        ]
        return rows if _agree(rows[0][:2], self.own, model.dtype) else None

    def _prepare(self) -> None:
        """Run the prefix once, then both suffixes, noting how the model calls its layers and what it
        answers."""
        model = self.model
        body: Any = model.module.base_model
        self.cache = _prefix_cache(model.n_layers)
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
        self.own = _own_answers(model, self.ids[:, :1], None if self.scored is None else self.scored[:1])[0]

    def forward(self, plan: Plan) -> list[Tensor]:
        """Do the same by whole forward passes: every row from the first token and the first layer on."""
        model = self.model
        n_rows = 2 + len(plan.starts)
        ids = torch.cat([self.ids, self.ids[:1].expand(n_rows - 2, -1, -1)])
        with _editing(model, plan, _Shape(n_rows, self.n_pairs, ids.shape[2])):
            return _own_answers(model, ids, self.scored)


@dataclass
class _Shape:
    n_rows: int
    n_pairs: int
    n_pos: int


@contextmanager
def _editing(model: Model, plan: Plan, shape: _Shape) -> Iterator[None]:
    """Let ``plan`` edit heads, MLPs and slots wherever it wants to, while open."""

    def unfold(x: Tensor, *tail: int) -> Tensor:
        return x.reshape(shape.n_rows, shape.n_pairs, shape.n_pos, *tail)

    def heads(layer: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def edit(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            z = unfold(args[0], model.n_heads, model.d_head)
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

    def slot(layer: int, name: str, cut: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def edit(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            output = output.clone()
            plan.edit_slot(layer, name, cut(unfold(output, output.shape[-1])))
            return output

        return edit

    with ExitStack() as hooks:
        for layer, projection in enumerate(model.projections):
            hooks.callback(projection.register_forward_pre_hook(heads(layer)).remove)
            if plan.edits_mlps:
                module = model.mlp(layer)
                if module is None:
                    raise HeadcodesError(
                        "patching MLPs needs a family whose MLP is known", f"{model!r}", "Patch heads only."
                    )
                hooks.callback(module.register_forward_hook(mlp(layer)).remove)
            for name in plan.slots(layer):
                module, cut = slot_projection(model, layer, name)
                hooks.callback(module.register_forward_hook(slot(layer, name, cut)).remove)
        yield


def slot_projection(model: Model, layer: int, slot: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """Return the module that makes queries, keys or values, and how its output is cut into [..., head,
    d_head]."""
    attention: Any = model.attention(layer)
    n_heads, d_head = model.n_heads, model.d_head
    place = "qkv".index(slot)
    # TransformerLens calls its parts q, k and v.
    separate = getattr(attention, slot if is_bridge(model.module) else f"{slot}_proj", None)
    if isinstance(separate, nn.Module):
        n = n_heads if slot == "q" else model.n_kv_heads
        return separate, lambda x: x.unflatten(-1, (n, -1))
    if isinstance(getattr(attention, "c_attn", None), nn.Module):  # GPT-2: all queries, all keys, all values
        return attention.c_attn, lambda x: x.unflatten(-1, (3, n_heads, d_head)).select(-3, place)
    if isinstance(getattr(attention, "query_key_value", None), nn.Module):  # GPT-NeoX: q, k, v head by head
        return attention.query_key_value, lambda x: x.unflatten(-1, (n_heads, 3, d_head)).select(-2, place)
    raise HeadcodesError(
        "path patching needs a family whose query, key and value projections are known",
        f"{model!r}",
        "Patch whole heads instead.",
    )


def _can_walk(model: Model) -> bool:
    body = getattr(model.module, "base_model", None)
    offloaded = any(tensor.device.type == "meta" for tensor in model.module.parameters())
    spread = len({tensor.device for tensor in model.module.parameters()}) > 1
    return (
        model.final_norm is not None
        and isinstance(body, nn.Module)
        and hasattr(model.module, "config")
        and not offloaded
        and not spread
        and cache_argument(model) is not None
    )


# What transformers calls the argument that takes a cache of keys and values: from 5.24 on, and before.
_CACHE_ARGUMENTS = ("cache", "past_key_values")


def cache_argument(model: Model) -> str | None:
    """Return the name under which the model takes a cache and fills it in every layer; None where there is none.

    Found out by running one token, once a model: a name in a signature says nothing about what is done with it.
    """
    known: dict[str, str | None] = model.__dict__.setdefault("_cache_argument", {})
    if "name" not in known:
        known["name"] = next((name for name in _CACHE_ARGUMENTS if _fills(model, name)), None)
    return known["name"]


def _fills(model: Model, name: str) -> bool:
    cache = _prefix_cache(model.n_layers)
    cache.recording = True
    body: Any = model.module.base_model
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        with as_found(model.module), torch.inference_mode():
            body(input_ids=token, use_cache=True, **{name: cache})
    except (TypeError, ValueError, AttributeError):  # takes no such argument, or no such cache
        return False
    return all(kept is not None for kept in cache.kept)


def _bytes_per_token(model: Model) -> int:
    """Estimate what a token of one layer holds at a time: residual stream, queries to results, MLP
    intermediates."""
    widest = max((part.shape[-1] for part in model.layers[0].parameters() if part.ndim == 2), default=0)
    widest = max(widest, 4 * model.d_model)
    n_columns = model.n_heads * model.d_head
    per_value = torch.empty(0, dtype=model.dtype).element_size()
    return int(per_value * (6 * model.d_model + 3 * widest + 4 * n_columns))


def _answers(
    model: Model, hidden: Float[Tensor, "row d_model"], ids: Sequence[int] | None
) -> Float[Tensor, "row n_answer"]:
    """Return fp32 logits of a few tokens, or of all, from the last block's output, as ``Model.trace``
    does."""
    assert model.final_norm is not None
    unembed: Any = model.unembed
    chosen = slice(None) if ids is None else torch.tensor(list(ids), device=unembed.weight.device)
    bias = getattr(unembed, "bias", None)
    weight = unembed.weight[chosen].float()
    normed = model.final_norm(hidden).float()
    logits = torch.nn.functional.linear(normed, weight, None if bias is None else bias[chosen].float())
    config: Any = model.module.config
    cap = getattr(config.get_text_config(), "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


def _own_answers(
    model: Model, ids: Int[Tensor, "row pair pos"], scored: Sequence[Sequence[int]] | None
) -> list[Float[Tensor, "row n_answer"]]:
    """Return fp32 logits after the last token by the model's own forward pass, one tensor a pair."""
    vocab = None if scored is None else sorted({token for row in scored for token in row})
    last = torch.full((ids.shape[0] * ids.shape[1],), ids.shape[2] - 1)
    found = model.trace(ids.flatten(0, 1), logits_at=last, vocab=None if vocab is None else torch.tensor(vocab))
    assert found is not None
    logits = found.view(ids.shape[0], ids.shape[1], -1)
    if vocab is None or scored is None:
        return list(logits.unbind(1))
    column = {token: place for place, token in enumerate(vocab)}
    return [logits[:, pair, [column[token] for token in row]] for pair, row in enumerate(scored)]


def _agree(walked: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    scale = max(1.0, float(own.abs().max()))
    return bool((walked - own).abs().max() <= _TOLERANCE.get(dtype, 5e-2) * scale)


def _fitted(value: Any, n_from: int, n_to: int) -> Any:
    """Stretch an argument made for ``n_from`` rows (or one for all) to ``n_to``: all rows have the same
    positions."""
    if isinstance(value, tuple):
        return tuple(_fitted(part, n_from, n_to) for part in value)
    if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == n_from:
        return value[:1].expand(n_to, *value.shape[1:])
    return value


def _prefix_cache(n_layers: int) -> Any:
    """Make transformers' cache, but one that stores only the prefix and gives it to as many rows as there
    are."""
    from transformers import DynamicCache

    class PrefixCache(DynamicCache):
        recording = False
        n_rows = 1

        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[Tensor, Tensor] | None] = [None] * n_layers

        def _n_kept(self) -> int:
            first: tuple[Tensor, Tensor] | None = next((kept for kept in self.kept if kept is not None), None)
            return 0 if first is None or self.recording else int(first[0].shape[-2])

        def update(
            self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_args: Any, **_kwargs: Any
        ) -> tuple[Tensor, Tensor]:
            if self.recording:
                self.kept[layer_idx] = (key_states, value_states)
                return key_states, value_states
            kept = self.kept[layer_idx]
            if kept is None:
                return key_states, value_states
            keys, values = (part.repeat(self.n_rows, 1, 1, 1) for part in kept)
            return torch.cat([keys, key_states], dim=-2), torch.cat([values, value_states], dim=-2)

        def get_seq_length(self, layer_idx: int = 0, *_args: Any, **_kwargs: Any) -> int:
            return int(self._n_kept())

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0, *_args: Any) -> tuple[int, int]:
            # transformers 4 hands over the positions themselves.
            n_query = query_length if isinstance(query_length, int) else len(query_length)
            return int(self._n_kept() + n_query), 0

    return PrefixCache()
