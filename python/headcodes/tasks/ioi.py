"""Indirect object identification: "When Mary and John went to the store, John gave a drink to" -> " Mary"."""

from __future__ import annotations

import random
from collections.abc import Sequence

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

# {first} and {second} are the names of the first clause, {giver} the one that is repeated.
FRAMES = (
    "When{first} and{second} went to the {place},{giver} gave a {object} to",
    "Then,{first} and{second} went to the {place}. After that,{giver} gave a {object} to",
    "While{first} and{second} were working at the {place},{giver} handed a {object} to",
    "After{first} and{second} arrived at the {place},{giver} offered a {object} to",
    "Yesterday{first} and{second} met at the {place}, and{giver} passed a {object} to",
    "Then,{first} and{second} had a long talk at the {place}. Afterwards{giver} gave a {object} to",
    "When{first} and{second} got a {object} at the {place},{giver} decided to give it to",
    "Last week{first} and{second} visited the {place}, where{giver} bought a {object} for",
    "Friends since school,{first} and{second} found a {object} at the {place}, and{giver} gave it to",
    "Since{first} and{second} were waiting outside the {place},{giver} lent a {object} to",
    "The {place} that{first} and{second} liked was open, so{giver} brought a {object} to",
    "In the morning{first} and{second} walked to the {place}, and{giver} showed a {object} to",
    "As{first} and{second} were leaving the {place},{giver} sold a {object} to",
    "Once{first} and{second} had come back from the {place},{giver} sent a {object} to",
    "Before{first} and{second} left the {place},{giver} gave back the {object} to",
)
PLACES = (
    "store", "park", "school", "office", "garden", "station", "hospital", "restaurant", "library",
    "market", "house", "museum", "beach", "church", "farm", "hotel",
)  # fmt: skip
OBJECTS = (
    "drink", "book", "ring", "ball", "letter", "bag", "key", "phone", "map", "cake", "camera", "ticket",
    "flower", "bottle", "picture", "coat",
)  # fmt: skip
# Months, cities and common words (April, Jordan, Rose) are left out: they pull a model elsewhere.
_NAMES = """
Aaron Adam Alan Albert Alex Alice Allen Amanda Amy Andrea Andrew Angela Anna Anne Anthony Arthur
Barbara Ben Benjamin Betty Bob Brian Bruce Carl Carol Caroline Catherine Charles Charlie Chris
Christina Christopher Claire Craig Daniel David Deborah Dennis Diana Donald Donna Dorothy
Douglas Edward Elizabeth Ellen Emily Emma Eric Eva Evan Frances Frank Fred Gary George Gordon
Graham Greg Harold Harry Helen Henry Howard Ian Jack Jacob James Jane Janet Jason Jean Jeff
Jennifer Jeremy Jerry Jessica Jim Joan Joe John Jonathan Joseph Joshua Julia Julie Karen Kate
Keith Kelly Ken Kevin Kim Larry Laura Lauren Lee Leon Leonard Lewis Linda Lisa Louis Louise Lucy
Luke Margaret Maria Marie Martha Martin Mary Matthew Max Michael Michelle Mike Morgan Nancy
Nathan Neil Nicholas Nick Nicole Oliver Oscar Pamela Patricia Patrick Paul Peter Philip Rachel
Ralph Rebecca Richard Robert Roger Ron Roy Ruth Ryan Sam Samuel Sandra Sarah Scott Sean
Simon Sophie Stephanie Stephen Steve Steven Stuart Susan Tim Timothy Tom Tony Tyler Victor
Victoria Vincent Walter Wayne William
"""
NAMES = tuple(" " + name for name in _NAMES.split())


def prepare(tokenizer: Tokenizer, negative: str, frames: Sequence[str] = FRAMES) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    names = single_tokens(tokenizer, NAMES)
    if len(names) < 3:
        raise cannot_carry("ioi", f"only {len(names)} of {len(NAMES)} names are single tokens")

    def draw(rng: random.Random) -> PromptPair:
        frame, place, thing = rng.choice(frames), rng.choice(PLACES), rng.choice(OBJECTS)
        giver, receiver, third = rng.sample(names, 3)
        first, second = (giver, receiver) if rng.random() < 0.5 else (receiver, giver)
        other = third if negative == "abc" else receiver
        # Names go into slots: replacing text would turn Erica into Mary-ca.
        clean, corrupt = (
            frame.format(first=first, second=second, giver=name, place=place, object=thing) for name in (giver, other)
        )
        return PromptPair(clean, corrupt, (receiver,), (giver,))

    return draw
