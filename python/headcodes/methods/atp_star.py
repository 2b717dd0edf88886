"""AtP*: attribution patching whose queries and keys are patched exactly, as far as the head's own result.

Kramár et al. 2024, arXiv 2403.00745. The nodes are each head's queries, keys and values. A node's effect is
sum over positions of (z_clean - z_node) . dL/dz, with z_node the head's result on the clean prompt when the node alone
is what it is on the corrupted one: attention, softmax and all, is worked out anew, and only what lies behind the head
is taken to first order. Where attention is saturated, its own derivative is near zero and plain attribution patching of
a query or key misses it. (The paper patches one position at a time, this all of them together; for queries and values
the sum is the same.)

GradDrop (``atp-star`` only): a direct and an indirect effect that cancel in the gradient do not when the indirect one's
layer is left out. As many backward passes as layers, each with the gradient through what one layer writes set to zero;
of every pair, the mean over passes of the magnitudes, those of a node's own layer not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.interventions.gradients import refuse_without_gradient
from headcodes.interventions.metric import measure, refuse_flat, whole_vocabulary
from headcodes.interventions.reads import Reads
from headcodes.interventions.runs import (
    NO_EDITS,
    Batch,
    Edits,
    batches,
    chosen_positions,
    ready,
    require_equal_lengths,
    run,
)
from headcodes.methods.findings import Findings
from headcodes.methods.stability import ByPair
from headcodes.models.hooks import Edit, capture_inputs
from headcodes.models.memory import graph_bytes, node_bytes_per_token
from headcodes.models.slots import slot_columns
from headcodes.progress import progress

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.methods import Level
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model

SLOTS = "qkv"


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score a head by the sum over its queries, keys and values of |mean over pairs of the effect|; with GradDrop, of
    the mean over pairs of what the passes give.

    ``signed`` of ``atp-qk`` is the sum of the three effects; magnitudes have none.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length; a model whose query, key and value
            projections are not known; no gradients can be had (``refuse_without_gradient``); ``atp-star`` with a model
            of one layer, of which none can be left out.
    """
    model, tokens = inputs.model, inputs.tokens
    require_equal_lengths(tokens, name)
    metric = inputs.metric or "logit-diff"
    refuse_flat(metric, name)
    drops = name == "atp-star"
    if drops and model.n_layers < 2:
        raise HeadcodesError(
            "atp-star must have another layer to leave out", f"{model.name} of one layer", "Use --method atp-qk."
        )
    refuse_without_gradient(model, tokens, node_bytes_per_token(model))
    findings = Findings.of(model)
    effects = torch.zeros(len(tokens), len(SLOTS), model.n_layers, model.n_heads, dtype=torch.float64)
    whole = whole_vocabulary(metric)
    with findings.timed("attribute"), ready(model), progress("attributing", total=len(tokens)) as advance:
        for batch in batches(tokens, node_bytes_per_token(model), graph_bytes(model.device)):
            patched = patched_results(model, batch)
            left_out = _LeftOut()
            edits = left_out.edits(model) if drops else NO_EDITS
            clean = run(model, batch.clean, batch, edits=edits, whole_vocabulary=whole)
            at = chosen_positions(batch, inputs.settings.positions)
            differences = [ours.detach() - theirs for ours, theirs in zip(clean.z, patched, strict=True)]
            if at is not None:
                differences = [each * at.to(each) for each in differences]
            loss = measure(metric, batch, clean.logits).sum()
            found: list[Tensor] = []
            for layer in range(model.n_layers) if drops else (None,):
                left_out.layer = layer
                gradients = torch.autograd.grad(loss, clean.z, retain_graph=drops)
                effect = _products(differences, gradients, model.n_heads)
                if layer is not None:
                    effect[:, layer] = 0
                    effect = effect.abs() / (model.n_layers - 1)
                found = [sum(found, effect)]
            effects[torch.tensor(batch.rows)] = found[0].permute(2, 0, 1, 3).cpu()
            advance(len(batch.rows))
    findings.set_by_pair(ByPair(effects, lambda values: values.mean(0).abs().sum(0)))
    if not drops:
        findings.signed = effects.mean(0).sum(0).numpy()
    return findings


def _products(
    differences: list[Tensor], gradients: Sequence[Tensor], n_heads: int
) -> Float[Tensor, "slot n_layers batch n_heads"]:
    """Return them in float64, on the device of the first layer: to fetch each layer's would make the host wait."""
    home = differences[0].device
    products = [
        (difference.float() * gradient.float()).unflatten(-1, (n_heads, -1)).sum((2, 4)).to(home)
        for difference, gradient in zip(differences, gradients, strict=True)
    ]
    return torch.stack(products).double().transpose(0, 1)


class _LeftOut:
    """The layer through which no gradient flows back, but past it."""

    def __init__(self) -> None:
        self.layer: int | None = None

    def edits(self, model: Model) -> Edits:
        """Return edits that change nothing on the way forward."""

        def of(layer: int) -> Edit:
            def drop(gradient: Tensor) -> Tensor | None:
                return torch.zeros_like(gradient) if self.layer == layer else None

            def watch(x: Tensor) -> Tensor:
                x.register_hook(drop)
                return x

            return watch

        layers = {layer: of(layer) for layer in range(model.n_layers)}
        return Edits(z=layers, mlp=layers)


def patched_results(model: Model, batch: Batch) -> list[Float[Tensor, "slot batch seq n_heads*d_head"]]:
    """Return every layer's head results on the clean prompts with the queries, the keys or the values of that layer
    alone as on the corrupted prompts.

    Each layer's attention is called again, with the arguments that it was given. Keys and values that several heads
    share change for all of them.
    """
    slots = Reads(model).slots  # refuses models in which they are not known
    corrupt: dict[tuple[int, nn.Module], Tensor] = {}
    found: list[list[Tensor]] = [[] for _ in model.layers]
    patching: str | None = None

    def keep(layer: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> None:
            corrupt[layer, module] = output

        return hook

    def put(layer: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def hook(module: nn.Module, _args: Any, output: Tensor) -> Tensor | None:
            if patching is None or slots[layer][patching][0] is not module:
                return None
            at = slot_columns(slots[layer][patching][1], output)
            output = output.clone()
            output[..., at] = corrupt[layer, module][..., at]
            return output

        return hook

    def again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _output: Any) -> None:
        nonlocal patching
        if patching is None:
            for slot in SLOTS:
                patching = slot
                module(*args, **kwargs)
            patching = None

    def take(layer: int, z: Tensor) -> None:
        if patching is not None:
            found[layer].append(z)

    with torch.no_grad():
        with ExitStack() as hooks:
            for layer, module in _modules(slots):
                hooks.callback(module.register_forward_hook(keep(layer)).remove)
            model.trace(batch.corrupt)
        with ExitStack() as hooks:
            for layer, module in _modules(slots):
                hooks.callback(module.register_forward_hook(put(layer)).remove)
            for layer in range(model.n_layers):
                hooks.callback(model.attention(layer).register_forward_hook(again, with_kwargs=True).remove)
            hooks.enter_context(capture_inputs(model.projections, take))
            model.trace(batch.clean)
    return [torch.stack(results) for results in found]


def _modules(slots: list[dict[str, tuple[nn.Module, Any]]]) -> list[tuple[int, nn.Module]]:
    """Return every layer's modules that make queries, keys or values, each once."""
    by_layer = [dict.fromkeys(module for module, _ in of_layer.values()) for of_layer in slots]
    return [(layer, module) for layer, modules in enumerate(by_layer) for module in modules]
