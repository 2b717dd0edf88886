"""Which tokens of different prompts are the same place, so that scores can be told apart by place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from headcodes.prompts.tokens import TokenPairs

# Longer prompts are told apart by changed runs: a chart of hundreds of bars, one a token, cannot be read.
_MOST_TOKENS = 128


@dataclass(frozen=True)
class Alignment:
    """Places of prompts, in the order of their tokens.

    Attributes:
        kind: "token": all prompts have equally many tokens, and place i is token i. "run": all pairs have equally many
            runs of neighbouring tokens in which their two prompts differ, and a place is such a run, what lies between
            two of them, or the last token. "group": neither; changed tokens, those between, and the last.
        labels: name of each place.
        examples: the first clean prompt's text at each place; empty where it is not known.
        of_tokens: the place of every token of every pair, -1 where it has none: before the first changed token the two
            prompts are one, and nothing can differ.
    """

    kind: Literal["token", "run", "group"]
    labels: tuple[str, ...]
    examples: tuple[str, ...]
    of_tokens: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """Return kind, labels and examples, as JSON values."""
        return {"kind": self.kind, "labels": list(self.labels), "examples": list(self.examples)}


def align(tokens: TokenPairs) -> Alignment:
    """Align the prompts of pairs by token where all are of one length, else by what changes in them.

    Raises:
        HeadcodesError: the two prompts of a pair have different numbers of tokens.
    """
    changed = [tokens.changed_positions(pair) for pair in range(len(tokens))]
    lengths = {len(ids) for ids in tokens.clean}
    if len(lengths) == 1 and max(lengths) <= _MOST_TOKENS:
        n = lengths.pop()
        labels = tuple(str(position) for position in range(n))
        return _named("token", labels, tokens, [tuple(range(n))] * len(tokens))
    runs = [_runs(places, len(ids)) for places, ids in zip(changed, tokens.clean, strict=True)]
    if len({len(each) for each in runs}) == 1:
        n_runs = len(runs[0])
        numbered = [("between the changes", f"change {run + 1}") for run in range(n_runs)]
        names = [*[name for pair in numbered for name in pair][1:], "after the changes", "last token"]
        places = [_places_of_runs(each, len(ids)) for each, ids in zip(runs, tokens.clean, strict=True)]
        return _named("run", tuple(names), tokens, places)
    found = []
    for each, ids in zip(changed, tokens.clean, strict=True):
        places_here = [-1 if not each or i < each[0] else 0 if i in set(each) else 1 for i in range(len(ids))]
        found.append((*places_here[:-1], 2))
    return _named("group", ("changed", "between", "last"), tokens, found)


def _runs(changed: list[int], length: int) -> list[tuple[int, int]]:
    """Return start and end of every run of neighbouring changed tokens before the last token."""
    inside = [place for place in changed if place < length - 1]
    starts = [place for before, place in pairwise([-2, *inside]) if place != before + 1]
    ends = [place + 1 for place, after in pairwise([*inside, length]) if after != place + 1]
    return list(zip(starts, ends, strict=True))


def _places_of_runs(runs: list[tuple[int, int]], length: int) -> tuple[int, ...]:
    places = [-1] * length
    for number, (start, end) in enumerate(runs):
        places[start:end] = [2 * number] * (end - start)
        following = runs[number + 1][0] if number + 1 < len(runs) else length - 1
        places[end:following] = [2 * number + 1] * (following - end)
    places[-1] = 2 * len(runs)
    return tuple(places)


def _named(
    kind: Literal["token", "run", "group"], labels: tuple[str, ...], tokens: TokenPairs, places: list[tuple[int, ...]]
) -> Alignment:
    examples: tuple[str, ...] = ()
    if tokens.words:
        texts = [""] * len(labels)
        for token, place in zip(tokens.clean[0], places[0], strict=True):
            if place >= 0:
                texts[place] += tokens.words[token]
        examples = tuple(texts)
    return Alignment(kind, labels, examples, tuple(places))
