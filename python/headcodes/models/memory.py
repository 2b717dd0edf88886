"""Working memory of a batch, beside weights and results: how much it may take, and how much a token of it takes.

What a batch may take follows from the device, not from what is free on it, so that the same call gives the same bits
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from headcodes.models.relied import attention_way

if TYPE_CHECKING:
    from headcodes.models.model import Model

# Enough to fill the device's arithmetic; more only pushes intermediates out of a CPU's caches.
_CPU_BATCH_BYTES = 1 << 26
_GPU_BATCH_BYTES = 1 << 30
# Of a GPU's memory, what one forward pass may take; a power of two, so that devices that differ by a little batch
# alike.
_GPU_SHARE = 16
# A graph that is kept is mostly read once, on the way back: caches matter less, and fewer passes more.
_CPU_GRAPH_BYTES = 1 << 30
# On any device: the keys and values of what comes before the first changed token are held beside it, and grow with it.
EDITED_BYTES = 1 << 27
# Of runs that further edits start from: what is kept of them, all together. Beyond it they are made again.
BASE_BYTES = 1 << 30


def batch_bytes(device: torch.device) -> int:
    """Return the memory of one forward pass to aim at: of a GPU, a share of all it has."""
    if device.type == "cpu":
        return _CPU_BATCH_BYTES
    _, total = torch.get_device_module(device).mem_get_info(device)
    return max(_GPU_BATCH_BYTES, 1 << int(total // _GPU_SHARE).bit_length() - 1)


def graph_bytes(device: torch.device) -> int:
    """Return the memory of a batch whose graph is kept to aim at: on a GPU twice what one forward pass may take."""
    return _CPU_GRAPH_BYTES if device.type == "cpu" else 2 * batch_bytes(device)


def bytes_per_token(model: Model) -> int:
    """Estimate what one token of a forward pass holds at a time: a layer's widest intermediates, and z in fp32."""
    widest = max((max(part.shape) for part in model.layers[0].parameters() if part.ndim == 2), default=model.d_model)
    n_columns = model.n_heads * model.d_head
    return int(_per_value(model) * (6 * model.d_model + 4 * widest + 3 * n_columns) + 4 * n_columns)


def edited_bytes_per_token(model: Model) -> int:
    """Estimate what a token of one layer holds at a time: residual stream, queries to results, MLP intermediates."""
    return _per_value(model) * (6 * model.d_model + 3 * _widest(model) + 4 * model.n_heads * model.d_head)


def base_bytes_per_token(model: Model) -> int:
    """Return what is kept of a token of a pair for edits to start from: what enters every layer, and the head results
    there, clean and corrupted."""
    return 2 * _per_value(model) * model.n_layers * (model.d_model + model.n_heads * model.d_head)


def node_bytes_per_token(model: Model) -> int:
    """Estimate what one token of a pair holds: a forward pass whose graph is kept, the corrupted run beside it."""
    per_layer = 8 * model.d_model + _in_mlp(model) + 8 * model.n_heads * model.d_head
    return _per_value(model) * model.n_layers * per_layer


def kept_bytes_per_token(model: Model) -> int:
    """Estimate the same where the graph is made a layer at a time: what enters every layer, the parts of both runs, the
    gradients there, and one layer's graph with the gradients on their way through it."""
    per_layer = 4 * model.d_model + 3 * model.n_heads * model.d_head
    return _per_value(model) * model.n_layers * per_layer + 2 * node_bytes_per_token(model) // model.n_layers


def parts_bytes_per_token(model: Model) -> int:
    """Return what one token of one run's parts takes: head results and MLP outputs of every layer."""
    return _per_value(model) * model.n_layers * (model.d_model + model.n_heads * model.d_head)


def pattern_bytes(model: Model, n_tokens: int) -> int:
    """Estimate what one layer's attention of one prompt takes where its weights are made whole: scores, weights, and
    the gradients of both."""
    return 4 * _per_value(model) * int(model.n_heads) * n_tokens**2


def kept_pattern_bytes(model: Model, n_tokens: int) -> int:
    """Estimate what a graph of all layers keeps of one prompt's attention: nothing where it is worked out in blocks;
    scores and weights of every layer, in fp32, where it is made whole, and the gradients of both in one."""
    # Where all heads share one's keys and values, more is held in low precision than in fp32.
    shared = model.n_kv_heads == 1 < model.n_heads and model.dtype != torch.float32
    if attention_way(model) != "eager" and not shared:
        return 0
    return (model.n_layers + 1) * 2 * 4 * int(model.n_heads) * n_tokens**2


def _per_value(model: Model) -> int:
    return torch.empty(0, dtype=model.dtype).element_size()


def _widest(model: Model) -> int:
    """Return the width of a layer's MLP, or of whatever is widest in it, at least four times that of the stream."""
    widest = max((part.shape[-1] for part in model.layers[0].parameters() if part.ndim == 2), default=0)
    return max(int(widest), 4 * model.d_model)


def _in_mlp(model: Model) -> int:
    """Return how many numbers a graph keeps of one token in a layer's MLP: four tensors of its width; with experts, of
    each that a token goes to four of its width, and what it is given and puts out, twice."""
    return max(4 * _widest(model), *(_in_experts(model, layer) for layer in range(model.n_layers)))


def _in_experts(model: Model, layer: int) -> int:
    # transformers holds a layer's experts in one tensor, [expert, ., .].
    stacks = [part for part in model.layers[layer].parameters() if part.ndim == 3 and model.d_model in part.shape[1:]]
    if not stacks:
        return 0
    width = min(sum(part.shape[1:]) - model.d_model for part in stacks)
    config: Any = getattr(model.module, "config", None)
    names = ("num_experts_per_tok", "moe_k", "moe_topk", "moe_top_k", "top_k_experts")
    taken = [getattr(config.get_text_config(), name, None) for name in names] if config is not None else []
    each = next((number for number in taken if isinstance(number, int)), len(stacks[0]))
    return each * (4 * width + 4 * model.d_model)
