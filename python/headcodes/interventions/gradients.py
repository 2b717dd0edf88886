"""Gradients of an answer at every part of a model, within a bound of memory: long prompts a layer at a time.

A backward pass needs what every layer left behind. Where that does not fit, the forward pass keeps what enters each
layer; from the last layer to the first, each is run again, differentiated, and let go. That is gradient checkpointing
(Chen et al. 2016, arXiv 1604.06174), a layer a segment, and costs one more forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.interventions.metric import measure, whole_vocabulary
from headcodes.interventions.runs import (
    NO_EDITS,
    Batch,
    Edits,
    Parts,
    run,
)
from headcodes.models.devices import free_bytes
from headcodes.models.hooks import edit_input, edit_output, first_of
from headcodes.models.memory import (
    graph_bytes,
    kept_bytes_per_token,
    kept_pattern_bytes,
    node_bytes_per_token,
    pattern_bytes,
)
from headcodes.models.relied import passes_keys_on
from headcodes.models.weights import is_bridge

if TYPE_CHECKING:
    from headcodes.models.model import Model
    from headcodes.prompts.tokens import TokenPairs
    from headcodes.settings import Metric

Place = tuple[str, int]


class GradientError(HeadcodesError):
    """Gradients cannot be had for these prompts, by this model, on this machine: what was got says why."""

    @classmethod
    def because(cls, reason: str) -> GradientError:
        """Return the error whose reason is this clause."""
        return cls(
            "a method with a backward pass must have gradients",
            reason,
            "Use shorter prompts, or --method contrast: it takes none.",
        )


def backward_bytes(model: Model, n_tokens: int) -> int:
    """Return what a backward pass over one pair of prompts of so many tokens takes at most, beside the weights."""
    if not _by_layer(model, n_tokens):
        return node_bytes_per_token(model) * n_tokens + kept_pattern_bytes(model, n_tokens)
    return kept_bytes_per_token(model) * n_tokens + pattern_bytes(model, n_tokens)


def refuse_without_gradient(
    model: Model, tokens: TokenPairs, whole_bytes_per_token: int | None = None, beside_bytes_per_token: int = 0
) -> None:
    """Refuse a model that no gradient goes through, or whose backward pass over one pair does not fit.

    Args:
        whole_bytes_per_token: of what keeps the graph of all layers at a time; None: it may be made a layer at a time.
        beside_bytes_per_token: of what else is held.

    Raises:
        GradientError: weights are no floats, or memory does not do. Offloaded weights, which a graph holds until it is
            let go, where it cannot be made a layer at a time.
    """
    if not model.dtype.is_floating_point:
        raise GradientError.because(f"the weights are stored as {model.dtype}")
    longest = max(map(len, tokens.clean))
    if _offloaded(model) and (whole_bytes_per_token is not None or not _by_layer(model, longest)):
        raise GradientError.because("some of the weights are offloaded, and the graph of all layers would hold them")
    if whole_bytes_per_token is None:
        needed, by_layer = backward_bytes(model, longest), ""
    else:
        needed = whole_bytes_per_token * longest + kept_pattern_bytes(model, longest)
        by_layer = " (at node level less is needed, a layer at a time)"
    needed += beside_bytes_per_token * longest
    free = free_bytes(model.device)
    if needed > free:
        raise GradientError.because(
            f"the backward pass over a pair of {longest} tokens takes about {needed >> 20} MiB{by_layer}, and "
            f"{free >> 20} MiB are free"
        )


def with_gradients(
    model: Model, batch: Batch, metric: Metric, *, reference: Tensor | None = None, edits: Edits = NO_EDITS
) -> tuple[Parts, dict[Place, Tensor]]:
    """Run the model over a batch's clean prompts and differentiate a metric of them, summed.

    Must be called inside ``runs.ready``.

    Args:
        reference: the clean run's logits of all tokens, for ``kl``.
        edits: as ``runs.run`` takes them.

    Returns:
        The parts of the run, and the gradient at each ("input", 0), ("z", layer) and ("mlp", layer) that has one.
    """
    if _by_layer(model, batch.clean.numel()):
        return _layer_by_layer(model, batch, metric, reference, edits)
    parts = run(model, batch.clean, batch, edits=edits, whole_vocabulary=whole_vocabulary(metric))
    places = [("input", 0), *(("z", i) for i in range(len(parts.z))), *(("mlp", i) for i in range(len(parts.mlp)))]
    summed = measure(metric, batch, parts.logits, reference).sum()
    return parts, gradients_at(summed, {place: parts.get(*place) for place in places})


def gradients_at(
    made: Tensor, tensors: Mapping[Place, Tensor], gradient: Tensor | None = None, *, again: bool = False
) -> dict[Place, Tensor]:
    """Return the gradient of a number, or from ``gradient`` at ``made`` on, at those of ``tensors`` that it depends on.

    Args:
        again: keep the graph, for more gradients.
    """
    # Behind some quantised layers nothing has a graph.
    known = {place: tensor for place, tensor in tensors.items() if tensor.requires_grad}
    if not known or not made.requires_grad:
        return {}
    start = None if gradient is None else gradient.to(made.device)
    found = torch.autograd.grad(made, list(known.values()), start, retain_graph=again, allow_unused=True)
    return {place: gradient for place, gradient in zip(known, found, strict=True) if gradient is not None}


def arrived(model: Model, gradients: Mapping[Place, Tensor], places: Iterable[Place]) -> list[Tensor]:
    """Return the gradients at ``places``.

    Raises:
        HeadcodesError: there is none at one of them: some quantised layers have no backward pass.
    """
    for kind, layer in places:
        if (kind, layer) not in gradients:
            raise HeadcodesError(
                "a gradient must reach every part of the model",
                f"none at {kind} of layer {layer} in {model.name}",
                "Use a method that needs none: contrast, patching.",
            )
    return [gradients[place] for place in places]


def at_heads(model: Model, gradients: Mapping[Place, Tensor]) -> list[Tensor]:
    """Return the gradient at every layer's head results; raises like ``arrived``."""
    return arrived(model, gradients, [("z", layer) for layer in range(model.n_layers)])


