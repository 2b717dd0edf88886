"""Prompt pairs made ready for one model: negatives, chat template, tokens, and the wrong answers it would give."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from headcodes.errors import HeadcodesError
from headcodes.models.hooks import as_found
from headcodes.models.model import Model
from headcodes.progress import progress
from headcodes.prompts.chat import render_chat
from headcodes.prompts.negatives import Corrupt, make_negatives
from headcodes.prompts.pairs import PromptPairs
from headcodes.prompts.rows import Reading, RowError, settle
from headcodes.prompts.task_check import logit_difference
from headcodes.prompts.tokens import TokenPairs, continuation_ids, n_shared, tokenize
from headcodes.settings import SharedSettings

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_AT_ONCE = 32


def ask(
    model: Model,
    pairs: PromptPairs,
    bos: str = "auto",
    *,
    corrupt: Corrupt | None = None,
    chat: bool = False,
    system: str | None = None,
    seed: int = 0,
    skip_bad: bool = False,
) -> TokenPairs:
    """Turn prompt pairs into the tokens that a model is asked with.

    Pairs without wrong answers get the model's own best other token: the likeliest one after the clean prompt that no
    right answer begins with. Where negatives are made here, it is checked that they change the model's answer: a pair
    that it answers right and whose corrupted prompt gets the same answer is refused.

    Args:
        model: asked for the wrong answers, and whether made negatives change its answer.
        pairs: as read; of built-in tasks too.
        bos: see ``tokenize``; a chat template decides about BOS itself where it is "auto".
        corrupt: how negatives are made (``headcodes.prompts.negatives``); None: the pairs have them.
        chat: whether to render the prompts by the tokenizer's chat template.
        system: the system message of a chat.
        seed: of made negatives.
        skip_bad: leave pairs out that cannot be used; ``tokens.pairs.reading`` lists them.

    Raises:
        HeadcodesError: a pair that cannot be used, and as ``tokenize``, ``make_negatives`` and ``render_chat``.
    """
    for value, kind, mend in (
        (model, Model, "Pass what load_model(...) returns: load_model(model, tokenizer=tokenizer) for one in memory."),
        (pairs, PromptPairs, "Read a file with read_prompts(path), or build a task."),
    ):
        if not isinstance(value, kind):
            raise HeadcodesError(
                f"What is asked must be a {kind.__name__}", f"a {type(value).__module__}.{type(value).__name__}", mend
            )
    if model.tokenizer is None:
        raise HeadcodesError(
            "A model must have a tokenizer to read prompts with", "none", "Pass it: load_model(model, tokenizer=...)."
        )
    if corrupt is not None:
        pairs = make_negatives(pairs, model.tokenizer, corrupt, seed, skip_bad=skip_bad)
    if chat:
        pairs = render_chat(pairs, model.tokenizer, system)
        bos = "no" if bos == "auto" else bos
    tokens = tokenize(pairs, model.tokenizer, bos, skip_bad=skip_bad, needs_wrong=False, warn=not chat)
    if not all(tokens.wrong_answers):
        tokens = _with_best_others(model, tokens)
    return tokens if corrupt is None else _changed(model, tokens, skip_bad)


def ask_as(model: Model, pairs: PromptPairs, settings: SharedSettings, seed: int) -> TokenPairs:
    """``ask`` as settings ask for it."""
    return ask(
        model,
        pairs,
        settings.bos,
        corrupt=cast("Corrupt | None", settings.corrupt or None),
        chat=settings.chat,
        system=settings.system or None,
        seed=seed,
        skip_bad=settings.skip_bad,
    )


def whole_answer_differences(model: Model, tokens: TokenPairs) -> Float[np.ndarray, " n_pairs"]:
    """Return, in nats and float64, how much likelier the right answers are than the wrong ones as whole sequences.

    log of the summed probability of all right answers less log of that of all wrong ones, each answer's probability
    being the product over its tokens after the clean prompt.
    """
    found = np.empty(len(tokens))
    rows, places, owners = [], [], []
    for index, pair in enumerate(tokens.pairs):
        sides = [
            [[answer] if isinstance(answer, int) else continuation_ids(model.tokenizer, answer) for answer in side]
            for side in (pair.answers, pair.wrong_answers)
        ]
        shared = n_shared(*sides)
        for right, side in zip((True, False), sides, strict=True):
            for ids in side:
                rows.append(tokens.clean[index] + ids[shared:])
                places.append(len(tokens.clean[index]))
                owners.append((index, right))
    likely: dict[tuple[int, bool], list[Tensor]] = {}
    for row, log_p in _log_probabilities(model, rows, places):
        likely.setdefault(owners[row], []).append(log_p)
    for index in range(len(tokens)):
        found[index] = float(logit_difference(*(torch.stack(likely[index, side]) for side in (True, False))))
    return found


def _log_probabilities(model: Model, rows: Sequence[list[int]], places: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """Yield each row's number and the log-probability, float64, of its tokens from ``places`` on."""
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), row))
    with as_found(model.module), torch.inference_mode():
        for first in range(0, len(order), _AT_ONCE):
            some = order[first : first + _AT_ONCE]
            at = [(i, p - 1) for i, row in enumerate(some) for p in range(places[row], len(rows[row]))]
            logits = model.trace(_padded([rows[row] for row in some]), logits_at=torch.tensor(at))
            assert logits is not None
            following = torch.tensor([rows[some[i]][p + 1] for i, p in at], device=logits.device)
            picked = logits.double().log_softmax(-1).gather(1, following[:, None])[:, 0].cpu()
            for row, log_p in zip(some, picked.split([len(rows[r]) - places[r] for r in some]), strict=True):
                yield row, log_p.sum()


