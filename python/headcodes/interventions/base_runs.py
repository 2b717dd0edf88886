"""The clean and the corrupted run of a few pairs, made once and noted layer by layer: edited runs start from them.

Edited runs enter at some layer as copies of the clean run, and take from both runs what they need there: what enters
every layer and every head's result are noted as the model runs; MLP outputs, queries, keys and values, which fewer
edits look at, are worked out when first asked for, by calling the one layer again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.models.hooks import first_of
from headcodes.models.memory import BASE_BYTES
from headcodes.models.model import Model
from headcodes.models.prefix_cache import cache_argument, prefix_cache
from headcodes.models.relied import body_of, soft_capped
from headcodes.models.slots import slot_projection
from headcodes.models.weights import unembedded

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# The walk and the model's own pass do the same sums in another order: how far their logits may lie apart, as a share of
# how far a prompt's logits lie apart from each other.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}
_LOW_PRECISION = 0.1
# Answers alone are two or three logits that may lie near 0, where rounding in low precision looks like another model.
_N_COMPARED = 64


class BaseRuns:
    """Both runs of pairs of one length, from their first changed token on. What comes before is the same for both runs:
    its keys and values are computed once.

    Attributes:
        entered: [n_layers] of [2, pair, pos, d_model]: what enters each layer, clean and corrupted.
        last: [2, pair, d_model], the last block's output at the last position.
        calls: what the model calls each layer with beside that, for ``n_called`` rows.
        cache: the prefix's keys and values, to be given to each layer that is called.
        own: [2, token] logits of ``compared`` tokens after the first pair's prompts, by the model's own forward pass.
        checked: [pair] the layer from which on the walk is known to give the model's own answers; see ``run_edited``.
    """

    def __init__(self, model: Model, ids: Int[Tensor, "2 pair pos"], start: int, answers: Sequence[int]) -> None:
        body: Any = body_of(model.module)
        self.model, self.ids, self.start = model, ids, start
        self.n_pos = ids.shape[2] - start
        self.n_called = 2 * ids.shape[1]
        self.cache = prefix_cache(model.n_layers)
        named = {cache_argument(model) or "": self.cache}
        if start:
            # One prompt's prefix is its counterpart's, too.
            self.cache.recording = True
            body(input_ids=ids[0, :, :start], use_cache=True, **named)
            self.cache.recording = False
        self.cache.n_rows = 2
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        streams: list[Tensor] = []
        self._noted: dict[tuple[str, int], Tensor] = {}

        def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            streams.append(args[0] if args else kwargs.pop("hidden_states"))
            self.calls.append((tuple(args[1:]), kwargs))

        with ExitStack() as hooks:
            for layer, block in enumerate(model.layers):
                hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
                self._note_heads(hooks, layer)
            hooks.callback(
                model.layers[-1].register_forward_hook(lambda *made: streams.append(first_of(made[2]))).remove
            )
            body(input_ids=ids[:, :, start:].flatten(0, 1), use_cache=True, **named)
        shape = (2, ids.shape[1], self.n_pos, -1)
        *self.entered, out = [stream.reshape(shape) for stream in streams]
        self.last = out[:, :, -1].clone()
        # One pair stands for all: they have one length and one first changed place.
        own = own_answers(model, ids[:, :1], None)[:, 0].cpu()
        some = sorted({*answers, *range(0, model.d_vocab, max(1, model.d_vocab // _N_COMPARED))})
        self.compared = [token for token in some if own[:, token].isfinite().all()]  # not those that a model masks
        self.own = own[:, self.compared]
        self.agrees = agree(answers_of(model, self.last[:, 0], self.compared).cpu(), self.own, model.dtype)
        self.checked = [model.n_layers] * ids.shape[1]

    @property
    def n_bytes(self) -> int:
        """Bytes of what is noted, the prefix included."""
        prefix = [part for kept in self.cache.kept if kept is not None for part in kept]
        return sum(part.nbytes for part in (*self.entered, *self._noted.values(), *prefix))

    def heads(self, layer: int) -> Float[Tensor, "2 pair pos n_heads*d_head"]:
        """Return every head's result in both runs, side by side."""
        return self._noted["z", layer]

    def mlp(self, layer: int) -> Float[Tensor, "2 pair pos d_model"]:
        """Return the MLP's output in both runs."""
        if ("mlp", layer) not in self._noted:
            module = self.model.mlp(layer)
            assert module is not None
            self._call(layer, "mlp", module)
        return self._noted["mlp", layer]

    def slot(self, layer: int, slot: str) -> Float[Tensor, "2 pair pos n"]:
        """Return in both runs what the module puts out that makes queries ("q"), keys ("k") or values ("v")."""
        if (slot, layer) not in self._noted:
            self._call(layer, slot, slot_projection(self.model, layer, slot)[0])
        return self._noted[slot, layer]

    def _note_heads(self, hooks: ExitStack, layer: int) -> None:
        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            self._noted["z", layer] = self._by_pair(args[0])

        hooks.callback(self.model.projections[layer].register_forward_pre_hook(note).remove)

    def _call(self, layer: int, what: str, module: nn.Module) -> None:
        """Call a layer on both runs once more, and note what one of its modules puts out."""

        def note(_module: nn.Module, _args: Any, output: Any) -> None:
            # Falcon adds the attention's output to the MLP's in place.
            self._noted[what, layer] = self._by_pair(first_of(output)).clone()

        hook = module.register_forward_hook(note)
        self.cache.n_rows, self.cache.pairs = 2, None
        try:
            args, kwargs = self.calls[layer]
            self.model.layers[layer](self.entered[layer].flatten(0, 1), *args, **kwargs)
        finally:
            hook.remove()

    def _by_pair(self, x: Tensor) -> Tensor:
        return x.reshape(2, self.ids.shape[1], self.n_pos, -1)


