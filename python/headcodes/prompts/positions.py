"""Positions of prompts by name: a span marked in the file, an index, what changed, what comes after it."""

from __future__ import annotations

import re
from typing import Any, Literal

from headcodes.errors import HeadcodesError
from headcodes.prompts.tokens import TokenPairs

# Names that mean the same for every prompt; any other is the name of a marked span.
NAMED = ("mean", "last", "changed", "after-change")
_INDEX = re.compile(r"-?[0-9]{1,6}")


def span_of(positions: str) -> str | None:
    """Return the name of the span that ``positions`` asks for; None where it asks for something else."""
    return None if positions in NAMED or _INDEX.fullmatch(positions) else positions


def find_positions(tokens: TokenPairs, positions: str, tokenizer: Any) -> Literal["mean", "last"] | list[list[int]]:
    """Return "mean" or "last" as they are, and for any other name a list of positions a prompt, clean prompts first.

    Args:
        tokens: the prompt pairs; those of marked spans from ``read_pairs(spans=...)``.
        positions: "mean", "last"; an index, counted from the end where below 0; "changed", the tokens in which the two
            prompts of a pair differ; "after-change", all tokens behind the first of these; or the name of a span.
        tokenizer: of transformers; says which tokens a span has.

    Raises:
        HeadcodesError: a prompt without such a position, prompts of a pair of different lengths ("changed",
            "after-change"), or a tokenizer that does not say where its tokens lie (spans).
    """
    if positions in ("mean", "last"):
        return "mean" if positions == "mean" else "last"
    prompts = tokens.clean + tokens.corrupt
    if _INDEX.fullmatch(positions):
        index = int(positions)
        short = next((i for i, ids in enumerate(prompts) if not -len(ids) <= index < len(ids)), None)
        if short is not None:
            raise _missing(tokens, short, f"a token {index}", f"{len(prompts[short])} tokens")
        return [[index % len(ids)] for ids in prompts]
    if positions in ("changed", "after-change"):
        found = []
        for pair in range(len(tokens)):
            changed = tokens.changed_positions(pair)
            behind = list(range(changed[0] + 1, len(tokens.clean[pair])))
            if positions == "after-change" and not behind:
                raise _missing(tokens, pair, "tokens behind the first changed one", "none")
            found.append(changed if positions == "changed" else behind)
        return [list(places) for places in (*found, *found)]
    return [_span(tokens, prompt, positions, tokenizer) for prompt in range(len(prompts))]


def _span(tokens: TokenPairs, prompt: int, name: str, tokenizer: Any) -> list[int]:
    pair, n = tokens.pairs[prompt % len(tokens)], len(tokens)
    text, spans = (pair.clean, pair.clean_spans) if prompt < n else (pair.corrupt, pair.corrupt_spans)
    marked = [(start, end) for its, start, end in spans if its == name]
    if not marked:
        raise _missing(tokens, prompt, f"a span [{name}]...[/{name}]", "none of that name")
    try:
        read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    except (NotImplementedError, TypeError) as error:
        raise HeadcodesError(
            "the tokenizer must say where its tokens lie", f"{type(tokenizer).__name__}", "Name positions by index."
        ) from error
    # BOS is no part of the text.
    shift = int(tokens.bos and list(read["input_ids"])[:1] != [tokenizer.bos_token_id])
    places = [
        place + shift
        for place, (first, last) in enumerate(read["offset_mapping"])
        if any(first < end and last > start for start, end in marked)
    ]
    if not places:
        raise _missing(tokens, prompt, f"tokens in its span [{name}]", "none")
    return places


def _missing(tokens: TokenPairs, prompt: int, what: str, got: str) -> HeadcodesError:
    side, pair = ("corrupted", prompt - len(tokens)) if prompt >= len(tokens) else ("clean", prompt)
    where = tokens.pairs[pair].where or f"prompt {pair}"
    return HeadcodesError(
        f"the {side} text of {where} must have {what}", got, f"Mark spans, or use one of {', '.join(NAMED)}."
    )


_MARK = "[{}]", "[/{}]"


def unmarked(text: str, name: str) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """Take the marks of a span out of a text; return it, and the (name, start, end) of every marked span."""
    opening, closing = (mark.format(name) for mark in _MARK)
    spans, rest, found = [], text, ""
    while opening in rest and closing in rest.partition(opening)[2]:
        before, _, rest = rest.partition(opening)
        inside, _, rest = rest.partition(closing)
        found += before
        spans.append((name, len(found), len(found) + len(inside)))
        found += inside
    return found + rest, tuple(spans)