def _by_layer(model: Model, n_tokens: int) -> bool:
    """Whether the whole graph is too large, or would hold weights that are to lie elsewhere, and layers are known to do
    nothing but hand the stream on."""
    passes_on = model.facts.stream is None and model.final_norm is not None
    passes_on = passes_on and not is_bridge(model.module) and not passes_keys_on(model)
    too_large = _offloaded(model) or node_bytes_per_token(model) * n_tokens > graph_bytes(model.device)
    return passes_on and too_large


def _offloaded(model: Model) -> bool:
    return any(part.is_meta for part in model.module.parameters())


def _layer_by_layer(
    model: Model, batch: Batch, metric: Metric, reference: Tensor | None, edits: Edits
) -> tuple[Parts, dict[Place, Tensor]]:
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    last: dict[str, Tensor] = {}

    def note(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    def begin(x: Tensor) -> Tensor:
        # From the final norm on, autograd has a graph of its own.
        torch.set_grad_enabled(True)
        last["stream"] = x.detach().requires_grad_(True)
        return last["stream"]

    @contextmanager
    def noting() -> Iterator[None]:
        assert model.final_norm is not None
        with ExitStack() as hooks:
            for block in model.layers:
                hooks.callback(block.register_forward_pre_hook(note, with_kwargs=True).remove)
            hooks.enter_context(edit_input(model.final_norm, begin))
            yield

    with torch.no_grad():
        whole = whole_vocabulary(metric)
        # Behind the hooks of ``run``: what a layer is called with is noted as edited.
        parts = run(model, batch.clean, batch, edits=edits, whole_vocabulary=whole, also=noting())
    summed = measure(metric, batch, parts.logits, reference).sum()
    (gradient,) = torch.autograd.grad(summed, [last.pop("stream")])
    found: dict[Place, Tensor] = {}
    for layer in reversed(range(model.n_layers)):
        args, kwargs = calls.pop()
        entered, made = _again(model, layer, args, kwargs, edits)
        wanted = {place: made[place] for place in made if place != ("out", layer)} | {("input", layer): entered}
        by_place = gradients_at(made["out", layer], wanted, gradient)
        before = by_place.pop(("input", layer), None)
        found |= by_place
        if before is None:  # an edit put in something that does not depend on what came before
            break
        gradient = before
        if layer == 0:
            found["input", 0] = before
    return parts, found


def _again(
    model: Model, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any], edits: Edits
) -> tuple[Tensor, dict[Place, Tensor]]:
    """Run one layer again, with a graph; return what enters it, and its parts and its output by place."""
    if not args:
        name = next(key for key, value in kwargs.items() if isinstance(value, Tensor) and value.is_floating_point())
        args, kwargs = (kwargs[name],), {key: value for key, value in kwargs.items() if key != name}
    entered = args[0].detach().requires_grad_(True)
    made: dict[Place, Tensor] = {}

    def keep(kind: str, edit: Callable[[Tensor], Tensor] | None) -> Callable[[Tensor], Tensor]:
        def note(x: Tensor) -> Tensor:
            made[kind, layer] = x if edit is None else edit(x)
            # Falcon adds the attention's output to this very tensor.
            return made[kind, layer].clone() if kind == "mlp" else made[kind, layer]

        return note

    with torch.enable_grad(), ExitStack() as hooks:
        hooks.enter_context(edit_input(model.projections[layer], keep("z", edits.z.get(layer))))
        part = model.mlp(layer)
        if part is not None:
            hooks.enter_context(edit_output(part, keep("mlp", edits.mlp.get(layer))))
        hooks.enter_context(model.stand_ins([layer]))
        output = model.layers[layer](entered, *args[1:], **kwargs)
    made["out", layer] = first_of(output)
    return entered, made
