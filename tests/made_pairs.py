"""Prompt pairs of random tokens, for tests that need a model's numbers and no words."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from headcodes.models.model import Model
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import TokenPairs

Ids = list[list[int]]


def made(clean: Ids, corrupt: Ids, right: Ids, wrong: Ids) -> TokenPairs:
    """These tokens as pairs of a task called "made"."""
    rows = tuple(PromptPair(f"c{i}", f"d{i}", ("a",), ("b",)) for i in range(len(clean)))
    return TokenPairs(clean, corrupt, right, wrong, False, PromptPairs(rows, "made", "up"))


def changed(ids: list[int], places: Sequence[int] = (2,), n_vocab: int = 200) -> list[int]:
    """The same prompt with other tokens at some places; 0 to 2 are special tokens and never come up."""
    return [(token + 2) % (n_vocab - 3) + 3 if place in places else token for place, token in enumerate(ids)]


def token_pairs(
    n: int = 5,
    seed: int = 0,
    *,
    lengths: Sequence[int] = (8, 7, 6),
    places: Sequence[Sequence[int]] = ((2,),),
    n_right: Sequence[int] = (1,),
    n_wrong: Sequence[int] = (2,),
    n_vocab: int = 200,
) -> TokenPairs:
    """``n`` pairs; pair i takes entry i, counted round, of each sequence: tokens, changed places, answers."""
    draw = np.random.default_rng(seed)
    clean, corrupt, right, wrong = [], [], [], []
    for i in range(n):
        ids = draw.integers(3, n_vocab, size=lengths[i % len(lengths)]).tolist()
        n_first, n_second = n_right[i % len(n_right)], n_wrong[i % len(n_wrong)]
        answers = draw.choice(np.arange(3, n_vocab), size=n_first + n_second, replace=False).tolist()
        clean.append(ids)
        corrupt.append(changed(ids, places[i % len(places)], n_vocab))
        right.append(answers[:n_first])
        wrong.append(answers[n_first:])
    return made(clean, corrupt, right, wrong)


# Pairs of two lengths that change at one token, in one of them at the first.
one_change = partial(
    token_pairs, lengths=(9, 9, 6, 9, 6), places=((4,), (4,), (0,), (8,), (2,)), n_right=(1, 2), n_wrong=(1, 2, 3)
)


def flipped(model: Model, tokens: TokenPairs) -> TokenPairs:
    """The same with answers such that the model is right."""
    right, wrong = [], []
    for prompt, answers, others in zip(tokens.clean, tokens.answers, tokens.wrong_answers, strict=True):
        with torch.no_grad():
            logits = model.module(input_ids=torch.tensor([prompt])).logits[0, -1]
        good = bool(logits[answers].logsumexp(0) > logits[others].logsumexp(0))
        right.append(answers if good else others)
        wrong.append(others if good else answers)
    return TokenPairs(tokens.clean, tokens.corrupt, right, wrong, tokens.bos, tokens.pairs)


# For tiny models of 97 tokens.
PROMPTS = [[5, 70, 31, 41, 9, 62], [5, 70, 31, 41, 9, 8], [8, 9, 10, 11]]


def from_clean(clean: list[list[int]]) -> TokenPairs:
    """Return pairs of clean prompts and of these with a token changed, for tiny models of 97 tokens."""
    corrupt = [changed(ids, n_vocab=97) for ids in clean]
    return made(clean, corrupt, [[3, 4]] * len(clean), [[5, 6, 7]] * len(clean))
