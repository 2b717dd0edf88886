"""Tasks in frames that no built-in task has: nothing was chosen on them (docs/results.md)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks import get
from headcodes.tasks.base import Draw, Task

_IOI = (
    "After a quarrel with{second} about the {object},{first} left. The next day,{giver} wrote a note to",
    "{first} and{second} share a flat above the {place}. On Sunday{giver} cooked dinner for",
    "The photograph shows{first} next to{second} at the {place}; in it{giver} is pointing at",
    "Because{first} owed{second} a {object},{giver} drove to the {place} and paid",
    "At the {place},{second} sat beside{first}. When the lights went out,{giver} whispered to",
    "It was raining when{first} met{second} near the {place}, so{giver} gave an umbrella to",
)
_CAPITAL = (
    "Our train stops in{capital}, the largest city and capital of",
    "A map on the wall marks{capital} as the capital of",
    "He wrote a letter from{capital}, capital of",
    "The new museum in{capital} is the pride of",
)
_PRONOUN = (
    "The {noun} next door,{name}, told me that",
    "Nobody knew why{name} had become a {noun}, but in the end",
    "Ask{name}, our {noun}, whether",
    "After{name} the {noun} won the prize,",
)


def _task(of: Task, frames: Sequence[str]) -> Task:
    """Return a task as it is drawn, but in other frames; a prompt that begins with a slot loses its leading space."""

    def prepare(tokenizer: Tokenizer, negative: str) -> Draw:
        draw = of.prepare(tokenizer, negative, frames=frames)

        def stripped(rng: random.Random) -> PromptPair:
            pair = draw(rng)
            return replace(pair, clean=pair.clean.strip(), corrupt=pair.corrupt.strip())

        return stripped

    return replace(of, id=f"{of.id}-frames", summary=f"{of.summary}; other frames", prepare=prepare)


FRAMES = {
    task.id: task
    for task in (
        _task(get("ioi"), _IOI),
        _task(get("capital-country"), _CAPITAL),
        _task(get("gendered-pronoun"), _PRONOUN),
    )
}
