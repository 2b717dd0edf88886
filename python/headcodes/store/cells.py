"""The store of a scan: one Parquet file a finished cell, written whole or not at all.

    DIR/cells/<identity>.parquet        one row (docs/store.md has the columns)
    DIR/cells/pack-<SHA-256>.parquet    rows of finished cells that had files of their own before
    DIR/arrays/<identity>.safetensors   codes and pair scores, too large for a row

A row appears when its cell is finished and never changes after that, so several processes and machines may write into
one store: the same cell gives the same bits.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from headcodes.errors import HeadcodesError, HeadcodesWarning
from headcodes.files import atomic_write, checksum, reading, regular, sweep
from headcodes.settings import SETTINGS
from headcodes.store import packs
from headcodes.store.folders import check_store_folder
from headcodes.store.parquet import read_table

# What reading a damaged file may raise.
DAMAGE = (OSError, ValueError, KeyError, pa.ArrowException)

_TYPES = {str: pa.string(), int: pa.int64(), bool: pa.bool_()}
SCHEMA = pa.schema(
    [
        ("identity", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("failure", pa.string()),
        ("budget_s", pa.float64()),
        *((name, _TYPES[kind]) for name, kind in SETTINGS.items()),
        ("prompts", pa.string()),
        ("prompt_seed", pa.int64()),
        ("family", pa.string()),
        ("bos_added", pa.bool_()),
        ("backend", pa.string()),
        *((name, pa.int64()) for name in ("n_layers", "n_heads", "d_model")),
        ("layers_without_heads", pa.list_(pa.int64())),
        ("parallel_attn_mlp", pa.bool_()),
        ("n_pairs", pa.int64()),
        ("head_scores", pa.list_(pa.float64())),
        ("mention_scores", pa.list_(pa.float64())),
        ("stable", pa.float64()),
        ("n_resamples", pa.int64()),
        *((name, pa.list_(pa.float64())) for name in ("score_low", "score_high", "selection_frequency")),
        *((name, pa.string()) for name in ("verify", "circuit", "unverified")),
        *((name, pa.string()) for name in ("method_used", "fallback", "pairs_proposed_by")),
        *((name, pa.float64()) for name in ("dead_share", "share_right", "positive_logit_diff", "negative_logit_diff")),
        ("timings_s", pa.map_(pa.string(), pa.float64())),
        *((name, pa.int64()) for name in ("held_memory_bytes", "peak_memory_bytes")),
        ("arrays_sha256", pa.string()),
        ("arrays_bytes", pa.int64()),
        ("arrays_mtime_ns", pa.int64()),
        ("versions", pa.map_(pa.string(), pa.string())),
        ("host", pa.string()),
        ("finished_unix_s", pa.float64()),
    ],
    metadata={"headcodes.store": "1"},
)


# Columns that the first stores lack.
_LATER = (
    *("failure", "budget_s", "held_memory_bytes", "arrays_bytes", "arrays_mtime_ns"),
    *("columns", "skip_bad", "leading_space", "corrupt", "chat", "system", "projection", "layers_without_heads"),
    *("stable", "n_resamples", "score_low", "score_high", "selection_frequency"),
    *("verify", "circuit", "unverified", "method_used", "fallback", "pairs_proposed_by"),
)


class Store:
    """A folder of finished cells, to be written to.

    Raises:
        HeadcodesError: the folder cannot be made or written, or is that of a run.
    """

    def __init__(self, folder: Path | str) -> None:
        check_store_folder(folder)
        self.folder = Path(folder)
        self.cells = self.folder / "cells"
        self.arrays = self.folder / "arrays"
        try:
            for place in (self.cells, self.arrays):
                place.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=place):
                    pass
                sweep(place)
        except OSError as error:
            raise self._unwritable(error) from error
        packs.pack(self.cells, _read_table, DAMAGE)
        self._n_unpacked = 0

    def _unwritable(self, error: OSError) -> HeadcodesError:
        return HeadcodesError(
            "the store of a scan must be writable",
            f"{self.folder}: {error.strerror or error}",
            "Free some space or mend the permissions, then start the same scan again: finished cells are safe.",
        )

    def write(self, row: Mapping[str, Any], arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
        """Keep one finished cell and return its row as kept. The row is written last: it is what makes a cell finished.

        Raises:
            HeadcodesError: the store cannot be written, for lack of space or permission.
        """
        from safetensors.numpy import save

        identity = row["identity"]
        try:
            kept = {name: row.get(name) for name in SCHEMA.names}
            if arrays:
                content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
                place = self.arrays / f"{identity}.safetensors"
                with atomic_write(place) as path:
                    path.write_bytes(content)
                status = place.stat()
                kept |= {"arrays_bytes": status.st_size, "arrays_mtime_ns": status.st_mtime_ns}
                kept["arrays_sha256"] = checksum(content)
            kept["finished_unix_s"] = time.time()
            table = pa.Table.from_pylist([kept], schema=SCHEMA)
            table = table.replace_schema_metadata({**(SCHEMA.metadata or {}), _SEAL: _seal(table)})
            with atomic_write(self.cells / f"{identity}.parquet") as path:
                # No statistics: no checksum covers them, and readers skip rows by them.
                pq.write_table(table, path, write_page_checksum=True, write_statistics=False)
        except OSError as error:
            raise self._unwritable(error) from error
        self._n_unpacked += kept["status"] == "done"
        if self._n_unpacked >= packs.WORTH:
            packs.pack(self.cells, _read_table, DAMAGE)
            self._n_unpacked = 0
        return kept


def statuses(folder: Path | str, identities: Iterable[str]) -> dict[str, str]:
    """Return "done" or "failed" for those cells that a store holds whole; the folder need not be there.

    Warns:
        HeadcodesWarning: see ``whole_cells``.
    """
    table = whole_cells(folder, identities)
    return dict(zip(table.column("identity").to_pylist(), table.column("status").to_pylist(), strict=True))


def whole_cells(folder: Path | str, identities: Iterable[str]) -> pa.Table:
    """Return the rows of those cells that a store holds whole, with their arrays; the folder need not be there.

    Arrays are looked into where size or time of change are not those that their row notes.

    Warns:
        HeadcodesWarning: for every damaged file; the cell will be done again.
    """
    folder = Path(folder)
    if not (folder / "cells").is_dir():
        return SCHEMA.empty_table()
    table, faults = _rows(folder)
    asked = set(identities)
    damaged = [(path, error) for path, error in faults if path.stem in asked or packs.is_pack(path)]
    wanted = []
    for number, row in enumerate(zip(*(table.column(name).to_pylist() for name in _OF_ARRAYS), strict=True)):
        identity, digest, size, changed = row
        if identity not in asked:
            continue
        path = folder / "cells" / f"{identity}.parquet"
        try:
            if digest:
                packs.refuse_irregular(array_file(path))
                status = array_file(path).stat()
                if (status.st_size, status.st_mtime_ns) != (size, changed) and checksum(array_file(path)) != digest:
                    raise ValueError(f"{identity}.safetensors is not what its row says")
            wanted.append(number)
        except (OSError, ValueError) as error:
            damaged.append((path, error))
    for path, fault in damaged:
        warnings.warn(f"damaged cell, to be done again: {path} ({fault})", HeadcodesWarning, stacklevel=3)
    return table.take(pa.array(wanted, pa.int64()))


_OF_ARRAYS = ("identity", "arrays_sha256", "arrays_bytes", "arrays_mtime_ns")


def array_file(path: Path) -> Path:
    """Return the file of the arrays that belong to the row in ``path``."""
    return path.parents[1] / "arrays" / f"{path.stem}.safetensors"


def read_arrays(folder: Path | str, row: Mapping[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a row of a store by name; none where it has none.

    Raises:
        HeadcodesError: their file is gone, or not what the row says.
    """
    from safetensors.numpy import load

    if not row["arrays_sha256"]:
        return {}
    path = Path(folder) / "arrays" / f"{row['identity']}.safetensors"
    mend = "Remove the file and run the scan again: it does the cell again."
    with reading("the arrays of a cell must be whole", path, mend):
        content = regular(path).read_bytes()
        if checksum(content) != row["arrays_sha256"]:
            raise ValueError("it is not what its row says")
        arrays: dict[str, np.ndarray[Any, Any]] = load(content)
    return arrays


