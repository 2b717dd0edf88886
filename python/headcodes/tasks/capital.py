"""Capital-country: "Paris is the capital of" -> " France"."""

from __future__ import annotations

import random
from collections.abc import Sequence

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens
from headcodes.tasks.ioi import NAMES

FRAMES = (
    "It is well known that{capital} is the capital of",
    "We flew to{capital}, the capital of",
    "Last year they moved to{capital}, the capital city of",
    "The city of{capital} is the capital of",
    "She was born in{capital}, which is the capital of",
    "If you visit{capital}, you are in the capital of",
    "Every schoolchild knows that{capital} is the capital city of",
    "The embassy is in{capital}, the capital of",
)
_CAPITALS = """
Paris France; London England; Berlin Germany; Rome Italy; Madrid Spain; Lisbon Portugal;
Vienna Austria; Brussels Belgium; Athens Greece; Warsaw Poland; Prague Czech; Budapest Hungary;
Dublin Ireland; Copenhagen Denmark; Stockholm Sweden; Oslo Norway; Helsinki Finland; Moscow Russia;
Kiev Ukraine; Ankara Turkey; Cairo Egypt; Baghdad Iraq; Tehran Iran; Damascus Syria; Beirut Lebanon;
Jerusalem Israel; Riyadh Saudi; Kabul Afghanistan; Islamabad Pakistan; Delhi India; Beijing China;
Tokyo Japan; Seoul Korea; Bangkok Thailand; Hanoi Vietnam; Manila Philippines; Jakarta Indonesia;
Canberra Australia; Ottawa Canada; Havana Cuba; Lima Peru; Santiago Chile; Nairobi Kenya;
Tripoli Libya; Tunis Tunisia; Bucharest Romania; Sofia Bulgaria; Belgrade Serbia; Zagreb Croatia;
Reykjavik Iceland; Caracas Venezuela; Quito Ecuador; Kathmandu Nepal; Amsterdam Netherlands;
Accra Ghana; Kampala Uganda; Harare Zimbabwe; Bern Switzerland; Bogota Colombia
"""
CAPITALS = tuple(
    (" " + capital, " " + country) for capital, country in (entry.split() for entry in _CAPITALS.split(";"))
)


def prepare(tokenizer: Tokenizer, negative: str, frames: Sequence[str] = FRAMES) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    known = set(single_tokens(tokenizer, tuple(country for _, country in CAPITALS)))
    capitals = [(capital, country) for capital, country in CAPITALS if country in known]
    if len(capitals) < 5:
        raise cannot_carry("capital-country", f"only {len(capitals)} countries are single tokens")

    def draw(rng: random.Random) -> PromptPair:
        frame = rng.choice(frames)
        (capital, country), (other_capital, other_country) = rng.sample(capitals, 2)
        corrupted = rng.choice(NAMES) if negative == "person" else other_capital
        clean, corrupt = (frame.format(capital=place) for place in (capital, corrupted))
        return PromptPair(clean, corrupt, (country,), (other_country,))

    return draw
