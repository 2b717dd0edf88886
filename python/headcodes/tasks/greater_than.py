"""Greater-than: "The war lasted from the year 1732 to the year 17" -> any number above 32.

Which token decides depends on the tokenizer. The prompt breaks off inside the second year, at a point where
the tokens so far begin the tokens of the whole year, and the answers are the tokens that may come next:

- ``two-digits``: years split in the middle ("17", "32", as GPT-2 does for most). Right: 33 to 99.
  Wrong: 00 to 32.
- ``tens``: every digit is a token (SmolLM2, Gemma, Qwen). The prompt ends in "17" and the tens digit decides.
  Right: 4 to 9. Wrong: 0 to 2. The start year's own digit decides nothing and is in neither set.
- ``units``: digits in threes ("173", "2": Llama 3). The prompt ends in "173" and the units digit decides.
  Right: 3 to 9. Wrong: 0 to 2.

Years of which this does not hold (GPT-2 has single tokens for some) are left out.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer, continuation_ids
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

NOUNS = (
    "war", "siege", "reign", "dynasty", "conflict", "alliance", "rebellion", "truce", "campaign",
    "occupation", "expedition", "dispute", "famine", "drought", "trial", "epidemic", "plague",
    "project", "treaty", "construction", "investigation", "voyage", "journey", "partnership",
    "marriage", "exile", "feud", "struggle", "negotiation", "boycott", "blockade", "revolt",
    "restoration", "exhibition", "experiment", "career", "friendship", "contract", "study", "strike",
    "crisis", "decline",
)  # fmt: skip
_FRAME = "The {noun} lasted from the year {start} to the year {end}"
# The second year is the first one again, so it is copied rather than compared.
_COPY_FRAME = "The {noun} dates from the year {start}, the year {end}"
_YEARS = range(1100, 2000)
_FEWEST_YEARS = 20


@dataclass(frozen=True)
class _Split:
    """Where the prompt breaks off (digits of the second year that it shows) and what may follow."""

    shown: int
    right: Callable[[int], range]
    wrong: Callable[[int], range]
    width: int


# Tried in this order: the longer the deciding token, the nearer to the task as published.
_SPLITS = (
    _Split(shown=2, right=lambda y: range(y % 100 + 1, 100), wrong=lambda y: range(y % 100 + 1), width=2),
    _Split(shown=2, right=lambda y: range(y // 10 % 10 + 1, 10), wrong=lambda y: range(y // 10 % 10), width=1),
    _Split(shown=3, right=lambda y: range(y % 10 + 1, 10), wrong=lambda y: range(y % 10 + 1), width=1),
)


def _digits(numbers: range, width: int) -> tuple[str, ...]:
    return tuple(f"{number:0{width}d}" for number in numbers)


def _years(tokenizer: Tokenizer, split: _Split) -> list[int]:
    """Return the start years with which the next token decides as ``split`` says."""
    if single_tokens(tokenizer, numerals := _digits(range(10**split.width), split.width)) != numerals:
        return []

    def ids(text: str) -> list[int]:
        return tokenizer.encode("to the year " + text, add_special_tokens=False)

    kept = []
    for year in _YEARS:
        # 02 to 98, so that the year is greater than 01 and something is greater than the year.
        if not 2 <= year % 100 <= 98 or not split.right(year) or not split.wrong(year):
            continue
        text = str(year)
        prefix, whole = text[: split.shown], ids(text)
        deciding = continuation_ids(tokenizer, text[split.shown : split.shown + split.width])
        if whole[: len(ids(prefix)) + 1] == ids(prefix) + deciding:
            kept.append(year)
    return kept


def prepare(tokenizer: Tokenizer, negative: str) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    for split in _SPLITS:
        years = _years(tokenizer, split)
        if len(years) >= _FEWEST_YEARS:
            break
    else:
        raise cannot_carry("greater-than", "no digit of a year is decided by a token of its own")

    def draw(rng: random.Random) -> PromptPair:
        noun, year = rng.choice(NOUNS), rng.choice(years)
        end = str(year)[: split.shown]
        clean = _FRAME.format(noun=noun, start=year, end=end)
        if negative == "01":
            corrupt = _FRAME.format(noun=noun, start=f"{year // 100}01", end=end)
        elif negative == "range":
            corrupt = _FRAME.format(noun=noun, start=year, end=int(end) - 1)
        else:
            corrupt = _COPY_FRAME.format(noun=noun, start=year, end=end)
        right, wrong = _digits(split.right(year), split.width), _digits(split.wrong(year), split.width)
        return PromptPair(clean, corrupt, right, wrong)

    return draw
