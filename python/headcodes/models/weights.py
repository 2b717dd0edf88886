"""The layers that hold weights, whatever wraps them, and the linear maps that they compute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from headcodes.errors import HeadcodesError
from headcodes.models.hooks import as_found

if TYPE_CHECKING:
    from jaxtyping import Float, Int

# Formats of quantised weights, as transformers names them, that the tests hold to the same sums as plain ones.
_TRIED = ("bitsandbytes", "torchao", "compressed-tensors")
# Rounding of a product in the module's dtype; weights stored in eight bits or fewer round their inputs too.
_PLAIN_ROUNDING, _QUANTISED_ROUNDING = 16, 0.05


def weights_of(module: nn.Module) -> Any:
    """Return the layer of weights itself: TransformerBridge wraps it."""
    return getattr(module, "original_component", None) or module


def is_bridge(module: object) -> bool:
    """Whether a user handed us a TransformerBridge; if TransformerLens was never imported, it is none."""
    lens = sys.modules.get("transformer_lens.model_bridge")
    return lens is not None and isinstance(module, lens.TransformerBridge)


@contextmanager
def weights_present(module: nn.Module) -> Iterator[Any]:
    """Bring weights that accelerate has moved to CPU memory or disk onto their device for a moment."""
    if getattr(module, "_hf_hook", None) is None:
        yield module
        return
    from accelerate.utils import align_module_device

    with align_module_device(module):
        yield module


def unembedding(
    unembed: nn.Module, ids: Int[Tensor, " n_vocab"] | None
) -> tuple[Float[Tensor, "n_vocab d_model"], Float[Tensor, " n_vocab"] | None]:
    """Return in fp32 what some tokens (or all) are unembedded by, and the bias if there is one, offloaded or not."""
    linear = weights_of(unembed)
    with weights_present(linear):
        chosen = slice(None) if ids is None else ids.to(linear.weight.device)
        bias = getattr(linear, "bias", None)
        return linear.weight[chosen].float(), None if bias is None else bias[chosen].float()


def unembedded(
    unembed: nn.Module, hidden: Float[Tensor, "*row d_model"], ids: Int[Tensor, " n_vocab"] | None, plain: bool
) -> Float[Tensor, "*row n_vocab"]:
    """Return fp32 logits of some tokens (or all): in fp32 from the weights where they are all that the unembedding does
    (``Facts.plain_unembedding``), else what it puts out itself."""
    if plain:
        weight, bias = unembedding(unembed, ids)
        # Tied to the embedding, the weights may lie on another device than the last block.
        return torch.nn.functional.linear(hidden.to(weight.device).float(), weight, bias)
    own: Tensor = unembed(hidden)
    return (own if ids is None else own[..., ids.to(own.device)]).float()


@contextmanager
def logits_only(unembed: nn.Module, at: Tensor, vocab: Tensor | None, plain: bool) -> Iterator[None]:
    """Let the model unembed only the (row, position)s ``at``, and, where its unembedding is ``plain``, only ``vocab``;
    a soft cap behind still applies."""

    def shrink(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = args[0]
        rows, positions = at.to(hidden.device).unbind(1)
        return (hidden[rows, positions][:, None], *args[1:])

    def replace(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return unembedded(module, args[0], vocab, True)

    with ExitStack() as hooks:
        hooks.callback(unembed.register_forward_pre_hook(shrink).remove)
        if vocab is not None and plain:
            hooks.callback(unembed.register_forward_hook(replace).remove)
        yield


def widths(module: nn.Module) -> tuple[int, int] | None:
    """Return how many numbers a linear layer reads and how many it puts out, or None where it does not say."""
    linear = weights_of(module)
    weight = getattr(linear, "weight", None)
    if hasattr(linear, "in_features") and hasattr(linear, "out_features"):
        return int(linear.in_features), int(linear.out_features)
    if isinstance(weight, Tensor) and weight.ndim == 2:
        n_in, n_out = weight.shape if _is_conv1d(linear) else weight.shape[::-1]
        return int(n_in), int(n_out)
    return None


def matrix_of(module: nn.Module) -> Float[Tensor, "n_in n_out"]:
    """Return the matrix W of a module that computes x -> x W + b, whatever kind it is.

    The weights themselves where torch's Linear or GPT-2's Conv1D holds them. Any other module (an adapter, quantised
    weights, a subclass) is asked for its answer to every unit vector: an adapter's W holds what the adapter adds.

    Raises:
        HeadcodesError: see ``check_affine``.
    """
    linear = weights_of(module)
    # A plain tensor wherever it is first asked for: autograd cannot use one made in inference mode.
    with torch.inference_mode(False), torch.no_grad():
        if _is_plain(linear):
            with weights_present(linear):
                # Offloaded weights leave again with this block.
                weight: Tensor = linear.weight.clone() if hasattr(linear, "_hf_hook") else linear.weight
                return weight if _is_conv1d(linear) else weight.T
        check_affine(module, type(module).__name__)
        dtype, device = _runs_in(linear)
        n_in = _read(linear, type(module).__name__)[0]
        with as_found(linear):
            rows = [
                _ask(linear, torch.eye(n_in, dtype=dtype, device=device)[start : start + 512])
                for start in range(0, n_in, 512)
            ]
            return torch.cat(rows) - _ask(linear, torch.zeros(1, n_in, dtype=dtype, device=device))


def check_affine(module: nn.Module, path: str) -> None:
    """Raise unless a module computes x W + b for some matrix W.

    Raises:
        HeadcodesError: it takes no tensor, or its answer to a sum is not the sum of its answers.
    """
    linear = weights_of(module)
    if _is_plain(linear):
        return
    n_in, _ = _read(linear, path)
    dtype, device = _runs_in(linear)
    generator = torch.Generator().manual_seed(0)
    pair = torch.randn(2, n_in, generator=generator)
    given = torch.cat([pair, pair.sum(0, keepdim=True), torch.zeros(1, n_in)]).to(device, dtype)
    try:
        with torch.inference_mode(False), torch.no_grad(), as_found(linear):
            first, second, both, none = _ask(linear, given).float()
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError, IndexError) as error:
        raise _not_affine(linear, path, str(error).splitlines()[0] if str(error) else type(error).__name__) from error
    size = torch.stack([first, second, both]).abs().max()
    bound = _QUANTISED_ROUNDING if is_quantised(linear) else _PLAIN_ROUNDING * torch.finfo(dtype).eps
    off = float((first + second - none - both).abs().max() / size.clamp_min(1e-30))
    if not off <= bound:
        raise _not_affine(linear, path, f"its answer to a sum is off the sum of its answers by {off:.2g} of it")


def is_quantised(module: nn.Module) -> bool:
    """Whether any of a module's tensors are whole numbers, floats of one byte, or of a kind of their own (torchao)."""
    tensors = [*module.parameters(), *module.buffers()]
    plain = (nn.Parameter, Tensor)
    return any(type(t) not in plain or not t.is_floating_point() or t.element_size() < 2 for t in tensors)


