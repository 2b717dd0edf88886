"""Parquet files that anybody may have written, read within limits that no part of the file is believed about.

A footer may say less than the pages behind it hold, and equal values take no room in a file and much in memory. So the
pages' own headers are added up before anything is unpacked; where text could be large, it stays a dictionary and places
in it until it is known how large. The footer is looked at here and not through pyarrow, in which asking for a column
that a damaged footer lacks ends the process.

Formats: https://parquet.apache.org/docs/file-format/metadata, written in the compact protocol of Thrift:
https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from headcodes.files import MAX_BYTES

# Values of all columns: of a store's file, a pack of cells of 60,000 heads each.
MAX_VALUES = 1 << 25
_MAX_FOOTER = 1 << 24
_BYTE_ARRAY = 6

_Struct = dict[int, Any]
# Kinds of Thrift's compact protocol.
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_WHOLE = (_I16, _I32, _I64)


def read_table(path: Path) -> pa.Table:
    """Return what a Parquet file, a regular one, holds; text that could be large is dictionaries and places in them.

    Raises:
        ValueError, OSError, pyarrow.ArrowException: it is damaged; it has more than 2^25 values or 1 GiB, unpacked; its
            text could be more than that, and is in an encoding that says too late how much it is (DELTA_BYTE_ARRAY).
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{size:,} bytes, where {MAX_BYTES:,} are the most")
    content = path.read_bytes()
    try:
        n_values, n_bytes, most_text = _unpacked(content)
    except (AttributeError, IndexError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("its footer, or the head of a page, cannot be read") from error
    _check(n_values, n_bytes)
    # Not pq.read_table, which takes twice as long to find out that it is given one file.
    file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
    if n_bytes + most_text <= MAX_BYTES:
        return file.read()
    columns = map(file.schema.column, range(len(file.schema)))
    texts = [column.path for column in columns if column.physical_type == "BYTE_ARRAY"]
    file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=texts, page_checksum_verification=True)
    table = file.read()
    _check(n_values, n_bytes + sum(_text(chunk) for column in table.columns for chunk in column.chunks))
    return table


def _check(n_values: int, n_bytes: int) -> None:
    if n_values > MAX_VALUES or n_bytes > MAX_BYTES:
        most = f"{MAX_VALUES:,} values and {MAX_BYTES:,} bytes"
        raise ValueError(f"{n_values:,} values of {n_bytes:,} bytes unpacked, where {most} are the most")


def _text(array: pa.Array) -> int:
    """Return how many bytes the text of an array has, each cell counted by itself."""
    if isinstance(array, pa.DictionaryArray):
        lengths = pc.binary_length(array.dictionary)
        return pc.sum(pc.take(lengths.cast(pa.int64()), array.indices)).as_py() or 0
    if pa.types.is_nested(array.type):
        parts = [array.keys, array.items] if isinstance(array, pa.MapArray) else array.flatten()
        return sum(map(_text, parts if isinstance(parts, list) else [parts]))
    return 0


def _unpacked(content: bytes) -> tuple[int, int, int]:
    """Return what a file unpacks to, as its pages say: values, bytes of pages and numbers, most bytes that text can be.

    A value that a page of text names is no longer than the largest page, be it a dictionary.
    """
    size = int.from_bytes(content[-8:-4], "little")
    if content[:4] != b"PAR1" or content[-4:] != b"PAR1" or not 0 < size <= min(len(content) - 12, _MAX_FOOTER):
        raise ValueError("no Parquet file, or not its whole")
    footer, _ = _struct(content, len(content) - 8 - size)
    widest = max(8, *(element.get(2, 0) for element in footer[2]))  # bytes of a number, or of other fixed length
    n_values = n_bytes = most_text = 0
    for column in (column for group in footer[4] for column in group[1]):
        about = column[3]
        first = min(about[9], about.get(11) or about[9])  # data pages, and the dictionary before them
        n_here = largest = 0
        for page in _pages(content, first, first + about[7]):
            n_here += (page.get(5) or page.get(8) or {1: 0})[1]
            n_bytes += page[2]
            largest = max(largest, page[2])
        if n_here != about[5]:
            raise ValueError(f"a column of {about[5]:,} values by its footer, and {n_here:,} in its pages")
        n_values += n_here
        n_bytes += n_here * widest
        most_text += n_here * largest if about[1] == _BYTE_ARRAY else 0
    return n_values, n_bytes, most_text


def _pages(content: bytes, at: int, end: int) -> Iterator[_Struct]:
    if not 0 <= at <= end <= len(content):
        raise ValueError("a column that lies outside the file")
    while at < end:
        page, at = _struct(content, at)
        if min(page[2], page[3], *(about.get(1, 0) for about in page.values() if isinstance(about, dict))) < 0:
            raise ValueError("a page of less than nothing")
        yield page
        at += page[3]


def _struct(data: bytes, at: int) -> tuple[_Struct, int]:
    """Return the struct that begins at a place, by the numbers of its fields, and where it ends. Text is left out."""
    fields: _Struct = {}
    number = 0
    while head := data[at]:
        kind = head & 15
        value = data[at + 1]
        at += 2
        if head < 16:
            number, at = _value(data, at - 1, _I16)
            fields[number], at = _value(data, at, kind)
            continue
        number += head >> 4
        # What most fields are, without a call.
        if value < 128 and kind in _WHOLE:
            fields[number] = (value >> 1) ^ -(value & 1)
        elif value < 128 and kind == _BINARY:
            at += value
        elif kind == _STRUCT:
            fields[number], at = _struct(data, at - 1)
        elif kind in (_TRUE, _FALSE):
            at -= 1
        else:
            fields[number], at = _value(data, at - 1, kind)
    return fields, at + 1


def _value(data: bytes, at: int, kind: int) -> tuple[Any, int]:
    if kind in _WHOLE:
        n, at = _varint(data, at)
        return (n >> 1) ^ -(n & 1), at
    if kind == _BINARY:
        n, at = _varint(data, at)
        return None, at + n
    if kind == _STRUCT:
        return _struct(data, at)
    if kind in (_TRUE, _FALSE, _BYTE):
        return data[at], at + 1
    if kind == _DOUBLE:
        return None, at + 8
    if kind in (_LIST, _SET):
        head, at = data[at], at + 1
        n, at = (head >> 4, at) if head >> 4 < 15 else _varint(data, at)
        items = []
        for _ in range(n):
            item, at = _value(data, at, head & 15)
            items.append(item)
        return items, at
    raise ValueError("a footer with something that Parquet has not")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    n = 0
    for place in range(10):
        byte = data[at]
        at += 1
        n |= (byte & 127) << 7 * place
        if byte < 128:
            return n, at
    raise ValueError("a number of more than 64 bits")
