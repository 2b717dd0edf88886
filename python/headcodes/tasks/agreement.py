"""Subject-verb agreement: "The keys near the cabinet" -> " are"."""

from __future__ import annotations

import random

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

FRAMES = (
    "The{subject} near the{other}",
    "The{subject} behind the{other}",
    "I think that the{subject} beside the{other}",
    "Everyone knows that the{subject} in front of the{other}",
    "She said the{subject} next to the{other}",
    "Today the{subject} close to the{other}",
)
SINGULAR = (
    "key", "dog", "car", "boy", "girl", "teacher", "doctor", "student", "tree", "book", "house", "ship",
    "horse", "chair", "table", "lamp", "door", "window", "guard", "actor", "writer", "farmer", "plane",
    "truck", "bird", "cat", "flower", "picture", "soldier", "player",
)  # fmt: skip
# One form for both numbers.
EITHER = (
    " sheep", " deer", " fish", " species", " series", " aircraft", " salmon", " bison", " moose",
    " shrimp",
)  # fmt: skip
_PLURAL_VERBS, _SINGULAR_VERBS = (" are", " were", " have"), (" is", " was", " has")


def prepare(tokenizer: Tokenizer, negative: str) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    singular = tuple(" " + noun for noun in SINGULAR)
    carried = set(single_tokens(tokenizer, singular + tuple(noun + "s" for noun in singular)))
    nouns = [noun for noun in singular if noun in carried and noun + "s" in carried]
    either = single_tokens(tokenizer, EITHER)
    if len(nouns) < 5 or not either:
        raise cannot_carry("subject-verb", "too few nouns are single tokens in both numbers")

    def draw(rng: random.Random) -> PromptPair:
        frame = rng.choice(FRAMES)
        subject, other = rng.sample(nouns, 2)
        plural = rng.random() < 0.5
        numbers = (subject + "s", subject) if plural else (subject, subject + "s")
        wanted, unwanted = (_PLURAL_VERBS, _SINGULAR_VERBS) if plural else (_SINGULAR_VERBS, _PLURAL_VERBS)
        # The noun nearest to the verb has either number, so that it gives nothing away.
        other += rng.choice(("", "s"))
        corrupted = rng.choice(either) if negative == "either" else numbers[1]
        clean, corrupt = (frame.format(subject=noun, other=other) for noun in (numbers[0], corrupted))
        return PromptPair(clean, corrupt, wanted, unwanted)

    return draw
