"""Corrupted prompts made from the rows of a file that has none."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from headcodes.errors import HeadcodesError
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.rows import Reading, RowError, settle
from headcodes.prompts.tokens import Tokenizer

Corrupt = Literal["swap", "shuffle", "other"]

_HOW = {
    "swap": "rows of as many tokens and another answer are exchanged two and two",
    "shuffle": "the words of each prompt are put in another order",
    "other": "another row of as many tokens and another answer, drawn at random",
}
_TRIES = 100


def make_negatives(
    pairs: PromptPairs, tokenizer: Tokenizer, how: Corrupt, seed: int = 0, *, skip_bad: bool = False
) -> PromptPairs:
    """Give every pair a corrupted prompt of as many tokens as its clean one.

    Where a pair has no wrong answers, the right ones of the row that its corrupted prompt comes from are wrong for it
    (not with "shuffle"). Whether the model's answer changes is not looked at here: ``headcodes.models.asked`` does.

    Args:
        pairs: their ``corrupt`` is not read.
        tokenizer: counts tokens.
        how: "swap" exchanges rows two and two, so that every prompt is once a negative; "other" draws another row of
            as many tokens and another answer for each; "shuffle" puts the words of the prompt itself in another order.
        seed: of what is drawn.
        skip_bad: leave rows out for which there is no negative.

    Raises:
        HeadcodesError: another ``how``, or rows for which there is no negative.
    """
    if how not in _HOW:
        raise HeadcodesError(f"negatives must be made by {', '.join(_HOW)}", repr(how), "Choose one of them.")
    rng = random.Random(seed)
    lengths = [len(tokenizer.encode(pair.clean, add_special_tokens=False)) for pair in pairs]
    made: list[PromptPair | None]
    if how == "shuffle":
        made = [_shuffled(pair, n, tokenizer, rng) for pair, n in zip(pairs, lengths, strict=True)]
    else:
        groups: dict[int, list[int]] = defaultdict(list)
        for index, length in enumerate(lengths):
            groups[length].append(index)
        partners: dict[int, int] = {}
        for group in groups.values():
            rng.shuffle(group)
            partners |= (_swapped if how == "swap" else _others)(pairs, group, rng)
        made = [_with(pair, pairs[partners[i]]) if i in partners else None for i, pair in enumerate(pairs)]
    faults = []
    for index, (pair, found) in enumerate(zip(pairs, made, strict=True)):
        if found is None:
            where = pair.where or f"prompt {index}"
            what = "an order of its words" if how == "shuffle" else "a row with another answer"
            error = RowError(
                f"there must be {what} of as many tokens for a negative of {where} by {how}",
                "none",
                "Add rows, or make negatives in another way.",
                "without a negative of as many tokens",
            )
            faults.append((where, error))
    left_out = settle(faults, len(pairs), skip_bad=skip_bad)
    reading = (pairs.reading or Reading("prompts", len(pairs))).also(f"negatives: {_HOW[how]}", left_out=left_out)
    return PromptPairs(tuple(pair for pair in made if pair is not None), pairs.task, how, reading)


def _differ(one: PromptPair, other: PromptPair) -> bool:
    return one.clean != other.clean and not set(one.answers) & set(other.answers)


def _swapped(pairs: Sequence[PromptPair], group: list[int], rng: random.Random) -> dict[int, int]:
    free = list(group)
    partners: dict[int, int] = {}
    while free:
        one = free.pop()
        for place, other in enumerate(free):
            if _differ(pairs[one], pairs[other]):
                partners |= {one: other, other: one}
                del free[place]
                break
    return partners


def _others(pairs: Sequence[PromptPair], group: list[int], rng: random.Random) -> dict[int, int]:
    partners: dict[int, int] = {}
    for one in group:
        start = rng.randrange(len(group))
        fitting = (other for other in group[start:] + group[:start] if _differ(pairs[one], pairs[other]))
        if (other := next(fitting, None)) is not None:
            partners[one] = other
    return partners


def _with(pair: PromptPair, other: PromptPair) -> PromptPair:
    wrong = pair.wrong_answers or other.answers
    return replace(pair, corrupt=other.clean, corrupt_spans=other.clean_spans, wrong_answers=wrong)


def _shuffled(pair: PromptPair, n_tokens: int, tokenizer: Tokenizer, rng: random.Random) -> PromptPair | None:
    words = pair.clean.split(" ")
    for _ in range(_TRIES):
        rng.shuffle(words)
        text = " ".join(words)
        if text != pair.clean and len(tokenizer.encode(text, add_special_tokens=False)) == n_tokens:
            return replace(pair, corrupt=text)
    return None
