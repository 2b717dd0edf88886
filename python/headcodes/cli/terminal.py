"""A result in a terminal: the table of heads as a rich table, the scores of all heads as coloured cells beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.table import Table
from rich.text import Text

from headcodes.cli.table import Grid, paragraphs
from headcodes.report.figures import DIVERGING, SEQUENTIAL

if TYPE_CHECKING:
    from jaxtyping import Float

    from headcodes.result import Result

_TALLEST = 20  # heads a layer, above which two heads share a line


def show(result: Result, top: int, console: Console) -> None:
    """Print ``table``, its grids as tables of rich, and the map of all heads beside the first (below, where it is too
    wide). Where there are no colours (``NO_COLOR``) there is no map."""
    mapped = console.no_color or console.color_system is None
    for number, paragraph in enumerate(paragraphs(result, top)):
        if number:
            console.print()
        for part in paragraph:
            if isinstance(part, str):
                console.print(Text(part))
                continue
            found = _rich(part)
            if mapped:
                console.print(found)
                continue
            mapped = True
            room = console.width - console.measure(found).maximum - 3
            cells = heat_map(result.findings.signed_scores, room)
            if console.measure(cells).maximum <= room:
                beside = Table.grid(padding=(0, 3))
                beside.add_row(found, cells)
                console.print(beside)
            else:
                console.print(found)
                console.print(heat_map(result.findings.signed_scores, console.width))


def _rich(grid: Grid) -> Table:
    found = Table(box=None, pad_edge=False, header_style="bold")
    for place, (title, side) in enumerate(grid.columns):
        # The last column is the one that may be long: it folds where the terminal is narrow, and no other does.
        found.add_column(title, justify=side, no_wrap=place + 1 < len(grid.columns))
    for row in grid.rows:
        found.add_row(*map(Text, row))
    return found


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
