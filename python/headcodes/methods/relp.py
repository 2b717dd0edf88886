"""Relevance patching: EAP's products with gradients replaced by coefficients of layer-wise relevance propagation.

Rezaei Jafari et al. 2025, arXiv 2508.21258. Backward, and backward only, the model is replaced by one that is linear
around each prompt:

- LN rule: a norm keeps the scale that it has at each position, y = (x - mean?) * gain.
- Identity rule: an activation function multiplies by f(x) / x, taken as a constant (0 where x is 0).
- Half rule: of a gated MLP's product each factor gets half.
- AH rule (``relp-ah`` only): attention patterns are constants; nothing goes back through queries and keys.

Linear layers keep their weights (the paper's 0 rule). The values of the forward pass do not change. The paper lists
all of them; its authors' program applies the first three unless asked for the fourth, and so does their example on IOI.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.interventions.reads import Reads
from headcodes.methods import eap
from headcodes.methods.dla import FrozenNorm
from headcodes.models.hooks import as_found, edit_input, edit_output
from headcodes.models.slots import slot_columns
from headcodes.models.weights import widths

if TYPE_CHECKING:
    from headcodes.methods import Level
    from headcodes.methods.findings import Findings
    from headcodes.methods.inputs import Inputs
    from headcodes.models.model import Model

# A call of a module in one pass: the module, its input, its output.
Call = tuple[nn.Module, Tensor, Tensor]


def find(name: str, inputs: Inputs, level: Level, seed: int) -> Findings:
    """Score every head, MLP and the embedding by (u_clean - u_corrupt) . coefficient, summed over positions.

    Raises:
        HeadcodesError: clean and corrupted prompt of a pair differ in length; a model whose queries and keys, or whose
            MLPs' activation, gate and last layer, are not known.
    """
    with rules(inputs.model, inputs.tokens.clean[0], attention=name == "relp-ah"):
        return eap.find(name, inputs, level, seed)


@contextmanager
def rules(model: Model, prompt: list[int], *, attention: bool) -> Iterator[None]:
    """Let gradients be propagated by the rules while open.

    Args:
        prompt: token ids of any prompt, on which is looked how the MLPs are built.
        attention: the AH rule too.

    Raises:
        HeadcodesError: see ``find``.
    """
    slots = Reads(model).slots  # refuses models whose parts are not known
    mlps = [_mlp(model, layer, calls) for layer, calls in enumerate(_calls(model, prompt))]
    with ExitStack() as hooks:
        for norm in _norms(model):
            hooks.callback(norm.register_forward_hook(_keep_scale()).remove)
        for by_slot in slots if attention else ():
            for module, cut in (by_slot[slot] for slot in "qk"):
                hooks.enter_context(edit_output(module, _stop(cut)))
        for activation, gated in filter(None, mlps):
            hooks.callback(activation.register_forward_hook(_keep_slope).remove)
            if gated is not None:
                hooks.enter_context(edit_input(gated, _halve))
        yield


def _as_if(value: Tensor, linear: Tensor) -> Tensor:
    """Return ``value``, to the bit, with the gradient of ``linear``."""
    return value.detach() + (linear - linear.detach())


def _keep_scale() -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor | None]:
    centres: bool | None = None  # found once, since asking makes the host wait for a device

    def keep(norm: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        nonlocal centres
        if not torch.is_grad_enabled():
            return None
        x = args[0].to(output.device)
        frozen = FrozenNorm.of(norm, x.detach().flatten(0, -2), centres)
        centres = frozen.centres
        centred = x.float() - x.float().mean(-1, keepdim=True) if centres else x.float()
        return _as_if(output, (centred * frozen.gain.view(x.shape)).to(output.dtype))

    return keep


def _keep_slope(_activation: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    if not torch.is_grad_enabled():
        return None
    x, y = args[0], output.detach()
    slope = torch.where(x.detach() == 0, torch.zeros_like(y), y / x.detach())
    return _as_if(output, x * slope)


def _halve(product: Tensor) -> Tensor:
    return _as_if(product, product / 2) if torch.is_grad_enabled() else product


def _stop(cut: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def stop(output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return output
        kept = torch.ones_like(output[0, 0]).index_fill(0, slot_columns(cut, output), 0.0)
        return _as_if(output, output * kept)

    return stop


def _norms(model: Model) -> list[nn.Module]:
    """Return the norms on the way of the residual stream and of values, each module once."""
    assert model.final_norm is not None  # ``Reads`` knows what it reads
    inside = chain.from_iterable(block.modules() for block in model.layers)
    named = (part for part in inside if type(part).__name__.endswith("Norm"))
    return [*dict.fromkeys(part for part in (*named, model.final_norm) if not isinstance(part, nn.Identity))]


def _calls(model: Model, prompt: list[int]) -> list[list[Call]]:
    """Return what was called with and gave back one tensor, outside attention, in one pass; a list a layer."""
    found: list[list[Call]] = [[] for _ in model.layers]

    def note(layer: int) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                found[layer].append((module, args[0], output))

        return keep

    with ExitStack() as hooks, as_found(model.module), torch.no_grad():
        for layer, block in enumerate(model.layers):
            attention = set(model.attention(layer).modules())
            for part in set(block.modules()) - attention:
                hooks.callback(part.register_forward_hook(note(layer)).remove)
        model.trace(torch.tensor([prompt]))
    return found


def _mlp(model: Model, layer: int, calls: list[Call]) -> tuple[nn.Module, nn.Module | None] | None:
    """Return a layer's activation function and, where a gate multiplies it, the linear layer that reads the product;
    None where the layer has no MLP, or one that writes nothing (planted models).

    Raises:
        HeadcodesError: it has one that is built in another way: several experts, say.
    """
    mlp = model.mlp(layer)
    written = next((output for module, _, output in calls if module is mlp), None)
    if mlp is None or (written is not None and not written.any()):
        return None
    linear = [call for call in calls if widths(call[0]) is not None]
    last = [call for call in linear if written is not None and torch.equal(call[2], written)]
    functions = [
        call
        for call in calls
        if not any(True for _ in call[0].parameters())
        and not type(call[0]).__name__.endswith("Norm")  # OLMo's have no weights
        and call[1].shape == call[2].shape
        and not torch.equal(call[1], call[2])
    ]
    if len(functions) == 1 and last:
        module, _, activated = functions[0]
        down, read, _ = last[-1]
        if torch.equal(read, activated):
            return module, None
        # The other factor: a linear layer's output, or the second half of one that makes both.
        factors = [part for _, _, output in linear for part in (output, *output.chunk(2, -1))]
        if any(part.shape == read.shape and torch.allclose(part * activated, read) for part in factors):
            return module, down
    raise HeadcodesError(
        "relp must know an MLP's activation function, gate and last linear layer, whose rules it applies",
        f"layer {layer} of {model.name}, {type(mlp).__name__}",
        "Use eap, or another method.",
    )
