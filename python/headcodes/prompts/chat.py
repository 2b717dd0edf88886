"""Prompts as a chat model sees them: rendered by the tokenizer's own template."""

from __future__ import annotations

from typing import Any

from headcodes.errors import HeadcodesError
from headcodes.prompts.pairs import PromptPair, PromptPairs, Spans
from headcodes.prompts.rows import Reading

_SHOWN = 400


def render_chat(pairs: PromptPairs, tokenizer: Any, system: str | None = None) -> PromptPairs:
    """Render both prompts of every pair as a user's message, with the prompt for the model's answer behind it.

    transformers renders templates in jinja2's sandbox (``ImmutableSandboxedEnvironment``), which lets them reach
    nothing of Python; one that tries is refused. A template decides about BOS itself: tokenise with ``bos="no"``.
    Answers begin the model's message, so where the rendered prompt ends in white space theirs in front is taken away.

    Args:
        pairs: their texts are the users' messages.
        tokenizer: of transformers.
        system: a system message in front; None: none, but for what the template itself puts there.

    Raises:
        HeadcodesError: the tokenizer has no template, or the template fails, refuses the messages or tries to run code.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise HeadcodesError(
            "the tokenizer of chat prompts must have a chat template",
            "one without",
            "Leave --chat out, or use a chat model.",
        )
    first = [] if system is None else [{"role": "system", "content": system}]

    def rendered(text: str) -> str:
        messages = [*first, {"role": "user", "content": text}]
        try:
            found: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a foreign program: it can fail in every way
            from jinja2.exceptions import SecurityError

            unsafe = isinstance(error, SecurityError)
            raise HeadcodesError(
                f"the chat template must {'run no code' if unsafe else 'render the messages'}",
                (str(error).strip() or type(error).__name__).splitlines()[0],
                "Use another model or tokenizer." if unsafe else "Leave --system out, or render the prompts yourself.",
            ) from error
        if text.strip() not in found:
            raise HeadcodesError(
                "the chat template must keep the message", f"{found[:_SHOWN]!r} for {text[:60]!r}", "Use another model."
            )
        return found

    made, n_stripped = [], 0
    for pair in pairs:
        clean, corrupt = rendered(pair.clean), rendered(pair.corrupt)
        right, wrong = pair.answers, pair.wrong_answers
        if clean[-1:].isspace():
            right, wrong = (tuple(a.lstrip() if isinstance(a, str) else a for a in side) for side in (right, wrong))
            n_stripped += (right, wrong) != (pair.answers, pair.wrong_answers)
        ours = _moved(pair.clean_spans, clean.index(pair.clean.strip()), pair.clean)
        theirs = _moved(pair.corrupt_spans, corrupt.index(pair.corrupt.strip()), pair.corrupt)
        made.append(PromptPair(clean, corrupt, right, wrong, pair.where, ours, theirs))
    notes = [f"chat template; the first prompt as the model sees it: {made[0].clean[:_SHOWN]!r}"]
    if n_stripped:
        notes.append(f"the space before the answers of {n_stripped:,} rows was taken away: they begin a message")
    reading = (pairs.reading or Reading("prompts", len(pairs))).also(*notes)
    return PromptPairs(tuple(made), pairs.task, pairs.negative, reading)


def _moved(spans: Spans, start: int, text: str) -> Spans:
    by = start - (len(text) - len(text.lstrip()))  # templates strip messages
    return tuple((name, first + by, last + by) for name, first, last in spans)
