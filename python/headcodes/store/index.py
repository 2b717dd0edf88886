"""The index of a store: the rows of all cells read so far in one Parquet file, so that a large store is read at once.

It lies beside the cells, is made from them alone, and may be removed at any time. It is believed of a cell only where
the size and the time of change of the cell's own file are those that were noted when that file was read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from headcodes.files import atomic_write

_FILE = "index.parquet"
# Fewer cells than this are read again rather than noted.
_WORTH = 200
_NOTED = [("file_bytes", pa.int64()), ("file_mtime_ns", pa.int64())]


def indexed(
    folder: Path, schema: pa.Schema, read: Callable[[Path], pa.Table], damage: tuple[type[Exception], ...]
) -> tuple[pa.Table, list[tuple[Path, Exception]]]:
    """Return the rows of all cells of a store, by identity, and the files that are damaged.

    Args:
        folder: of the store.
        schema: of a row.
        read: reads the file of one cell.
        damage: what it raises over a damaged one.
    """
    cells = folder / "cells"
    files = {}
    with os.scandir(cells) as entries:
        for entry in entries:
            if entry.name.endswith(".parquet") and not entry.name.startswith("."):
                # Noted before the file is read: one that is replaced in between is read again the next time.
                with suppress(OSError):
                    status = entry.stat()
                    files[entry.name.removesuffix(".parquet")] = status.st_size, status.st_mtime_ns
    known = _known(folder / _FILE, schema, files, damage)
    noted = set(known.column("identity").to_pylist())
    tables, faults = [known], []
    for name in sorted(files.keys() - noted):
        try:
            row = read(cells / f"{name}.parquet")
        except damage as error:
            faults.append((cells / f"{name}.parquet", error))
            continue
        for (column, kind), value in zip(_NOTED, files[name], strict=True):
            row = row.append_column(column, pa.array([value], kind))
        tables.append(row)
    whole = pa.concat_tables(tables).sort_by("identity").combine_chunks()
    if len(tables) > _WORTH:
        # A store that can only be read has no index.
        with suppress(OSError), atomic_write(folder / _FILE) as path:
            pq.write_table(whole, path, write_page_checksum=True, write_statistics=False)
    return whole.select(schema.names), faults


def _known(
    path: Path, schema: pa.Schema, files: dict[str, tuple[int, int]], damage: tuple[type[Exception], ...]
) -> pa.Table:
    whole = pa.schema([*schema, *(pa.field(*each) for each in _NOTED)])
    empty = whole.empty_table()
    try:
        if not path.is_file():
            return empty
        table = pq.ParquetFile(path, page_checksum_verification=True).read()
        if table.column_names != whole.names:
            return empty
        table = table.cast(whole)
    except damage:
        return empty  # made anew from the cells
    columns: list[list[Any]] = [table.column(name).to_pylist() for name in ("identity", *(name for name, _ in _NOTED))]
    same = [files.get(name) == (size, changed) for name, size, changed in zip(*columns, strict=True)]
    return table.filter(np.array(same, dtype=bool))
