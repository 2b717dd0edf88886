"""Attacks are counted: docs/safety.md shows the table that a run of these tests writes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tables import save_table

Found = Sequence[tuple[str | None, Any]]


@pytest.fixture(scope="session")
def n_attacks() -> int:
    """Damaged files of a kind: few in `make test`, many with HEADCODES_ATTACKS."""
    return int(os.environ.get("HEADCODES_ATTACKS", "60"))


@pytest.fixture(scope="session")
def attack_table() -> Iterator[dict[str, list[int]]]:
    table: dict[str, list[int]] = {}
    yield table
    rows = [(kind, *counts) for kind, counts in sorted(table.items())]
    save_table("HEADCODES_ATTACK_TABLE", ("attack", "tried", "misbehaved"), rows)


@pytest.fixture
def record_attacks(attack_table: dict[str, list[int]]) -> Callable[[str, Found], None]:
    """``record_attacks(kind, [(what went wrong or None, input), ...])`` counts, and fails where something did."""

    def record(kind: str, found: Found) -> None:
        wrong = [row for row in found if row[0] is not None]
        row = attack_table.setdefault(kind, [0, 0])
        row[0] += len(found)
        row[1] += len(wrong)
        assert not wrong, "\n".join(f"{said}  <-  {what!r}" for said, what in wrong[:20])

    return record
