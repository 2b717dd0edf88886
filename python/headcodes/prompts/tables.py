"""Rows of tables: JSON, JSON lines, CSV, TSV, Parquet, and data sets through the ``datasets`` library.

No schema of pydantic's here, as other files from elsewhere have: a prompt file may name its columns as it likes, a
broken row is to be left out and counted by its fault (``--skip-bad``), and all forms share one way from row to pair.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from headcodes.errors import HeadcodesError, missing_package
from headcodes.files import read_json, read_text, reading, regular
from headcodes.prompts.rows import RowError
from headcodes.settings import MOST_PROMPTS, check_names

FORM = '{"prompts": [{"clean": "...", "corrupt": "...", "answers": [" yes"], "wrong_answers": [" no"]}]}'
SUFFIXES = {".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv"}
SUFFIXES |= {".parquet": "parquet", ".pq": "parquet"}

# A row: where it stands, and its cells by column; or what is wrong with it.
Row = tuple[str, "Mapping[str, Any] | RowError"]


def read_rows(source: str) -> tuple[str, list[Row], dict[str, str]]:
    """Return the form of a prompt file or data set, its rows, and what our JSON says of itself (task, negative).

    Raises:
        HeadcodesError: it cannot be read, is not of its form, or has no rows.
    """
    about: dict[str, str] = {}
    if source.startswith("hf:"):
        form, rows = "data set", _data_set(source)
    else:
        path = Path(source)
        form = SUFFIXES.get(path.suffix.lower(), "json")
        if form == "json":
            rows, about = _json(path)
        else:
            rows = {"jsonl": _jsonl, "csv": _csv, "tsv": _csv, "parquet": _parquet}[form](path)
    if not rows:
        raise HeadcodesError(f"{source} must hold at least one prompt", "no rows", "Check the file.")
    return form, rows, about


def _text(path: Path, form: str) -> str:
    return read_text(path, f"a prompt file ({form})", "Check the path, and save it as UTF-8.")


def _json(path: Path) -> tuple[list[Row], dict[str, str]]:
    """Read our form, or a list of rows; the second value is what our form says of itself."""
    record = read_json(path, "a prompt file (JSON)", "Mend the file or write it again.")
    rows = record.get("prompts") if isinstance(record, dict) else record
    if not isinstance(rows, list) or not rows:
        raise HeadcodesError(
            f"the prompt file {path} must hold an object with a list 'prompts' of at least one prompt",
            "an empty list" if rows == [] else f"a top-level {type(record).__name__} without such a list",
            f"Write it as {FORM}.",
        )
    about: dict[str, str] = {}
    if isinstance(record, dict):
        about = {"task": record.get("task", path.stem), "negative": record.get("negative", "custom")}
        for key, value in about.items():
            if not isinstance(value, str):
                raise HeadcodesError(f"'{key}' of {path} must be a string", repr(value), "Leave it out or name it.")
            check_names(**{f"{key} of {path}": value})
    return [(where := f"prompt {index} of {path}", _object(row, where)) for index, row in enumerate(rows)], about


def _object(row: Any, where: str) -> Mapping[str, Any] | RowError:
    if isinstance(row, dict):
        return row
    got = type(row).__name__
    return RowError(f"{where} must be an object", got, f"Write rows like those of {FORM}.", "not an object")


def _jsonl(path: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(_text(path, "JSON lines").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"line {number} of {path}"
        try:
            rows.append((where, _object(json.loads(line), where)))
        except (ValueError, RecursionError) as error:
            rows.append((where, RowError(f"{where} must be JSON", str(error), "Mend the line.", "not JSON")))
    return rows


def _csv(path: Path) -> list[Row]:
    text = _text(path, "CSV")
    delimiter = "\t" if SUFFIXES[path.suffix.lower()] == "tsv" else ","
    first = text.partition("\n")[0]
    if delimiter == "," and "," not in first and ";" in first:
        delimiter = ";"  # what spreadsheets write where a comma is the decimal sign
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    line = 1
    try:
        header = next(lines, [])
        twice = [name for name in header if name and header.count(name) > 1]
        if twice:
            raise HeadcodesError(f"every column of {path} must have its own name", f"{twice[0]!r} twice", "Rename one.")
        line = lines.line_num + 1
        for cells in lines:
            where, line = f"line {line} of {path}", lines.line_num + 1
            if not cells:
                continue
            if len(cells) != len(header):
                got = f"{len(cells)} for {len(header)} columns"
                mend = "Quote fields that hold the delimiter."
                rows.append((where, RowError(f"{where} must have a field a column", got, mend, "of another length")))
            else:
                rows.append((where, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        raise HeadcodesError(
            f"the prompt file {path} must be CSV with double quotes", f"{error} from line {line} on", "Mend its quotes."
        ) from error
    return rows


def _parquet(path: Path) -> list[Row]:
    from headcodes.store.parquet import read_table

    mend = "Check the file; pyarrow and pandas write such ones, or take CSV or JSON lines."
    with reading("a prompt file (Parquet) must be whole, and within limits", path, mend):
        table = read_table(regular(path))
        if table.num_rows > MOST_PROMPTS:
            raise ValueError(f"{table.num_rows:,} rows, where {MOST_PROMPTS:,} are the most")
        names = table.column_names
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"column {twice[0]!r:.80} twice")
        rows = table.to_pylist()
    return [(f"row {index} of {path}", row) for index, row in enumerate(rows)]


def _data_set(source: str) -> list[Row]:
    try:
        import datasets
    except ImportError as error:
        raise missing_package("datasets", source) from error
    name, _, split = source.removeprefix("hf:").partition(":")
    folder = Path(name)
    try:
        # From version 4 on the library runs no code of data sets; before, it must be told not to.
        options = {} if int(datasets.__version__.split(".")[0]) >= 4 else {"trust_remote_code": False}
        saved = folder.is_dir() and any((folder / mark).exists() for mark in ("dataset_dict.json", "state.json"))
        found: Any = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, **options)
        if isinstance(found, dict):
            if not split and len(found) == 1:
                split = next(iter(found))
            if split not in found:
                raise HeadcodesError(
                    f"a split of {name} must be named: hf:{name}:SPLIT", repr(split), f"It has {', '.join(found)}."
                )
            found = found[split]
        table = found.to_list()
    except HeadcodesError:
        raise
    except Exception as error:  # the library raises many kinds, for many reasons
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise HeadcodesError(
            f"the data set {source} must be readable", reason[:300], "Check its name, and that it can be reached."
        ) from error
    return [(f"row {index} of {source}", row) for index, row in enumerate(table)]
