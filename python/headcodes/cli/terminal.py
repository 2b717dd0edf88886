"""A result in a terminal: the table of heads as a rich table, the scores of all heads as coloured cells beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from headcodes.cli.table import table
from headcodes.report.figures import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.result import Result

_TALLEST = 20  # heads a layer, above which two heads share a line


def show(result: Result, top: int, console: Console) -> None:
    """Print ``table``, its heads as a table of rich, beside it (below, where it is too wide) the map of all heads."""
    heading, heads, *rest = table(result, top).split("\n\n")
    found, below = _heads(heads.split("\n"))
    cells = heat_map(result.findings.signed_scores, console.width - (40 if found is not None else 0))
    console.print(Text(heading))
    if found is not None:
        beside = Table.grid(padding=(0, 3))
        beside.add_row(found, cells)
        fits = console.measure(beside).minimum + 3 <= console.width
        for part in (beside,) if fits else (found, cells):
            console.print(part)
    else:
        console.print(Text(heads))
        console.print(cells)
    for block in [*below, *rest]:
        console.print()
        console.print(Text(block))


def _heads(lines: list[str]) -> tuple[Table | None, list[str]]:
    """Return the lines of the plain table as a table of rich, and what stands below them; None where they are none."""
    names = lines[0].split()
    n_rows = next((i for i, line in enumerate(lines[1:]) if len(line.split()) != len(names)), len(lines) - 1)
    if not n_rows:
        return None, []
    found = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        found.add_column(name, justify="left" if name == "head" else "right", no_wrap=True)
    for line in lines[1 : n_rows + 1]:
        found.add_row(*line.split())
    below = "\n".join(lines[n_rows + 1 :])
    return found, [below] if below else []


def heat_map(scores: Float[np.ndarray, "n_layers n_heads"], width: int) -> Text:
    """Draw a score a head: layers from left to right, heads from top to bottom, colours by sign and root of size.

    A linear scale would show one head and hide the others. The colours are those of the page, which keep their order
    for every kind of colour blindness. Two heads share a line, by half blocks, where there are many.

    Args:
        scores: signed, where they have a sign.
        width: of what is drawn, at most where that can be.
    """
    n_layers, n_heads = scores.shape
    reach = float(np.abs(scores).max()) or 1.0
    roots = np.sign(scores) * np.sqrt(np.abs(scores) / reach)
    signed = bool((scores < 0).any())
    styles = np.vectorize(lambda root: _color(float(root), signed), otypes=[object])(roots)
    halves = n_heads > _TALLEST
    wide = 2 if not halves and 2 * n_layers + 4 <= width else 1
    text = Text(no_wrap=True)
    text.append("head  by layer →\n", "dim")
    for head in range(0, n_heads, 2 if halves else 1):
        text.append(f"{head:>3} ", "dim")
        for layer in range(n_layers):
            upper = styles[layer, head]
            if halves:
                lower = styles[layer, head + 1] if head + 1 < n_heads else None
                text.append("▀", Style(color=upper, bgcolor=lower))
            else:
                text.append(" " * wide, Style(bgcolor=upper))
        text.append("\n")
    ticks = "".join(f"{layer:<{5 * wide}}" for layer in range(0, n_layers, 5))
    text.append(f"    {ticks.rstrip()}\n    score ", "dim")
    low, high = (-1.0, 1.0) if signed else (0.0, 1.0)
    text.append(f"{low * reach:.3g} ", "dim")
    for root in np.linspace(low, high, 11):
        text.append(" ", Style(bgcolor=_color(float(root), signed)))
    text.append(f" {high * reach:.3g}, by its root", "dim")
    return text


def _color(root: float, signed: bool) -> Color:
    scale = DIVERGING if signed else SEQUENTIAL
    share = (root + 1) / 2 if signed else root
    return Color.parse(scale[round(share * (len(scale) - 1))])
