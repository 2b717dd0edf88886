"""What a terminal shows of a result: the same heads as the plain table, and every head as a coloured cell."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from headcodes import discover, tasks
from headcodes.cli.table import table
from headcodes.cli.terminal import heat_map, show
from headcodes.models import planted

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def shown(result: Any, width: int) -> str:
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width)
    show(result, 5, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


@pytest.fixture(scope="module")
def result(tiny_model: Callable[..., Any]) -> Any:
    model = tiny_model("gpt2")
    pairs = tasks.get("ioi").build(model.tokenizer, n=8)
    with pytest.warns(match="answers only"):
        return discover(model, pairs, method="eap", level="edge")


@pytest.mark.parametrize("width", [120, 30])
def test_a_terminal_shows_what_the_plain_table_says(result: Any, width: int) -> None:
    coloured = shown(result, width)
    plain = ESCAPES.sub("", coloured)
    words = plain.split()
    for word in table(result, 5).split():
        assert word in words or width < 60, word
    for node in result.circuit(5).nodes:
        assert node in plain
    beside = any(result.circuit(5).nodes[0] in line and "  0 " in line for line in plain.splitlines())
    assert beside == (width > 60) or width < 60


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_confirmed_circuit_is_a_table_with_the_map_once(width: int) -> None:
    plant = planted.load("planted-ioi")
    result = discover(plant.model, plant.task.build(plant.model.tokenizer, n=20, seed=3))
    lines = ESCAPES.sub("", shown(result, width)).splitlines()
    assert max(map(len, lines)) <= width
    assert sum("by its root" in line for line in lines) == 1
    assert len(result.circuit().nodes) > 5
    assert any(f"and {len(result.circuit().nodes) - 5} more" in line for line in lines)
    for node in result.circuit().nodes[:5]:
        row = next(line for line in lines if node in line.split())
        assert f"{result.circuit().effects[node]['effect']:+.3f}" in row.split()
    assert sum(line.split()[:3] == ["rank", "from", "to"] for line in lines) == 1


def test_without_colours_there_is_no_map(result: Any) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, no_color=True, width=100)
    show(result, 5, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "by its root" not in said
    assert ESCAPES.sub("", said).split() == table(result, 5).split()


def test_cells_are_coloured_by_the_root_of_the_score() -> None:
    from headcodes.report.figures import DIVERGING, SEQUENTIAL

    def colours(scores: Any, width: int = 80) -> list[str]:
        text = heat_map(np.asarray(scores, dtype=float), width)
        spans = [span.style.bgcolor.name for span in text.spans if not isinstance(span.style, str)]
        return spans[: np.size(scores)]

    # One line a head, layers from left to right: a score of a quarter of the largest is halfway up the scale.
    assert colours([[100.0, 0.0], [25.0, 1.0]]) == [SEQUENTIAL[i] for i in (10, 5, 0, 1)]
    assert colours([[4.0], [-1.0], [0.0]]) == [DIVERGING[i] for i in (10, 2, 5)]
    assert colours([[0.0]]) == [SEQUENTIAL[0]]


def test_many_heads_share_lines_and_many_layers_narrow_cells() -> None:
    tall = heat_map(np.arange(3 * 33, dtype=float).reshape(3, 33), 80).plain
    assert tall.count("▀") == 3 * 17
    wide = heat_map(np.ones((70, 4)), 80).plain.splitlines()
    assert len(wide[1]) == 4 + 70
