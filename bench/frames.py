"""Tasks in frames that no built-in task has: nothing was chosen on them (docs/results.md)."""

from __future__ import annotations

import random
from collections.abc import Callable

from headcodes.prompts import PromptPair, Tokenizer
from headcodes.tasks import capital, ioi, pronoun
from headcodes.tasks.base import Draw, Task, single_tokens

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


def _ioi(tokenizer: Tokenizer, _negative: str) -> Draw:
    names = single_tokens(tokenizer, ioi.NAMES)

    def draw(rng: random.Random) -> PromptPair:
        frame, place, thing = rng.choice(_IOI), rng.choice(ioi.PLACES), rng.choice(ioi.OBJECTS)
        giver, receiver, third = rng.sample(names, 3)
        first, second = (giver, receiver) if rng.random() < 0.5 else (receiver, giver)
        clean, corrupt = (
            frame.format(first=first, second=second, giver=name, place=place, object=thing).strip()
            for name in (giver, third)
        )
        return PromptPair(clean, corrupt, (receiver,), (giver,))

    return draw


def _capital(tokenizer: Tokenizer, _negative: str) -> Draw:
    known = set(single_tokens(tokenizer, tuple(country for _, country in capital.CAPITALS)))
    capitals = [pair for pair in capital.CAPITALS if pair[1] in known]

    def draw(rng: random.Random) -> PromptPair:
        frame = rng.choice(_CAPITAL)
        (own, country), (_, other_country) = rng.sample(capitals, 2)
        clean, corrupt = (frame.format(capital=word) for word in (own, rng.choice(ioi.NAMES)))
        return PromptPair(clean, corrupt, (country,), (other_country,))

    return draw


def _pronoun(tokenizer: Tokenizer, _negative: str) -> Draw:
    men, women, unisex = (single_tokens(tokenizer, names) for names in (pronoun.MEN, pronoun.WOMEN, pronoun.UNISEX))

    def draw(rng: random.Random) -> PromptPair:
        frame, noun = rng.choice(_PRONOUN), rng.choice(pronoun.NOUNS)
        sides = ((men, (" he",)), (women, (" she",)))
        (own, right), (_, wrong) = sides if rng.random() < 0.5 else sides[::-1]
        clean, corrupt = (frame.format(name=name, noun=noun) for name in (rng.choice(own), rng.choice(unisex)))
        return PromptPair(clean, corrupt, right, wrong)

    return draw


def _task(of: Task, prepare: Callable[[Tokenizer, str], Draw]) -> Task:
    return Task(f"{of.id}-frames", f"{of.summary}; other frames", of.negatives[:1], of.source, prepare)


FRAMES = {
    task.id: task for task in (_task(ioi.TASK, _ioi), _task(capital.TASK, _capital), _task(pronoun.TASK, _pronoun))
}
