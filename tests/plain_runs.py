"""Patching spelled out: whole forward passes with hooks of the tests' own, one run at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import made_pairs
from headcodes.models.model import Model
from headcodes.prompts.tokens import TokenPairs

FAMILIES = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")


# Effects of random weights are of the order of .1; the tolerance is of fp32 rounding on logits of the order of 1.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


# Pairs of two lengths and three first changed places, one of them the very first token.
token_pairs = partial(
    made_pairs.token_pairs,
    lengths=(9, 9, 6, 9, 6),
    places=((4, 6), (4, 6), (0, 2), (8,), (2, 4)),
    n_right=(1, 2),
    n_wrong=(1, 2, 3),
)


def answered(model: Model, tokens: TokenPairs) -> TokenPairs:
    """Swap the answers of pairs that the model gets wrong: every pair is then answered."""
    right, wrong = [], []
    for index in range(len(tokens)):
        swap = plain_ld(model, tokens, index, tokens.clean[index]) < 0
        right.append(tokens.wrong_answers[index] if swap else tokens.answers[index])
        wrong.append(tokens.answers[index] if swap else tokens.wrong_answers[index])
    return TokenPairs(tokens.clean, tokens.corrupt, right, wrong, tokens.bos, tokens.pairs)


def plain_ld(
    model: Model,
    tokens: TokenPairs,
    index: int,
    ids: list[int],
    edits: dict[Any, Callable[[Any], Any]] | None = None,
    after: dict[Any, Callable[[Any], Any]] | None = None,
) -> float:
    """Run the whole model once; ``edits`` change modules' inputs, ``after`` their outputs."""
    handles = [
        module.register_forward_pre_hook(lambda _m, args, edit=edit: (edit(args[0].clone()), *args[1:]))
        for module, edit in (edits or {}).items()
    ]
    handles += [
        module.register_forward_hook(lambda _m, _a, out, edit=edit: edit(out.clone()))
        for module, edit in (after or {}).items()
    ]
    try:
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    finally:
        for handle in handles:
            handle.remove()
    right, wrong = logits[tokens.answers[index]], logits[tokens.wrong_answers[index]]
    return float(right.logsumexp(0) - wrong.logsumexp(0))


def seen(model: Model, ids: list[int], modules: list[Any], which: str = "input") -> list[torch.Tensor]:
    """Inputs or outputs of modules in a plain run."""
    kept: dict[int, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _m, args, out, i=i: kept.__setitem__(i, (args[0] if which == "input" else out).clone())
        )
        for i, module in enumerate(modules)
    ]
    with torch.no_grad():
        model.module(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return [kept[i] for i in range(len(modules))]
