"""Induction: random words, then the same words again; the next one is what followed the last one before."""

from __future__ import annotations

import random

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

_WORDS = """
apple arm army baby bank base bed bell bird blood board boat bone book bottle bowl box boy bread
brick bridge brother bus cake camp card cat chain chair chest child clock cloud coat coffee corn
couch cow crowd crown cup dance desk dinner doctor dog door dress drum dust eagle ear earth egg
engine eye face family farm father feather field finger fire fish flag floor flower foot forest fox
friend fruit game garden gate girl glass glove goat gold grass guitar hair hammer hand hat head
heart hill honey horse hotel house ice iron island jacket juice key king kitchen knee knife lake
lamp leaf leg lemon letter light lion lip machine map market meat metal milk mind mirror money moon
mother mountain mouse mouth nail neck needle nest night nose nurse ocean office oil orange oven owl
page paint pan paper park pen pencil people phone piano picture pig pilot pipe plane plant plate
pocket poem pool potato prince queen rabbit radio rain rice ring river road rock roof room root rope
salt sand school sea seat seed sheep shell ship shirt shoe shop silver sister skin sky snow soap
sock soldier song soup spoon spring star station stone storm street sugar sun sword table tail
teacher temple tent tiger tooth tower town toy train tree truck uncle valley village wall watch
water weather wheel wife wind window wine wing wolf wood wool worm
"""
WORDS = tuple(" " + word for word in _WORDS.split())
_LENGTHS = (14, 15, 16)
# Words that are repeated at least: with fewer, a model cannot yet know that the run comes again.
_FEWEST_REPEATED = 6


def prepare(tokenizer: Tokenizer, negative: str) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    words = single_tokens(tokenizer, WORDS)
    if len(words) < 3 * max(_LENGTHS):
        raise cannot_carry("induction", f"only {len(words)} of {len(WORDS)} words are single tokens")

    def draw(rng: random.Random) -> PromptPair:
        length = rng.choice(_LENGTHS)
        drawn = rng.sample(words, 2 * length)
        run, fresh = drawn[:length], drawn[length:]
        # The run is repeated up to ``last``. The wrong answer, like the right one, comes once.
        last, other = sorted(rng.sample(range(_FEWEST_REPEATED - 1, length - 1), 2))
        repeated = run[: last + 1]
        if negative == "unrepeated":
            # The answers stay where they were: only what would tell them apart goes.
            kept = {last + 1, other + 1}
            first = [run[i] if i in kept else fresh[i] for i in range(length)]
            corrupt = first + repeated
        else:
            corrupt = [*run, *repeated[:-1], run[other]]
        return PromptPair(
            "".join(run + repeated).strip(), "".join(corrupt).strip(), (run[last + 1],), (run[other + 1],)
        )

    return draw