# Parquet's own checksums cover pages, and not what says how they are to be read.
_SEAL = b"headcodes.xxh3"


def _seal(table: pa.Table) -> bytes:
    return xxhash.xxh3_128_hexdigest(repr(table.to_pylist()).encode()).encode()


def _read_table(path: Path) -> pa.Table:
    packs.refuse_irregular(path)
    table = read_table(path)
    if table.num_rows > packs.WORTH:
        raise ValueError(f"{table.num_rows:,} rows, where {packs.WORTH} are the most")
    if not packs.is_pack(path) and (table.num_rows != 1 or table.column("identity")[0].as_py() != path.stem):
        raise ValueError("it holds no row of its own name")
    seal = (table.schema.metadata or {}).get(_SEAL)
    if seal is not None and seal != _seal(table):
        raise ValueError("its checksum is another")
    table = table.replace_schema_metadata(SCHEMA.metadata)
    if table.schema.equals(SCHEMA):
        return table
    for name in _LATER:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, SCHEMA.field(name).type))
    return table.select(SCHEMA.names).cast(SCHEMA)


def load_store(folder: Path | str) -> pa.Table:
    """Return all cells of a store as one Arrow table (docs/store.md has the columns), in the order of their identities.

    Warns:
        HeadcodesWarning: for every damaged file, which is left out.

    Raises:
        HeadcodesError: the folder is no store.
    """
    cells = Path(folder) / "cells"
    if not cells.is_dir():
        raise HeadcodesError("a store of a scan must hold a folder 'cells'", str(folder), "Name what --store named.")
    table, faults = _rows(Path(folder))
    for path, error in faults:
        warnings.warn(f"damaged cell left out: {path} ({error})", HeadcodesWarning, stacklevel=2)
    return table


def _rows(folder: Path) -> tuple[pa.Table, list[packs.Fault]]:
    table, faults = packs.all_rows(folder / "cells", _read_table, DAMAGE)
    return SCHEMA.empty_table() if table is None else table, faults
