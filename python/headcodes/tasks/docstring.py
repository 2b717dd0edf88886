"""Docstring: name the next argument of a Python function, after those that its docstring has documented."""

from __future__ import annotations

import random

from headcodes.prompts.pairs import PromptPair
from headcodes.prompts.tokens import Tokenizer
from headcodes.tasks.base import Draw, cannot_carry, single_tokens

# Every argument but self follows ",", and every documented one ":param", so that all carry a leading space.
_FRAME = '''def {function}(self,{args}):
    """{summary}

    :param{a}: the{a} to use
    :param{b}: the{b} to use
    :param'''
WORDS = (
    "load", "size", "file", "first", "host", "key", "page", "index", "count", "table", "order", "port",
    "image", "event", "group", "field", "point", "model", "shape", "level", "token", "value", "query",
    "color", "mode", "path", "node", "edge", "graph", "frame", "label", "score", "rate", "depth",
    "width", "height", "start", "end", "limit", "offset", "buffer", "line", "text", "title", "user",
    "client", "server", "request", "response", "session", "state", "target", "source", "parent",
    "child", "root", "tree", "list", "item", "cell", "row", "column", "matrix", "vector", "scale",
    "angle", "radius", "center", "speed", "time", "date", "year", "month", "day", "hour", "length",
    "weight", "price", "amount", "total", "rank", "step", "phase", "signal", "noise", "filter", "layer",
    "unit", "block", "chunk", "stream", "channel", "message", "address", "name", "format", "style",
    "theme", "option", "flag",
)  # fmt: skip
FUNCTIONS = (
    "run", "load", "send", "fetch", "update", "render", "parse", "build", "apply", "check", "create",
    "process",
)  # fmt: skip
SUMMARIES = (
    "Do the main work.", "Prepare the data.", "Handle one call.", "Set things up.",
    "Return the result.", "Write the output.", "Compare two things.", "Start the service.",
)  # fmt: skip


def prepare(tokenizer: Tokenizer, negative: str) -> Draw:
    """Return what draws one pair (``Task.prepare``)."""
    words = single_tokens(tokenizer, tuple(" " + word for word in WORDS))
    if len(words) < 9:
        raise cannot_carry("docstring", f"only {len(words)} of {len(WORDS)} argument names are single tokens")

    def draw(rng: random.Random) -> PromptPair:
        function, summary = rng.choice(FUNCTIONS), rng.choice(SUMMARIES)
        before_1, before_2, a, b, c, after, x, y, z = rng.sample(words, 9)

        def text(arguments: tuple[str, ...], documented: tuple[str, str]) -> str:
            return _FRAME.format(
                function=function, args=",".join(arguments), summary=summary, a=documented[0], b=documented[1]
            )

        clean = text((before_1, before_2, a, b, c, after), (a, b))
        corrupt = {
            "renamed": text((before_1, before_2, x, y, z, after), (x, y)),
            "other-doc": text((before_1, before_2, a, b, c, after), (x, y)),
            "swapped": text((c, before_2, a, b, before_1, after), (a, b)),
        }[negative]
        return PromptPair(clean, corrupt, (c,), (before_1, before_2, after))

    return draw
