"""What a task is, and the one loop that builds every task's pairs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from headcodes.errors import HeadcodesError
from headcodes.prompts.pairs import PromptPair, PromptPairs
from headcodes.prompts.tokens import Tokenizer, continuation_ids
from headcodes.settings import MOST_PROMPTS

Draw = Callable[[random.Random], PromptPair]

# This many draws in a row without a new usable pair, and the task is taken to have no more.
_PATIENCE = 2000


@dataclass(frozen=True)
class Task:
    """A behaviour, as a source of prompt pairs.

    Attributes:
        id: its name on the command line.
        summary: one line.
        negatives: its kinds of corrupted prompt; the first is the default.
        source: where the task comes from.
        prepare: ``prepare(tokenizer, negative)`` looks at the tokenizer once and returns what draws one pair
            from a random generator. Raises HeadcodesError where the tokenizer cannot carry the task.
    """

    id: str
    summary: str
    negatives: tuple[str, ...]
    source: str
    prepare: Callable[[Tokenizer, str], Draw] = field(repr=False)

    def build(self, tokenizer: Tokenizer, n: int, seed: int = 0, negative: str | None = None) -> PromptPairs:
        """Draw ``n`` pairs, the same ones for the same tokenizer, seed and negative.

        Clean and corrupted prompts of a pair have equally many tokens and every answer is one token. No pair
        comes twice until the task has no more; then they repeat.

        Raises:
            HeadcodesError: ``n`` below 1, an unknown negative, or a tokenizer that cannot carry the task.
        """
        negative = self.negatives[0] if negative is None else negative
        if negative not in self.negatives:
            raise HeadcodesError(
                f"the negative of task {self.id} must be a known one",
                repr(negative),
                f"Choose from {', '.join(self.negatives)}.",
            )
        if not 1 <= n <= MOST_PROMPTS:
            must = f"the number of prompts must be at least 1 and at most {MOST_PROMPTS:,}"
            raise HeadcodesError(must, str(n)[:40], "250 are usual.")
        draw = self.prepare(tokenizer, negative)
        rng = random.Random(seed)
        pairs: dict[PromptPair, None] = {}
        misses = 0
        while len(pairs) < n and misses < _PATIENCE:
            pair = draw(rng)
            if pair in pairs or not _carried(tokenizer, pair):
                misses += 1
            else:
                pairs[pair] = None
                misses = 0
        if not pairs:
            raise cannot_carry(self.id, "no pair has equally many tokens on both sides")
        found = list(pairs)
        return PromptPairs(tuple(found[i % len(found)] for i in range(n)), self.id, negative)


def cannot_carry(task_id: str, reason: str) -> HeadcodesError:
    """Return the error for a tokenizer that the task cannot be asked through."""
    return HeadcodesError(
        f"the tokenizer must carry the task {task_id}",
        f"one with which {reason}",
        "Use another task or model.",
    )


def single_tokens(tokenizer: Tokenizer, words: tuple[str, ...]) -> tuple[str, ...]:
    """Return those words that continue a prompt as one known token."""
    kept = []
    for word in words:
        ids = continuation_ids(tokenizer, word)
        if len(ids) == 1 and not _unknown(tokenizer, ids):
            kept.append(word)
    return tuple(kept)


def _unknown(tokenizer: Tokenizer, ids: list[int]) -> bool:
    unknown = tokenizer.unk_token_id
    return unknown is not None and unknown not in (tokenizer.bos_token_id, tokenizer.eos_token_id) and unknown in ids


def _carried(tokenizer: Tokenizer, pair: PromptPair) -> bool:
    clean, corrupt = (tokenizer.encode(text, add_special_tokens=False) for text in (pair.clean, pair.corrupt))
    return len(clean) == len(corrupt) and clean != corrupt and not _unknown(tokenizer, clean + corrupt)
