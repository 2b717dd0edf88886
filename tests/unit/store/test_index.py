"""The index of a store: the same rows as the cells' own files give, whatever happened to either."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from headcodes.errors import HeadcodesWarning
from headcodes.store import cells, index
from headcodes.store.cells import Store, load_store, statuses


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(index, "_WORTH", 2)
    kept = Store(tmp_path)
    for seed in range(6):
        kept.write({"identity": f"{seed:032x}", "status": "done", "seed": seed, "timings_s": [("total", 1.5)]}, {})
    return tmp_path


def read_singly(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Record which cells' own files are read from now on."""
    read: list[Path] = []
    real = cells._read_table

    def recorded(path: Path) -> Any:
        read.append(path)
        return real(path)

    monkeypatch.setattr(cells, "_read_table", recorded)
    return read


def test_a_second_reading_takes_the_index_and_gives_the_same(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_store(store)
    assert (store / "index.parquet").is_file()
    assert [path.suffix for path in (store / "cells").iterdir()] == [".parquet"] * 6
    read = read_singly(monkeypatch)
    assert load_store(store).equals(first)
    assert read == []
    assert statuses(store, [f"{5:032x}", "none"]) == {f"{5:032x}": "done"}


def test_new_changed_removed_and_damaged_cells_are_seen(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_store(store)
    path = {seed: store / "cells" / f"{seed:032x}.parquet" for seed in range(7)}
    Store(store).write({"identity": path[6].stem, "status": "done", "seed": 60}, {})
    Store(store).write({"identity": path[1].stem, "status": "failed", "seed": 10}, {})
    path[2].unlink()
    content = path[3].read_bytes()
    path[3].write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    os.utime(path[3], ns=(0, 1))
    read = read_singly(monkeypatch)
    with pytest.warns(HeadcodesWarning, match=path[3].stem):
        rows = load_store(store).to_pylist()
    assert [row["seed"] for row in rows] == [0, 10, 4, 5, 60]
    assert sorted(read) == [path[1], path[3], path[6]]


@pytest.mark.parametrize("content", [b"", b"junk"])
def test_a_damaged_index_is_made_anew(store: Path, content: bytes) -> None:
    first = load_store(store)
    (store / "index.parquet").write_bytes(content)
    assert load_store(store).equals(first)
    assert (store / "index.parquet").read_bytes() != content


def test_no_flipped_bit_of_the_index_gives_other_rows(store: Path) -> None:
    first = load_store(store)
    whole = (store / "index.parquet").read_bytes()
    for at in range(0, len(whole), len(whole) // 40):
        (store / "index.parquet").write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        assert load_store(store).equals(first)
