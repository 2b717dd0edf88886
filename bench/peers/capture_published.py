"""The published way of reading heads: one prompt at a time, everything cached, every head's result stacked.

O'Neill & Bui 2024, arXiv 2405.12522, read their models by TransformerLens: ``run_with_cache`` on one prompt keeps every
activation that has a hook and computes the logits; ``stack_head_results`` then forms every head's output
[n_component, seq, d_model]; the mean over the sequence is kept. fp32, as published. Slow on purpose: timings elsewhere
are ratios to this file, so it stays as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def bridged(name: str, module: Any, tokenizer: Any) -> Any:
    """Return TransformerLens's form of a model, which is left alone."""
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(name, hf_model=copy.deepcopy(module), tokenizer=tokenizer)


def capture_by_transformer_lens(bridge: Any, tokens: Sequence[Sequence[int]]) -> tuple[Tensor, list[Tensor]]:
    """Do it by the authors' own two calls, which TransformerLens 4 still has.

    Returns:
        The heads' mean outputs [n_prompt, n_component, d_model] and the logits [d_vocab] after each prompt.
    """
    rows, logits = [], []
    for ids in tokens:
        with torch.no_grad():
            output, cache = bridge.run_with_cache(torch.tensor([list(ids)]))
            rows.append(cache.stack_head_results(layer=-1)[:, 0].mean(1))
        logits.append(output[0, -1])
    return torch.stack(rows), logits


def capture_by_hooks(
    model: Any, projections: Sequence[Any], n_heads: int, tokens: Sequence[Sequence[int]]
) -> tuple[Tensor, list[Tensor]]:
    """Do the same by plain hooks on the model of transformers: inputs and outputs of every module are kept.

    TransformerLens also keeps attention scores and patterns, and takes slower paths to get them: this peer is milder
    than the original. It returns the same.
    """
    rows, logits = [], []
    for ids in tokens:
        cache: dict[int, tuple[Tensor, ...]] = {}

        def keep(module: Any, args: Any, output: Any, cache: dict[int, tuple[Tensor, ...]] = cache) -> None:
            parts = (*args, *(output if isinstance(output, tuple) else (output,)))
            cache[id(module)] = tuple(part.clone() for part in parts if isinstance(part, Tensor))

        hooks = [module.register_forward_hook(keep) for module in model.modules()]
        with torch.no_grad():
            output = model(torch.tensor([list(ids)])).logits[0]
        for hook in hooks:
            hook.remove()
        results = []
        for module in projections:
            z = cache[id(module)][0][0]
            weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
            z = z.view(len(ids), n_heads, -1)
            heads = weight.detach().view(n_heads, z.shape[2], -1)
            results.append((z[:, :, :, None] * heads[None]).sum(2))
        # [seq, n_component, d_model], then the mean over the sequence.
        rows.append(torch.cat(results, dim=1).mean(0))
        logits.append(output[-1])
    return torch.stack(rows), logits
