"""Packs of a store: the same rows as the cells' own files give, whoever packs, reads or dies at any moment."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.store import cells, packs
from headcodes.store.cells import Store, load_store, read_arrays, statuses

IDENTITIES = [f"{seed:032x}" for seed in range(7)]


def keep(store: Store, number: int, status: str = "done", **found: Any) -> None:
    row = {"identity": IDENTITIES[number], "status": status, "seed": number, "timings_s": [("total", 1.5)]} | found
    store.write(row, {"codes": np.arange(number)} if number % 2 else {})


@pytest.fixture
def singly(tmp_path: Path) -> Path:
    """A store of six finished cells and a failed one, each in a file of its own."""
    store = Store(tmp_path / "store")
    for seed in range(6):
        keep(store, seed)
    keep(store, 6, "failed")
    return tmp_path / "store"


@pytest.fixture
def packed(singly: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(packs, "WORTH", 2)
    Store(singly)
    return singly


def names(store: Path) -> list[str]:
    return sorted(path.name for path in (store / "cells").glob("[!.]*"))


def same(one: Any, other: Any) -> bool:
    return bool(one.schema == other.schema) and one.to_pylist() == other.to_pylist()


def test_finished_cells_are_packed_and_read_the_same(singly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = load_store(singly)
    asked = statuses(singly, [*IDENTITIES, "none"])
    monkeypatch.setattr(packs, "WORTH", 4)
    Store(singly)
    assert [name.partition("-")[0] for name in names(singly)] == [f"{i:032x}.parquet" for i in (4, 5, 6)] + ["pack"]
    assert same(load_store(singly), before)
    assert (
        statuses(singly, [*IDENTITIES, "none"])
        == asked
        == dict.fromkeys(IDENTITIES, "done") | {IDENTITIES[6]: "failed"}
    )
    assert list(read_arrays(singly, load_store(singly).to_pylist()[3])["codes"]) == [0, 1, 2]
    kept = names(singly)
    Store(singly)
    assert names(singly) == kept, "nothing is left to pack"


def test_failed_cells_stay_in_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "WORTH", 2)
    store = Store(tmp_path)
    keep(store, 0, "failed")
    keep(store, 1)
    keep(store, 2)
    assert [name.partition("-")[0] for name in names(tmp_path)] == [f"{IDENTITIES[0]}.parquet", "pack"]


def test_others_read_packs_and_single_cells_at_once(packed: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    found = duckdb.sql(
        f"select seed, timings_s['total'] from '{packed}/cells/*.parquet' where status = 'done' order by seed"
    )
    assert found.fetchall() == [(seed, 1.5) for seed in range(6)]


def test_a_scan_packs_as_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "WORTH", 3)
    store = Store(tmp_path)
    for seed in range(7):
        keep(store, seed)
        assert load_store(tmp_path).column("seed").to_pylist() == list(range(seed + 1))
    assert [packs.is_pack(tmp_path / name) for name in names(tmp_path)] == [False, True, True]


def test_a_cell_that_was_done_again_has_its_last_row(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "WORTH", 100)
    keep(Store(packed), 1, seed=100)
    keep(Store(packed), 6, seed=600)
    assert load_store(packed).column("seed").to_pylist() == [0, 100, 2, 3, 4, 5, 600]
    monkeypatch.setattr(packs, "WORTH", 2)
    Store(packed)
    assert all(packs.is_pack(Path(name)) for name in names(packed))
    assert load_store(packed).column("seed").to_pylist() == [0, 100, 2, 3, 4, 5, 600]


@pytest.mark.parametrize("dies_at", range(12))
def test_a_packer_that_dies_loses_and_doubles_nothing(
    singly: Path, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it dies: before and after each file that it writes, syncs or removes."""
    before = load_store(singly)
    monkeypatch.setattr(packs, "WORTH", 2)

    class Death(BaseException):
        pass

    left = iter(range(dies_at))

    def dying(made: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(left, None) is None:
                raise Death
            return made(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", dying(os.fsync))
        patch.setattr(Path, "unlink", dying(Path.unlink))
        with pytest.raises(Death):
            Store(singly)
    assert same(load_store(singly), before)
    Store(singly)
    assert same(load_store(singly), before)
    assert len(names(singly)) == 4, "three packs and the failed cell: each row once"


def test_reading_while_others_pack_sees_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "WORTH", 2)
    source = Store(tmp_path / "source")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "WORTH", 1000)
        for seed in range(40):
            source.write({"identity": f"{seed:032x}", "status": "done", "seed": seed}, {})
    for turn in range(5):
        place = tmp_path / str(turn)
        shutil.copytree(tmp_path / "source", place)
        packer = threading.Thread(target=packs.pack, args=(place / "cells", cells._read_table, cells.DAMAGE))
        packer.start()
        while packer.is_alive():
            assert load_store(place).num_rows == 40
        packer.join()
        assert len(names(place)) == 20


def test_of_two_packers_one_does_it(singly: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packs, "WORTH", 2)
    with (singly / ".packing").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        Store(singly)
        assert len(names(singly)) == 7
    Store(singly)
    assert len(names(singly)) == 4


def test_no_flipped_bit_of_a_pack_gives_other_rows(packed: Path) -> None:
    path = next(path for path in sorted((packed / "cells").iterdir()) if packs.is_pack(path))
    whole, rows = path.read_bytes(), load_store(packed).to_pylist()
    for at in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        with pytest.warns(HeadcodesWarning, match=path.name):
            left = load_store(packed).to_pylist()
        assert len(left) == 5
        assert all(row in rows for row in left)
        with pytest.warns(HeadcodesWarning, match=path.name):
            assert len(statuses(packed, IDENTITIES)) == 5


def test_arrays_are_looked_into_where_their_file_changed(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[Path] = []
    real = cells.checksum
    monkeypatch.setattr(cells, "checksum", lambda path: looked.append(path) or real(path))
    assert len(statuses(packed, IDENTITIES)) == 7
    assert looked == []
    path = packed / "arrays" / f"{IDENTITIES[3]}.safetensors"
    whole = path.read_bytes()
    os.utime(path, ns=(0, 1))  # as a copy has it
    assert len(statuses(packed, IDENTITIES)) == 7
    assert looked == [path]
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.warns(HeadcodesWarning, match=path.name):
        assert IDENTITIES[3] not in statuses(packed, IDENTITIES)
    row = load_store(packed).to_pylist()[3]
    with pytest.raises(HeadcodesError, match=path.name):
        read_arrays(packed, row)
    path.unlink()
    with pytest.warns(HeadcodesWarning, match=path.name):
        assert IDENTITIES[3] not in statuses(packed, IDENTITIES)
    # Done again: it stands in a pack and, later, in a file of its own.
    keep(Store(packed), 3)
    assert len(statuses(packed, IDENTITIES)) == 7