class Prepared:
    """Base runs of some pairs of one model, kept for further edits of the same pairs, or of some of them.

    They are the same however often they are made: only time depends on what is found here.
    """

    def __init__(self, n_bytes: int = BASE_BYTES) -> None:
        self._left = n_bytes
        self._places: dict[Any, tuple[BaseRuns, int]] = {}

    def keep(self, base: BaseRuns) -> None:
        """Keep base runs, if there is room for them."""
        if base.n_bytes <= self._left:
            self._left -= base.n_bytes
            for column, key in enumerate(_keys(base.ids, base.start)):
                self._places[key] = base, column

    def find(self, ids: Int[Tensor, "2 pair pos"], start: int) -> tuple[BaseRuns, list[int]] | None:
        """Return the base runs that hold all these pairs, and their columns there; None where none does."""
        places = [self._places.get(key) for key in _keys(ids, start)]
        first = places[0]
        if first is None:
            return None
        columns = [place[1] for place in places if place is not None and place[0] is first[0]]
        return (first[0], columns) if len(columns) == len(places) else None


def _keys(ids: Int[Tensor, "2 pair pos"], start: int) -> list[Any]:
    return [(start, *map(tuple, pair)) for pair in ids.transpose(0, 1).tolist()]


def answers_of(
    model: Model, hidden: Float[Tensor, "*row d_model"], ids: Sequence[int] | None
) -> Float[Tensor, "*row token"]:
    """Return fp32 logits of a few tokens, or of all, from the last block's output, as ``Model.trace`` does."""
    assert model.final_norm is not None
    chosen = None if ids is None else torch.tensor(list(ids))
    logits = unembedded(model.unembed, model.final_norm(hidden), chosen, model.facts.plain_unembedding)
    return soft_capped(model, logits * model.facts.logit_scale)


def own_answers(
    model: Model, ids: Int[Tensor, "row pair pos"], vocab: Sequence[int] | None
) -> Float[Tensor, "row pair token"]:
    """Return fp32 logits of some tokens, or of all, after the last one by the model's own forward pass."""
    last = torch.full((ids.shape[0] * ids.shape[1],), ids.shape[2] - 1)
    found = model.trace(ids.flatten(0, 1), logits_at=last, vocab=None if vocab is None else torch.tensor(vocab))
    assert found is not None
    return found.view(ids.shape[0], ids.shape[1], -1)


def agree(walked: Float[Tensor, "row token"], own: Float[Tensor, "row token"], dtype: torch.dtype) -> bool:
    """Say whether two ways to work out the same logits differ by no more than rounding in ``dtype``."""
    spread = (own - own.mean(-1, keepdim=True)).norm(dim=-1)
    return bool(((walked - own).norm(dim=-1) <= _TOLERANCE.get(dtype, _LOW_PRECISION) * spread).all())
