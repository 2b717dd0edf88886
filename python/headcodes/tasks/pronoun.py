"""Gendered pronoun: "So Evan is a great friend, isn't" -> " he"."""

from __future__ import annotations

import random
from collections.abc import Sequence

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

FRAMES = (
    "So{name} is a really great {noun}, isn't",
    "Everyone says that{name} is a good {noun}, and I think that",
    "I met{name} the {noun} last week, and I really liked how",
    "My {noun}{name} was tired yesterday, because",
    "The {noun} is called{name}, and last summer",
    "We asked{name} the {noun} a question, but",
)
NOUNS = (
    "friend", "teacher", "student", "neighbour", "cook", "writer", "singer", "doctor", "lawyer",
    "artist", "dancer", "player",
)  # fmt: skip
_MEN = """
Aaron Adam Alan Andrew Anthony Ben Brian Carl Charles Daniel David Donald Edward Eric Evan Frank
Fred Gary George Greg Henry Jack Jacob James Jason Jeff John Jonathan Joseph Josh Kevin Larry Luke
Mark Martin Matthew Michael Mike Nathan Nick Patrick Paul Peter Richard Robert Ryan Scott Simon
Stephen Steven Tom William
"""
_WOMEN = """
Alice Amanda Amy Andrea Angela Anna Anne Barbara Carol Catherine Christina Claire Deborah Diana
Elizabeth Ellen Emily Emma Eva Hannah Helen Jane Jennifer Jessica Julia Julie Karen Kate Katie Laura
Lauren Linda Lisa Lucy Margaret Maria Marie Martha Mary Michelle Nancy Nicole Rachel Rebecca Ruth
Sandra Sarah Sophie Stephanie Susan Victoria
"""
_UNISEX = "Alex Casey Chris Jamie Jordan Kelly Kim Lee Morgan Pat Riley Robin Sam Taylor"
MEN, WOMEN, UNISEX = (tuple(" " + name for name in names.split()) for names in (_MEN, _WOMEN, _UNISEX))


def prepare(tokenizer: Tokenizer, negative: str, frames: Sequence[str] = FRAMES) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    men, women, unisex = (single_tokens(tokenizer, names) for names in (MEN, WOMEN, UNISEX))
    if min(len(men), len(women)) < 5 or not unisex:
        raise cannot_carry("gendered-pronoun", "too few first names are single tokens")

    def draw(rng: random.Random) -> PromptPair:
        frame, noun = rng.choice(frames), rng.choice(NOUNS)
        sides = ((men, (" he",)), (women, (" she",)))
        (own, right), (others, wrong) = sides if rng.random() < 0.5 else sides[::-1]
        name = rng.choice(own)
        other = rng.choice(unisex if negative == "unisex" else others)
        clean, corrupt = (frame.format(name=chosen, noun=noun) for chosen in (name, other))
        return PromptPair(clean, corrupt, right, wrong)

    return draw
