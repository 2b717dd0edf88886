"""Random prompt files of every form: a right result, or one line that says why not."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headcodes import HeadcodesError, PromptPair, PromptPairs
from headcodes.prompts.files import read_pairs

CELL = st.text(max_size=20) | st.sampled_from(['"', ",", "\n", "\r\n", "[", "['a']", "|", "a|b", "\x00", "\ufeff", " "])
NAMES = st.sampled_from(
    ["clean", "corrupt", "answers", "wrong_answers", "correct_idx", "prompt", "label", "choices", "x"]
)
OFTEN = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def right_or_one_line(path: Path, skip_bad: bool) -> PromptPairs | None:
    try:
        pairs = read_pairs(path, skip_bad=skip_bad)
    except HeadcodesError:
        return None
    assert len(pairs) >= 1
    assert pairs.reading is not None
    assert len(pairs) + len(pairs.reading.left_out) == pairs.reading.n_rows
    for pair in pairs:
        assert all(isinstance(answer, (str, int)) for answer in pair.answers + pair.wrong_answers)
    return pairs


@OFTEN
@given(
    st.lists(st.lists(CELL, max_size=5), max_size=6),
    st.lists(NAMES, max_size=5),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(".csv", ","), (".csv", ";"), (".tsv", "\t")]),
)
def test_any_csv_or_tsv_is_read_or_refused(
    tmp_path: Path, rows: list[list[str]], header: list[str], quoted: bool, skip_bad: bool, form: tuple[str, str]
) -> None:
    suffix, delimiter = form
    path = tmp_path / f"a{suffix}"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        if quoted:
            csv.writer(file, delimiter=delimiter).writerows([header, *rows])
        else:
            file.write("\n".join(delimiter.join(row) for row in [header, *rows]))
    right_or_one_line(path, skip_bad)


@OFTEN
@given(
    st.tuples(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1), st.text(min_size=1)),
    st.sampled_from([(".csv", ","), (".tsv", "\t")]),
)
def test_what_csv_and_tsv_can_say_comes_back(
    tmp_path: Path, cells: tuple[str, str, str, str], form: tuple[str, str]
) -> None:
    path = tmp_path / f"a{form[0]}"
    with path.open("w", encoding="utf-8", errors="surrogatepass", newline="") as file:
        csv.writer(file, delimiter=form[1]).writerows([["clean", "corrupt", "answer", "wrong"], cells])
    pairs = read_pairs(path, leading_space="no") if "|" not in "".join(cells) and "[" not in "".join(cells) else None
    if pairs is not None:
        assert pairs[0] == PromptPair(cells[0], cells[1], (cells[2],), (cells[3],))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=12,
)


@OFTEN
@given(st.lists(JSON, max_size=4), st.binary(max_size=20), st.sampled_from([".json", ".jsonl"]), st.booleans())
def test_any_json_is_read_or_refused(
    tmp_path: Path, values: list[object], noise: bytes, suffix: str, skip_bad: bool
) -> None:
    path = tmp_path / f"a{suffix}"
    text = json.dumps(values) if suffix == ".json" else "\n".join(json.dumps(value) for value in values)
    path.write_bytes(text.encode("utf-8", "surrogatepass") + (noise if len(noise) % 4 == 0 else b""))
    right_or_one_line(path, skip_bad)


TEXT = st.text(max_size=12)
COLUMN = st.sampled_from(
    [
        (pyarrow.string(), TEXT),
        (pyarrow.large_string(), TEXT),
        (pyarrow.int64(), st.integers(-(2**40), 2**40)),
        (pyarrow.float64(), st.floats()),
        (pyarrow.bool_(), st.booleans()),
        (pyarrow.binary(), st.binary(max_size=8)),
        (pyarrow.timestamp("us"), st.datetimes()),
        (pyarrow.list_(pyarrow.string()), st.lists(st.none() | TEXT, max_size=3)),
        (pyarrow.list_(pyarrow.int64()), st.lists(st.integers(-5, 50000), max_size=3)),
        (pyarrow.struct([("prompt", pyarrow.string())]), st.fixed_dictionaries({"prompt": st.none() | TEXT})),
    ]
)


@st.composite
def tables(draw: st.DrawFn) -> pyarrow.Table:
    """A table of columns of any kind, known names among theirs, with gaps."""
    n_rows = draw(st.integers(0, 3))
    columns = {}
    for name in draw(st.lists(NAMES, max_size=5, unique=True)):
        kind, values = draw(COLUMN)
        cells = draw(st.lists(st.none() | values, min_size=n_rows, max_size=n_rows))
        columns[name] = pyarrow.array(cells, kind)
    return pyarrow.table(columns)


@OFTEN
@given(tables(), st.booleans(), st.none() | st.tuples(st.floats(0, 1), st.integers(0, 255)))
def test_any_parquet_is_read_or_refused(
    tmp_path: Path, table: pyarrow.Table, skip_bad: bool, damage: tuple[float, int] | None
) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path)
    if damage is not None:
        content = bytearray(path.read_bytes())
        content[int(damage[0] * (len(content) - 1))] = damage[1]
        path.write_bytes(content)
    right_or_one_line(path, skip_bad)


@OFTEN
@given(st.tuples(TEXT.filter(bool), TEXT.filter(bool), TEXT.filter(bool), TEXT.filter(bool)))
def test_what_parquet_can_say_comes_back(tmp_path: Path, cells: tuple[str, str, str, str]) -> None:
    path = tmp_path / "a.parquet"
    row = {"clean": cells[0], "corrupt": cells[1], "answer": [cells[2]], "wrong": [cells[3]]}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    pairs = read_pairs(path, leading_space="no")
    assert pairs[0] == PromptPair(cells[0], cells[1], (cells[2],), (cells[3],))
