"""Tables that docs/ shows, written by the tests that counted them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path


def save_table(variable: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table in Markdown, numbers with commas, to the file that an environment variable names, if any."""
    place = os.environ.get(variable)
    if place:
        cells = [header, ["---"] * len(header)]
        cells += [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
        Path(place).write_text("".join(f"| {' | '.join(row)} |\n" for row in cells), encoding="utf-8")