def _last_logits(model: Model, prompts: Sequence[list[int]]) -> Iterator[tuple[int, Float[Tensor, " d_vocab"]]]:
    """Yield each prompt's number and the fp32 logits of all tokens after it."""
    order = sorted(range(len(prompts)), key=lambda row: (len(prompts[row]), row))
    with as_found(model.module), torch.inference_mode(), progress("asking", total=len(prompts)) as advance:
        for first in range(0, len(order), _AT_ONCE):
            some = [prompts[row] for row in order[first : first + _AT_ONCE]]
            logits = model.trace(_padded(some), logits_at=torch.tensor([len(ids) - 1 for ids in some]))
            assert logits is not None
            yield from zip(order[first : first + _AT_ONCE], logits, strict=True)
            advance(len(some))


def _padded(rows: Sequence[list[int]]) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows])


def _with_best_others(model: Model, tokens: TokenPairs) -> TokenPairs:
    missing = [index for index, wrong in enumerate(tokens.wrong_answers) if not wrong]
    wrong = list(tokens.wrong_answers)
    made = list(tokens.pairs.pairs)
    for place, logits in _last_logits(model, [tokens.clean[index] for index in missing]):
        index = missing[place]
        others = logits.clone()
        others[torch.tensor(tokens.answers[index], device=logits.device)] = -torch.inf
        wrong[index] = [int(others.argmax())]
        made[index] = replace(made[index], wrong_answers=(wrong[index][0],))
    decode = getattr(model.tokenizer, "decode", str)
    often = Counter(wrong[index][0] for index in missing).most_common(3)
    commonest = ", ".join(f"{decode([token])!r} ({n:,} times)" for token, n in often)
    note = f"wrong answers of {len(missing):,} rows are the model's own best other tokens: most often {commonest}"
    pairs = tokens.pairs
    reading = (pairs.reading or Reading("prompts", len(pairs))).also(note)
    return replace(tokens, wrong_answers=wrong, pairs=PromptPairs(tuple(made), pairs.task, pairs.negative, reading))


def _changed(model: Model, tokens: TokenPairs, skip_bad: bool) -> TokenPairs:
    """Refuse pairs whose made negative gets the answer of its clean prompt."""
    n, better = len(tokens), np.zeros(2 * len(tokens))
    for row, logits in _last_logits(model, tokens.clean + tokens.corrupt):
        sides = (logits[side].double() for side in (tokens.answers[row % n], tokens.wrong_answers[row % n]))
        better[row] = float(logit_difference(*sides))
    same = np.flatnonzero((better[:n] > 0) & (better[n:] > 0))
    faults = []
    for index in same.tolist():
        where = tokens.pairs[index].where or f"prompt {index}"
        error = RowError(
            f"a made negative must change the model's answer, and that of {where} does not",
            f"the right answer ahead by {better[index]:.2f} in logits on the clean prompt,"
            f" by {better[n + index]:.2f} on the corrupted one",
            "Give corrupted prompts of your own, or make them in another way.",
            "whose made negative changes no answer",
        )
        faults.append((where, error))
    left_out = settle(faults, n, skip_bad=skip_bad)
    pairs = tokens.pairs
    n_right = int((better[:n] > 0).sum())
    share = f"{n_right - len(same):,} of the {n_right:,} pairs it gets right"
    note = f"the made negatives change the model's answer in {share}"
    reading = (pairs.reading or Reading("prompts", n)).also(note, left_out=left_out)
    tokens = replace(tokens, pairs=PromptPairs(pairs.pairs, pairs.task, pairs.negative, reading))
    return tokens.subset(index for index in range(n) if index not in set(same.tolist())) if left_out else tokens