def unpack(model: nn.Module, config: Any) -> None:
    """Let a model whose weights are packed until its first pass (compressed-tensors) run over one token."""
    if _quant_method(config) == "compressed-tensors":
        with torch.no_grad():
            model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=next(model.parameters()).device))


def _quant_method(config: Any) -> str | None:
    kept = getattr(config, "quantization_config", None)
    if kept is None:
        return None
    method = kept.get("quant_method") if isinstance(kept, dict) else getattr(kept, "quant_method", None)
    return str(getattr(method, "value", method))


def refuse_format(module: nn.Module, config: Any, name: str) -> None:
    """Raise where a module's weights are kept in a format that was never tried.

    Raises:
        HeadcodesError: it names the format.
    """
    method = _quant_method(config)
    plain = hasattr(weights_of(module), "weight") and not is_quantised(module)
    if method is not None and not plain and method not in _TRIED:
        raise HeadcodesError(
            f"quantised weights must be of a format that was tried ({', '.join(_TRIED)})",
            f"{name}, in {method}",
            "Load the model's plain weights.",
        )


def _not_affine(linear: nn.Module, path: str, reason: str) -> HeadcodesError:
    adapter = hasattr(linear, "base_layer")
    return HeadcodesError(
        "An output projection must compute a linear map of its input",
        f"{type(linear).__module__}.{type(linear).__name__} at {path} ({reason})",
        "Call merge_and_unload() on the adapted model." if adapter else "Load the model's plain weights.",
    )


def _read(linear: Any, path: str) -> tuple[int, int]:
    found = widths(linear)
    if found is None:
        raise _not_affine(linear, path, "it does not say how many numbers it reads and puts out")
    return found


def _is_conv1d(linear: nn.Module) -> bool:
    """GPT-2's layer keeps its weights as [in, out], every other as [out, in]."""
    return type(linear).__name__ == "Conv1D"


def _is_plain(linear: Any) -> bool:
    """Whether ``weight`` is all there is to a module: a floating-point tensor that Linear or Conv1D multiplies by."""
    weight: Any = getattr(linear, "weight", None)
    if type(weight) not in (nn.Parameter, Tensor) or weight.ndim != 2 or not weight.is_floating_point():
        return False
    if weight.element_size() < 2 or ("forward" in vars(linear) and getattr(linear, "_hf_hook", None) is None):
        return False
    conv1d = _is_conv1d(linear) and type(linear).__module__ == "transformers.pytorch_utils"
    return conv1d or type(linear).forward is nn.Linear.forward


def _runs_in(linear: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and the device of a module's floating-point tensors of two bytes or more."""
    tensors = [*linear.parameters(), *linear.buffers()]
    floats = [part.dtype for part in tensors if part.is_floating_point() and part.element_size() > 1]
    compute = getattr(linear, "compute_dtype", None)
    device = next((part.device for part in tensors), torch.device("cpu"))
    return compute or (floats[0] if floats else torch.float32), device


def _ask(linear: Any, x: Tensor) -> Tensor:
    # Not by a call: that would also run hooks registered by others.
    found: Tensor = linear.forward(x)
    return found
