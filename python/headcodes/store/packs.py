"""Packs of a store: the rows of many finished cells in one Parquet file, so that a large store is read at once.

    DIR/cells/pack-<SHA-256 of the file>.parquet

A pack is written whole, and only then the cells' own files are removed; it never changes. So a row may stand in both
for a moment, and a cell that was done again has two: of several rows of a cell, the one finished last counts.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcodes.files import atomic_write, checksum

# Rows of a pack, and so the most finished cells that a single scan leaves in files of their own.
WORTH = 256
_PREFIX = "pack-"

Read = Callable[[Path], pa.Table]
Fault = tuple[Path, Exception]


def all_rows(cells: Path, read: Read, damage: tuple[type[Exception], ...]) -> tuple[pa.Table | None, list[Fault]]:
    """Return one row of every cell of a store, by identity, and the files that are damaged; None for no rows.

    Args:
        cells: the folder of the cells.
        read: reads the file of one cell.
        damage: what it raises over a damaged one.
    """
    while True:
        packs, singles = _files(cells)
        tables: list[pa.Table] = []
        faults: list[Fault] = []
        for path in packs:
            try:
                tables.append(_read_pack(path, read))
            except damage as error:
                faults.append((path, error))
        gone = False
        for path in singles:
            try:
                tables.append(read(path))
            except FileNotFoundError:
                gone = True
            except damage as error:
                faults.append((path, error))
        # Packed meanwhile: a pack is there before the files of its cells are removed.
        if not gone and _files(cells)[0] == packs:
            return (_latest(pa.concat_tables(tables)) if tables else None), faults


def _latest(table: pa.Table) -> pa.Table:
    table = table.sort_by([("identity", "ascending"), ("finished_unix_s", "ascending")]).combine_chunks()
    identities = table.column("identity").combine_chunks()
    if len(table) < 2 or pc.count_distinct(identities).as_py() == len(table):
        return table
    last = pa.concat_arrays([pc.not_equal(identities[:-1], identities[1:]), pa.array([True])])
    return table.filter(last)


def pack(cells: Path, read: Read, damage: tuple[type[Exception], ...]) -> None:
    """Put finished cells into packs of ``WORTH`` rows, as many as there are for whole ones; failed cells stay.

    Does nothing where another process does it now, or where the store cannot be written: packs only make reading fast.
    """
    with suppress(OSError), _alone(cells.parent):
        packs, singles = _files(cells)
        if len(singles) < WORTH:
            return
        packed: set[tuple[str, float]] = set()
        for path in packs:
            with suppress(*damage):
                table = _read_pack(path, read)
                packed |= set(zip(*(table.column(name).to_pylist() for name in _KEY), strict=True))
        waiting: list[tuple[Path, pa.Table]] = []
        for path in singles:
            with suppress(*damage):
                row = read(path)
                if row.column("status")[0].as_py() != "done":
                    continue
                if tuple(row.column(name)[0].as_py() for name in _KEY) in packed:
                    path.unlink()  # a writer ended between a pack and this
                    continue
                waiting.append((path, row))
        for first in range(0, len(waiting) - WORTH + 1, WORTH):
            some = waiting[first : first + WORTH]
            _write_pack(cells, pa.concat_tables([row for _, row in some]))
            for path, _ in some:
                path.unlink(missing_ok=True)


_KEY = ("identity", "finished_unix_s")


def _write_pack(cells: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, write_page_checksum=True, write_statistics=False)
    content = sink.getvalue().to_pybytes()
    path = cells / f"{_PREFIX}{checksum(content)}.parquet"
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    # The pack's name must be on the disk before those of its cells are gone.
    handle = os.open(cells, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def refuse_irregular(path: Path) -> None:
    """Refuse what would be read for ever, such as a pipe.

    Raises:
        ValueError: it is no regular file.
        OSError: there is none.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("no regular file")


def _read_pack(path: Path, read: Read) -> pa.Table:
    refuse_irregular(path)
    if f"{_PREFIX}{checksum(path)}.parquet" != path.name:
        raise ValueError("a pack of cells whose content is not what its name says")
    return read(path)


def is_pack(path: Path) -> bool:
    """Whether a file holds many cells."""
    return path.name.startswith(_PREFIX)


def _files(cells: Path) -> tuple[list[Path], list[Path]]:
    """Return the packs and the files of single cells; of what is packed meanwhile, at least one of the two."""
    with os.scandir(cells) as entries:
        names = sorted(
            entry.name for entry in entries if entry.name.endswith(".parquet") and not entry.name.startswith(".")
        )
    paths = [cells / name for name in names]
    return [path for path in paths if is_pack(path)], [path for path in paths if not is_pack(path)]


@contextmanager
def _alone(store: Path) -> Iterator[None]:
    """Hold the store against other packers.

    Raises:
        OSError: another process has it.
    """
    handle = os.open(store / ".packing", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)
