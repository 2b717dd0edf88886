"""Parquet read within limits: what footers say of pages is not believed, and nothing in one ends the process."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headcodes.errors import HeadcodesError
from headcodes.prompts.files import read_pairs
from headcodes.store import parquet
from headcodes.store.cells import DAMAGE

ROWS = [
    {"clean": f"The {i} cat", "corrupt": f"The {i} dog", "answers": [" a", " b"][: i % 3], "about": {"n": i, "x": None}}
    for i in range(90)
]
TABLE = pa.Table.from_pylist(ROWS)


def equal(text: str, n: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, np.int32)), pa.array([text])).cast(pa.string())


def in_one_list(values: pa.Array) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def varint(n: int, width: int) -> bytes:
    """A positive whole number as Thrift writes it, in as many bytes as asked."""
    parts = [(2 * n >> 7 * i) & 127 | 128 for i in range(width)]
    return bytes([*parts[:-1], parts[-1] & 127])


def deny(path: Path, n: int, said: int) -> None:
    """Let the footer of a file say another number wherever it says ``n``."""
    content = path.read_bytes()
    at = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    width = -(-(2 * n).bit_length() // 7)
    assert varint(n, width) in content[at:]
    path.write_bytes(content[:at] + content[at:].replace(varint(n, width), varint(said, width)))


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"compression": "zstd", "data_page_version": "2.0"},
        {"use_dictionary": False, "row_group_size": 20},
        {"use_dictionary": False, "column_encoding": dict.fromkeys(("clean", "corrupt"), "DELTA_BYTE_ARRAY")},
        {"write_page_checksum": True, "store_schema": False, "data_page_size": 100, "write_page_index": True},
        {"compression": "none", "write_statistics": False, "coerce_timestamps": "ms"},
    ],
)
@pytest.mark.parametrize("limit", [parquet.MAX_BYTES, 1 << 16], ids=["whole", "as places in dictionaries"])
def test_what_pyarrow_writes_comes_back(
    tmp_path: Path, how: dict[str, Any], limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet, "MAX_BYTES", limit)
    pq.write_table(TABLE, tmp_path / "a.parquet", **how)
    if limit < 1 << 20 and "column_encoding" in how:
        with pytest.raises(OSError, match="Delta"):
            parquet.read_table(tmp_path / "a.parquet")
        return
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == ROWS
    about = pq.ParquetFile(tmp_path / "a.parquet").metadata
    columns = [about.row_group(i).column(j) for i in range(about.num_row_groups) for j in range(about.num_columns)]
    n_values, n_bytes, _ = parquet._unpacked((tmp_path / "a.parquet").read_bytes())
    assert n_values == sum(column.num_values for column in columns)
    assert n_bytes + 200 * len(columns) > sum(column.total_uncompressed_size for column in columns)  # heads of pages


def test_a_footer_that_tells_of_fewer_values(tmp_path: Path) -> None:
    """One row of a list of 100,003 equal numbers: the file has a thousand bytes, and a footer that says 1."""
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"n": in_one_list(pa.array(np.zeros(100_003)))}), path, data_page_size=1 << 30)
    deny(path, 100_003, 1)
    assert len(pq.ParquetFile(path).read()["n"][0]) == 100_003  # so pyarrow does not mind
    with pytest.raises(ValueError, match="1 values by its footer, and 100,003 in its pages"):
        parquet.read_table(path)


def test_more_values_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_VALUES", 1000)
    pq.write_table(pa.table({"n": in_one_list(pa.array(np.zeros(1001)))}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="1,001 values of"):
        parquet.read_table(tmp_path / "a.parquet")


def test_text_that_unpacks_to_more_than_memory_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """Files of two kilobytes that unpack to 40 GB each, read by a process that may take six."""
    text = equal("x" * 20_000_000, 8)
    once = {"clean": "a", "corrupt": "b", "answer": "c"}
    for name in ("flat", "list"):
        place = pa.array(np.zeros(2000, np.int32))
        many = pa.DictionaryArray.from_arrays(place, text[:1])
        table = pa.table({"clean": many} if name == "flat" else {**{k: pa.array([v]) for k, v in once.items()},
                                                                 "more": in_one_list(many)})  # fmt: skip
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path, compression="zstd", store_schema=False, row_group_size=2000)
        deny(path, pq.ParquetFile(path).metadata.row_group(0).total_byte_size, 1)
        child = subprocess.run(
            [sys.executable, "-m", "headcodes.cli", "discover", "--model", "planted-ioi", "--prompts", str(path)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)),
        )
        assert (child.returncode, child.stderr.count("\n")) == (2, 1), child.stderr
        assert f"{path}: " in child.stderr
        assert "bytes unpacked" in child.stderr


@pytest.mark.parametrize("flip", [1, 4, 16, 64, 255])
def test_no_byte_of_a_footer_ends_the_process(tmp_path: Path, flip: int) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE.select(["clean", "answers"]), path, compression="zstd", store_schema=False)
    content = path.read_bytes()
    n_refused = 0
    for at in range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        try:
            parquet.read_table(path)
        except DAMAGE:
            n_refused += 1
    assert n_refused > 100


@pytest.mark.parametrize(
    "content", [b"", b"PAR1", b"PAR1" + bytes(8) + b"PAR1", b"PAR1\xff\xff\xff\x7f\xff\xff\xff\xffPAR1"]
)
def test_no_whole_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(HeadcodesError, match=r"a\.parquet: no Parquet file, or not its whole"):
        read_pairs(tmp_path / "a.parquet")


def test_a_column_twice_is_refused(tmp_path: Path) -> None:
    columns = [pa.array(["a"])] * 4
    pq.write_table(pa.Table.from_arrays(columns, ["clean", "corrupt", "answer", "clean"]), tmp_path / "a.parquet")
    with pytest.raises(HeadcodesError, match="column 'clean' twice"):
        read_pairs(tmp_path / "a.parquet")
